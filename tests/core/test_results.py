"""What built-in runs may reply follows from the specification."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.results import result_schema
from tacit.core.specification import RunSpec

BUILT_IN: dict[str, Any] = {
    "name": "test",
    "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
    "model": {"kind": "logistic"},
    "training": {"learning_rate": 1.0},
    "participation": {"rounds": 1},
}
DP = {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-5}


def test_in_the_open_a_reply_carries_weight_and_loss() -> None:
    """The model, the number of records and the training loss."""
    schema = result_schema(from_plain({**BUILT_IN, "privacy": {"mode": "none"}}, RunSpec))
    assert schema["train"].arrays == "model"
    assert set(schema["train"].metrics) == {"num-examples", "loss"}
    assert schema["evaluate"].arrays == "none"
    assert set(schema["evaluate"].metrics) == {"num-examples", "loss", "accuracy"}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_under_differential_privacy_the_weight_is_one(kind: str) -> None:
    """The number of records is protected: no other weight passes."""
    schema = result_schema(from_plain({**BUILT_IN, "privacy": DP}, RunSpec))
    assert schema[kind].metrics["num-examples"].range == (1.0, 1.0)


def test_noised_metrics_are_sums_and_nothing_else() -> None:
    """With evaluation.epsilon no exact metric is declared, and a sum may be below zero."""
    noised = {"evaluation": {"every": 1, "epsilon": 1.0}, "privacy": DP}
    metrics = result_schema(from_plain({**BUILT_IN, **noised}, RunSpec))["evaluate"].metrics
    assert set(metrics) == {"num-examples", "sum-correct", "sum-wrong", "sum-loss"}
    assert metrics["num-examples"].range == (1.0, 1.0)
    low, high = metrics["sum-correct"].range
    assert low < -1e15
    assert 1e15 < high < float("inf")


def test_under_differential_privacy_training_tells_no_loss() -> None:
    """The training loss is a function of the records."""
    schema = result_schema(from_plain({**BUILT_IN, "privacy": DP}, RunSpec))
    assert set(schema["train"].metrics) == {"num-examples"}


def test_an_app_of_ones_own_declares_its_replies() -> None:
    """Declared results are taken as they are."""
    plain = {
        "name": "foreign",
        "privacy": {"mode": "none"},
        "participation": {"rounds": 1},
        "app": {"client": "a.b:c"},
        "results": {"train": {"metrics": {"f1": {"range": [0.0, 1.0]}}}},
    }
    spec = from_plain(plain, RunSpec)
    assert result_schema(spec) == spec.results
