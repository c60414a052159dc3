"""The benchmark's own correctness: each engine moves what it says, and the rounds are right.

Times are printed and never asserted: continuous integration says whether it works, not how fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("floor", ["floor"]),
        ("tacit", ["tacit kill", "tacit power"]),
        ("tacit-app", ["tacit kill, ServerApp"]),
        ("flower", ["flower"]),
    ],
)
def test_short_benchmark(engine: str, expected: list[str], tmp_path: Path) -> None:
    """Each engine folds four different replies in every round and comes to the right weights."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.run", "--short", "--only", engine]
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert [each["engine"] for each in results] == expected
    assert all(each["rounds"] == 2 and each["seconds"] > 0 for each in results)
