"""Who is connected: a stream takes the place of a dead one, and two nodes of one identity show."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tacit.server.sessions import Sessions
from tests.server.federation import Node, federation, specification

if TYPE_CHECKING:
    from pathlib import Path


def test_a_stream_in_the_place_of_a_dead_one_is_no_alarm() -> None:
    """One change is counted as one, and a stream that ended by itself leaves no place to take."""
    sessions = Sessions()
    first = sessions.open(7)
    second = sessions.open(7)
    assert (first.replaced, first.closed, second.taken) == (True, True, 1)
    sessions.end(first)
    assert sessions.connected(7)
    sessions.end(second)
    assert sessions.open(7).taken == 0


def test_streams_that_take_one_another_s_place_are_counted() -> None:
    """Two nodes with one identity: each takes the other's place, again and again."""
    sessions = Sessions()
    assert [sessions.open(7).taken for _ in range(4)] == [0, 1, 2, 3]
    assert sessions.open(8).taken == 0


def test_a_stream_that_was_closed_for_another_reason_was_not_replaced() -> None:
    """A node that was too slow comes back: nobody has taken its place."""
    sessions = Sessions()
    slow = sessions.open(7)
    slow.close()
    assert sessions.open(7).taken == 0
    assert not slow.replaced


@pytest.mark.slow
def test_two_nodes_with_one_identity_are_told_and_the_operator_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each that loses its place learns why; the server's log and the run's events name it."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            one = fed.nodes["node-0"]
            two = Node(membership=one.membership, address=one.address)
            one.silent = two.silent = True
            one.start()
            run_id = await fed.submit(specification(min_clients=1))
            await asyncio.wait_for(one.ready.wait(), 20)
            for loser, winner in ((one, two), (two, one)):
                assert loser.task is not None
                winner.ready.clear()
                winner.start()
                await asyncio.wait_for(loser.task, 20)
                assert loser.code == "E-NODE-TWICE"
                await asyncio.wait_for(winner.ready.wait(), 20)
            *_, (_, fields) = await fed.events(run_id, until="node_refused")
            assert (fields["member"], fields["code"]) == ("node-0", "E-NODE-TWICE")
            await one.stop()

    with caplog.at_level(logging.WARNING, logger="tacit.server.fleet"):
        asyncio.run(scenario())
    (said,) = [record for record in caplog.records if "twice" in record.message]
    assert said.__dict__["fields"]["member"] == "node-0"
