"""One overfit target with references, trained once; and two models that know no audited record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tacit.attacks.registry import MEMBERSHIP
from tacit.learning.prepared import Examples
from tests.attacks.worlds import (
    Training,
    World,
    paired_halves,
    trained_together,
    untrained,
    with_target,
    world_of,
)

if TYPE_CHECKING:
    from tacit.attacks.target import Float64Array

RECORDS, FEATURES, CLASSES = 400, 10, 4
REFERENCES = 16


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def drawn(records: int, rng: np.random.Generator) -> Examples:
    """Overlapping clusters with a fifth of the labels wrong: much to learn by heart."""
    labels = rng.integers(CLASSES, size=records)
    centres = np.random.default_rng(3).normal(size=(CLASSES, FEATURES))
    features = 0.7 * centres[labels] + rng.normal(size=(records, FEATURES))
    wrong = rng.random(records) < 0.2
    labels[wrong] = rng.integers(CLASSES, size=int(wrong.sum()))
    return Examples(features=features.astype(np.float32), labels=labels)


@pytest.fixture(scope="session")
def overfit() -> World:
    """An overfit target, 16 references in pairs, 400 population records."""
    rng = np.random.default_rng(11)
    audited, population = drawn(RECORDS, rng), drawn(400, rng)
    is_in = paired_halves(1 + REFERENCES // 2, RECORDS, rng)[1:]  # the target's complement is none
    models = trained_together(audited, is_in, CLASSES, Training())
    return world_of(models[0], models[1:], is_in, audited, population)


@pytest.fixture(scope="session")
def overfit_scores(overfit: World) -> dict[str, Float64Array]:
    """What each probe says of the overfit target."""
    return {
        name: probe.scores(overfit.evidence, rng=np.random.default_rng(0))
        for name, probe in MEMBERSHIP.items()
    }


@pytest.fixture(scope="session")
def fresh(overfit: World) -> World:
    """The same evidence about a model that was never trained."""
    return with_target(overfit, untrained(FEATURES, 32, CLASSES, seed=1))


@pytest.fixture(scope="session")
def stranger(overfit: World) -> World:
    """The same evidence about a model trained on other records: all audited ones are outside."""
    others = drawn(RECORDS // 2, np.random.default_rng(12))
    rows = np.ones((1, len(others)), dtype=np.bool_)
    return with_target(overfit, trained_together(others, rows, CLASSES, Training())[0])
