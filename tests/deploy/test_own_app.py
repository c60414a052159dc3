"""The sample of an app of one's own works as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tacit.client.approvals import Offer, Verdict, judge, refusals
from tacit.client.configuration import ClientConfig
from tacit.core.artifacts import load_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import PrivacyUnit, Relation, RunSpec
from tacit.privacy.plan import privacy_plan
from tacit.simulation.federation import epsilon_of

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "deploy" / "samples" / "own_app"


RUNS = ["run.toml", "run-private.toml"]


@pytest.mark.parametrize("name", RUNS)
def test_the_owner_of_the_sample_lets_its_app_run(name: str) -> None:
    """The client.toml of the sample has nothing against the runs beside it."""
    owner = load_config(SAMPLE / "client.toml", ClientConfig).value
    run = load_config(SAMPLE / name, RunSpec).value
    epsilon = epsilon_of(run, owner.data_sets[run.data_set].records, run.participation.rounds)
    offer = Offer(specification=run, epsilon=epsilon, isolated=True)
    assert list(refusals(offer, owner)) == []
    assert judge(offer, owner).verdict is Verdict.PENDING


def test_the_private_sample_promises_what_it_says() -> None:
    """At client level, by the node, for any app: and both runs call the same one."""
    plain, private = (load_config(SAMPLE / name, RunSpec).value for name in RUNS)
    plan = privacy_plan(private, records=303)
    assert (plan.unit, plan.relation) == (PrivacyUnit.CLIENT, Relation.REPLACE_ONE)
    assert plan.epsilon == pytest.approx(8.0, rel=1e-6)
    assert plain.app is not None
    assert private.app is not None
    assert plain.app.client == private.app.client


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_sample_learns_in_simulation(tmp_path: Path, name: str) -> None:
    """The commands of the README train the four hospitals' model with the sample app."""
    (tmp_path / "run.toml").write_bytes((SAMPLE / name).read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(SAMPLE)}
    python = str(Path(sys.executable))
    for command in (
        [python, "-m", "own_app.initial", "initial.safetensors"],
        [
            *(str(Path(python).parent / "tacit"), "simulate", "run.toml"),
            *("--owner", str(SAMPLE / "client.toml")),
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
    claims = json.loads((tmp_path / "out" / "manifest.json").read_text()).get("claims", {})
    sides = [side for owner in claims.values() for side in owner.values()]
    spent = [(side["unit"], round(side["epsilon"], 3)) for side in sides]
    assert spent == ([] if name == "run.toml" else [("client", 8.0)] * 4)
