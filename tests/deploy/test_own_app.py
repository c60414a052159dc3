"""The sample of an app of one's own works as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tacit.client.configuration import ClientConfig
from tacit.core.artifacts import load_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import RunSpec

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "deploy" / "samples" / "own_app"


def test_the_owner_of_the_sample_lets_its_app_run() -> None:
    """The client.toml of the sample lists the app that its run.toml names."""
    owner = load_config(SAMPLE / "client.toml", ClientConfig).value
    run = load_config(SAMPLE / "run.toml", RunSpec).value
    assert run.app is not None
    assert run.app.client in owner.policy.apps
    assert run.privacy.mode in owner.policy.modes


@pytest.mark.slow
def test_the_sample_learns_in_simulation(tmp_path: Path) -> None:
    """The commands of the README train the four hospitals' model with the sample app."""
    (tmp_path / "run.toml").write_bytes((SAMPLE / "run.toml").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(SAMPLE)}
    python = str(Path(sys.executable))
    for command in (
        [python, "-m", "own_app.initial", "initial.safetensors"],
        [
            *(str(Path(python).parent / "tacit"), "simulate", "run.toml"),
            *("--data", str(ROOT / "simulation" / "data" / "heart"), "--out", "out"),
        ],
    ):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    before = load_arrays(tmp_path / "initial.safetensors")["weights"]
    after = load_arrays(tmp_path / "out" / "model.safetensors")["weights"]
    assert (before != after).all()
