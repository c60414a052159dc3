"""One client.toml for all owners of a trial: what of it holds where."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tacit.client.approvals import app_of
from tacit.client.configuration import DataFormat
from tacit.core.artifacts import save_arrays
from tacit.core.errors import RefusedError, UsageError
from tacit.learning.resolved import resolved
from tacit.simulation.federation import simulate
from tacit.simulation.owners import bare_owners, owners_in
from tacit.simulation.rules import load_rules
from tests.conformance import CASES, NODES, initial_arrays, run_spec
from tests.simulation.test_distributed import by_record
from tests.simulation.test_federation import tiny, write_data

if TYPE_CHECKING:
    from pathlib import Path

POLICY = '[policy]\nmodes = ["none"]\napprove = "rule"\nmin_clients = 1\n'
DATA_SET = '[data_sets.default]\npath = "data.csv"\nrecords = 90\nforbidden = ["b"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "client.toml"
    path.write_text(text)
    return path


def test_an_app_of_ones_own_needs_the_owners_word(tmp_path: Path) -> None:
    """Listed it trains, though nothing confines it here; unlisted it is refused."""
    run = run_spec(CASES[0])
    with pytest.raises(RefusedError, match="E-POLICY-APP"):
        load_rules(written(tmp_path, POLICY), run)
    rules = load_rules(written(tmp_path, POLICY + f'[policy.apps."{app_of(run)}"]\n'), run)
    save_arrays(tmp_path / "initial.safetensors", initial_arrays())
    owners = bare_owners(run, clients=len(NODES), rules=rules)
    done = simulate(run, owners, tmp_path / "run", initial=tmp_path / "initial.safetensors")
    assert done.folder.model.exists()
    assert all(owner.policy is rules.policy for owner in owners)


def test_in_a_folder_each_file_has_all_that_is_declared(tmp_path: Path) -> None:
    """Every owner has the section as it is, with a path and a format of their own."""
    run = tiny()
    assert run.data is not None
    run = replace(run, data=replace(run.data, columns={"a": run.data.columns["a"]}))
    rules = load_rules(written(tmp_path, DATA_SET + POLICY), run)
    folder = tmp_path / "files"
    folder.mkdir()
    for seed, name in enumerate(("ada", "bob")):
        write_data(folder / f"{name}.csv", seed=seed)
    owners = owners_in(folder, run, clients=None, scratch=tmp_path / "s", rules=rules)
    assert [owner.data_set.path.stem for owner in owners] == ["ada", "bob"]
    for owner in owners:
        kept = replace(owner.data_set, path=tmp_path / "data.csv")
        assert (kept, owner.data_set.records) == (rules.data_set, 90)


def test_images_cannot_be_dealt_out(tmp_path: Path) -> None:
    """The format is named before anything is looked for."""
    text = f'[data_sets.default]\npath = "."\nrecords = 9\nformat = "{DataFormat.IMAGES.value}"\n'
    with pytest.raises(UsageError, match="E-DATA-FORMAT"):
        load_rules(written(tmp_path, text + POLICY), tiny())


def test_a_run_whose_sums_nobody_sees_is_held_against_the_file(tmp_path: Path) -> None:
    """In a trial all members have pinned one another; what several steps a round cost counts."""
    run = resolved(by_record(rounds=2, steps=4, epsilon=1.0), None)
    text = DATA_SET.replace('forbidden = ["b"]\n', "") + POLICY.replace(
        "none", "record-distributed"
    )
    limit = "max_epsilon_per_run = {}\n"
    assert load_rules(written(tmp_path, text + limit.format(1.0)), run).data_set is not None
    with pytest.raises(RefusedError, match="E-POLICY-EPSILON"):
        load_rules(written(tmp_path, text + limit.format(0.9)), run)
    floor = "[policy.secure_aggregation]\nmin_members = 5\n"
    with pytest.raises(RefusedError, match="E-COHORT-TOO-SMALL"):
        load_rules(written(tmp_path, text + limit.format(1.0) + floor), run)
