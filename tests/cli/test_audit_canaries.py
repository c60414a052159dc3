"""`tacit audit canaries RUN`: what is planned, and refused, before any owner is charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tacit.attacks.canary_plan import one_run_ceiling
from tacit.attacks.claim import Claim
from tacit.audit.report import read_report
from tacit.cli import audit_federation
from tacit.cli.audit_canaries import TwinTerms, keep_canaries, planned_canaries
from tacit.cli.audit_federation import Where, wait_for
from tacit.cli.main import run
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.privacy_spec import PrivacyUnit
from tests.attacks.test_opened import answered, report_of

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.protos.control_client import ControlClient

RUN = "r-7f3a9c20"
OWNERS = 3
RUN_TOML = """
name = "heart"
[data]
classes = ["0", "1"]
[data.columns.age]
type = "number"
range = [0, 100]
[model]
kind = "logistic"
[training]
learning_rate = 0.5
[privacy]
mode = "record-local"
clip = 1.0
epsilon = 4.0
delta = 1e-4
[participation]
rounds = 2
min_clients = 3
[canaries]
mislabelled = 300
twin = false
"""


def terms(directions: int | None = None, mislabelled: int | None = None) -> TwinTerms:
    return TwinTerms(run=RUN, directions=directions, mislabelled=mislabelled, seed=0)


def claim(epsilon: float) -> Claim:
    return Claim(epsilon=epsilon, delta=1e-4, unit=PrivacyUnit.RECORD)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_the_default_can_test_the_claim(epsilon: float) -> None:
    """Of both kinds there are as many as it takes with so many owners."""
    spec = planned_canaries(terms(), RUN, claim(epsilon), owners=OWNERS)
    assert spec.directions >= 600
    assert spec.mislabelled >= 300
    for count, guesses in (
        (spec.directions, spec.direction_guesses),
        (spec.mislabelled, spec.mislabelled_guesses),
    ):
        alpha = 0.05 / OWNERS / 2
        assert one_run_ceiling(count, guesses, delta=1e-4, alpha=alpha) >= epsilon


def test_too_few_canaries_are_refused_with_the_number_that_would_do() -> None:
    """Nothing is submitted; as many as are named are planned."""
    with pytest.raises(UsageError, match="E-CANARY-POWER") as caught:
        planned_canaries(terms(600, 300), RUN, claim(4.0), owners=OWNERS)
    said = caught.value.message
    assert said.startswith("300 mislabelled canaries cannot test epsilon 4.00 at delta 0.0001")
    needed = int(said.rpartition("; ")[2].removesuffix(" could"))
    assert f"--mislabelled {needed}" in caught.value.hint
    assert (
        planned_canaries(terms(600, needed), RUN, claim(4.0), owners=OWNERS).mislabelled == needed
    )


def test_a_claim_that_no_canaries_test_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Estimates can still be wanted; that the verdict will be inconclusive is said first."""
    spec = planned_canaries(terms(600, 0), RUN, claim(12.0), owners=OWNERS)
    assert (spec.directions, spec.mislabelled) == (600, 0)
    assert "the verdict will be inconclusive" in capsys.readouterr().err


def test_without_a_claim_half_is_guessed() -> None:
    """A run that has not begun claims nothing yet."""
    spec = planned_canaries(terms(), RUN, None, owners=1)
    assert (spec.direction_guesses, spec.mislabelled_guesses) == (300, 150)


def test_run_check_says_what_canaries_can_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts, guesses and ceiling beside the claim, and how many records 1 % would take."""
    file = tmp_path / "run.toml"
    file.write_text(RUN_TOML)
    assert run(["run", "check", str(file)]) == 0
    said = capsys.readouterr()
    for line in ("canaries: 300", "guesses: 150", "tests_the_claim: no", "at most 1 % of the"):
        assert line in said.out
    assert "300 mislabelled canaries and 150 guesses could show epsilon" in said.err
    file.write_text(RUN_TOML.replace("300\ntwin = false", "600\nmislabelled_guesses = 600"))
    assert run(["run", "check", str(file)]) == 0
    said = capsys.readouterr()
    assert "tests_the_claim: yes" in said.out
    assert "could show" not in said.err


class Impatient:
    """A server whose answer is awaited by somebody who presses Ctrl-C."""

    def find_run(self, run_id: str) -> None:
        del run_id
        raise KeyboardInterrupt


def test_ctrl_c_under_json_ends_with_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Who reads JSON gets the interruption as one; other people the exit code and what goes on."""
    client = cast("ControlClient", Impatient())
    with pytest.raises(KeyboardInterrupt):
        wait_for(client, RUN, what="audit", json=True)
    with pytest.raises(audit_federation.typer.Exit) as ended:
        wait_for(client, RUN, what="audit", json=False)
    assert ended.value.exit_code == 130
    assert f"tacit audit show {RUN}" in capsys.readouterr().err


def test_a_report_on_canaries_is_kept_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In --out, else below audits; a default folder that cannot be written is said, and the report
    shown all the same; one that was asked for is an error."""
    report = report_of(answered(1, "north", gap=0.0))
    monkeypatch.chdir(tmp_path)
    keep_canaries(report, Where(out=tmp_path / "here"), json=False)
    keep_canaries(report, Where(), json=False)
    for folder in (tmp_path / "here", tmp_path / "audits" / report["canary_run"]):
        assert read_report(folder) == report
    (tmp_path / "audits" / report["canary_run"] / "canaries.json").unlink()
    (tmp_path / "audits" / report["canary_run"]).rmdir()
    (tmp_path / "audits" / report["canary_run"]).write_text("a file")
    keep_canaries(report, Where(), json=False)
    assert "Not kept: " in capsys.readouterr().out
    with pytest.raises((UnavailableError, OSError)):
        keep_canaries(report, Where(out=tmp_path / "audits" / report["canary_run"]), json=False)
