"""`tacit audit run RUN`: what is refused before anybody is asked, and how terms are filled in."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from tacit.cli.audit_federation import (
    FederatedTerms,
    Where,
    _delta,
    _owners,
    _twins_of,
    _verify_trained,
    is_run,
    show_kept,
)
from tacit.cli.audit_view import show_report
from tacit.cli.main import run
from tacit.core.audit_spec import AuditSpec
from tacit.core.canary_spec import CanarySpec
from tacit.core.configuration import from_plain
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.specification import RunSpec, audit_of, canonical_json
from tacit.protos.control_pb2 import Run, ShowRunReply
from tests.server.test_audits import Owner, leaking, play

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.protos.control_client import ControlClient

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


@pytest.mark.parametrize("kind", ["audit", "twin"])
def test_an_audit_is_no_run_to_audit(kind: str) -> None:
    """Its id is refused with that of the run that it is of, before the server is asked."""
    audit = AuditSpec(run="r-7f3a9c20", model_sha256="0" * 64, rounds=3, owners=2)
    canaries = CanarySpec(directions=10, run="r-7f3a9c20", direction_guesses=5)
    asked = audit_of(PRIVATE, audit, min_clients=2, round_deadline_s=60.0)
    spec = asked if kind == "audit" else dataclasses.replace(PRIVATE, canaries=canaries)
    with pytest.raises(UsageError, match="E-AUDIT-RUN") as caught:
        _verify_trained("r-0a1b2c3d", spec)
    what = "an audit" if kind == "audit" else "a twin with canaries"
    assert f"got r-0a1b2c3d, which is {what} of r-7f3a9c20" in caught.value.message
    assert caught.value.hint.endswith("tacit audit run r-7f3a9c20")
    _verify_trained("r-7f3a9c20", PRIVATE)


@pytest.fixture
def merged(tmp_path: Path) -> dict[str, Any]:
    """The report of an audit that two owners answered, with noise."""
    return play(tmp_path / "run", {1: Owner(leaking()), 2: Owner(leaking())})


def test_a_fetched_report_is_kept_with_its_curves(
    merged: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In audits/AUDIT or where asked; the same files whether somebody waited for it or not."""
    monkeypatch.chdir(tmp_path)
    show_kept(merged, Where(), json=True)
    assert json.loads(capsys.readouterr().out) == merged
    show_kept(merged, Where(out=tmp_path / "out"), json=False)
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path / 'out'}"
    kept = tmp_path / "audits" / merged["federation"]["audit_run"]
    for name in ("report.json", "roc.svg"):
        assert (kept / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_report_that_cannot_be_kept_is_shown(
    merged: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder that nobody asked for may be missing; one that was asked for may not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audits").write_text("in the way")
    show_kept(merged, Where(), json=False)
    assert "Not kept: " in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(UnavailableError):
        show_kept(merged, Where(out=tmp_path / "audits" / "here"), json=False)


def test_noise_is_explained(merged: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are about right, and the sum's noise is sqrt(owners) times an owner's."""
    show_report(merged)
    text = " ".join(capsys.readouterr().out.split())
    noise = merged["federation"]["noise_per_owner"]
    assert f"{merged['audited']['members']} members and" in text
    assert ": about " in text
    assert f"{noise:.3g} on each owner's count, and so of {noise * 2**0.5:.3g} on their sum" in text
    assert "sqrt(2) times" in text


def test_what_is_not_there_is_not_explained(
    merged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No reference models, no thresholds of theirs; what bins leave open is a note."""
    show_report(merged)
    text = " ".join(capsys.readouterr().out.split())
    assert "realistic" not in text
    assert "within which the AUC of unbinned scores lies between" in text


class Runs:
    """A server that holds a run, a twin of it, and a run that is neither."""

    def __init__(self) -> None:
        twin = CanarySpec(directions=20, run="r-00000001")
        self.specifications = {
            "r-00000001": PRIVATE,
            "r-00000002": dataclasses.replace(PRIVATE, canaries=twin),
            "r-00000003": PRIVATE,
        }

    def list_runs(self) -> list[Run]:
        return [Run(run_id=run_id) for run_id in self.specifications]

    def show(self, run_id: str) -> ShowRunReply:
        return ShowRunReply(specification=canonical_json(self.specifications[run_id]))


def test_a_twin_that_has_not_reported_is_found() -> None:
    """Whoever asks for the audits of a run that has none is told of its canaries."""
    client = cast("ControlClient", Runs())
    assert _twins_of(client, "r-00000001") == ["r-00000002"]
    assert _twins_of(client, "r-00000003") == []


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
