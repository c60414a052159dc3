"""The sum is exact, whoever is lost and when; or the attempt ends and says why."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.errors import UnavailableError
from tacit.privacy.secagg.graph import default_threshold
from tests.privacy.secagg.parties import Cohort, Lost, expected_sum, make_terms

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = ("keys", "shares", "masked", "signature", "unmask")


def subsets(count: int) -> Iterator[tuple[int, ...]]:
    members = range(1, count + 1)
    for size in range(count + 1):
        yield from itertools.combinations(members, size)


def check(count: int, lost: Lost) -> bool:
    """Run a session and compare it with what must come out; return whether there was a sum."""
    terms = make_terms(count, dimension=3)
    gone: set[int] = set()
    in_sum: set[int] = set()
    fewest = count
    for step in STEPS:
        gone |= set(getattr(lost, step))
        fewest = min(fewest, count - len(gone))
        if step == "masked":
            in_sum = set(range(1, count + 1)) - gone
    cohort = Cohort(terms)
    if fewest < default_threshold(count):
        with pytest.raises(UnavailableError) as caught:
            cohort.first(lost)
        assert caught.value.code == "E-SECAGG-THRESHOLD"
        return False
    result = cohort.first(lost)
    assert tuple(sorted(in_sum)) == result.survivors
    np.testing.assert_array_equal(expected_sum(in_sum, dimension=3), result.values)
    return True


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "count", [3, 4, 5, pytest.param(6, marks=pytest.mark.slow)], ids="n={}".format
)
def test_every_dropout_subset_at_every_step(count: int, step: str) -> None:
    """All 2^n subsets: exact above the threshold, an error with its code below it."""
    sums = sum(check(count, Lost(**{step: subset})) for subset in subsets(count))
    tolerated = count - default_threshold(count)
    assert sums == sum(1 for subset in subsets(count) if len(subset) <= tolerated)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4], ids="n={}".format)
def test_every_fate_of_every_member(count: int) -> None:
    """Each member is lost at any step or never, independently: all 6^n histories."""
    for fates in itertools.product((*STEPS, "never"), repeat=count):
        lost = {
            step: [one for one, fate in enumerate(fates, start=1) if fate == step] for step in STEPS
        }
        check(count, Lost(**lost))


@pytest.mark.slow
def test_pairs_of_members_lost_at_different_steps() -> None:
    """Two of seven members, lost at any two steps: exact each time."""
    for one, other in itertools.permutations((1, 4, 7), 2):
        for first, second in itertools.combinations(STEPS, 2):
            assert check(7, Lost(**{first: [one], second: [other]}))


def test_several_steps_in_one_session() -> None:
    """Keys and shares once, then a sum for each step over the same survivors."""
    cohort = Cohort(make_terms(4, steps=4))
    first = cohort.first(Lost(masked=[2]))
    assert first.survivors == (1, 3, 4)
    np.testing.assert_array_equal(expected_sum((1, 3, 4), dimension=5), first.values)
    for step in (2, 3, 4):
        result = cohort.again(step)
        assert (result.step, result.survivors) == (step, (1, 3, 4))
        np.testing.assert_array_equal(
            expected_sum((1, 3, 4), dimension=5, step=step), result.values
        )
    assert [one for one in cohort.clients.values() if "its end" not in repr(one)] == []


def test_a_loss_at_a_later_step_ends_the_session() -> None:
    """Masks with a survivor of step 1 cannot be taken off any more."""
    cohort = Cohort(make_terms(4, steps=3))
    cohort.first()
    cohort.lose([3])
    with pytest.raises(UnavailableError) as caught:
        cohort.again(2)
    assert caught.value.code == "E-SECAGG-LOST"
    assert "its end" not in repr(cohort.clients[1])
    with pytest.raises(RuntimeError, match="between steps"):
        cohort.server.start_step(model=bytes(32))


def test_values_wrap_modulo_two_to_the_32() -> None:
    """The ring is that of uint32: four times 2^32 - 1 is 2^32 - 4."""
    cohort = Cohort(make_terms(4, dimension=2))
    deliveries = cohort.shares(cohort.keys())
    for one, client in cohort.clients.items():
        vector = np.full(2, 2**32 - 1, dtype=np.uint32)
        head = client.mask(deliveries[one], vector)
        cohort.server.fold(one, head, vector)
    result = cohort.unmask(cohort.signatures(cohort.server.end_masked()))
    assert result.values.tolist() == [2**32 - 4] * 2


@pytest.mark.parametrize("dimension", [1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1])
def test_any_length_of_vector(dimension: int) -> None:
    """Lengths around the block of a mask: every coordinate is exact."""
    result = Cohort(make_terms(3, dimension=dimension)).first()
    np.testing.assert_array_equal(expected_sum((1, 2, 3), dimension=dimension), result.values)


@pytest.mark.slow
def test_a_sparse_graph_of_300() -> None:
    """116 neighbours each; a tenth is lost on the way, at four steps, and the sum is exact."""
    terms = make_terms(300, dimension=3, steps=2)
    assert (terms.neighbours, terms.threshold, terms.quorum) == (116, 88, 201)
    cohort = Cohort(terms)
    lost = Lost(keys=range(1, 9), shares=range(10, 16), masked=range(20, 28), unmask=range(40, 44))
    first = cohort.first(lost)
    survivors = set(range(1, 301)) - {*range(1, 9), *range(10, 16), *range(20, 28)}
    assert tuple(sorted(survivors)) == first.survivors
    np.testing.assert_array_equal(expected_sum(survivors, dimension=3), first.values)
