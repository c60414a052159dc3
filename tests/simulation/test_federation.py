"""The simulator: the real nodes and the real server loop, in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.configuration import load_config, parse_toml
from tacit.core.errors import AppError, RefusedError, UsageError
from tacit.core.events import EventKind, parse_event
from tacit.core.specification import (
    EvaluationSpec,
    MetricSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
)
from tacit.simulation.federation import simulate
from tacit.simulation.owners import Owner, heart_folder, owner_sets, owners_in
from tests.conformance import CASES, NODES, Case, initial_arrays, run_spec

SPECIFICATION = """
name = "tiny"
[data]
label = "y"
classes = ["no", "yes"]
columns.a = { type = "number", range = [0, 10] }
columns.b = { type = "number", range = [0, 10] }
[model]
kind = "logistic"
[training]
learning_rate = 1.0
local_steps = 3
[privacy]
mode = "none"
[participation]
rounds = 3
min_clients = 2
[evaluation]
every = 3
"""


def tiny() -> RunSpec:
    return parse_toml(SPECIFICATION, RunSpec, source="run.toml").value


def write_data(path: Path, records: int = 60, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["a,b,y"]
    for a, b in rng.uniform(0, 10, size=(records, 2)).round(3):
        lines.append(f"{a},{b},{'yes' if a > b else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def make_owners(folder: Path, clients: int = 3) -> list[Owner]:
    data = write_data(folder / "data.csv")
    return owners_in(data, tiny(), clients=clients, scratch=folder / "shares")


def test_a_simulation_leaves_a_run_folder(tmp_path: Path) -> None:
    """The folder holds what a real run leaves: weights, manifest, events, every owner's split."""
    out = tmp_path / "run"
    done = simulate(tiny(), make_owners(tmp_path), out, source_toml=SPECIFICATION)
    folder = done.folder
    assert folder.round_numbers() == [1, 2, 3]
    final = load_arrays(folder.round(3))
    assert all(
        np.array_equal(final[name], item) for name, item in load_arrays(folder.model).items()
    )
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["status"] == "finished"
    assert sorted(manifest["members"].values()) == ["owner-1", "owner-2", "owner-3"]
    assert manifest["rounds"][2]["evaluation"]["accuracy"] > 0.5
    assert len(list(out.glob("owners/*/runs/*/split.json"))) == 3
    kinds = [parse_event(line).kind for line in folder.events.read_bytes().splitlines()]
    assert kinds[0] is EventKind.RUN_QUEUED
    assert kinds[-1] is EventKind.RUN_FINISHED
    assert kinds.count(EventKind.ROUND_FINISHED) == 3


def test_two_simulations_agree_to_the_bit(tmp_path: Path) -> None:
    """Without noise and with everybody in every round, nothing is left to chance."""
    owners = make_owners(tmp_path)
    first = simulate(tiny(), owners, tmp_path / "first").folder
    second = simulate(tiny(), owners, tmp_path / "second").folder
    assert first.model.read_bytes() == second.model.read_bytes()


@pytest.mark.slow
def test_a_pool_of_processes_changes_nothing_but_the_time(tmp_path: Path) -> None:
    """Owners that train at once in processes give the bits of owners that take turns."""
    owners = make_owners(tmp_path)
    one = simulate(tiny(), owners, tmp_path / "one").folder
    two = simulate(tiny(), owners, tmp_path / "two", workers=2).folder
    assert one.model.read_bytes() == two.model.read_bytes()


