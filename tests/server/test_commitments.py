"""What owners commit to is noted once, and what a twin must be is checked value by value."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.artifacts import RunFolder, save_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import ProtocolError, RefusedError
from tacit.core.specification import CanarySpec, RunSpec, canonical_json
from tacit.core.twins import twin_of
from tacit.protos import fleet_pb2
from tacit.server.audits import verify_twin
from tacit.server.catalogue import RunRecord, RunStatus
from tacit.server.claims import plain_claim, verify_claim
from tacit.server.manifest import RunManifest

if TYPE_CHECKING:
    from pathlib import Path

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
TWIN = twin_of(SPEC, CanarySpec(directions=40, run=RUN_ID))


def claims(**commitments: str) -> dict[str, dict[str, Any]]:
    return {node: {"train": {"canaries": each}} for node, each in commitments.items()}


def test_the_first_commitment_stands(tmp_path: Path) -> None:
    """A later word of the same owner changes nothing; the manifest keeps it over a restart."""
    folder = RunFolder(tmp_path / "run").create()
    manifest = RunManifest.begin(folder, RUN_ID, TWIN)
    assert manifest.note_commitments(claims(one="aa")) == {"one": "aa"}
    assert manifest.note_commitments(claims(one="bb", two="cc")) == {"two": "cc"}
    again = RunManifest.begin(folder, RUN_ID, TWIN, finished_rounds=1)
    assert again.commitments == {"one": "aa", "two": "cc"}


def test_a_restart_before_the_first_checkpoint_keeps_them(tmp_path: Path) -> None:
    """A worker that died in round 1 finds what was noted there."""
    folder = RunFolder(tmp_path / "run").create()
    RunManifest.begin(folder, RUN_ID, TWIN).note_commitments(claims(one="aa"))
    again = RunManifest.begin(folder, RUN_ID, TWIN)
    assert again.note_commitments(claims(one="bb")) == {}
    assert again.commitments == {"one": "aa"}


def test_a_run_without_canaries_has_no_such_key(tmp_path: Path) -> None:
    """Its manifest is what it was, and a claim without a commitment, too."""
    folder = RunFolder(tmp_path / "run").create()
    RunManifest.begin(folder, RUN_ID, SPEC)
    assert "commitments" not in json.loads(folder.manifest.read_bytes())
    assert "canaries" not in plain_claim(fleet_pb2.Claim())


def test_a_commitment_is_a_hash() -> None:
    """32 bytes or none; the manifest has them in hex."""
    claim = fleet_pb2.Claim(unit="record", relation="add/remove", side="train", delta=1e-4)
    claim.canary_commitment = bytes(32)
    verify_claim(claim)
    assert plain_claim(claim)["canaries"] == "00" * 32
    claim.canary_commitment = bytes(31)
    with pytest.raises(ProtocolError):
        verify_claim(claim)


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
