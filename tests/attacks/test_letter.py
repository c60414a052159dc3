"""On letters, with 64 references, the strong attacks find members where the loss finds few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tacit.attacks.registry import MEMBERSHIP
from tacit.learning.prepared import Examples
from tests.attacks.worlds import (
    Training,
    World,
    auc,
    auc_error,
    paired_halves,
    tpr_at,
    trained_together,
    world_of,
)

LETTERS = Path(__file__).parents[3] / "shared" / "data" / "letter" / "letter-recognition.data"
RECORDS, POPULATION, REFERENCES = 2000, 2000, 64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def letters() -> World:
    """One overfit target, 64 references on halves of the same 2,000 letters."""
    if not LETTERS.is_file():
        pytest.skip("the letters lie in ../shared/data only on the machines of developers")
    rows = [line.split(",") for line in LETTERS.read_text().split()]
    features = np.array([row[1:] for row in rows], dtype=np.float32)
    labels = np.array([ord(row[0]) - ord("A") for row in rows], dtype=np.int64)
    _, first = np.unique(np.column_stack([features, labels]), axis=0, return_index=True)
    rng = np.random.default_rng(1)
    chosen = rng.permutation(first)[: RECORDS + POPULATION]  # a letter that repeats is in once
    features = (features[chosen] - 7.5) / 4.0
    audited, population = (
        Examples(features=features[part], labels=labels[chosen][part])
        for part in (slice(0, RECORDS), slice(RECORDS, None))
    )
    is_in = paired_halves(1 + REFERENCES // 2, RECORDS, rng)[1:]  # the target's complement is none
    models = trained_together(audited, is_in, 26, Training(hidden=64, steps=250))
    return world_of(models[0], models[1:], is_in, audited, population)


def test_the_target_is_overfit(letters: World) -> None:
    """Its accuracy on members is at least 15 points above that on others."""
    outputs = letters.evidence.outputs
    right = outputs.logits.argmax(axis=1) == outputs.labels
    assert right[letters.is_in].mean() - right[~letters.is_in].mean() >= 0.15


@pytest.mark.parametrize(
    "name", ["lira-online", "lira-offline", "rmia-online", "rmia-offline", "base-online"]
)
def test_the_strong_attacks_beat_the_loss_where_it_counts(letters: World, name: str) -> None:
    """At a false-positive rate of 1 % each finds at least twice as many members as the loss."""
    loss, found = (
        tpr_at(
            MEMBERSHIP[n].scores(letters.evidence, rng=np.random.default_rng(0)),
            letters.is_in,
            fpr=0.01,
        )
        for n in ("loss", name)
    )
    assert found >= 2.0 * loss


@pytest.mark.parametrize("name", list(MEMBERSHIP))
def test_every_probe_catches_the_target(letters: World, name: str) -> None:
    """The 95 % lower bound of each AUC is above 0.55."""
    scores = MEMBERSHIP[name].scores(letters.evidence, rng=np.random.default_rng(0))
    assert auc(scores, letters.is_in) - 1.96 * auc_error(letters.is_in) > 0.55
