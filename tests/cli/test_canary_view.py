"""What people see of canaries: why a report is inconclusive, what figures rest on, two of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tacit.audit.report import canaries_bytes
from tacit.cli.canary_view import headline, show_canaries
from tacit.cli.main import run
from tests.attacks.test_opened import answered, report_of
from tests.server.test_audits import Owner, leaking, play

if TYPE_CHECKING:
    from pathlib import Path

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def untested() -> dict[str, Any]:
    """Two owners whose claim of 9 lies above the ceiling."""
    return made(9.0)


def made(epsilon: float) -> dict[str, Any]:
    names = enumerate(("north", "south"), 1)
    answers = [answered(node, name, gap=0.0, epsilon=epsilon) for node, name in names]
    return {**report_of(*answers), "canary_run": "r-0a1b2c3d"}


def test_an_inconclusive_report_begins_with_its_reason(untested: dict[str, Any]) -> None:
    """Said once for all owners whom it is about; other verdicts stand as they are."""
    assert untested["verdict"] == "inconclusive"
    said = headline(untested)
    reason = untested["owners"][0]["reasons"][0]
    assert said.startswith(f"Canaries: INCONCLUSIVE: {reason} (north, south). Of 2 owners")
    fine = made(1.0)
    assert fine["verdict"] != "inconclusive"
    assert headline(fine) == fine["line"]


def test_figures_stand_with_what_they_rest_on(untested: dict[str, Any], capsys: Captured) -> None:
    """Alpha, right guesses and the self-test; an estimate that decides nothing has no ceiling."""
    show_canaries(untested)
    said = capsys.readouterr().out
    bound = untested["owners"][0]["kinds"][0]["bounds"][0]
    assert f"{bound['alpha']:.2g}" in said
    assert f"{bound['correct']} of {bound['guesses']}" in said
    assert "held for all of them" in said
    row = next(line for line in said.splitlines() if "fl-canaries" in line)
    assert row.split()[-4:-2] == ["-", f"{bound['alpha']:.2g}"]
    void = copy.deepcopy(untested)
    void["owners"][1]["kinds"][0]["self_test_passed"] = False
    show_canaries(void)
    assert "FAILED, figures are void: directions of south" in capsys.readouterr().out


def test_two_canary_reports_side_by_side(
    untested: dict[str, Any], tmp_path: Path, capsys: Captured
) -> None:
    """Each bound with its ceiling, and first what else differs."""
    for name, report in (("a", untested), ("b", made(1.0))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "canaries.json").write_bytes(canaries_bytes(report))
    assert run(["audit", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "beware: north: other claims: epsilon 9 at delta" in said
    assert said.count("one-run") >= 2


def test_canaries_and_members_are_not_compared(
    untested: dict[str, Any], tmp_path: Path, capsys: Captured
) -> None:
    """A usage error that says which is which."""
    (tmp_path / "canaries.json").write_bytes(canaries_bytes(untested))
    play(tmp_path / "run", {1: Owner(leaking()), 2: Owner(leaking())})
    assert run(["audit", "compare", str(tmp_path), str(tmp_path / "run")]) == 2
    assert "the first is of canaries" in capsys.readouterr().err
