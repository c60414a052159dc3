"""Secure aggregation over real daemons: four hospitals, and sums that nobody saw in parts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.artifacts import save_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import (
    EvaluationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    SecureAggregationSpec,
)
from tacit.learning.models import initial_arrays
from tacit.privacy.secure_sum import with_dimension
from tacit.simulation.demo import HOSPITALS
from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import Federation, eventually, federation

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POLICY = "[policy.secure_aggregation]\nrequired = true\n"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Four hospitals that have pinned one another, by files that they exchanged."""
    with federation(tmp_path_factory.mktemp("secure")) as made:
        for owner, records in HOSPITALS.items():
            path = made.root / f"{owner}.csv"
            shutil.copy(heart_folder() / path.name, path)
            declared = f'[data_sets.heart]\npath = "{path}"\nrecords = {records}\n'
            home = made.join(owner, data=declared, policy=POLICY)
            config = home / "client.toml"
            config.write_text(config.read_text().replace('"record-local"', '"record-distributed"'))
        exported = {
            owner: made.tacit("client", "members", "export", "--home", made.root / owner).out
            for owner in HOSPITALS
        }
        for owner in HOSPITALS:
            for other, text in exported.items():
                if other != owner:
                    file = made.root / f"{other}.toml"
                    file.write_text(text)
                    pin = ("client", "members", "pin", "--file", file)
                    assert made.tacit(*pin, "--home", made.root / owner).code == 0
            made.start_client(owner)
        yield made


def distributed(*, rounds: int = 5, steps: int = 1, **secure: Any) -> RunSpec:
    run = load_config(heart_folder() / "run.toml", RunSpec).value
    changed = dataclasses.replace(
        run,
        privacy=PrivacySpec(
            mode=PrivacyMode.RECORD_DISTRIBUTED,
            clip=0.5,
            epsilon=1.0,
            delta=0.001,
            normaliser=736.0,
        ),
        secure_aggregation=SecureAggregationSpec(
            members=tuple(HOSPITALS), steps_per_round=steps, **secure
        ),
        participation=dataclasses.replace(run.participation, rounds=rounds, min_clients=3),
        evaluation=EvaluationSpec(),
    )
    return with_dimension(changed, initial_arrays(changed))


def submit(made: Federation, run: RunSpec) -> str:
    initial = made.root / "initial.safetensors"
    save_arrays(initial, initial_arrays(run))
    return made.submit(run, initial)


def claims(made: Federation, run_id: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(made.pull(run_id).manifest.read_text())
    return {manifest["members"][node]: sides["train"] for node, sides in manifest["claims"].items()}


def test_four_hospitals_share_the_noise_of_every_sum(hospitals: Federation) -> None:
    """Over pinned members and real daemons a run of two steps a round ends with a model; each
    owner's claim is settled below the target, since nobody was lost."""
    run = distributed(rounds=5, steps=2)
    run_id = submit(hospitals, run)
    model = hospitals.finish(run_id)
    start = initial_arrays(run)
    assert all(np.isfinite(array).all() for array in model.values())
    assert any(not np.array_equal(model[name], start[name]) for name in start)
    for owner, claim in claims(hospitals, run_id).items():
        assert 0.5 < claim["epsilon"] < 1.0, owner
        assert (claim["unit"], claim["relation"]) == ("record", "add/remove")


def test_a_hospital_that_dies_does_not_stop_the_others(hospitals: Federation) -> None:
    """One daemon is killed in the middle of a run and comes back: the round goes on over three,
    later rounds over four again, and no claim exceeds the target."""
    run_id = submit(hospitals, distributed(rounds=12))
    hospitals.wait_for_event(run_id, "round_finished", round=2)
    hospitals.daemons["va"].kill()
    hospitals.wait_for_event(run_id, "round_finished", round=5)
    hospitals.start_client("va")
    model = hospitals.finish(run_id)
    assert all(np.isfinite(array).all() for array in model.values())
    rounds = json.loads(hospitals.pull(run_id).manifest.read_text())["rounds"]
    lost = [entry["round"] for entry in rounds if entry["failed"]]
    assert lost
    assert max(claim["epsilon"] for claim in claims(hospitals, run_id).values()) <= 1.0


def test_a_server_that_dies_finds_its_session_again(hospitals: Federation) -> None:
    """The server is killed between two rounds: the run goes on from the journal's answers."""
    run_id = submit(hospitals, distributed(rounds=8))
    hospitals.wait_for_event(run_id, "round_finished", round=2)
    hospitals.daemons["server"].kill()
    hospitals.start_server()
    for owner in HOSPITALS:
        hospitals.daemons[owner].says("connected", times=2)
    model = hospitals.finish(run_id)
    assert all(np.isfinite(array).all() for array in model.values())


def test_an_owner_who_has_not_pinned_a_member_denies_the_run(hospitals: Federation) -> None:
    """Taken out of one owner's members, a hospital is no member for them: the run is denied."""
    home = hospitals.root / "cleveland"
    unpin = ("client", "members", "unpin", "va", "--home", home)
    assert hospitals.tacit(*unpin).code == 0
    run_id = submit(hospitals, distributed(rounds=2))
    try:
        fields = hospitals.wait_for_event(run_id, "node_decided", member="cleveland")
        assert (fields["verdict"], fields["code"]) == ("denied", "E-MEMBER-UNPINNED")
    finally:
        file = hospitals.root / "va.toml"
        pin = ("client", "members", "pin", "--file", file, "--home", home)
        assert hospitals.tacit(*pin).code == 0
        with hospitals.operator() as operator:
            operator.stop(run_id, "the test is over")
    eventually("the run to end", hospitals.pull(run_id).manifest.exists)
