"""Audits over four simulated owners: what leaks is found by merged sums, the rest is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tacit.audit.report import report_bytes
from tests.simulation.audits import PRIVATE, run_spec, world

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

OVERFIT = run_spec(steps=20, rounds=20)
UNTRAINED = run_spec(steps=1, rounds=1)
WITH_NOISE = run_spec(steps=1, rounds=10, privacy=PRIVATE)
NOISED = {"epsilon": 4.0, "delta": 1e-4, "bins": 8, "probes": ("loss",)}


def test_an_overfit_model_is_caught_by_merged_histograms(tmp_path: Path) -> None:
    """Exact or noised: members of all owners together are told from non-members."""
    with world(tmp_path, OVERFIT) as made:
        exact = made.audit("r-00000011", bins=8)
        noised = made.audit("r-00000012", **NOISED)
        own = [
            json.loads(path.read_bytes())
            for path in sorted(tmp_path.glob("run/owners/*/runs/r-00000011/report.json"))
        ]
    assert (exact["outcome"], noised["outcome"]) == ("evidence", "evidence")
    assert (exact["scope"]["is_noised"], noised["scope"]["is_noised"]) == (False, True)
    areas = [report["probes"][0]["auc"]["area"] for report in (exact, noised)]
    assert areas[1]["high"] - areas[1]["low"] > areas[0]["high"] - areas[0]["low"]
    assert areas[1]["low"] < areas[0]["value"] < areas[1]["high"]
    assert "noise of standard deviation" in noised["probes"][0]["notes"][0]
    assert len(own) == 4
    for report in (exact, noised, *own):
        report_bytes(report)  # fits the schema
    sent = noised["federation"]["sent"]
    assert {each["bytes"] for each in sent} == {16 * 8}
    assert all(each["epsilon"] == pytest.approx(4.0, rel=1e-3) for each in sent)


def test_an_untrained_model_is_not_called_a_leak(tmp_path: Path) -> None:
    """The sentence says what would have been seen, and nothing is called safe."""
    with world(tmp_path, UNTRAINED) as made:
        report = made.audit(bins=32)
    assert report["outcome"] == "no evidence at this power"
    assert "would have been seen" in report["line"]
    assert report["self_test"]["passed"] is True


def test_a_private_model_is_not_called_a_leak(tmp_path: Path) -> None:
    """Nobody chose its noise, nor the audits': both of two may be wrong once in 400 at most."""
    with world(tmp_path, WITH_NOISE) as made:
        reports = [made.audit(run_id, **NOISED) for run_id in ("r-00000011", "r-00000012")]
    assert "no evidence at this power" in [report["outcome"] for report in reports]


def test_the_same_answers_make_the_same_report(tmp_path: Path) -> None:
    """Exact counts of the same records give the same bytes, but for the audit's own number."""
    with world(tmp_path, UNTRAINED) as made:
        first, second = (made.audit(run_id, bins=8) for run_id in ("r-00000011", "r-00000012"))
    assert first.pop("federation")["sent"] == second.pop("federation")["sent"]
    assert first == second
