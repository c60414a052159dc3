"""What a noise multiplier costs, and what noise a target asks for: (epsilon, delta), add/remove.

Trusts: ``dp_accounting``'s privacy loss distributions, which round pessimistically.
Promises: every epsilon that leaves this module is an upper bound, for Gaussian noise added to sums
of contributions bounded by the clipping norm, over ``steps`` adaptive steps. With full
participation the bound is the exact closed form; with Poisson sampling it is the PLD accountant's.
Fixed-size and shuffled batches have no account here, and central limit approximations never will.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import dp_accounting
from dp_accounting import pld

from tacit.core.errors import RefusedError

_MAX_MU = 1e3  # epsilon above 5e5: nobody means that
_RELATIVE_TOLERANCE = 1e-10
_CALIBRATION_SLACK = 1e-3  # share of epsilon that a calibrated multiplier may leave unused


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """Noised sums over Poisson samples of the records.

    Attributes:
        noise_multiplier: sigma / sensitivity under the entry's relation.
        sample_rate: Poisson's q; 1 takes every record.
        steps: how many sums.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


def _log_normal_cdf(x: float) -> float:
    """Return log Phi(x), also where Phi(x) is far below the smallest double."""
    if x > -30.0:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    # Mills ratio, upper bound: Phi(x) <= phi(x) / -x. The error is below 1/900 relative, and the
    # term enters the formula below with a minus sign only where it is negligible.
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2.0 * math.pi)


def _log_delta(epsilon: float, mu: float) -> float:
    """Return log delta of one Gaussian release with sensitivity / sigma = ``mu``.

    Balle & Wang 2018 (arXiv 1805.06530), theorem 8:
    delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).
    """
    first = _log_normal_cdf(mu / 2.0 - epsilon / mu)
    second = epsilon + _log_normal_cdf(-mu / 2.0 - epsilon / mu)
    if second >= first:
        return first
    return first + math.log1p(-math.exp(second - first))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon at ``delta`` of Gaussian noise with sensitivity / sigma = ``mu``."""
    target = math.log(delta)
    low, high = 0.0, 1.0
    if _log_delta(low, mu) <= target:
        return 0.0
    while _log_delta(high, mu) > target:
        high *= 2.0
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = 0.5 * (low + high)
        if _log_delta(middle, mu) > target:
            low = middle
        else:
            high = middle
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest sensitivity / sigma whose Gaussian release is (epsilon, delta)-DP."""
    target = math.log(delta)
    low, high = 0.0, 1.0
    while _log_delta(epsilon, high) <= target and high < _MAX_MU:
        low, high = high, 2.0 * high
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = 0.5 * (low + high)
        if _log_delta(epsilon, middle) <= target:
            low = middle
        else:
            high = middle
    return low


def _event(noise_multiplier: float, sample_rate: float, steps: int) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(
        sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return dp_accounting.SelfComposedDpEvent(step, steps)


@functools.lru_cache(maxsize=256)
def epsilon_of(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return epsilon at ``delta`` after ``steps`` noised sums of Poisson samples.

    ``sample_rate`` 1 means that every record takes part in every step.

    Raises:
        RefusedError: no finite epsilon holds at this delta (``E-EPSILON-UNBOUNDED``).
        ValueError: a parameter lies outside its domain.
    """
    _check(sample_rate, steps, delta)
    if not noise_multiplier > 0:
        raise ValueError(f"expected a positive noise multiplier, got {noise_multiplier}")
    if steps == 0:
        return 0.0
    if sample_rate == 1.0:
        # T Gaussian releases are one with sensitivity / sigma = sqrt(T) / z
        # (Dong, Roth & Su 2019, arXiv 1905.02383, corollary 3.3).
        epsilon = gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    else:
        accountant = pld.PLDAccountant()
        accountant.compose(_event(noise_multiplier, sample_rate, steps))
        epsilon = float(accountant.get_epsilon(delta))
    if not math.isfinite(epsilon):
        raise RefusedError(
            "E-EPSILON-UNBOUNDED",
            f"no finite epsilon holds for noise multiplier {noise_multiplier} at delta {delta}",
            hint="use more noise, fewer steps, a smaller sample rate or a larger delta",
        )
    return epsilon


@functools.lru_cache(maxsize=256)
def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier that keeps ``steps`` steps within (epsilon, delta).

    Raises:
        ValueError: a parameter lies outside its domain.
    """
    _check(sample_rate, steps, delta)
    if not epsilon > 0 or steps < 1:
        raise ValueError(f"expected epsilon > 0 and steps >= 1, got {epsilon} and {steps}")
    full = math.sqrt(steps) / gaussian_mu(epsilon, delta)
    if sample_rate == 1.0:
        return full
    return _sampled_noise(epsilon, delta, sample_rate, steps, enough=full)


def _sampled_noise(
    epsilon: float, delta: float, sample_rate: float, steps: int, *, enough: float
) -> float:
    """Search between a multiplier that keeps the target and one that does not; return the former.

    ``enough`` keeps it without sampling, and sampling only ever helps. The next point is
    interpolated on log-log axes, where epsilon is nearly a line: a query of the accountant costs
    up to a second, and the accountant is slowest where the noise is far too small.
    """
    high, high_cost = enough, epsilon_of(enough, sample_rate, steps, delta)
    low, low_cost = high, high_cost
    while low_cost <= epsilon:
        high, high_cost = low, low_cost
        low = high / 1.5
        low_cost = epsilon_of(low, sample_rate, steps, delta)
    while high_cost < epsilon * (1.0 - _CALIBRATION_SLACK) and high > low * (1.0 + 1e-6):
        share = math.log(low_cost / epsilon) / math.log(low_cost / max(high_cost, 1e-12))
        # A little towards more noise, so that the point mostly lands on the side that is kept.
        share = min(max(share + 0.02, 0.05), 0.95)
        middle = low * (high / low) ** share
        cost = epsilon_of(middle, sample_rate, steps, delta)
        if cost <= epsilon:
            high, high_cost = middle, cost
        else:
            low, low_cost = middle, cost
    return high


def _check(sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1:
        raise ValueError(f"expected 0 < sample_rate <= 1, got {sample_rate}")
    if steps < 0:
        raise ValueError(f"expected steps >= 0, got {steps}")
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
