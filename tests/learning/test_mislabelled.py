"""Mislabelled records follow from the contract and a seed, and stand behind the owner's own."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.core.data_contract import ColumnKind, ColumnSpec, DataKind, DataSpec
from tacit.learning.contract import feature_names
from tacit.learning.mislabelled import mislabelled_from_ranges, mislabelled_from_rows, planted
from tacit.learning.prepared import Examples

SEED = bytes(32)
TABLE = DataSpec(
    classes=("no", "yes", "unknown"),
    columns={
        "age": ColumnSpec(type=ColumnKind.NUMBER, range=(0, 100), missing=50, flag_missing=True),
        "city": ColumnSpec(type=ColumnKind.CATEGORY, values=("a", "b", "c")),
        "smoker": ColumnSpec(type=ColumnKind.BOOLEAN),
    },
)
IMAGE = DataSpec(kind=DataKind.IMAGE, classes=("0", "1"), shape=(1, 4, 5))


def some(rows: int, *, subjects: bool = False) -> Examples:
    return Examples(
        features=np.full((rows, 6), 0.25, dtype=np.float32),
        labels=np.arange(rows, dtype=np.int64) % 3,
        subjects=np.arange(rows, dtype=np.int64) // 2 if subjects else None,
    )


def test_rows_lie_at_the_ends_of_the_public_ranges() -> None:
    """Each feature as the contract encodes it: ends, one category, nothing missing; all classes."""
    drawn = mislabelled_from_ranges(TABLE, 400, seed=SEED)
    names = feature_names(TABLE)
    by_name = dict(zip(names, drawn.features.T, strict=True))
    assert drawn.features.dtype == np.float32
    assert set(np.unique(drawn.features)) == {0.0, 1.0}
    assert not by_name["age missing"].any()
    assert (drawn.features[:, [names.index(f"city={city}") for city in "abc"]].sum(1) == 1).all()
    for name in ("age", "smoker"):
        assert 0.35 < by_name[name].mean() < 0.65
    assert (np.bincount(drawn.labels, minlength=3) > 80).all()


def test_images_are_black_and_white() -> None:
    """Pixels at the ends of their range, in the model's shape."""
    drawn = mislabelled_from_ranges(IMAGE, 50, seed=SEED)
    assert drawn.features.shape == (50, 1, 4, 5)
    assert set(np.unique(drawn.features)) == {0.0, 1.0}


def test_the_same_seed_gives_the_same_rows() -> None:
    """Owner and auditor need not exchange them; another seed gives others."""
    one, same, other = (
        mislabelled_from_ranges(TABLE, 30, seed=seed) for seed in (SEED, SEED, b"\1" * 32)
    )
    assert np.array_equal(one.features, same.features)
    assert np.array_equal(one.labels, same.labels)
    assert not np.array_equal(one.features, other.features)


def test_given_rows_get_another_label() -> None:
    """Never the true one, and each of the others."""
    rows = some(300)
    wrong = mislabelled_from_rows(rows, classes=3, seed=SEED)
    moved = (wrong.labels - rows.labels) % 3
    assert set(np.unique(moved)) == {1, 2}
    assert np.array_equal(wrong.features, rows.features)


@pytest.mark.parametrize("subjects", [False, True])
def test_those_that_are_in_stand_behind_the_others(*, subjects: bool) -> None:
    """The owner's records stay as they are; each canary is a subject of its own."""
    own, canaries = some(5, subjects=subjects), mislabelled_from_ranges(TABLE, 4, seed=SEED)
    included = np.array([True, False, False, True])
    both = planted(own, canaries, included)
    assert np.array_equal(both.features, np.concatenate([own.features, canaries.features[[0, 3]]]))
    assert both.labels.tolist() == [*own.labels, canaries.labels[0], canaries.labels[3]]
    if subjects:
        assert both.subjects is not None
        assert both.subjects.tolist() == [0, 0, 1, 1, 2, 3, 4]
    else:
        assert both.subjects is None


def test_bits_of_another_number_are_an_error() -> None:
    """One bit a canary."""
    with pytest.raises(ValueError, match="expected a bit for each of 4"):
        planted(some(5), mislabelled_from_ranges(TABLE, 4, seed=SEED), np.ones(3, dtype=np.bool_))
