"""Local training is the textbook's in the open, and works on noised gradients alone under DP."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import AppError, RefusedError
from tacit.learning.evaluation import evaluate_model
from tacit.learning.models import build_model, model_arrays
from tacit.learning.prepared import Examples, PreparedSets
from tacit.learning.training import Recipe, train_model
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.core.specification import RunSpec

KEY = bytes(range(32))
DP = {"mode": "record-local", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}


def recipe_of(run: RunSpec, **values: Any) -> Recipe:
    assert run.training is not None
    return Recipe(training=run.training, plan=privacy_plan(run, records=250), **values)


def model_of(run: RunSpec) -> nn.Module:
    assert run.model is not None
    assert run.data is not None
    return build_model(run.model, run.data)


def trained(
    run: RunSpec, examples: Examples, *, key: bytes | None = None, **values: Any
) -> dict[str, np.ndarray]:
    model = model_of(run)
    train_model(model, examples, recipe_of(run, **values), noise_key=key)
    return model_arrays(model)


def test_a_full_batch_step_is_gradient_descent(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """w - learning rate x mean gradient, by the closed form for logistic regression."""
    run = make_run(training={"learning_rate": 0.7})
    errors = 0.5 - np.eye(2)[sets.train.labels]  # at zero weights both classes have half
    expected = -0.7 * errors.T @ sets.train.features.astype(np.float64) / len(sets.train)
    np.testing.assert_allclose(trained(run, sets.train)["linear.weight"], expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_learns(
    optimizer: str, make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """A nearly separable set is learnt, and the loss that is told falls."""
    training = {"learning_rate": 0.5, "optimizer": optimizer, "local_steps": 200, "batch_size": 32}
    run = make_run(training=training)
    model = model_of(run)
    first = train_model(model, sets.train, recipe_of(run))
    second = train_model(model, sets.train, recipe_of(run))
    assert second < first < math.log(2)
    assert evaluate_model(model, sets.validation)["accuracy"] > 0.85


def test_batches_follow_from_their_seed(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """The same seed repeats the weights bit by bit, another gives others."""
    run = make_run(training={"learning_rate": 0.5, "local_steps": 9, "batch_size": 16})
    one, again, other = (trained(run, sets.train, batch_seed=seed) for seed in (1, 1, 2))
    assert one["linear.weight"].tobytes() == again["linear.weight"].tobytes()
    assert one["linear.weight"].tobytes() != other["linear.weight"].tobytes()


@pytest.mark.parametrize("privacy", [{"mode": "none"}, DP], ids=["open", "private"])
def test_the_proximal_term_holds_weights_back(
    privacy: dict[str, Any], make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """With learning rate x mu = 1, every step starts again from the received weights."""
    one_step = make_run(training={"learning_rate": 0.1, "local_steps": 1}, privacy=privacy)
    two_steps = make_run(training={"learning_rate": 0.1, "local_steps": 2}, privacy=privacy)
    free = trained(two_steps, sets.train, key=KEY)["linear.weight"]
    held = trained(two_steps, sets.train, key=KEY, proximal_mu=10.0)["linear.weight"]
    single = trained(one_step, sets.train, key=KEY)["linear.weight"]
    assert np.linalg.norm(held) < np.linalg.norm(free)
    assert np.linalg.norm(held) < 1.5 * np.linalg.norm(single)


def test_private_training_repeats_under_its_key_alone(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """No seed of the run reaches the noise: the key decides."""
    run = make_run(privacy=DP)
    seeded = make_run(privacy=DP, training={"learning_rate": 0.5, "seed": 99})
    one = trained(run, sets.train, key=KEY, batch_seed=1)["linear.weight"]
    again = trained(seeded, sets.train, key=KEY, batch_seed=2)["linear.weight"]
    other = trained(run, sets.train, key=bytes(32), batch_seed=1)["linear.weight"]
    assert one.tobytes() == again.tobytes()
    assert not np.isclose(one, other).any()


def test_the_choice_of_per_example_gradients_is_said_aloud(
    make_run: Callable[..., RunSpec], sets: PreparedSets, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's log, which stays at the owner, names how each layer's gradients are made."""
    caplog.set_level("INFO", "tacit.learning.training")
    trained(make_run(privacy=DP), sets.train, key=KEY)
    assert "book-keeping" in caplog.text


def test_private_training_without_a_key_is_refused(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """No key, no noise; no noise, no training."""
    run = make_run(privacy=DP)
    model = model_of(run)
    before = model_arrays(model)["linear.weight"].tobytes()
    with pytest.raises(RefusedError, match="E-NOISE-KEY-MISSING"):
        train_model(model, sets.train, recipe_of(run))
    assert model_arrays(model)["linear.weight"].tobytes() == before


def test_private_training_tells_no_loss(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """The training loss is a function of the records."""
    run = make_run(privacy=DP)
    assert math.isnan(train_model(model_of(run), sets.train, recipe_of(run), noise_key=KEY))


def test_a_private_step_is_scaled_by_the_declared_records(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """Half the data gives half the step, noise aside: the divisor is public, not a length."""
    quiet = {**DP, "noise_multiplier": 0.01, "clip": 1e-3}
    run = make_run(privacy=quiet, training={"learning_rate": 1e5})
    half = Examples(features=sets.train.features[::2], labels=sets.train.labels[::2])
    doubled = Examples(
        features=np.concatenate([half.features] * 2), labels=np.concatenate([half.labels] * 2)
    )
    one = trained(run, half, key=KEY)["linear.weight"]
    two = trained(run, doubled, key=KEY)["linear.weight"]
    np.testing.assert_allclose(two, 2 * one, rtol=0.05, atol=0.02 * float(np.abs(two).max()))


def test_weights_that_are_no_longer_finite_are_an_error(
    make_run: Callable[..., RunSpec], sets: PreparedSets
) -> None:
    """A diverged update does not look like one."""
    run = make_run(training={"learning_rate": 1e30})
    huge = dataclasses.replace(sets.train, features=sets.train.features * np.float32(1e30))
    with pytest.raises(AppError, match="E-TRAINING-DIVERGED"):
        trained(run, huge)


def test_evaluation_counts_right_answers(sets: PreparedSets) -> None:
    """Loss and accuracy of a model that always says class 1 with certainty."""
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 20.0]))
    metrics = evaluate_model(model, sets.validation)
    share = float(np.mean(sets.validation.labels == 1))
    assert metrics["accuracy"] == share
    assert metrics["loss"] == pytest.approx(20.0 * (1 - share), rel=1e-5)
    assert metrics["num-examples"] == len(sets.validation)


def test_evaluation_without_records_is_an_error() -> None:
    """An empty side of the split has no accuracy."""
    nothing = Examples(
        features=np.zeros((0, 6), dtype=np.float32), labels=np.zeros(0, dtype=np.int64)
    )
    with pytest.raises(AppError, match="E-NO-VALIDATION"):
        evaluate_model(nn.Linear(6, 2), nothing)
