"""Comparisons use the run's own recipe; on the heart disease data they reach the reference."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.configuration import load_config
from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyMode, PrivacySpec, RunSpec
from tacit.learning.baselines import (
    score_arrays,
    specification_alone,
    train_alone,
    trivial_score,
    union,
)
from tacit.learning.models import build_model, initial_arrays, load_model_arrays, model_arrays
from tacit.learning.prepared import Examples, PreparedSets
from tacit.learning.resolved import resolved
from tacit.learning.training import Recipe, train_model
from tacit.privacy.distributed.plan import DistributedPlan, plan_of_run
from tacit.privacy.noise import derive_key, fresh_key
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = range(10)
HEART = Path(__file__).parents[2] / "simulation" / "data" / "heart"


def in_the_open(run: RunSpec) -> RunSpec:
    """Return the run without noise, at a learning rate for gradients that are not clipped."""
    assert run.training is not None
    training = dataclasses.replace(run.training, learning_rate=1.0)
    privacy = PrivacySpec(mode=PrivacyMode.NONE)
    return dataclasses.replace(run, training=training, privacy=privacy)


def federate(run: RunSpec, owners: list[PreparedSets]) -> dict[str, np.ndarray]:
    """Train with equal weights, each owner with keys of their own: the run's bare arithmetic."""
    assert run.model is not None
    assert run.data is not None
    assert run.training is not None
    arrays = initial_arrays(run)
    for _ in range(run.participation.rounds):
        replies = []
        for owner in owners:
            model = build_model(run.model, run.data)
            load_model_arrays(model, arrays)
            plan = privacy_plan(run, records=owner.records)
            recipe = Recipe(training=run.training, plan=plan)
            train_model(model, owner.train, recipe, noise_key=fresh_key())
            replies.append(model_arrays(model))
        arrays = {
            name: np.mean([reply[name] for reply in replies], axis=0, dtype=np.float64).astype(
                np.float32
            )
            for name in arrays
        }
    return arrays


def mean_accuracy(
    run: RunSpec,
    hospitals: Callable[[int], list[PreparedSets]],
    train: Callable[[RunSpec, list[PreparedSets]], dict[str, np.ndarray]],
) -> float:
    scores = []
    for seed in SEEDS:
        owners = hospitals(seed)
        validation = union([owner.validation for owner in owners])
        scores.append(score_arrays(run, train(run, owners), validation).accuracy)
    return float(np.mean(scores))


def test_the_shipped_hospitals_keep_the_shipped_contract(
    hospitals: Callable[[int], list[PreparedSets]],
) -> None:
    """All 920 patients are encoded, none dropped, and each is on one side."""
    owners = hospitals(1)
    sizes = [len(owner.train) + len(owner.validation) for owner in owners]
    assert sizes == [303, 294, 123, 200]


@pytest.mark.slow
def test_four_hospitals_reach_the_reference_at_epsilon_one(
    heart_run: RunSpec, hospitals: Callable[[int], list[PreparedSets]]
) -> None:
    """About 0.80 at (1, 1e-3) per record, each hospital adding its own noise; mean of ten seeds."""
    assert privacy_plan(heart_run, records=303).epsilon == pytest.approx(1.0, rel=1e-6)
    assert mean_accuracy(heart_run, hospitals, federate) > 0.775


@pytest.mark.slow
def test_four_hospitals_reach_the_reference_in_the_open(
    heart_run: RunSpec, hospitals: Callable[[int], list[PreparedSets]]
) -> None:
    """About 0.80 without noise; mean of ten seeds."""
    assert mean_accuracy(in_the_open(heart_run), hospitals, federate) > 0.785


@pytest.mark.slow
def test_pooling_is_no_worse_than_the_smallest_hospital_alone(
    heart_run: RunSpec, hospitals: Callable[[int], list[PreparedSets]]
) -> None:
    """Switzerland, 123 patients of whom 93 % are ill, learns little by itself."""
    run = in_the_open(heart_run)
    pooled = mean_accuracy(run, hospitals, train_alone)
    alone = mean_accuracy(run, hospitals, lambda spec, owners: train_alone(spec, owners[2:3]))
    assert pooled > alone + 0.1


