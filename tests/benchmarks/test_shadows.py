"""The shadows' benchmark trains the same models three ways; its times are never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.shadows import Size, _verify_same, missed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_short_benchmark(tmp_path: Path) -> None:
    """One row per way, with a time and a ratio, and accuracies that agree."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.shadows", "--short", "--hidden", "32"]
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert [row["way"] for row in rows] == ["together", "tensor loop", "DataLoader loop"]
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows)
    assert all(row["accuracy"] > 0.2 for row in rows)  # of 26 classes


def test_goals_hold_where_they_were_set() -> None:
    """At 32 hidden units: 2.5 times the tensor loop, 5 times the DataLoader loop."""
    rows = [
        {"hidden": 32, "way": "together", "ratio": 1.0},
        {"hidden": 32, "way": "tensor loop", "ratio": 2.4},
        {"hidden": 32, "way": "DataLoader loop", "ratio": 5.1},
        {"hidden": 128, "way": "tensor loop", "ratio": 1.2},
    ]
    assert missed(rows) == ["32 hidden units: 2.4 times the tensor loop, goal 2.5"]


def test_models_that_differ_are_no_comparison() -> None:
    """The same batches give the same accuracy; other batches give it within noise."""
    same = {"together": 0.8, "tensor loop": 0.801, "DataLoader loop": 0.81}
    _verify_same(same, Size())
    for way in ("tensor loop", "DataLoader loop"):
        with pytest.raises(ValueError, match="within"):
            _verify_same({**same, way: 0.82}, Size())
