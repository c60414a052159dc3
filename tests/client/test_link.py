"""The daemon's link and deliveries against a server that breaks, over mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.dispatch import Dispatcher
from tacit.client.link import Link
from tacit.core.errors import TrustError
from tacit.protos import fleet_pb2
from tacit.protos.channel import abort_with
from tests.client.fake_fleet import Domain, FakeFleet, eventually
from tests.client.fakes import (
    MODEL,
    RUN,
    FakeRunner,
    make_config,
    make_node,
    make_spec,
    manifest_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.core.certificates import Authority

pytestmark = pytest.mark.slow

LARGE = {"w": np.arange(5000, dtype=np.float32)}
REPLY = b"".join(array.tobytes() for array in MODEL.values())


@dataclass
class Scene:
    """A node whose daemon parts run in this event loop."""

    node: Node
    runner: FakeRunner
    dispatcher: Dispatcher
    link: asyncio.Task[None]

    async def until_forgotten(self, head: fleet_pb2.InstructionHead) -> None:
        """Wait until the node keeps nothing of a message."""
        await eventually(lambda: self.node.store.load_reply(head.message_id) is None)

    async def until_broken(self) -> str:
        """Wait until the link has failed, and say how."""
        await eventually(lambda: self.dispatcher.last_error is not None)
        assert self.dispatcher.last_error is not None
        return self.dispatcher.last_error.code


@contextlib.asynccontextmanager
async def playing(
    folder: Path, domain: Domain, port: int, *, trusts: Authority | None = None
) -> AsyncIterator[Scene]:
    node, runner = make_node(folder, make_config(folder))
    membership = domain.member(folder / "identity", port, trusts=trusts)
    rng = random.Random(1)  # noqa: S311 - waiting times
    with ThreadPoolExecutor(4) as executor:
        dispatcher = Dispatcher(node, executor, rng=rng)
        link = Link(
            membership,
            dispatcher,
            request=lambda: fleet_pb2.JoinRequest(protocol_version=1),
            verify=lambda _joined: None,
            rng=rng,
        )
        task = asyncio.create_task(link.run())
        try:
            yield Scene(node, runner, dispatcher, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await dispatcher.close()


def test_run_is_decided_answered_and_forgotten(tmp_path: Path) -> None:
    """Offer, decision, instruction, reply, receipt, and nothing kept once the round is closed."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                await fleet.until(lambda: fleet.decisions)
                assert fleet.decisions[0].verdict == fleet_pb2.Decision.APPROVED
                head = fleet.add()
                fleet.ready(head)
                await fleet.until(lambda: fleet.has(head))
                received = fleet.replies[head.message_id]
                assert bytes(received.data) == REPLY
                assert received.head.manifest.payload_bytes == len(REPLY)
                fleet.closed(head)
                await scene.until_forgotten(head)
                await eventually(lambda: not list((tmp_path / "outbox").iterdir()))

    asyncio.run(scenario())


def test_broken_streams_are_resumed_and_the_app_runs_once(tmp_path: Path) -> None:
    """A Fetch and a Submit that break in the middle go on there."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            fleet.chunk_bytes = 4096
            fleet.break_fetch_at, fleet.break_submit_at = 8192, 12288
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                scene.runner.make = lambda _: manifest_of(LARGE, {"num-examples": 1})
                head = fleet.add(model=LARGE)
                fleet.ready(head)
                await fleet.until(lambda: fleet.has(head))
                assert fleet.fetches == [0, 8192]
                assert fleet.submits == [0, 12288]
                assert bytes(fleet.replies[head.message_id].data) == LARGE["w"].tobytes()
                assert len(scene.runner.calls) == 1

    asyncio.run(scenario())


def test_server_that_comes_back_gets_the_stored_reply(tmp_path: Path) -> None:
    """A reply that was made while the server was away is sent, not made again, when it is back."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                head = fleet.add()
                fleet.break_submit_at = 8
                fleet.ready(head)
                await fleet.until(lambda: fleet.submits)
                await server.stop(None)
                assert scene.node.store.load_reply(head.message_id) is not None
                second = FakeFleet(make_spec())
                second.instructions = fleet.instructions
                server, _ = await domain.serve(second, port)
                await second.until(lambda: second.has(head))
                assert bytes(second.replies[head.message_id].data) == REPLY
                assert second.fetches == []
                assert len(scene.runner.calls) == 1

    asyncio.run(scenario())


