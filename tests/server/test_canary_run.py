"""The end of a run with canaries: who is asked, how long, and what is said of who did not open."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from tacit.attacks.canary_report import verify_report
from tacit.attacks.inclusion import Opening, draw_opening, owner_design
from tacit.core.artifacts import RunFolder
from tacit.core.canary_spec import CanarySpec
from tacit.core.configuration import from_plain
from tacit.core.errors import TrustError
from tacit.core.specification import RunSpec
from tacit.learning.models import initial_arrays
from tacit.protos.codec import encode_records
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead
from tacit.protos.flower import SERVER_NODE_ID, flower_run_id, set_task_identity
from tacit.protos.records_pb2 import AppFailure
from tacit.server.canary_run import CanaryRun
from tacit.server.grid import TacitGrid
from tacit.server.manifest import (
    RoundEntry,
    RunManifest,
    write_commitments,
    write_decisions,
    write_members,
)
from tacit.server.strategy_run import RunTask
from tacit.simulation.port import LocalPort

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RUN_ID = "r-0000000a"
CANARIES = CanarySpec(directions=40, run="r-0000000b")
SPEC = replace(
    from_plain(
        {
            "name": "small",
            "data": {
                "classes": ["a", "b"],
                "columns": {"x": {"type": "number", "range": [0.0, 1.0]}},
            },
            "model": {"kind": "logistic"},
            "training": {"learning_rate": 0.5},
            "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
            "participation": {"rounds": 2, "round_deadline_s": 400.0, "max_attempts": 3},
        },
        RunSpec,
    ),
    canaries=CANARIES,
)
NAMES = {1: "north", 2: "south", 3: "west", 4: "east"}
DENIED = {"verdict": "denied", "code": "E-APPROVAL-DENIED"}
CLAIM = {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "relation": "add/remove"}


@dataclass
class Owner:
    """An owner's node that opens, or gives a code instead for the first so many times."""

    opening: Opening
    code: str = ""
    failures: int = 100
    asked: int = field(default=0)

    def answer(self, head: InstructionHead, payload: memoryview) -> tuple[ReplyHead, memoryview]:
        del payload
        assert head.message_type == "query"
        self.asked += 1
        reply = ReplyHead(run_id=head.run_id, message_id=head.message_id)
        if self.code and self.asked <= self.failures:
            reply.failure.CopyFrom(AppFailure(code=1, reason=self.code))
            return reply, memoryview(b"")
        noise = np.random.default_rng(0).normal(size=CANARIES.directions)
        metrics = MetricRecord(
            {
                "canary-bits": [int(bit) for bit in self.opening.included],
                "canary-salt": list(self.opening.salt),
                "canary-products": noise.tolist(),
                "canary-squared-norm": 10.0,
                "canary-steps": 4,
                "canary-parameters": 4,
            }
        )
        encoded = encode_records(RecordDict({"metrics": metrics}))
        reply.manifest.CopyFrom(encoded.manifest)
        return reply, memoryview(b"".join(encoded.segments))


def owners_of(**codes: str) -> dict[int, Owner]:
    return {
        node: Owner(draw_opening(owner_design(CANARIES, node)), code=codes.get(name, ""))
        for node, name in NAMES.items()
    }


def opened(
    path: Path, owners: Mapping[int, Owner], *, decisions: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Any], list[tuple[str, Mapping[str, object]]]]:
    """Open the canaries of a run that all but the last owner took part in."""
    folder = RunFolder(path / "run").create()
    write_members(folder, NAMES)
    write_decisions(folder, decisions)
    commitments = {node: owner.opening.commitment() for node, owner in owners.items()}
    write_commitments(folder, commitments)
    manifest = RunManifest.begin(folder, RUN_ID, SPEC)
    claims = {str(node): {"train": CLAIM} for node in list(owners)[:-1]}
    manifest.add(RoundEntry(round=2, attempt=1, cohort=list(owners)[:-1]), claims)
    events: list[tuple[str, Mapping[str, object]]] = []
    port = LocalPort(owners, lambda kind, fields: events.append((kind, fields)))
    set_task_identity(run_id=flower_run_id(RUN_ID), node_id=SERVER_NODE_ID)
    task = RunTask(run_id=RUN_ID, specification=SPEC, specification_sha256=b"", folder=folder)
    grid = TacitGrid(port, run_id=RUN_ID, specification_sha256=b"")
    CanaryRun(task=task, grid=grid, manifest=manifest, weights=initial_arrays(SPEC)).open()
    return json.loads(folder.canaries.read_bytes()), events


