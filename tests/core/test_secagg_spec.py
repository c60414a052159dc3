"""Who is in a run's secure sums is named, complete, and fits the run's mode."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError
from tacit.core.secagg_spec import SecureAggregationSpec, least_threshold
from tacit.core.specification import RunSpec, canonical_json

HOSPITALS = [f"hospital-{letter}" for letter in "abcd"]
PRIVACY = {"clip": 1.0, "epsilon": 1.0, "delta": 1e-4}
RUN: dict[str, Any] = {
    "name": "small",
    "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
    "model": {"kind": "logistic"},
    "training": {"learning_rate": 0.5},
    "privacy": {"mode": "record-distributed", "normaliser": 800, **PRIVACY},
    "participation": {"rounds": 2, "min_clients": 3},
}
UPDATES = {"privacy": {"mode": "client-distributed", **PRIVACY}}


def parsed(table: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
    secure = {"members": HOSPITALS} | (table or {})
    return from_plain(RUN | {"secure_aggregation": secure} | changes, RunSpec)


def problems(table: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(table, **changes)
    return "; ".join(caught.value.problems)


@pytest.mark.parametrize(("members", "least"), [(3, 3), (4, 3), (5, 4), (7, 5), (10, 7)])
def test_the_threshold_is_two_thirds_and_one(members: int, least: int) -> None:
    """So many must survive: 3 of 4, 7 of 10."""
    assert least_threshold(members) == least
    names = tuple(f"m-{number}" for number in range(members))
    assert SecureAggregationSpec(members=names).threshold == least


def test_what_is_approved_names_the_threshold_and_not_the_order() -> None:
    """Two files that name the same members differently are one run."""
    one, other = parsed(), parsed({"members": HOSPITALS[::-1], "threshold": 3})
    assert canonical_json(one) == canonical_json(other)
    assert one.secure_aggregation == SecureAggregationSpec(members=tuple(HOSPITALS))
    assert b'"threshold":3' in canonical_json(one)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"members": HOSPITALS[:2]}, "expected 3 to 1000 members, got 2"),
        ({"members": [*HOSPITALS, HOSPITALS[0]]}, "expected each member once"),
        ({"members": [*HOSPITALS, "Not A Name"]}, "got 'Not A Name'"),
        ({"threshold": 2}, "expected 3 to 4 of 4 members"),
        ({"threshold": 5}, "expected 3 to 4 of 4 members"),
        ({"colluders": 0}, "expected 1 to 1 of 4 members, got 0"),
        ({"colluders": 2}, "expected 1 to 1 of 4 members, got 2"),
        ({"steps_per_round": 0}, "expected 1 to 10000, got 0"),
        ({"bound": -1.0}, "expected 0 (derived) or more, got -1.0"),
        ({"max_records": -1}, "expected 0 (derived) or more, got -1"),
    ],
)
def test_a_cohort_that_cannot_be_is_a_problem_of_the_file(
    table: dict[str, Any], problem: str
) -> None:
    """Too few, doubled or oddly named members; a threshold or colluders that open two sums."""
    assert problem in problems(table)


@pytest.mark.parametrize(("threshold", "most"), [(7, 3), (8, 5), (10, 8)])
def test_colluders_cannot_open_two_sums(threshold: int, most: int) -> None:
    """Of 10 members a stays below 2t - n, so that no two lists of survivors reach t."""
    names = [f"m-{number}" for number in range(10)]
    everybody = {"rounds": 2, "min_clients": 10}
    table = {"members": names, "threshold": threshold}
    assert (
        parsed({**table, "colluders": most}, participation=everybody).secure_aggregation is not None
    )
    assert f"expected 1 to {most} of 10" in problems(
        {**table, "colluders": most + 1}, participation=everybody
    )


@pytest.mark.parametrize(
    ("table", "changes", "problem"),
    [
        ({"steps_per_round": 2}, {"privacy": {"mode": "none"}}, "steps_per_round"),
        ({"max_records": 10}, {"privacy": {"mode": "none"}}, "max_records"),
        ({"max_weight": 0}, {"privacy": {"mode": "none"}}, "max_weight"),
        ({}, {"training": {"learning_rate": 1, "local_steps": 2}}, "training.local_steps"),
        ({}, {"participation": {"rounds": 2, "fraction": 0.5}}, "participation.fraction"),
        ({}, {"participation": {"rounds": 2, "min_clients": 5}}, "to all 4 members, got 5"),
        ({}, {"participation": {"rounds": 2, "min_clients": 2}}, "the threshold, 3, to all 4"),
        ({"bound": 1.0}, UPDATES, "secure_aggregation.bound"),
        ({"max_records": 10}, UPDATES, "secure_aggregation.max_records"),
        ({"steps_per_round": 2}, UPDATES, "secure_aggregation.steps_per_round"),
        ({}, {"privacy": {**UPDATES["privacy"], "normaliser": 3}}, "privacy.normaliser"),
        ({}, {"privacy": {**UPDATES["privacy"], "sampling": "poisson"}}, "privacy.sampling"),
    ],
)
def test_the_table_fits_the_mode(
    table: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    """Each mode has the keys that it uses, and a round as many members as a sum needs."""
    assert problem in problems(table, **changes)


def test_both_modes_take_the_table() -> None:
    """Steps in a round by record; local steps by client."""
    assert parsed({"steps_per_round": 5, "bound": 3.0}).secure_aggregation is not None
    assert parsed(training={"learning_rate": 1, "local_steps": 9}, **UPDATES).training is not None


def test_a_distributed_mode_needs_the_table() -> None:
    """Noise is shared among members who are named."""
    with pytest.raises(ConfigError) as caught:
        from_plain(RUN, RunSpec)
    assert any("secure_aggregation: missing" in problem for problem in caught.value.problems)


def test_updates_without_noise_can_be_summed_unseen() -> None:
    """Mode none and the local modes take the table; a ServerApp of one's own does not."""
    for privacy in ({"mode": "none"}, {"mode": "record-local", **PRIVACY}):
        assert parsed({"max_weight": 10}, privacy=privacy).secure_aggregation is not None
    app = {"client": "apps:client", "server": "apps:server"}
    results = {"train": {"metrics": {"num-examples": {"range": [1, 10]}}}}
    bare = {key: value for key, value in RUN.items() if key not in ("data", "model", "training")}
    with pytest.raises(ConfigError) as caught:
        from_plain(
            bare
            | {"secure_aggregation": {"members": HOSPITALS}, "privacy": {"mode": "none"}}
            | {"app": app, "results": results},
            RunSpec,
        )
    assert any("app.server" in problem for problem in caught.value.problems)