def test_the_trivial_guess_is_the_larger_class(
    hospitals: Callable[[int], list[PreparedSets]],
) -> None:
    """509 of 920 patients are ill: whoever says so of all is right for 0.55 of them."""
    everyone = union([side for owner in hospitals(1) for side in (owner.train, owner.validation)])
    score = trivial_score(everyone, everyone, classes=2)
    assert score.accuracy == pytest.approx(509 / 920)
    assert score.loss == pytest.approx(0.687, abs=1e-3)
    assert score.examples == 920


def test_the_trivial_loss_is_finite_for_a_class_never_seen() -> None:
    """A class that only validation holds does not cost infinity."""
    features = np.zeros((3, 1), dtype=np.float32)
    seen = Examples(features=features, labels=np.array([0, 0, 1]))
    unseen = Examples(features=features, labels=np.array([2, 2, 2]))
    assert np.isfinite(trivial_score(seen, unseen, classes=3).loss)


def test_alone_under_privacy_takes_the_declared_records_for_divisor(
    heart_run: RunSpec, hospitals: Callable[[int], list[PreparedSets]]
) -> None:
    """The run's common normaliser is for a mean over four owners; one alone has its own."""
    owner = hospitals(1)[2]
    key = bytes(range(32))
    given = dataclasses.replace(
        heart_run, privacy=dataclasses.replace(heart_run.privacy, normaliser=123 * 0.8)
    )
    arrays = train_alone(heart_run, [owner], noise_key=key)
    again = train_alone(given, [owner], noise_key=key)
    other = train_alone(heart_run, [owner], noise_key=derive_key(key, purpose="other"))
    assert arrays["linear.weight"].tobytes() == again["linear.weight"].tobytes()
    assert arrays["linear.weight"].tobytes() != other["linear.weight"].tobytes()


def test_a_private_baseline_without_a_key_is_refused(
    heart_run: RunSpec, hospitals: Callable[[int], list[PreparedSets]]
) -> None:
    """A comparison gives no model away for free either."""
    with pytest.raises(RefusedError, match="E-NOISE-KEY-MISSING"):
        train_alone(heart_run, hospitals(1))


def test_what_shares_noise_is_compared_with_the_same_epsilon_in_one_place() -> None:
    """The demo's run becomes one round of its 20 steps with one owner's noise, which is that of a
    trusted server where all data are pooled: at the same epsilon, 1.41 times less."""
    run = load_config(HEART / "run-distributed.toml", RunSpec).value
    alone = specification_alone(run)
    assert alone.secure_aggregation is None
    plan = privacy_plan(alone, records=920)
    assert (plan.mode, plan.steps) == (PrivacyMode.RECORD_LOCAL, 20)
    assert plan.epsilon == pytest.approx(1.0, abs=1e-3)
    assert plan.normaliser == pytest.approx(736.0)
    shared = plan_of_run(resolved(run, None), records=303)
    assert isinstance(shared, DistributedPlan)
    central = plan.noise_deviation
    assert shared.noise.released_deviation(4) / central == pytest.approx(math.sqrt(2), rel=0.15)
    assert specification_alone(alone).training == alone.training


def test_whole_updates_are_compared_without_noise() -> None:
    """As under client-local: no node noises what stays."""
    run = load_config(HEART / "run-distributed.toml", RunSpec).value
    privacy = dataclasses.replace(run.privacy, mode=PrivacyMode.CLIENT_DISTRIBUTED)
    alone = specification_alone(dataclasses.replace(run, privacy=privacy))
    assert alone.privacy.mode is PrivacyMode.CLIENT_LOCAL
    assert (alone.secure_aggregation, alone.training) == (None, run.training)
