"""`tacit client compare`: an owner sees at home what a run brought, and nobody else does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import EvaluationSpec, RunSpec
from tacit.learning.baselines import score_arrays, trivial_score
from tacit.learning.models import initial_arrays
from tacit.simulation.demo import HOSPITALS, demo_owners
from tacit.simulation.owners import heart_folder, owner_sets
from tests.end_to_end.federation import federation

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWNERS = ("cleveland", "va")
ROUNDS = 2
POLICY = "allow_exact_metrics = true"


def specification() -> RunSpec:
    run = load_config(heart_folder() / "run.toml", RunSpec).value
    people = replace(run.participation, rounds=ROUNDS, min_clients=len(OWNERS))
    return replace(run, participation=people, evaluation=EvaluationSpec(every=1))


def data_set(path: Path, name: str) -> str:
    return f'[data_sets.heart]\npath = "{path.as_posix()}"\nrecords = {HOSPITALS[name]}\n'


def test_an_owner_compares_at_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The final model, received or handed over, stands beside training alone and a guess.

    Daemon running or stopped, nothing but a table comes of it: no decision, no charge, no file.
    """
    run = specification()
    with federation(tmp_path_factory.mktemp("compare")) as played:
        data = played.root / "cleveland.csv"
        data.write_bytes((heart_folder() / "cleveland.csv").read_bytes())
        for name, path in (("cleveland", data), ("va", heart_folder() / "va.csv")):
            played.add_clients(name, policy=POLICY, data=data_set(path, name))
        initial = played.root / "initial.safetensors"
        save_arrays(initial, initial_arrays(run))
        run_id = played.submit(run, initial)
        final = played.finish(run_id)
        home = played.root / "cleveland"
        kept = home / "runs" / run_id / "received.safetensors"
        for name, array in load_arrays(kept).items():
            assert array.tobytes() == final[name].tobytes()

        asked = played.tacit("client", "status", run_id, "--home", home, "--json").json
        assert asked["model_notes"] == ["per-example gradients by book-keeping: 1 Linear"]

        decisions = played.decisions("cleveland", run_id)
        ledger = played.tacit("ledger", "show", "--home", home, "--json").out
        command = ("client", "compare", run_id, "--home", home)
        running = played.tacit(*command, "--json").json
        assert f"the model after round {ROUNDS}" in running["federated"]
        rows = {row["kind"]: row for row in running["models"]}
        assert list(rows) == ["federated", "alone", "trivial"]
        owner = next(owner for owner in demo_owners() if owner.name == "cleveland")
        sets = owner_sets(run, owner)
        expected = score_arrays(run, final, sets.validation)
        assert running["held_out"] == expected.examples
        assert rows["federated"]["accuracy"] == pytest.approx(expected.accuracy)
        assert rows["federated"]["standard_error"] == pytest.approx(
            np.sqrt(expected.accuracy * (1 - expected.accuracy) / expected.examples)
        )
        assert rows["alone"]["epsilon"] <= run.privacy.epsilon
        guess = trivial_score(sets.train, sets.validation, classes=2)
        assert rows["trivial"]["accuracy"] == pytest.approx(guess.accuracy)

        played.daemons["cleveland"].send(15)
        played.daemons["cleveland"].ends()
        pulled = played.pull(run_id).model
        text = played.tacit(*command, "--model", pulled)
        assert text.code == 0, text.err
        assert text.out.split()[:4] == ["model", "epsilon", "accuracy", "standard"]
        assert f"federated: the file {pulled}" in text.out
        assert played.decisions("cleveland", run_id) == decisions
        assert played.tacit("ledger", "show", "--home", home, "--json").out == ledger
        left = {path.name for path in kept.parent.iterdir()}
        assert left == {"received.safetensors", "split.json", "preparation.json"}

        save_arrays(other := played.root / "other.safetensors", {"weight": np.zeros(3, np.float32)})
        wrong = played.tacit(*command, "--model", other)
        assert "linear.weight: missing" in wrong.err
        assert "[E-MODEL-WEIGHTS]" in wrong.err
        assert wrong.code == 3
        lines = data.read_text().splitlines()
        data.write_text("\n".join(lines[:-1]) + "\n")  # a record has gone since
        played.tacit(*command).refuses(3, "E-COMPARE-SPLIT")
