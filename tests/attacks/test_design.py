"""Halves follow from what records hold: not from their order, and with an even chance for each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.attacks.design import Design, choose_audited

KEYS = np.random.default_rng(0).integers(1 << 62, size=31).astype(np.uint64)
some_keys = st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda k: len(set(k)) > 1)


def test_pairs_are_complements_and_stay_when_models_are_added() -> None:
    """Half the records each, each record in one of a pair; more models leave the first alone."""
    few, many = Design(models=4, seed=1), Design(models=10, seed=1)
    is_in = many.is_in(KEYS)
    np.testing.assert_array_equal(is_in[:4], few.is_in(KEYS))
    np.testing.assert_array_equal(is_in[::2], ~is_in[1::2])
    assert set(is_in.sum(axis=1)) == {15, 16}
    assert len({row.tobytes() for row in is_in}) == 10
    other = dataclasses.replace(few, seed=2)
    assert few.is_in(KEYS).tobytes() != other.is_in(KEYS).tobytes()


@given(keys=some_keys, seed=st.integers(0, 1 << 62), data=st.data())
def test_halves_move_with_their_records(keys: list[int], seed: int, data: st.DataObject) -> None:
    """Records in another order are drawn alike, and copies of one alike, whatever repeats."""
    given_keys = np.array(keys, dtype=np.uint64)
    order = np.array(data.draw(st.permutations(range(len(keys)))))
    design = Design(models=6, seed=seed)
    is_in = design.is_in(given_keys)
    np.testing.assert_array_equal(design.is_in(given_keys[order]), is_in[:, order])
    np.testing.assert_array_equal(is_in[::2], ~is_in[1::2])
    for key in set(keys):
        copies = is_in[:, given_keys == key]
        np.testing.assert_array_equal(copies, np.repeat(copies[:, :1], copies.shape[1], axis=1))


@given(keys=some_keys, singles=st.integers(0, 30), seed=st.integers(0, 1 << 62))
def test_halves_are_as_even_as_whole_records_come(keys: list[int], singles: int, seed: int) -> None:
    """No more apart than the most frequent record; with enough records of one copy, at most one."""
    with_singles = np.array([*keys, *range(100, 100 + singles)], dtype=np.uint64)
    most = int(np.unique(with_singles, return_counts=True)[1].max())
    sizes = Design(models=20, seed=seed).is_in(with_singles).sum(axis=1)
    apart = np.abs(2 * sizes - len(with_singles)).max()
    assert apart <= (1 if singles >= most else most)
    assert sizes.min() > 0


@pytest.mark.parametrize(
    "copies", [[1] * 12, [1] * 13, [5, 1, 1], [3, 2, 1], [2] * 7, [9, 4, 4, 2, 1, 1, 1]]
)
def test_each_record_is_in_half_of_the_first_models(copies: list[int]) -> None:
    """Of 6,000 pairs the first model has each record in one half, within 4.5 deviations.

    The first alone: with the second, which is its complement, it is one half by construction.
    """
    keys = np.repeat(np.arange(len(copies), dtype=np.uint64), copies)
    first = Design(models=12_000, seed=3).is_in(keys)[::2]
    share = first.mean(axis=0)
    assert np.abs(share - 0.5).max() <= 4.5 * 0.5 / np.sqrt(6000)


def test_two_records_that_differ_are_needed() -> None:
    """Copies of one record have no halves; models come in pairs."""
    with pytest.raises(ValueError, match="differ"):
        Design(models=2, seed=0).is_in(np.zeros(9, dtype=np.uint64))
    with pytest.raises(ValueError, match="pairs"):
        Design(models=3, seed=0)


@pytest.mark.parametrize(("members", "others"), [(80, 20), (50, 50), (20, 80)])
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_references_are_as_large_as_the_target(members: int, others: int, repeats: int) -> None:
    """Half of the audited records and the members left over are as many as the members.

    Copies are chosen together, but those of one record a side.
    """
    is_member = np.random.default_rng(0).permutation(np.arange(members + others) < members)
    keys = np.zeros(members + others, dtype=np.uint64)
    for first_key, side in ((0, is_member), (1000, ~is_member)):
        keys[side] = first_key + np.arange(side.sum()) // repeats
    audited, always = choose_audited(is_member, keys, rng=np.random.default_rng(1))
    assert len(audited) // 2 + len(always) == members
    assert is_member[audited].sum() * 2 == len(audited)
    assert is_member[always].all()
    assert not set(audited) & set(always)
    assert len(set(keys[audited]) & set(keys[always])) <= 1


def test_the_choice_moves_with_the_records() -> None:
    """Another order of the same records: the same are chosen, by key."""
    is_member, order = np.arange(90) < 60, np.random.default_rng(5).permutation(90)
    keys = np.random.default_rng(6).permutation(90).astype(np.uint64)
    first = choose_audited(is_member, keys, rng=np.random.default_rng(1))
    again = choose_audited(is_member[order], keys[order], rng=np.random.default_rng(1))
    for chosen, moved in zip(first, again, strict=True):
        assert set(keys[chosen]) == set(keys[order][moved])