def test_noise_differs_from_run_to_run(tmp_path: Path) -> None:
    """Noise comes from keys that nobody chose: two runs of one specification differ."""
    privacy = PrivacySpec(mode=PrivacyMode.RECORD_LOCAL, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    run = replace(tiny(), privacy=privacy, evaluation=EvaluationSpec())
    owners = make_owners(tmp_path)
    first = load_arrays(simulate(run, owners, tmp_path / "first").folder.model)
    second = load_arrays(simulate(run, owners, tmp_path / "second").folder.model)
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_exact_metrics_are_refused_under_noise(tmp_path: Path) -> None:
    """The simulator's owners refuse what real owners refuse by default."""
    privacy = PrivacySpec(mode=PrivacyMode.RECORD_LOCAL, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    run = replace(tiny(), privacy=privacy)
    with pytest.raises(RefusedError, match="E-POLICY-EXACT-METRICS"):
        simulate(run, make_owners(tmp_path), tmp_path / "run")


@pytest.mark.parametrize("case", [CASES[0], CASES[9], CASES[13]], ids=lambda case: case.label)
def test_any_flower_app_runs_as_it_is(case: Case, tmp_path: Path) -> None:
    """A ClientApp of somebody's own, mods included, trains through the real node."""
    save_arrays(tmp_path / "initial.safetensors", initial_arrays())
    data = write_data(tmp_path / "data.csv")
    run = run_spec(case)
    owners = owners_in(data, run, clients=len(NODES), scratch=tmp_path / "shares")
    done = simulate(run, owners, tmp_path / "run", initial=tmp_path / "initial.safetensors")
    model = load_arrays(done.folder.model)
    assert {name: array.shape for name, array in model.items()} == {
        name: array.shape for name, array in initial_arrays().items()
    }


def test_a_failed_trial_quotes_the_owners_own_logs(tmp_path: Path) -> None:
    """Where one person holds all the data, the reason that a real owner keeps is in the hint."""
    metrics = {"num-examples": MetricSpec(range=(0.0, 0.0))}
    case = run_spec(CASES[0])
    run = replace(
        case,
        results={"train": ReplySpec(metrics=metrics)},
        participation=replace(case.participation, max_attempts=1),
    )
    save_arrays(tmp_path / "initial.safetensors", initial_arrays())
    owners = owners_in(
        write_data(tmp_path / "data.csv"), run, clients=len(NODES), scratch=tmp_path / "shares"
    )
    with pytest.raises(AppError, match="E-ROUND-FAILED") as raised:
        simulate(run, owners, tmp_path / "run", initial=tmp_path / "initial.safetensors")
    assert "E-REPLY-METRIC from owner-1, owner-2" in raised.value.message
    assert "owner-1: " in raised.value.hint
    assert "num-examples" in raised.value.hint


def test_too_few_owners_are_told_apart_at_once(tmp_path: Path) -> None:
    """A federation that could never start is refused before anything is written."""
    with pytest.raises(UsageError, match="min_clients = 2"):
        simulate(tiny(), make_owners(tmp_path, clients=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    """A second run into the same folder is refused."""
    owners = make_owners(tmp_path)
    simulate(tiny(), owners, tmp_path / "run")
    with pytest.raises(UsageError, match="E-RUN-FOLDER"):
        simulate(tiny(), owners, tmp_path / "run")


def test_dealing_out_loses_no_record(tmp_path: Path) -> None:
    """The shares of one file are disjoint and complete, whatever the number of owners."""
    data = write_data(tmp_path / "data.csv", records=61)
    owners = owners_in(data, tiny(), clients=4, scratch=tmp_path / "shares")
    lines = [line for owner in owners for line in owner.data_set.path.read_text().split("\n")[1:-1]]
    assert sorted(lines) == sorted(data.read_text().split("\n")[1:-1])
    assert [owner.data_set.records for owner in owners] == [16, 15, 15, 15]


def test_the_heart_data_keep_the_contract_of_their_run() -> None:
    """All 920 patients of the four hospitals pass the contract in run.toml."""
    run = load_config(heart_folder() / "run.toml", RunSpec).value
    owners = owners_in(heart_folder(), run, clients=4, scratch=Path("unused"))
    sets = {owner.name: owner_sets(run, owner) for owner in owners}
    counts = {name: len(item.train) + len(item.validation) for name, item in sets.items()}
    assert counts == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
