"""`tacit audit run RUN`: what is refused before anybody is asked, and how terms are filled in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tacit.cli.audit_federation import FederatedTerms, _delta, _owners, is_run
from tacit.cli.main import run
from tacit.core.configuration import from_plain
from tacit.core.errors import UsageError
from tacit.core.specification import RunSpec
from tacit.protos.control_pb2 import ShowRunReply

if TYPE_CHECKING:
    from pathlib import Path

TERMS = {
    "run": "r-00000001",
    "plan": "quick",
    "probes": (),
    "bins": 0,
    "min_owners": 2,
    "seed": 0,
}


def spec(**privacy: object) -> RunSpec:
    return from_plain(
        {
            "name": "test",
            "data": {
                "classes": ["a", "b"],
                "columns": {"x": {"type": "number", "range": [0.0, 1.0]}},
            },
            "model": {"kind": "logistic"},
            "training": {"learning_rate": 1.0},
            "privacy": privacy,
            "participation": {"rounds": 3},
        },
        RunSpec,
    )


PRIVATE = spec(mode="record-local", clip=1.0, epsilon=1.0, delta=1e-4)


def test_a_run_and_files_are_two_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who names both has mistaken one for the other: nothing is asked."""
    file = tmp_path / "members.csv"
    assert run(["audit", "run", "r-00000001", "--members", str(file)]) == 2
    assert "[E-AUDIT-FILES]" in capsys.readouterr().err


def test_a_name_is_a_run_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tacit audit show` takes both."""
    monkeypatch.chdir(tmp_path)
    assert is_run("r-7f3a9c20")
    assert not is_run("audits/r-7f3a9c20")
    (tmp_path / "r-7f3a9c20").mkdir()
    assert not is_run("r-7f3a9c20")


def test_the_delta_is_the_runs_unless_it_has_none() -> None:
    """A run without noise has no delta to take: the auditor names one, or asks for exact counts."""
    assert _delta(FederatedTerms(**TERMS, epsilon=1.0, delta=None), PRIVATE) == 1e-4
    assert _delta(FederatedTerms(**TERMS, epsilon=1.0, delta=1e-3), PRIVATE) == 1e-3
    assert _delta(FederatedTerms(**TERMS, epsilon=0.0, delta=None), PRIVATE) is None
    with pytest.raises(UsageError, match="E-AUDIT-DELTA"):
        _delta(FederatedTerms(**TERMS, epsilon=1.0, delta=None), spec(mode="none"))


def test_the_owners_are_those_of_the_last_round() -> None:
    """Whose updates it averaged: the cohort without who failed."""
    rounds = [{"cohort": [1, 2, 3, 4], "failed": {}}, {"cohort": [1, 2, 3], "failed": {"2": "E-X"}}]
    manifest = json.dumps({"rounds": rounds}).encode()
    assert _owners(ShowRunReply(manifest_json=manifest)) == 2
    assert _owners(ShowRunReply()) == 1
