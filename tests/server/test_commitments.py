"""What owners commit to comes before a run starts, and a twin is checked value by value."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from tacit.core.artifacts import RunFolder, save_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import RefusedError, UsageError
from tacit.core.specification import CanarySpec, RunSpec, canonical_json
from tacit.core.twins import twin_of
from tacit.protos import control_pb2, fleet_pb2
from tacit.protos.frames import open_fleet
from tacit.server.audits import verify_twin
from tacit.server.catalogue import RunRecord, RunStatus
from tacit.server.manifest import RunManifest, write_commitments
from tests.server.federation import code_of, federation

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.federation import Federation, Node

RUN_ID = "r-0000000a"
RUN: dict[str, Any] = {
    "name": "small",
    "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
    "model": {"kind": "logistic"},
    "training": {"learning_rate": 0.5},
    "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
    "participation": {"rounds": 2},
}
SPEC = from_plain(RUN, RunSpec)
CANARIES = CanarySpec(directions=40, run=RUN_ID)
TWIN = twin_of(SPEC, CANARIES)
PLANNED = twin_of(
    replace(SPEC, participation=replace(SPEC.participation, min_clients=1)),
    CanarySpec(directions=40),
)


def test_the_manifest_has_what_was_committed_to_before_the_run(tmp_path: Path) -> None:
    """As the daemon told the worker, and again for a worker that starts again."""
    folder = RunFolder(tmp_path / "run").create()
    write_commitments(folder, {7: "aa", 5: "bb"})
    assert RunManifest.begin(folder, RUN_ID, TWIN).commitments == {"5": "bb", "7": "aa"}
    again = RunManifest.begin(folder, RUN_ID, TWIN, finished_rounds=1)
    assert again.commitments == {"5": "bb", "7": "aa"}


def test_a_run_without_canaries_has_no_such_key(tmp_path: Path) -> None:
    """Its manifest is what it was."""
    folder = RunFolder(tmp_path / "run").create()
    RunManifest.begin(folder, RUN_ID, SPEC)
    assert "commitments" not in json.loads(folder.manifest.read_bytes())


async def told(node: Node, run_id: str, commitment: bytes) -> str:
    """Say yes with a commitment; return the code of the refusal, or nothing."""
    decision = node.decision(run_id, fleet_pb2.Decision.APPROVED)
    decision.canary_commitment = commitment
    async with node.channel() as channel:
        try:
            await open_fleet(channel).Decide(decision)
        except grpc.aio.AioRpcError as error:
            return code_of(error)
    return ""


async def offered(fed: Federation, spec: RunSpec) -> str:
    """Submit a run, and let every node hear of it and leave it pending."""
    for node in fed.nodes.values():
        node.verdict, node.silent = fleet_pb2.Decision.PENDING, True
        node.start()
    run_id = await fed.submit(spec)
    heard: set[str] = set()
    async with asyncio.timeout(20), fed.control() as stub:
        async for event in stub.WatchRun(control_pb2.WatchRunRequest(run_id=run_id)):
            if event.kind == "node_decided":
                heard.add(json.loads(event.fields_json)["member"])
            if heard == set(fed.nodes):
                break
    return run_id


def committed(events: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    return {
        fields["member"]: fields["commitment"]
        for kind, fields in events
        if kind == "canaries_committed"
    }


@pytest.mark.slow
def test_a_yes_to_canaries_carries_a_commitment(tmp_path: Path) -> None:
    """Without 32 bytes it is no yes; the first ones stand, and over a restart of the daemon."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            one, _ = fed.nodes.values()
            run_id = await offered(fed, PLANNED)
            assert await told(one, run_id, b"") == "E-DECISION-COMMITMENT"
            assert await told(one, run_id, bytes(31)) == "E-DECISION-COMMITMENT"
            assert await told(one, run_id, b"a" * 32) == ""
            for node in fed.nodes.values():
                await node.stop()
            await fed.stop()
            await fed.start()
            assert await told(one, run_id, b"b" * 32) == "E-CANARY-COMMITMENT"
            events = await fed.events(run_id, until="canaries_committed")
            assert committed(events) == {"node-0": (b"a" * 32).hex()}
            assert await told(one, run_id, b"a" * 32) == ""

    asyncio.run(scenario())