def test_restarted_node_sends_what_its_predecessor_stored(tmp_path: Path) -> None:
    """A killed daemon's stored reply is offered by the next one."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            fleet.forged_receipt = bytes(32)  # so that the first daemon never counts it as received
            _server, port = await domain.serve(fleet)
            head = fleet.add()
            async with playing(tmp_path, domain, port):
                fleet.offer()
                fleet.ready(head)
                await fleet.until(lambda: fleet.has(head))
            fleet.replies.clear()
            fleet.forged_receipt = b""
            async with playing(tmp_path, domain, port) as scene:
                await fleet.until(lambda: fleet.has(head))
                assert scene.runner.calls == []

    asyncio.run(scenario())


def test_revoked_node_stops_with_one_clear_error(tmp_path: Path) -> None:
    """The link ends for good only when the server says so."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.send(fleet_pb2.Task(revoked=fleet_pb2.Revoked()))
                with pytest.raises(TrustError) as caught:
                    await asyncio.wait_for(scene.link, 30)
                assert caught.value.code == "E-MEMBER-REVOKED"

    asyncio.run(scenario())


def test_server_of_another_authority_is_refused_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said to a server whose certificate is not from our authority."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            other = Domain.create()
            async with playing(tmp_path, domain, port, trusts=other.authority) as scene:
                assert await scene.until_broken() == "E-SERVER-CERTIFICATE"
                assert not scene.link.done()
            assert fleet.joins == 0

    with caplog.at_level(logging.INFO, "tacit"):
        asyncio.run(scenario())
    assert [record.exc_info for record in caplog.records] == [None]


def test_unreachable_server_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempts go on quietly; the node connects as soon as there is a server."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            server, port = await domain.serve(fleet)
            await server.stop(None)
            async with playing(tmp_path, domain, port) as scene:
                assert await scene.until_broken() == "E-SERVER-UNREACHABLE"
                _server, _ = await domain.serve(fleet, port)
                await fleet.until(lambda: fleet.joins)

    with caplog.at_level(logging.INFO, "tacit"):
        asyncio.run(scenario())
    events = [record.getMessage() for record in caplog.records]
    assert events.count("not connected; trying again for ever") == 1


def test_silent_server_is_left(tmp_path: Path) -> None:
    """A connection without a sign of life is broken off and made anew."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            fleet.heartbeats = False
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                assert await scene.until_broken() == "E-SERVER-SILENT"
                await fleet.until(lambda: fleet.joins == 2)

    asyncio.run(scenario())


def test_stream_that_lies_about_its_size_reaches_no_app(tmp_path: Path) -> None:
    """More bytes than the head says are refused; the node goes on."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            fleet.extra = b"more"
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                first = fleet.add(1)
                fleet.ready(first)
                await fleet.until(lambda: fleet.decisions)
                await eventually(lambda: first.message_id not in scene.dispatcher._messages)
                fleet.extra = b""
                second = fleet.add(2)
                fleet.ready(second)
                await fleet.until(lambda: fleet.has(second))
                assert first.message_id not in fleet.replies
                assert len(scene.runner.calls) == 1

    asyncio.run(scenario())


def test_instruction_above_the_owners_limit_is_answered_with_a_code(tmp_path: Path) -> None:
    """What is too large is refused at its head, and the server hears why."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                head = fleet.add()
                head.manifest.payload_bytes = 1 << 40
                fleet.ready(head)
                await fleet.until(lambda: fleet.has(head))
                assert fleet.replies[head.message_id].head.failure.reason == "E-MANIFEST-TOO-LARGE"
                assert scene.runner.calls == []

    asyncio.run(scenario())


def test_hostile_tasks_are_dropped(tmp_path: Path) -> None:
    """Ids that are paths, and tasks nobody knows, do no harm."""

    async def scenario() -> None:
        fleet = FakeFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port):
                bad = "../../etc"
                fleet.send(fleet_pb2.Task())
                fleet.send(fleet_pb2.Task(offer=fleet_pb2.RunOffer(run_id=bad)))
                fleet.send(fleet_pb2.Task(ended=fleet_pb2.RunEnded(run_id=bad)))
                ready = fleet_pb2.MessageReady(run_id=RUN, message_id=bad)
                fleet.send(fleet_pb2.Task(ready=ready))
                fleet.send(fleet_pb2.Task(offer=fleet_pb2.RunOffer(run_id=RUN)))
                fleet.offer()
                await fleet.until(lambda: fleet.decisions)
                assert fleet.fetches == []

    asyncio.run(scenario())


class ForkedFleet(FakeFleet):
    """A server that has seen another history of this node's ledger, as it says of each reply."""

    async def Submit(self, frames: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        async for _ in frames:
            pass
        await abort_with(context, TrustError("E-LEDGER-FORK", "seen otherwise"))


def test_a_refused_claim_ends_the_link(tmp_path: Path) -> None:
    """A node whose ledger the server contradicts does not stay connected to release more."""

    async def scenario() -> None:
        fleet = ForkedFleet(make_spec())
        async with Domain.create() as domain:
            _server, port = await domain.serve(fleet)
            async with playing(tmp_path, domain, port) as scene:
                fleet.offer()
                head = fleet.add()
                fleet.ready(head)
                assert await scene.until_broken() == "E-LEDGER-FORK"
                assert scene.dispatcher.link is None

    asyncio.run(scenario())
