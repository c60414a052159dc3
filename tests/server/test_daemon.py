"""The daemon over real sockets: runs, restarts, revocation, interrupted uploads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.server.federation import federation, specification

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def kinds(events: list[tuple[str, dict[str, object]]]) -> list[str]:
    return [kind for kind, _ in events]


def test_a_run_goes_from_submission_to_its_end(tmp_path: Path) -> None:
    """Two nodes approve, answer every round, and the run finishes with every reply counted."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification())
            events = await fed.events(run_id)
            finished = [fields for kind, fields in events if kind == "round_finished"]
            assert [f["metrics"] for f in finished] == [
                {"total": 4000.0, "replies": 2},
                {"total": 6000.0, "replies": 2},
            ]
            assert kinds(events)[-1] == "run_finished"
            assert kinds(events).count("reply_received") == 4
            assert (await fed.show(run_id)).status == "finished"
            await asyncio.gather(*(node.ended.wait() for node in fed.nodes.values()))
            assert all(len(node.closed) == 2 for node in fed.nodes.values())

    asyncio.run(scenario())
