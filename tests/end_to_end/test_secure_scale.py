"""Twenty real clients and a million parameters: a tenth is killed, and the mean is exact."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import save_arrays
from tacit.core.specification import SecureAggregationSpec
from tests.end_to_end.federation import eventually, federation
from tests.end_to_end.runs import quick_spec, with_clients

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS, KILLED = 20, 2
PARAMETERS = 1_000_000
MAX_WEIGHT = 5  # the app's weights are 1 to 5
NAMES = [f"site-{number:02}" for number in range(1, CLIENTS + 1)]


def test_a_tenth_is_killed_when_vectors_are_due_and_the_mean_is_that_of_the_rest(
    tmp_path: Path,
) -> None:
    """Two of twenty daemons die after all shares were dealt and before any vector was masked: the
    round ends in its first attempt with the weighted mean of the other eighteen, as exactly as the
    integers are fine: half a step for each of them."""
    run = dataclasses.replace(
        with_clients(quick_spec(), 18, rounds=1),
        secure_aggregation=SecureAggregationSpec(
            members=tuple(NAMES), max_weight=MAX_WEIGHT, bound=16.0
        ),
    )
    start = {"weight": np.random.default_rng(1).normal(size=PARAMETERS).astype("<f4") * 0.1}
    initial = tmp_path / "initial.safetensors"
    save_arrays(initial, start)
    (tmp_path / "f").mkdir()
    pinned = "[policy.secure_aggregation]\nrequire_pinned_members = false\n"
    with federation(tmp_path / "f") as made:
        made.add_clients(*NAMES, policy=pinned + made.app_policy("quick_app:app"))
        lost, left = NAMES[:KILLED], NAMES[KILLED:]
        gates = made.hold(1, *NAMES)
        run_id = made.submit(run, initial)
        for name in NAMES:
            made.wait_until_held(name, 1, run_id)
        for name in NAMES:  # each has dealt its shares while its app waits
            eventually(
                f"{name} to have dealt its shares",
                lambda name=name: made.steps(name, run_id) >= {"keys", "shares"},
            )
        for name in lost:
            made.daemons[name].kill()
        for gate in gates:
            gate.unlink()
        model = made.finish(run_id)["weight"]
        (entry,) = json.loads(made.pull(run_id).manifest.read_text())["rounds"]
        nodes = {name: made.node_id(name) for name in NAMES}
    assert entry["attempt"] == 1
    assert sorted(entry["failed"]) == sorted(str(nodes[name]) for name in lost)
    total, weights = np.zeros(PARAMETERS), 0
    for name in left:
        rng = np.random.default_rng([nodes[name], 1])
        update = (start["weight"] * np.float32(0.5)) + rng.normal(size=PARAMETERS).astype("<f4")
        weight = 1 + nodes[name] % 5
        total += weight * (update.astype(np.float64) - start["weight"])
        weights += weight
    expected = start["weight"] + total / weights
    scale = (2**31 - 1 - CLIENTS) / (CLIENTS * run_bound(run.secure_aggregation))
    step = len(left) * 0.5 / scale / weights
    rounding = np.abs(expected) * 2.0**-24  # of float32, once
    assert np.all(np.abs(model - expected) <= step + rounding + 1e-12)


def run_bound(secure: SecureAggregationSpec | None) -> float:
    assert secure is not None
    return secure.coordinate_bound * MAX_WEIGHT
