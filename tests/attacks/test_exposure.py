"""Exposure counts the bits of a canary that a model gives away, from a list or from a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tacit.attacks.exposure import rank_exposure, sampled_exposure

SPACE = np.arange(1.0, 1024.0)  # log-perplexities of all but the canary


@pytest.mark.parametrize(("canary", "bits"), [(0.0, 10.0), (1.5, 9.0), (3.5, 8.0), (2000.0, 0.0)])
def test_a_known_rank_has_its_bits(canary: float, bits: float) -> None:
    """log2 1024 - log2 rank: ten bits at rank 1, none at the last."""
    assert rank_exposure(canary, SPACE) == bits


def test_a_tie_counts_against_the_canary() -> None:
    """A model that finds all texts equally likely exposes none."""
    assert rank_exposure(3.0, np.full(1023, 3.0)) == 0.0


def test_a_text_that_was_never_seen_has_an_exposure_of_about_one_and_a_half() -> None:
    """The mean of -log2 of a uniform rank is 1.44 bits: no sign of memory."""
    everything = np.random.default_rng(0).normal(size=1024)
    found = [rank_exposure(x, np.delete(everything, i)) for i, x in enumerate(everything)]
    assert abs(np.mean(found) - 1 / math.log(2.0)) < 0.02


def test_a_sample_gives_the_rank_of_a_canary_in_its_midst() -> None:
    """Where a hundredth of the sample is likelier, exposure is log2 100."""
    sample = np.arange(10_000.0)
    assert abs(sampled_exposure(99.5, sample, space_bits=40.0) - math.log2(100)) < 0.01


@pytest.mark.parametrize("skew", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("share", [1e-6, 1e-12])
def test_beyond_a_sample_its_skew_normal_tells(skew: float, share: float) -> None:
    """The exposure of a canary whose quantile is known, within a fifth, from 20,000 others."""
    space = stats.skewnorm(skew, loc=50.0, scale=7.0)
    sample = space.rvs(size=20_000, random_state=np.random.default_rng(1))
    found = sampled_exposure(float(space.ppf(share)), sample, space_bits=60.0)
    assert abs(found / -math.log2(share) - 1.0) < 0.2


def test_the_two_estimates_meet() -> None:
    """The fitted curve continues the sample's own count."""
    sample = np.random.default_rng(2).normal(size=50_000)
    tenth, ninth = np.sort(sample)[[9, 8]]
    counted = sampled_exposure(tenth, sample, space_bits=60.0)
    fitted = sampled_exposure(np.nextafter(ninth, 0) - 0.01, sample, space_bits=60.0)
    assert 0.0 < fitted - counted < 1.5


def test_no_canary_gives_more_away_than_it_has() -> None:
    """However low its perplexity, at most log2 of the space."""
    sample = np.random.default_rng(2).normal(size=1000)
    assert sampled_exposure(-1000.0, sample, space_bits=33.2) == 33.2


def test_a_sample_of_equal_texts_and_one_too_small() -> None:
    """A canary below texts that are all alike is exposed whole; a handful fits no curve."""
    assert sampled_exposure(1.0, np.full(200, 2.0), space_bits=20.0) == 20.0
    with pytest.raises(ValueError, match="at least 100, got 5"):
        sampled_exposure(1.0, np.full(5, 2.0), space_bits=20.0)
