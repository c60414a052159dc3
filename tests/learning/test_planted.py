"""What an owner keeps of canaries between rounds, and opens at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays, load_metadata
from tacit.core.errors import AppError
from tacit.core.results import CANARY_BITS, CANARY_PRODUCTS, CANARY_SALT, CANARY_STEPS
from tacit.learning.planted import (
    directions_of_round,
    keep_scores,
    kept_scores,
    opening_metrics,
)
from tacit.learning.prepared import HeldCanaries, load_prepared, save_prepared
from tacit.privacy.dpsgd.canaries import CanaryScores
from tacit.protos.codec import decode_records, encode_records
from tacit.protos.flower import RecordDict

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.learning.prepared import PreparedSets

HELD = HeldCanaries(
    seed=bytes(range(32)),
    salt=bytes(range(1, 33)),
    included=np.array([True, False, True, True, False]),
    directions=3,
)


def scores(*products: float, steps: int = 4) -> CanaryScores:
    return CanaryScores(products=np.array(products), squared_norm=2.0, steps=steps, parameters=10)


def persisted(state: RecordDict) -> RecordDict:
    """What a worker gets that starts again: through the bytes that the node stores."""
    encoded = encode_records(state)
    return decode_records(encoded.manifest, memoryview(b"".join(encoded.segments)))


def test_scores_of_rounds_add_up_over_a_restart() -> None:
    """Two rounds, a new worker, a third round: the sum of all three."""
    state = RecordDict()
    keep_scores(state, 1, scores(1.0, 2.0, 3.0))
    keep_scores(state, 2, scores(10.0, 20.0, 30.0))
    state = persisted(state)
    keep_scores(state, 3, scores(100.0, 200.0, 300.0))
    kept = kept_scores(persisted(state))
    assert kept is not None
    assert kept.products.tolist() == [111.0, 222.0, 333.0]
    assert (kept.steps, kept.squared_norm, kept.parameters) == (12, 6.0, 10)


@pytest.mark.parametrize("restart", [False, True])
def test_another_attempt_drops_the_scores_of_the_one_before(*, restart: bool) -> None:
    """A round that is tried again counts once, by its last attempt."""
    state = RecordDict()
    for number, products in ((1, 1.0), (2, 50.0), (2, 7.0)):
        keep_scores(state, number, scores(products))
        state = persisted(state) if restart else state
    kept = kept_scores(state)
    assert kept is not None
    assert (kept.products.tolist(), kept.steps) == ([8.0], 8)


def test_an_earlier_round_is_refused() -> None:
    """A round that was left behind cannot be scored again in the place of the latest."""
    state = RecordDict()
    keep_scores(state, 2, scores(1.0))
    with pytest.raises(AppError, match="round 2 or a later one"):
        keep_scores(state, 1, scores(1.0))


def test_directions_follow_the_round() -> None:
    """Each round goes on where the last one ended, with the bits of directions alone."""
    first, third = (directions_of_round(HELD, number, local_steps=4) for number in (1, 3))
    assert first is not None
    assert third is not None
    assert (first.first_step, third.first_step) == (0, 8)
    assert first.included.tolist() == [True, False, True]
    assert directions_of_round(None, 1, local_steps=4) is None
    assert directions_of_round(replace(HELD, directions=0), 0, local_steps=4) is None
    with pytest.raises(AppError, match="round's number"):
        directions_of_round(HELD, 0, local_steps=4)


def test_an_opening_holds_bits_salt_and_scores() -> None:
    """Nothing else; and without scores of directions there is no opening."""
    metrics = opening_metrics(HELD, scores(1.0, 2.0, 3.0))
    assert metrics[CANARY_BITS] == [1, 0, 1, 1, 0]
    assert metrics[CANARY_SALT] == list(range(1, 33))
    assert (metrics[CANARY_PRODUCTS], metrics[CANARY_STEPS]) == ([1.0, 2.0, 3.0], 4)
    assert set(opening_metrics(replace(HELD, directions=0), None)) == {CANARY_BITS, CANARY_SALT}
    with pytest.raises(AppError) as caught:
        opening_metrics(HELD, None)
    assert caught.value.code == "E-CANARY-SCORES"


def test_a_data_set_brings_its_canaries(tmp_path: Path, sets: PreparedSets) -> None:
    """What the worker reads is what the node prepared; no bit shows in a repr."""
    path = tmp_path / "prepared.safetensors"
    save_prepared(path, replace(sets, canaries=HELD))
    held = load_prepared(path).canaries
    assert held is not None
    assert (held.seed, held.salt, held.directions) == (HELD.seed, HELD.salt, 3)
    assert held.included.tolist() == HELD.included.tolist()
    assert HELD.salt.hex() not in repr(held)


def test_a_run_without_canaries_writes_what_it_wrote_before(
    tmp_path: Path, sets: PreparedSets
) -> None:
    """The arrays and notes of a prepared data set are those of a run that knows no canaries."""
    path = tmp_path / "prepared.safetensors"
    save_prepared(path, sets)
    known = {"train_features", "train_labels", "validation_features", "validation_labels"}
    assert set(load_arrays(path)) - {"train_subjects", "validation_subjects"} == known
    assert set(json.loads(load_metadata(path)["tacit"])) == {"records", "feature_names"}
    assert load_prepared(path).canaries is None
