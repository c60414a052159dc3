from __future__ import annotations

from typing import Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.data_contract import ColumnSpec, DataSpec
from tacit.core.errors import ConfigError
from tacit.core.specification import (
    AppSpec,
    EvaluationSpec,
    MetricSpec,
    ModelSpec,
    ParticipationSpec,
    PrivacySpec,
    ReplySpec,
    RetentionSpec,
    TrainingSpec,
)

NUMBER = {"type": "number", "range": [0, 1]}
CATEGORY = {"type": "category", "values": ["a", "b"]}
TABLE = {"classes": ["0", "1"], "columns": {"x": NUMBER}}
IMAGE = {"kind": "image", "classes": ["0", "1"], "shape": [1, 8, 8]}
NOISE = {"mode": "record-local", "clip": 1, "epsilon": 1, "delta": 0.001}


def problem_of(kind: type[Any], plain: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_plain(plain, kind)
    (problem,) = caught.value.problems
    return problem.removeprefix("specification: ")


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (ColumnSpec, NUMBER),
        (ColumnSpec, CATEGORY | {"missing": "a"}),
        (ColumnSpec, {"type": "boolean", "values": ["no", "yes"]}),
        (DataSpec, TABLE | {"label_map": {"2": "1"}}),
        (DataSpec, IMAGE),
        (ModelSpec, {"kind": "mlp", "hidden": [8]}),
        (ModelSpec, {"kind": "module", "factory": "pkg.mod:make", "parameters": {"width": 3}}),
        (TrainingSpec, {"learning_rate": 0.1}),
        (PrivacySpec, NOISE),
        (PrivacySpec, NOISE | {"sampling": "poisson", "sample_rate": 0.1}),
        (PrivacySpec, {"mode": "none"}),
    ],
)
def test_what_makes_sense_is_read(kind: type[Any], plain: dict[str, Any]) -> None:
    """Each part of a specification is read on its own."""
    assert isinstance(from_plain(plain, kind), kind)


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        ({"type": "number"}, "range: missing: a number needs range"),
        ({"type": "number", "range": [1, 1]}, "range: expected low < high"),
        (NUMBER | {"missing": "a"}, "missing: expected a number"),
        (CATEGORY | {"range": [0, 1]}, "range: only a number has a range"),
        (CATEGORY | {"values": ["a"]}, "values: a category needs at least two"),
        (CATEGORY | {"values": ["a", "a"]}, "values: expected each value once"),
        ({"type": "boolean", "values": ["yes"]}, "values: a boolean needs its two words"),
        (CATEGORY | {"missing": "c"}, "missing: expected one of `values`"),
    ],
)
def test_columns_are_declared_in_full(plain: dict[str, Any], problem: str) -> None:
    """A column says how it becomes numbers, from public knowledge alone."""
    assert problem_of(ColumnSpec, plain).startswith(problem)


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        (TABLE | {"classes": ["0", "0"]}, "classes: expected at least two different"),
        (TABLE | {"label_map": {"2": "3"}}, "label_map.2: expected one of `classes`"),
        (TABLE | {"columns": {}}, "columns: missing: a table needs at least one"),
        (TABLE | {"label": "x"}, "columns.x: the label is declared by"),
        (TABLE | {"shape": [1, 8, 8]}, "shape: only images have a shape"),
        (IMAGE | {"shape": None}, "shape: missing: images need shape"),
        (IMAGE | {"shape": [0, 8, 8]}, "shape: expected channels"),
    ],
)
def test_the_contract_is_consistent(plain: dict[str, Any], problem: str) -> None:
    """Tables have columns, images a shape, and the label is one of the classes."""
    assert problem_of(DataSpec, plain).startswith(problem)


@pytest.mark.parametrize(
    ("kind", "plain", "problem"),
    [
        (ModelSpec, {"kind": "mlp", "factory": "a:b"}, "factory: expected with kind"),
        (ModelSpec, {"kind": "module", "factory": "a.b"}, 'factory: expected "package.module:'),
        (ModelSpec, {"kind": "mlp", "hidden": [0]}, "hidden: expected widths"),
        (ModelSpec, {"kind": "mlp", "seed": -1}, "seed: expected 0 or more"),
        (TrainingSpec, {"learning_rate": 1, "local_steps": 0}, "local_steps: expected"),
        (TrainingSpec, {"learning_rate": 1, "batch_size": -1}, "batch_size: expected"),
        (TrainingSpec, {"learning_rate": 1, "optimizer": "lbfgs"}, "optimizer: expected"),
        (TrainingSpec, {"learning_rate": 1, "momentum": 1}, "momentum: expected"),
        (TrainingSpec, {"learning_rate": 1, "weight_decay": -1}, "weight_decay: expected"),
        (TrainingSpec, {"learning_rate": 1, "validation_fraction": 1}, "validation_fraction"),
        (PrivacySpec, NOISE | {"clip": 0}, "clip: expected a positive number"),
        (
            PrivacySpec,
            NOISE | {"sample_rate": 0, "sampling": "poisson"},
            "sample_rate: expected 0 < rate",
        ),
        (PrivacySpec, NOISE | {"normaliser": -1}, "normaliser: expected 0 or more"),
        (ParticipationSpec, {"rounds": 1, "min_clients": 0}, "min_clients: expected"),
        (ParticipationSpec, {"rounds": 1, "round_deadline_s": 1e9}, "round_deadline_s: expected"),
        (ParticipationSpec, {"rounds": 1, "max_attempts": 0}, "max_attempts: expected"),
        (EvaluationSpec, {"every": -1}, "every: expected"),
        (MetricSpec, {"range": [1, 0]}, "range: expected low <= high"),
        (MetricSpec, {"range": [0, 1], "length": -1}, "length: expected"),
        (ReplySpec, {"arrays": "all"}, 'arrays: expected "model" or "none"'),
        (AppSpec, {"client": "a.b"}, 'client: expected "package.module:app"'),
        (RetentionSpec, {"rounds": "some"}, 'rounds: expected "auto"'),
        (RetentionSpec, {"every": -1}, "every: expected"),
    ],
)
def test_each_part_has_its_rules(kind: type[Any], plain: dict[str, Any], problem: str) -> None:
    """A value out of bounds is named with its key."""
    problems = problem_of(kind, plain)
    assert problems.startswith(problem)
