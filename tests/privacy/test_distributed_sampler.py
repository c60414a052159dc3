"""The sampler draws the discrete Gaussian itself, from its key, on every machine alike."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from tacit.privacy.distributed.sampler import (
    DRAW_ERROR,
    DiscreteGaussianStream,
    draws_error,
    levels_of,
    threshold_of,
)

KEY = bytes(range(32))
GOLDEN = [-11, -49, -28, 76, 22, -98, -33, 145]  # by this sampler, when it was tested first


def drawn(deviation: float, count: int, *, purpose: str = "test") -> np.ndarray:
    return DiscreteGaussianStream(KEY, purpose=purpose, deviation=deviation).draw(count)


def masses(deviation: float, reach: int) -> np.ndarray:
    """Return the exact probabilities of -reach, ..., reach."""
    weights = np.array([math.exp(-0.5 * (x / deviation) ** 2) for x in range(-reach, reach + 1)])
    return weights / weights.sum()


@pytest.mark.parametrize("deviation", [0.5, 0.7072, 1.0, 3.3, 4.0, 17.9])
def test_the_counts_are_those_of_the_exact_masses(deviation: float) -> None:
    """Chi-squared against exp(-x^2 / 2 sigma^2), tails pooled."""
    count, reach = 400_000, math.ceil(12 * deviation)
    values = drawn(deviation, count)
    expected = count * masses(deviation, reach)
    observed = np.bincount(values + reach, minlength=2 * reach + 1)
    common = expected >= 20
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / sum(expected[:-1])
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("deviation", [4.0, 1000.3, 2.0**27])
def test_the_moments_are_those_of_the_gaussian(deviation: float) -> None:
    """Mean, variance, skewness and kurtosis lie within four standard errors of theirs."""
    count = 500_000
    scaled = drawn(deviation, count) / deviation
    for order, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs((scaled**order).mean() - mean) < 4 * math.sqrt(variance / count)


def test_neighbouring_numbers_are_independent() -> None:
    """Successive numbers, and those of two purposes, are not correlated."""
    ours, others = drawn(9.0, 200_001) / 9.0, drawn(9.0, 200_001, purpose="other") / 9.0
    for pairs in (ours[1:] * ours[:-1], ours[1:] * others[1:]):
        assert abs(pairs.mean()) < 4 / math.sqrt(len(pairs))


def test_the_numbers_do_not_depend_on_how_they_are_cut() -> None:
    """A stream that is read in pieces, or added to a ring, is the same stream."""
    stream = DiscreteGaussianStream(KEY, purpose="test", deviation=50.0)
    pieces = np.concatenate([stream.draw(size) for size in (1, 0, 7000, 12_999)])
    assert np.array_equal(drawn(50.0, 20_000), pieces)
    ring = np.full(20_000, 7, dtype=np.uint32)
    DiscreteGaussianStream(KEY, purpose="test", deviation=50.0).add_to(ring)
    assert np.array_equal((pieces + 7) % 2**32, ring)


def test_the_numbers_are_these() -> None:
    """A restarted node, on whatever machine, draws what it drew before."""
    assert drawn(100.0, 8).tolist() == GOLDEN


def test_rare_thresholds_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every acceptance is left to 60 digits, the numbers are those of float64."""
    quick = drawn(1000.3, 3000)
    monkeypatch.setattr("tacit.privacy.distributed.sampler._UNDECIDED", 2.0**65)
    assert np.array_equal(quick, drawn(1000.3, 3000))


def test_each_proposal_is_kept_in_proportion_to_its_mass() -> None:
    """P(V) times the threshold is one constant times exp(-x^2 / 2 sigma^2), to 40 digits."""
    deviation = 2.7
    width = math.floor(math.sqrt(2.0) * deviation) + 1
    constants = []
    with decimal.localcontext(prec=80):
        starts = [int(2**64 * decimal.Decimal(-k).exp()) for k in range(7)]
        for size in range(6 * width):
            level = size // width
            threshold = threshold_of(size, level, deviation=deviation)
            assert 0 < threshold <= 2**128
            mass = (-((decimal.Decimal(size) / decimal.Decimal(deviation)) ** 2) / 2).exp()
            constants.append((starts[level] - starts[level + 1]) * threshold / mass)
        assert max(constants) / min(constants) - 1 < decimal.Decimal("1e-40")


def test_the_levels_lie_between_their_thresholds() -> None:
    """V is k for words from 2^64 e^-(k+1) up to 2^64 e^-k, and the last is 44."""
    for level in (0, 1, 2, 3, 4, 20):
        upper, lower = 2**64 * math.exp(-level), 2**64 * math.exp(-level - 1)
        words = [int(lower * (1 + 1e-9)) + 1, min(int(upper * (1 - 1e-9)), 2**64 - 1)]
        assert levels_of(np.array(words, dtype=np.uint64)).tolist() == [level, level]
    assert levels_of(np.zeros(1, dtype=np.uint64)).tolist() == [44]


def test_the_error_of_all_draws_is_their_number_times_one() -> None:
    """n d T draws are booked at the error of one each."""
    error = draws_error(members=10, dimension=1000, steps=7)
    assert Fraction(error) == 70_000 * Fraction(DRAW_ERROR)


@pytest.mark.parametrize("deviation", [0.0, 0.4, math.nan, math.inf, 2.0**31])
def test_a_deviation_without_an_account_is_refused(deviation: float) -> None:
    """Below 1/2 and beyond the ring nothing is drawn."""
    with pytest.raises(ValueError, match="deviation"):
        DiscreteGaussianStream(KEY, purpose="test", deviation=deviation)
