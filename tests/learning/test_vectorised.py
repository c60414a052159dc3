"""Models trained together are those that would have been trained one by one."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import AppError, ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, TrainingSpec
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import Draws, ShadowRecipe, round_seed, shadow_recipe
from tacit.learning.stacked_gradients import (
    DenseGradients,
    GeneralGradients,
    stacked_gradients,
)
from tacit.learning.training import Recipe, _optimizer, train_model
from tacit.learning.vectorised import Shadow, StackedModels, train_together
from tacit.privacy.dpsgd.book_keeping import BookKeeping
from tacit.privacy.dpsgd.engine import Engine
from tacit.privacy.dpsgd.mechanism import GaussianMechanism
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.core.specification import RunSpec

OPEN = PrivacyPlan(
    mode=PrivacyMode.NONE,
    releases=3,
    local_steps=5,
    sample_rate=1.0,
    noise_multiplier=0.0,
    clip=math.inf,
    normaliser=1.0,
    epsilon=math.inf,
    delta=0.0,
    unit=PrivacyUnit.RECORD,
)
PRIVATE = dataclasses.replace(
    OPEN,
    mode=PrivacyMode.RECORD_LOCAL,
    noise_multiplier=0.3,
    clip=0.4,
    normaliser=60.0,
    epsilon=5.0,
    delta=1e-5,
)
CLASSES, SIZES = 3, (40, 64, 90)


@pytest.fixture
def pool() -> Examples:
    """A hundred and twenty made-up records of a small image with three classes."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(120, 1, 4, 4)).astype(np.float32)
    return Examples(features=features, labels=generator.integers(0, CLASSES, size=120))


def chain(kind: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 7),
        kind(),
        nn.Linear(7, 5),
        kind(),
        nn.Linear(5, CLASSES),
    )


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "logistic": logistic,
    "tanh": chain,
    "relu": lambda: chain(nn.ReLU),
    "cnn": cnn,
}


def shadows_of(make: Callable[[], nn.Module], sizes: Sequence[int] = SIZES) -> list[Shadow]:
    """Return shadows of their own first weights, records and seeds."""
    generator = np.random.default_rng(2)
    found = []
    for seed, size in enumerate(sizes):
        torch.manual_seed(seed)
        rows = generator.permutation(120)[:size].astype(np.int64)
        found.append(Shadow(start=make(), rows=rows, seed=seed))
    return found


def recipe_of(plan: PrivacyPlan = OPEN, *, rounds: int = 3, **training: Any) -> ShadowRecipe:
    values = {"learning_rate": 0.3, "local_steps": plan.local_steps, **training}
    return ShadowRecipe(training=TrainingSpec(**values), plan=plan, rounds=rounds)


def records_of(pool: Examples, rows: np.ndarray) -> Examples:
    return Examples(features=pool.features[rows], labels=pool.labels[rows])


def one_by_one(shadow: Shadow, pool: Examples, recipe: ShadowRecipe) -> nn.Module:
    """Train a shadow as an owner would, round by round."""
    model = copy.deepcopy(shadow.start)
    for number in range(recipe.rounds):
        single = Recipe(
            training=recipe.training,
            plan=recipe.plan,
            proximal_mu=recipe.training.proximal_mu,
            batch_seed=round_seed(shadow.seed, number),
        )
        train_model(model, records_of(pool, shadow.rows), single)
    return model


def assert_same(models: StackedModels, expected: Sequence[nn.Module], *, atol: float) -> None:
    for index, model in enumerate(expected):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(
                models.state[name][index], value, atol=atol, rtol=0.0, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize("batch_size", [0, 16, 64])
@pytest.mark.parametrize("name", MAKERS)
def test_equals_training_one_by_one(name: str, batch_size: int, pool: Examples) -> None:
    """Unequal subsets, whole or in batches that some of them do not fill: the same weights."""
    recipe = recipe_of(batch_size=batch_size, momentum=0.9, weight_decay=1e-3)
    shadows = shadows_of(MAKERS[name])
    expected = [one_by_one(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.1},
        {"proximal_mu": 0.5, "momentum": 0.5},
        {},
    ],
    ids=["adam", "fedprox", "plain"],
)
def test_every_optimiser_equals_its_own(training: dict[str, Any], pool: Examples) -> None:
    """Adam with weight decay, FedProx's pull, plain SGD: as train_model has them."""
    recipe = recipe_of(batch_size=16, **training)
    shadows = shadows_of(chain)
    expected = [one_by_one(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)


class SeededMechanism(GaussianMechanism):
    """The engine's own clip and scale, with a shadow's samples and noise."""

    def __init__(self, plan: PrivacyPlan, draws: Draws, order: Callable[[list[Any]], None]) -> None:
        super().__init__(plan, bytes(32))
        self._draws, self._order = draws, order

    def sample(self, units: int, *, step: int) -> np.ndarray:
        taken = self._draws.rows_of(0, range(step, step + 1))[0]
        return np.flatnonzero(np.isin(self._draws.members.numpy(), taken.numpy()))

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        noise = [torch.zeros(total.shape) for total in sums]
        self._order(noise)
        return [
            ((total + self._plan.noise_deviation * part) / self._plan.normaliser).float()
            for total, part in zip(sums, noise, strict=True)
        ]


def privately(shadow: Shadow, pool: Examples, recipe: ShadowRecipe) -> nn.Module:
    """Train one shadow through the node's own engine, with the shadow's draws."""
    model = copy.deepcopy(shadow.start)
    draws = Draws(torch.from_numpy(shadow.rows), recipe, seed=shadow.seed)

    def draw(noise: list[torch.Tensor]) -> None:
        if isinstance(model[0], nn.Flatten):  # a dense layer's bias is its last column
            for weight, bias in zip(noise[::2], noise[1::2], strict=True):
                both = torch.empty(weight.shape[0], weight.shape[1] + 1)
                draws.fill_noise(both)
                weight.copy_(both[:, :-1])
                bias.copy_(both[:, -1])
        else:
            for part in noise:
                draws.fill_noise(part)

    examples = records_of(pool, shadow.rows)
    features, labels = torch.from_numpy(examples.features), torch.from_numpy(examples.labels)
    for _ in range(recipe.rounds):
        mechanism = SeededMechanism(recipe.plan, draws, draw)
        engine = Engine(BookKeeping(model), mechanism, steps=recipe.plan.local_steps)
        optimizer = _optimizer(engine.parameters, recipe.training)
        for _ in range(recipe.plan.local_steps):
            gradients = engine.gradient(features, labels)
            for parameter, gradient in zip(engine.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return model


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("name", ["logistic", "tanh", "cnn"])
def test_private_training_equals_the_engine(name: str, rate: float, pool: Examples) -> None:
    """The same samples and noise through the node's engine give the same weights."""
    plan = dataclasses.replace(PRIVATE, sample_rate=rate)
    recipe = recipe_of(plan, momentum=0.5)
    shadows = shadows_of(MAKERS[name])
    expected = [privately(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)
