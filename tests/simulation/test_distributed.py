"""Noise that members share, through the real node and the real server loop in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import AppError
from tacit.core.specification import (
    EvaluationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    SecureAggregationSpec,
)
from tacit.privacy.ledger import LEDGER_NAME
from tacit.privacy.ledger_store import connected, stored_rows
from tacit.simulation.federation import Simulated, simulate
from tacit.simulation.owners import owners_in
from tests.conformance import CASES, initial_arrays, run_spec
from tests.simulation.test_federation import tiny, write_data
from tests.simulation.test_secure import Losing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MEMBERS = tuple(f"owner-{number}" for number in range(1, 5))


def by_record(*, rounds: int, steps: int, **privacy: Any) -> RunSpec:
    run = tiny()
    return replace(
        run,
        training=None if run.training is None else replace(run.training, local_steps=1),
        privacy=PrivacySpec(
            mode=PrivacyMode.RECORD_DISTRIBUTED, clip=1.0, delta=1e-4, normaliser=160.0, **privacy
        ),
        secure_aggregation=SecureAggregationSpec(members=MEMBERS, steps_per_round=steps),
        participation=replace(run.participation, rounds=rounds, min_clients=3),
        evaluation=EvaluationSpec(),
    )


def by_client(**changes: Any) -> RunSpec:
    run = run_spec(replace(CASES[0], **changes))
    return replace(
        run,
        privacy=PrivacySpec(
            mode=PrivacyMode.CLIENT_DISTRIBUTED, clip=1.0, noise_multiplier=20.0, delta=1e-4
        ),
        secure_aggregation=SecureAggregationSpec(members=MEMBERS),
        participation=replace(run.participation, min_clients=3),
    )


def played(run: RunSpec, folder: Path) -> Simulated:
    folder.mkdir(exist_ok=True)
    data = write_data(folder / "data.csv", records=200)
    owners = owners_in(data, run, clients=4, scratch=folder / "shares")
    initial = folder / "initial.safetensors"
    if run.app is not None:
        save_arrays(initial, initial_arrays())
    return simulate(run, owners, folder / "run", initial=initial if run.app else None)


def claims(done: Simulated, side: str) -> list[dict[str, Any]]:
    manifest = json.loads(done.folder.manifest.read_text())
    return [sides[side] for sides in manifest["claims"].values()]


def entries(run: Path, owner: str) -> list[dict[str, Any]]:
    connection = connected(run / "owners" / owner / LEDGER_NAME, read_only=True)
    try:
        return [json.loads(row.content) for row in stored_rows(connection)]
    finally:
        connection.close()


def test_steps_of_a_round_are_steps_of_a_run(tmp_path: Path) -> None:
    """Twelve rounds of one secure step and three of four, with little noise, end in nearly the
    same model: the optimiser goes on over rounds and sessions."""
    runs = [by_record(rounds=12, steps=1, noise_multiplier=1.5)]
    runs.append(by_record(rounds=3, steps=4, noise_multiplier=1.5))
    models = [
        load_arrays(played(run, tmp_path / str(number)).folder.model)
        for number, run in enumerate(runs)
    ]
    assert np.abs(models[0]["linear.weight"]).max() > 0.6
    for name, array in models[0].items():
        np.testing.assert_allclose(models[1][name], array, atol=0.3)


def test_what_is_reserved_is_settled_with_all_members(tmp_path: Path) -> None:
    """Each step is charged at the worst, then settled by signatures on all four; the claim is what
    four cost, below the target that three would cost."""
    done = played(by_record(rounds=2, steps=2, epsilon=1.0), tmp_path / "run")
    for claim in claims(done, "train"):
        assert 0.5 < claim["epsilon"] < 0.95
        assert (claim["unit"], claim["relation"]) == ("record", "add/remove")
    kinds = [entry["kind"] for entry in entries(tmp_path / "run" / "run", "owner-1")]
    assert kinds.count("reserve") == 4
    assert kinds.count("settle") == 2  # the first step of each session; later ones cost no more
    settled = next(
        entry for entry in entries(tmp_path / "run" / "run", "owner-1") if entry["kind"] == "settle"
    )
    assert len(settled["body"]["evidence_sha256"]) == 64


def test_a_member_lost_between_two_steps_ends_the_session_and_not_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps the second loses a member: the rest of the round is another session, among
    three, and the first step is not done again."""
    losing = Losing("train", (2,), round_number=1, asked=2)
    losing.install(monkeypatch)
    done = played(by_record(rounds=1, steps=4, epsilon=1.0), tmp_path / "run")
    (entry,) = json.loads(done.folder.manifest.read_text())["rounds"]
    assert entry["attempt"] == 1
    assert list(entry["failed"].values()) == ["E-NODE-GONE"]
    epsilons = sorted(claim["epsilon"] for claim in claims(done, "train"))
    assert epsilons[0] < epsilons[1]  # the lost one was charged for one step alone
    charged = []
    for owner in MEMBERS:
        kinds = [entry["kind"] for entry in entries(tmp_path / "run" / "run", owner)]
        charged.append(kinds.count("reserve"))
    # The second step's first vector, whose sum nobody could open, is charged as well.
    assert sorted(charged) == [1, 5, 5, 5]


def test_whole_updates_of_any_app_share_their_noise(tmp_path: Path) -> None:
    """An app of somebody's own, unmodified: clipped updates move the model, noise is in it, and
    the claim is at client level."""
    done = played(by_client(), tmp_path / "run")
    model = load_arrays(done.folder.model)
    assert all(np.isfinite(array).all() for array in model.values())
    for claim in claims(done, "whole"):
        assert (claim["unit"], claim["relation"]) == ("client", "replace-one")
        assert 0 < claim["epsilon"] < 2.0


def test_an_app_that_fails_pays_like_an_update(tmp_path: Path) -> None:
    """Whether an app of somebody's own fails may depend on the records, so that it is charged; the
    server hears one code."""
    run = replace(by_client(), results={"train": replace(by_client().results["train"], metrics={})})
    run = replace(run, participation=replace(run.participation, rounds=1, max_attempts=1))
    with pytest.raises(AppError, match="E-APP-FAILED"):
        played(run, tmp_path / "run")
    kinds = [entry["kind"] for entry in entries(tmp_path / "run" / "run", "owner-1")]
    assert kinds.count("reserve") == 1
