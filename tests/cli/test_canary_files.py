"""Every audit of a run by canaries is listed, and a later one hides no failure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tacit.attacks.canary_report import verify_report
from tacit.audit.report import canaries_bytes, parse_canaries
from tacit.cli.canary_files import CanaryAudit, worst_of
from tacit.cli.canary_view import show_canaries
from tacit.cli.main import run
from tests.attacks.test_opened import answered, report_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FAIL, PASS = "fail", "no violation found at this power"


def audit(number: int, *, gap: float | None) -> CanaryAudit:
    """An audit whose one owner's directions stand out by so much; None: it left no report."""
    run_id = f"r-0000000{number}"
    report: dict[str, Any] | None = None
    if gap is not None:
        report = report_of(answered(number, "north", gap=gap)) | {"canary_run": run_id}
    return CanaryAudit(run_id=run_id, state="failed: E-ROUND-FAILED", report=report)


def test_the_worst_verdict_stands_and_all_are_listed() -> None:
    """A failure between two passes, and a twin that came to nothing."""
    audits = [audit(1, gap=0.0), audit(2, gap=12.0), audit(3, gap=0.0), audit(4, gap=None)]
    found = worst_of(audits)
    assert found is not None
    assert (found["verdict"], found["canary_run"]) == (FAIL, "r-00000002")
    assert [(each["canary_run"], each["verdict"]) for each in found["audits"]] == [
        ("r-00000001", PASS),
        ("r-00000002", FAIL),
        ("r-00000003", PASS),
        ("r-00000004", "none"),
    ]
    assert found["audits"][3]["line"] == "failed: E-ROUND-FAILED"
    assert parse_canaries(canaries_bytes(found)) == found
    assert verify_report(found) > 0


def test_of_equal_verdicts_the_latest_is_shown() -> None:
    """And one alone lists no others."""
    audits = [audit(1, gap=0.0), audit(2, gap=0.0)]
    found = worst_of(audits)
    assert found is not None
    assert found["canary_run"] == "r-00000002"
    assert worst_of(audits[:1]) == audits[0].report
    assert worst_of([replace(audits[0], report=None)]) is None
    assert worst_of([]) is None


def test_what_is_shown_has_every_audit_and_what_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The count, each level of its own, the commitment, and the bytes of the opening."""
    found = worst_of([audit(1, gap=12.0), audit(2, gap=0.0)])
    assert found is not None
    show_canaries(found)
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Canaries: fail")
    assert "2 audits by canaries, each with its own chance of 5 %" in text
    assert f"r-00000002: {PASS}" in text
    assert f"committed to {found['owners'][0]['commitment']}" in text
    assert "north: 1000 bits, a salt of 32 bytes, 1000 sums over released gradients: 1234" in text
    assert "only a one-run bound (*) can fail one" in text
    starred = [line for line in text.split() if line.endswith("*") and line != "(*)"]
    assert starred == ["one-run*"]


def test_a_kept_report_is_verified_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 where all follows, 5 where the verdict is somebody's own."""
    report = report_of(answered(1, "north", gap=12.0))
    path = tmp_path / "canaries.json"
    path.write_bytes(canaries_bytes(report))
    assert run(["audit", "show", str(tmp_path), "--verify"]) == 0
    assert "the commitments of 1 owners, 6 bounds and the verdict follow" in capsys.readouterr().err
    path.write_bytes(canaries_bytes(report | {"verdict": PASS}))
    assert run(["audit", "show", str(path), "--verify"]) == 5
    assert "E-CANARY-REPORT" in capsys.readouterr().err
