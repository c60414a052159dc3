"""A node that is lost in the middle of a round is named, until it is back or out for good."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tacit.cli.run import missing_nodes
from tacit.protos import control_pb2 as control
from tacit.server.configuration import TimesConfig
from tests.server.federation import Federation, federation, specification

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.slow


async def begun(fed: Federation, lost: str) -> str:
    """Start a run of all nodes, and give its id once one of them sits on its message."""
    node = fed.nodes[lost]
    node.silent = True
    for each in fed.nodes.values():
        each.start()
    run_id = await fed.submit(specification(rounds=1, min_clients=len(fed.nodes)))
    await asyncio.wait_for(node.ready.wait(), 20)
    return run_id


def presence(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str, str | None]]:
    return [
        (kind, fields["member"], fields.get("code"))
        for kind, fields in events
        if kind in ("node_left", "node_joined")
    ]


def test_a_node_that_comes_back_is_named_twice(tmp_path: Path) -> None:
    """Lost and back are events with its name; meanwhile the run says who is missing since when."""

    async def scenario() -> None:
        before = time.time() - 1
        async with federation(tmp_path, nodes=3, times=TimesConfig(grace_s=0.05)) as fed:
            run_id = await begun(fed, "node-2")
            node = fed.nodes["node-2"]
            await node.stop()
            await fed.events(run_id, until="node_left")
            shown = await fed.show(run_id)
            (missing,) = missing_nodes(shown)
            assert missing["member"] == "node-2"
            seen = {each.member: each.last_seen_at_s for each in shown.decisions}
            assert before < seen["node-2"] <= time.time()
            node.silent = False
            node.start()
            events = await fed.events(run_id)
            assert presence(events) == [
                ("node_left", "node-2", ""),
                ("node_joined", "node-2", None),
            ]
            assert missing_nodes(await fed.show(run_id)) == []

    asyncio.run(scenario())


def test_a_node_that_is_revoked_is_named_with_the_reason(tmp_path: Path) -> None:
    """It had answered already, so that no failed reply tells of it."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            run_id = await begun(fed, "node-1")
            async with fed.control() as stub:
                await fed.events(run_id, until="reply_received")
                await stub.Revoke(control.RevokeRequest(name="node-0"))
                found = presence(await fed.events(run_id, until="node_left"))
                await stub.StopRun(control.StopRunRequest(run_id=run_id))
            assert found == [("node_left", "node-0", "E-MEMBER-REVOKED")]

    asyncio.run(scenario())
