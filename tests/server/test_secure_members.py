"""Whose names a run with secure aggregation may give, and whom it waits for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from tacit.core.errors import ConfigError
from tacit.core.specification import SecureAggregationSpec
from tacit.protos import fleet_pb2 as fleet
from tacit.server.manifest import verify_enrolled
from tests.server.federation import code_of, federation, specification

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.specification import RunSpec


def summing(*members: str) -> RunSpec:
    return replace(
        specification(min_clients=3), secure_aggregation=SecureAggregationSpec(members=members)
    )


def test_members_who_are_not_enrolled_are_named() -> None:
    """The operator hears which names are wrong, and none where all are right."""
    verify_enrolled(("ada", "bo"), {"bo", "ada", "cy"})
    with pytest.raises(ConfigError, match="not so: cy, di") as caught:
        verify_enrolled(("ada", "cy", "di"), ["ada", "bo"])
    assert caught.value.code == "E-SECAGG-MEMBER"


@pytest.mark.slow
def test_a_run_that_names_a_stranger_is_refused_when_it_is_submitted(tmp_path: Path) -> None:
    """Nobody is offered it, and it takes no place in the queue; an operator is no client."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for stranger in ("node-2", "o"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await fed.submit(summing("node-0", "node-1", stranger))
                assert code_of(refused.value) == "E-SECAGG-MEMBER"
            assert fed.daemon is not None
            assert fed.daemon.scheduler.counts() == (0, 0)
            assert not list((tmp_path / "s" / "runs").iterdir())

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_run_starts_with_its_members_and_without_whoever_is_none(tmp_path: Path) -> None:
    """A connected client that is no member denies: it is shown as such, and never counted."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=4) as fed:
            *members, other = fed.nodes.values()
            other.verdict = fleet.Decision.DENIED
            other.start()
            run_id = await fed.submit(summing("node-0", "node-1", "node-2"))
            await fed.events(run_id, until="node_decided")
            for node in members:
                node.start()
            events = await fed.events(run_id, until="run_started")
            assert sorted(events[-1][1]["cohort"]) == ["node-0", "node-1", "node-2"]
            waited = [fields["reason"] for kind, fields in events if kind == "run_waiting"]
            assert "1 denied (node-3" in waited[-1]

    asyncio.run(scenario())