@pytest.mark.slow
def test_who_commits_after_the_start_takes_no_part(tmp_path: Path) -> None:
    """The run waits for every connected owner's word; one who comes later is left out of it."""

    async def scenario() -> None:
        async with federation(tmp_path, "--cohort", "1", nodes=3) as fed:
            one, two, late = fed.nodes.values()
            late_task = fed.nodes.pop("node-2")
            run_id = await offered(fed, PLANNED)
            assert await told(one, run_id, b"a" * 32) == ""
            assert (await fed.show(run_id)).status == "waiting"  # for node-1, who may still commit
            assert await told(two, run_id, b"b" * 32) == ""
            events = await fed.events(run_id, until="run_started")
            assert sorted(committed(events)) == ["node-0", "node-1"]
            late.offers[run_id] = one.offers[run_id]
            assert await told(late, run_id, b"c" * 32) == "E-CANARIES-LATE"
            assert await told(one, run_id, b"a" * 32) == ""
            fed.nodes["node-2"] = late_task
            async with fed.control() as stub:
                await stub.StopRun(control_pb2.StopRunRequest(run_id=run_id))
            events = await fed.events(run_id)
            assert sorted(committed(events)) == ["node-0", "node-1"]
            said = [fields for kind, fields in events if kind == "node_decided"]
            (last,) = (f for f in said if f["member"] == "node-2")
            assert (last["verdict"], last["code"]) == ("denied", "E-CANARIES-LATE")

    asyncio.run(scenario())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """The twin's folder and the run's, with the same first weights."""
    made = RunFolder(tmp_path / "twin").create(), RunFolder(tmp_path / "run").create()
    for folder in made:
        save_arrays(folder.initial, {"w": np.ones(3, np.float32)})
    return made


def record() -> RunRecord:
    return RunRecord(
        run_id=RUN_ID,
        name=SPEC.name,
        status=RunStatus.FINISHED,
        specification=canonical_json(SPEC),
        specification_sha256=b"",
        round=2,
        rounds=2,
        submitted_at_s=1.0,
        started_at_s=2.0,
        ended_at_s=3.0,
        submitted_by="olga",
        reason="",
    )


@pytest.mark.parametrize("status", [s for s in RunStatus if s is not RunStatus.FINISHED])
def test_a_run_that_has_not_finished_gets_no_twin(
    folders: tuple[RunFolder, RunFolder], status: RunStatus
) -> None:
    """Its claim is not known yet, or nobody relies on it."""
    with pytest.raises(UsageError) as caught:
        verify_twin(TWIN, folders[0], replace(record(), status=status), folders[1])
    assert caught.value.code == "E-TWIN-OF"


def test_a_twin_gets_no_twin(folders: tuple[RunFolder, RunFolder]) -> None:
    """What is tested is the run whose model is kept."""
    of_twin = replace(record(), specification=canonical_json(TWIN))
    with pytest.raises(UsageError) as caught:
        verify_twin(twin_of(TWIN, CANARIES), folders[0], of_twin, folders[1])
    assert caught.value.code == "E-TWIN-OF"


def test_a_twin_is_the_run_that_it_names(folders: tuple[RunFolder, RunFolder]) -> None:
    """The same values and first weights are taken; another learning rate, or weights, are not."""
    twin_folder, run_folder = folders
    verify_twin(TWIN, twin_folder, record(), run_folder)
    assert TWIN.training is not None
    other = replace(TWIN, training=replace(TWIN.training, learning_rate=9.0))
    with pytest.raises(RefusedError) as caught:
        verify_twin(other, twin_folder, record(), run_folder)
    assert caught.value.code == "E-TWIN-RUN"
    save_arrays(twin_folder.initial, {"w": np.zeros(3, np.float32)})
    with pytest.raises(RefusedError) as caught:
        verify_twin(TWIN, twin_folder, record(), run_folder)
    assert caught.value.code == "E-AUDIT-MODEL"
