"""What cannot be audited is refused, in words, before anything is run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tacit.attacks.subject import (
    Records,
    record_keys,
    subject_of_model,
    subject_of_outputs,
    without_overlap,
)
from tacit.attacks.target import Outputs, PredictTarget
from tacit.core.errors import DataError
from tacit.learning.prepared import Examples
from tests.attacks.desk import MEMBERS, NON_MEMBERS, POPULATION, untrained

if TYPE_CHECKING:
    from collections.abc import Callable


def part(examples: Examples, rows: slice) -> Examples:
    return Examples(features=examples.features[rows], labels=examples.labels[rows])


def joined(*parts: Examples) -> Examples:
    return Examples(
        features=np.concatenate([each.features for each in parts]),
        labels=np.concatenate([each.labels for each in parts]),
    )


def with_labels(examples: Examples, change: int) -> Examples:
    return dataclasses.replace(examples, labels=examples.labels + change)


def with_nan(examples: Examples) -> Examples:
    features = examples.features.copy()
    features[3, 1] = np.nan
    return dataclasses.replace(examples, features=features)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (
            {"non_members": part(NON_MEMBERS, slice(19))},
            "E-AUDIT-TOO-FEW",
            "20 non-members, got 19",
        ),
        ({"members": part(MEMBERS, slice(5))}, "E-AUDIT-TOO-FEW", "20 members, got 5"),
        (
            {"non_members": joined(NON_MEMBERS, part(MEMBERS, slice(7)))},
            "E-AUDIT-OVERLAP",
            "got 7 of 207 records of the non-members",
        ),
        (
            {"population": joined(POPULATION, part(NON_MEMBERS, slice(2)))},
            "E-AUDIT-OVERLAP",
            "got 2 of 202 records of the population",
        ),
        ({"members": with_labels(MEMBERS, 1)}, "E-AUDIT-OUTPUTS", "labels from 0 to 1, got 1 to 2"),
        ({"members": with_labels(MEMBERS, -1)}, "E-AUDIT-OUTPUTS", "got -1 to 0"),
        ({"members": with_nan(MEMBERS)}, "E-AUDIT-FEATURES", "finite float32 features of the memb"),
        (
            {"members": dataclasses.replace(MEMBERS, features=MEMBERS.features.astype(float))},
            "E-AUDIT-FEATURES",
            "got float64",
        ),
        (
            {"members": dataclasses.replace(MEMBERS, features=MEMBERS.features[:, :3])},
            "E-AUDIT-FEATURES",
            "cannot take the members",
        ),
    ],
)
def test_bad_records_are_refused(change: dict[str, Examples], code: str, said: str) -> None:
    """Each way to hand in records that cannot be audited has its own words, with counts only."""
    sides = {"members": MEMBERS, "non_members": NON_MEMBERS, "population": POPULATION} | change
    with pytest.raises(DataError) as caught:
        subject_of_model(untrained(), **sides)
    assert caught.value.code == code
    assert said in caught.value.message


def answers(function: Callable[[int], np.ndarray]) -> PredictTarget:
    return PredictTarget(predict=lambda features: function(len(features)))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n: np.full((n, 2), 0.4), "in 200 of 200 rows, first row 1, which sums to 0.8"),
        (lambda n: np.full((n, 2), np.nan), "got NaN in 200 of 200 rows, first row 1"),
        (lambda n: np.tile([1.5, -0.5], (n, 1)), "of 0 or more, got others in 200 of"),
    ],
    ids=["sums", "nan", "negative"],
)
def test_answers_that_are_no_probabilities_are_refused(
    answer: Callable[[int], np.ndarray], said: str
) -> None:
    """A remote target that answers with scores, or with nothing, is not audited on them."""
    with pytest.raises(DataError, match="E-AUDIT-OUTPUTS") as caught:
        subject_of_model(answers(answer), members=MEMBERS, non_members=NON_MEMBERS)
    assert said in caught.value.message


def test_a_model_in_training_mode_is_refused() -> None:
    """Dropout would move every score."""
    with pytest.raises(DataError, match="E-AUDIT-TRAIN-MODE"):
        subject_of_model(untrained().train(), members=MEMBERS, non_members=NON_MEMBERS)


def test_weights_that_are_no_numbers_are_refused() -> None:
    """A model that diverged gives no finite answers, and the audit says so."""
    model = untrained()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="expected finite outputs"):
        subject_of_model(model, members=MEMBERS, non_members=NON_MEMBERS)


def test_a_layer_called_logits_makes_no_target_of_a_model() -> None:
    """A torch module is asked as a model, whatever its layers are called."""
    model = torch.nn.Sequential()
    model.add_module("logits", untrained())
    done = subject_of_model(model.eval(), members=MEMBERS, non_members=NON_MEMBERS)
    expected = subject_of_model(untrained(), members=MEMBERS, non_members=NON_MEMBERS)
    assert np.array_equal(done.members.outputs.logits, expected.members.outputs.logits)


def test_no_message_holds_a_record() -> None:
    """The features of a record that stands on two sides are in no part of the error."""
    with pytest.raises(DataError) as caught:
        subject_of_model(
            untrained(), members=MEMBERS, non_members=joined(NON_MEMBERS, part(MEMBERS, slice(1)))
        )
    shown = caught.value.message + caught.value.hint
    assert not any(f"{value:.3g}" in shown for value in MEMBERS.features[0] if value > 0.01)


def test_overlap_is_left_out_of_both_sides() -> None:
    """Shared records go from either side, so that none looks like a member for being common."""
    shared = part(MEMBERS, slice(10, 14))
    left = without_overlap(
        Records(examples=MEMBERS),
        Records(examples=joined(part(NON_MEMBERS, slice(50)), shared, shared)),
        Records(examples=joined(shared, POPULATION)),
    )
    assert len(left.members.examples) == len(MEMBERS) - 4
    assert len(left.non_members.examples) == 50
    assert left.population is not None
    assert len(left.population.examples) == len(POPULATION)
    assert np.array_equal(record_keys(left.trained_too), record_keys(shared))
    assert left.dropped == 4 + 8 + 4
    assert left.members.rows is not None
    assert left.members.rows[10] == 15


def test_keys_tell_records_by_features_and_label() -> None:
    """Minus zero is zero; another label is another record; so is another last digit."""
    features = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [1e-30, 1.0]], dtype=np.float32)
    keys = record_keys(Examples(features=features, labels=np.array([0, 0, 1, 0])))
    assert keys[0] == keys[1]
    assert len(np.unique(keys)) == 3


def test_saved_answers_that_stand_on_both_sides_are_refused() -> None:
    """Equal answers are equal records, unless answers repeat by chance on one side already."""
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(80, 3))
    labels = np.zeros(80, dtype=np.int64)
    members, copies = (Outputs(logits=answers[p], labels=labels[p]) for p in (slice(50), slice(40)))
    others = Outputs(logits=answers[50:], labels=labels[50:])
    assert len(subject_of_outputs(members=members, non_members=others).non_members) == 30
    with pytest.raises(DataError, match="40 of 40 non-members") as refused:
        subject_of_outputs(members=members, non_members=copies)
    assert refused.value.code == "E-AUDIT-OVERLAP"
    coarse = (Outputs(logits=np.round(o.logits), labels=o.labels) for o in (members, copies))
    assert len(subject_of_outputs(members=next(coarse), non_members=next(coarse)).members) == 50
