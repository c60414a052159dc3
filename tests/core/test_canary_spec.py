"""Canaries in a specification, and which specification is the twin of which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tacit.core.configuration import from_plain, parse_toml
from tacit.core.errors import ConfigError
from tacit.core.results import result_schema
from tacit.core.specification import CanarySpec, EvaluationSpec, RunSpec, canonical_json
from tacit.core.twins import is_twin_of, twin_of

RUN: dict[str, Any] = {
    "name": "small",
    "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
    "model": {"kind": "logistic"},
    "training": {"learning_rate": 0.5},
    "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
    "participation": {"rounds": 2},
    "evaluation": {"every": 1, "epsilon": 1.0},
}
CANARIES = CanarySpec(directions=600, mislabelled=300, run="r-0000000a")


def refusal(canaries: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_plain(RUN | {"canaries": canaries} | changes, RunSpec)
    return "; ".join(caught.value.problems)


def test_a_table_of_run_toml_names_the_guesses() -> None:
    """Half of each kind is guessed, a twin is the default; what is approved says both."""
    text = """
name = "small"
[data]
classes = ["a", "b"]
columns.x = { type = "number", range = [0, 1] }
[model]
kind = "logistic"
[training]
learning_rate = 0.5
[privacy]
mode = "record-local"
clip = 1.0
epsilon = 1.0
delta = 1e-4
[participation]
rounds = 2
[canaries]
directions = 600
"""
    run = parse_toml(text, RunSpec, source="run.toml").value
    assert run.canaries == CanarySpec(directions=600, direction_guesses=300, twin=True)
    assert run.discards_model
    assert b'"direction_guesses":300' in canonical_json(run)


@pytest.mark.parametrize(
    ("canaries", "words"),
    [
        ({}, "expected 1 to 100000 canaries"),
        ({"directions": 100_001}, "expected 1 to 100000 canaries"),
        ({"directions": 19}, "at least 20, got 19"),
        ({"directions": -1}, "at least 20, got -1"),
        ({"mislabelled": 30, "mislabelled_guesses": 31}, "(half) to 30, got 31"),
        ({"directions": 30, "run": "x"}, "the id of a run"),
        ({"directions": 30, "run": "r-0000000a", "twin": False}, "twin = true only"),
        ({"directions": 30, "seed": -1}, "expected 0 or more"),
    ],
)
def test_canaries_that_cannot_be_are_refused(canaries: dict[str, Any], words: str) -> None:
    """Counts, guesses, seeds and runs."""
    assert words in refusal(canaries)


def test_canaries_need_a_claim_per_record() -> None:
    """Without noise by record there is none to test; the server must be able to score."""
    assert "record-local" in refusal({"directions": 30}, privacy={"mode": "none"}, evaluation={})
    model = {"kind": "module", "factory": "a:b"}
    assert "built-in models" in refusal({"mislabelled": 30}, model=model)
    assert from_plain(RUN | {"model": model, "canaries": {"directions": 30}}, RunSpec).canaries


def test_a_twin_is_the_run_value_by_value() -> None:
    """Whatever training depends on must be the run's; evaluation and kept rounds must not be."""
    run = from_plain(RUN, RunSpec)
    twin = twin_of(run, CANARIES)
    assert is_twin_of(twin, run)
    assert list(twin.problems()) == []
    assert (twin.evaluation, twin.retention.rounds) == (EvaluationSpec(), "none")
    assert twin.training is not None
    faster = replace(twin, training=replace(twin.training, learning_rate=1.0))
    for other in (
        run,
        faster,
        replace(twin, evaluation=run.evaluation),
        replace(twin, canaries=replace(CANARIES, twin=False)),
        replace(twin, participation=replace(twin.participation, rounds=3)),
    ):
        assert not is_twin_of(other, run)


def test_an_opening_may_hold_bits_salt_and_scores_alone() -> None:
    """The schema of a reply to a query; a run without canaries declares no such reply."""
    run = from_plain(RUN, RunSpec)
    assert set(result_schema(run)) == {"train", "evaluate"}
    schema = result_schema(twin_of(run, CANARIES))["query"]
    lengths = {name: metric.length for name, metric in schema.metrics.items()}
    assert schema.arrays == "none"
    assert lengths == {
        "canary-bits": 900,
        "canary-salt": 32,
        "canary-products": 600,
        "canary-squared-norm": 0,
        "canary-steps": 0,
        "canary-parameters": 0,
    }
    dark = result_schema(twin_of(run, replace(CANARIES, directions=0, direction_guesses=0)))
    assert set(dark["query"].metrics) == {"canary-bits", "canary-salt"}
