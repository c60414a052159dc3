"""The DP-step benchmark runs every engine on every model; its times are never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["mlp-203k", "cnn-26k"])
def test_short_benchmark(model: str, tmp_path: Path) -> None:
    """One row per engine, with a time, a ratio to the plain step and a peak of memory."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.dp_step", "--short", "--model", model]
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert [row["engine"] for row in rows] == ["plain", "tacit", "ghost", "hooks"]
    assert all(row["seconds"] > 0 and row["ratio"] > 0 and row["megabytes"] >= 0 for row in rows)
