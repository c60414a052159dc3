"""Exposure of a canary: how far up the list of guesses a model puts a secret it was trained on.

A canary is a text with a random part r drawn from a space R. Its exposure is ``log2|R| -
log2 rank``, where rank counts the members of R that the model finds at least as likely (Carlini
et al. 2019, arXiv 1802.08232, section 4.2). It is at most log2|R| bits: the model then gives the
canary away whole. A canary that the model never saw has an expected exposure of 1.44 bits.

Where R is too large to be listed, a sample of it gives the rank (section 4.3): directly while the
sample holds texts that are likelier than the canary, and by a skew-normal fitted to it beyond.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from tacit.attacks.target import Float64Array

_LEAST_SAMPLE = 100
_MOST_SKEWNESS = 0.99  # of a skew-normal: its supremum is 0.9953
_TAIL_DEVIATIONS = 12.0
_TAIL_POINTS = 4001


def rank_exposure(canary: float, space: Float64Array) -> float:
    """Return the exposure, in bits, where the whole space was scored.

    Args:
        canary: log-perplexity of the canary (minus log2 of its probability, or any increasing
            function of that).
        space: of every other member of R, ``(|R| - 1,)``. Ties count against the canary.
    """
    rank = 1 + int((space <= canary).sum())
    return math.log2(len(space) + 1) - math.log2(rank)


def sampled_exposure(canary: float, sample: Float64Array, *, space_bits: float) -> float:
    """Return an estimate of the exposure, in bits, from a random sample of the space.

    Exposure is minus log2 of the probability that a random member of R is at least as likely as
    the canary (section 4.2). That is read off the sample while at least ten members of it are, and
    off the fitted skew-normal beyond, where the share of a sample no longer tells.

    Args:
        canary: log-perplexity of the canary.
        sample: of members of R drawn uniformly, ``(k,)``, at least 100.
        space_bits: log2|R|: no exposure is greater.

    Raises:
        ValueError: the sample is too small to fit a curve to.
    """
    if len(sample) < _LEAST_SAMPLE:
        raise ValueError(f"expected a sample of at least {_LEAST_SAMPLE}, got {len(sample)}")
    at_least = int((sample <= canary).sum())
    if at_least >= 10:
        return min(space_bits, -math.log2(at_least / len(sample)))
    return min(space_bits, max(0.0, -_skew_normal_log_cdf(canary, sample) / math.log(2.0)))


def _skew_normal_log_cdf(x: float, sample: Float64Array) -> float:
    """Return log P[X <= x] of the skew-normal with the sample's mean, variance and skewness.

    The moments are inverted in closed form (Azzalini 1985, Scandinavian Journal of Statistics 12,
    section 2.3). The tail is summed in logarithms: it may be below the smallest float.
    """
    mean, deviation = float(sample.mean()), float(sample.std())
    if deviation == 0.0:
        return 0.0 if x >= mean else -math.inf
    standard = (sample - mean) / deviation
    skewness = float(np.clip(np.power(standard, 3).mean(), -_MOST_SKEWNESS, _MOST_SKEWNESS))
    power = abs(skewness) ** (2.0 / 3.0)
    delta = math.copysign(
        math.sqrt(math.pi / 2.0 * power / (power + ((4.0 - math.pi) / 2.0) ** (2.0 / 3.0))),
        skewness,
    )
    alpha = delta / math.sqrt(1.0 - delta * delta)
    omega = deviation / math.sqrt(1.0 - 2.0 * delta * delta / math.pi)
    centre = mean - omega * delta * math.sqrt(2.0 / math.pi)
    z = (x - centre) / omega
    grid = np.linspace(min(z, 0.0) - _TAIL_DEVIATIONS, z, _TAIL_POINTS)
    log_density = (
        math.log(2.0)
        - 0.5 * np.square(grid)
        - 0.5 * math.log(2.0 * math.pi)
        + torch.special.log_ndtr(torch.from_numpy(alpha * grid)).numpy()
    )
    log_density[[0, -1]] -= math.log(2.0)  # the trapezium's ends
    total = float(np.logaddexp.reduce(log_density)) + math.log(float(grid[1] - grid[0]))
    return min(0.0, total)