def test_all_who_took_part_are_asked_and_have_a_rounds_time(tmp_path: Path) -> None:
    """Whoever is connected now; an event says who, and how long it waits for them."""
    owners = owners_of()
    report, events = opened(tmp_path, owners, decisions={})
    asked = next(fields for kind, fields in events if kind == "canaries_asked")
    assert asked == {"round": 2, "members": ["north", "south", "west"], "wait_s": 400.0}
    assert [owner["member"] for owner in report["owners"]] == ["north", "south", "west"]
    assert (report["unopened"], report["absent"]) == ([], ["east"])
    assert owners[4].asked == 0
    assert {b["alpha"] for o in report["owners"] for k in o["kinds"] for b in k["bounds"]} == {
        0.05 / 4
    }
    assert verify_report(report) == 18


@pytest.mark.parametrize(
    ("code", "decision", "why", "times"),
    [
        ("E-MESSAGE-EXPIRED", {}, "did not open in time", 1),
        ("E-RUN-DENIED", DENIED, "denied the run after it had begun", 0),
        ("E-RUN-DENIED", DENIED | {"code": "E-CANARY-COMMITMENT"}, "had lost the bits", 0),
        ("E-NODE-UNKNOWN", {}, "is no member any more", 3),
        ("E-CANARY-SCORES", {}, "E-CANARY-SCORES", 3),
    ],
)
def test_who_does_not_open_is_named_with_the_reason(
    tmp_path: Path, code: str, decision: dict[str, str], why: str, times: int
) -> None:
    """In words where the server knows; and the run is inconclusive, at the level of before."""
    owners = owners_of(south=code)
    decisions = {"south": decision} if decision else {}
    report, _ = opened(tmp_path, owners, decisions=decisions)
    (unopened,) = report["unopened"]
    assert unopened["member"] == "south"
    assert why in unopened["why"]
    assert owners[2].asked == times
    assert report["verdict"] == "inconclusive"
    assert report["owners"][0]["kinds"][0]["bounds"][0]["alpha"] == 0.05 / 4


def test_a_failure_that_passes_is_asked_again(tmp_path: Path) -> None:
    """A full disk at an owner is no reason to do without the opening."""
    owners = owners_of(south="E-DISK-FULL")
    owners[2].failures = 2
    report, _ = opened(tmp_path, owners, decisions={})
    assert [owner["member"] for owner in report["owners"]] == ["north", "south", "west"]
    assert [owner.asked for owner in owners.values()] == [1, 3, 1, 0]


def test_other_bits_than_were_committed_to_end_the_run(tmp_path: Path) -> None:
    """The owner is named, and no report is written."""
    owners = owners_of()
    north = owners[1].opening
    flipped = north.included.copy()
    flipped[0] ^= True

    class Turned(Owner):
        def answer(
            self, head: InstructionHead, payload: memoryview
        ) -> tuple[ReplyHead, memoryview]:
            self.opening = Opening(design=north.design, salt=north.salt, included=flipped)
            return super().answer(head, payload)

    owners[1] = Turned(north)
    with pytest.raises(TrustError, match="from north") as caught:
        opened(tmp_path, owners, decisions={})
    assert caught.value.code == "E-CANARY-COMMITMENT"
    assert not (tmp_path / "run" / "canaries.json").exists()
