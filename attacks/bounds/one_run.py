"""Bounds from one training run: many canaries, each in or out by its own fair bit.

Both count how many of r guesses, fixed beforehand, are right among m canaries, and ask how likely
as many are under a claim. Canaries of one run are not independent of each other, which both allow
for; Clopper-Pearson over the canaries of one run does not.

The relation is add/remove of one canary: bound and claim must share it, and the unit.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from tacit.attacks.bounds.bound import ALPHA, Bound, Guesses, Method, check_levels
from tacit.attacks.bounds.curves import approximate_curve, gaussian_curve
from tacit.privacy.accounting import gaussian_epsilon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.attacks.bounds.curves import Curve, Profile
    from tacit.attacks.points import Float64Array

_STEPS = 60  # bisections: to the last digits of a double


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of as many right guesses under (epsilon, delta)-DP.

    Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846), theorem 5.2: with q = e^eps / (1 + e^eps),
    P[Bin(r, q) >= v] + 2 m delta max_i P[v > Bin(r, q) >= v - i] / i.
    """
    right, total = guesses.correct, guesses.guesses
    if right == 0:
        return 1.0
    chance = float(special.expit(epsilon))
    tail = float(special.bdtrc(right - 1, total, chance))
    if delta == 0.0:
        return tail
    below = np.cumsum(_binomial(np.arange(right - 1, -1, -1), total, chance))
    worst = float(np.max(below / np.arange(1, right + 1)))
    return min(1.0, tail + 2.0 * guesses.canaries * delta * worst)


def _binomial(values: np.ndarray, total: int, chance: float) -> Float64Array:
    """Return P[Bin(total, chance) = value] for each value."""
    logs = (
        special.gammaln(total + 1.0)
        - special.gammaln(values + 1.0)
        - special.gammaln(total - values + 1.0)
        + special.xlogy(values, chance)
        + special.xlog1py(total - values, -chance)
    )
    weights: Float64Array = np.exp(logs)
    return weights


def one_run_bound(guesses: Guesses, *, delta: float, alpha: float = ALPHA) -> Bound:
    """Return the largest epsilon refuted by that many right guesses (Steinke et al. 2023): a proof.

    Args:
        guesses: of :func:`tacit.attacks.bounds.bound.guess`.
        delta: at which epsilon is claimed.
        alpha: the chance that the bound exceeds the true epsilon.

    Raises:
        ValueError: alpha or delta is no chance.
    """
    check_levels(alpha, delta)
    return Bound(
        method=Method.ONE_RUN,
        value=_one_run_value(guesses, delta, alpha),
        alpha=alpha,
        delta=delta,
        canaries=guesses.canaries,
        guesses=guesses.guesses,
        correct=guesses.correct,
        ceiling=_one_run_value(guesses.perfect(), delta, alpha),
        is_proof=True,
    )


@functools.lru_cache(maxsize=4096)
def _one_run_value(guesses: Guesses, delta: float, alpha: float) -> float:
    return _largest(lambda epsilon: one_run_p_value(guesses, epsilon, delta) < alpha)


def f_dp_refutes(guesses: Guesses, curve: Curve, *, alpha: float = ALPHA) -> bool:
    """Return whether that many right guesses refute a trade-off curve with confidence 1 - alpha.

    Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235), algorithm 3, for one bit per canary. It
    supposes that v or more guesses are right with chance alpha, puts that mass at v, and walks
    down: a refuted curve forces more on fewer right guesses than there is.

    Args:
        guesses: of :func:`tacit.attacks.bounds.bound.guess`.
        curve: the least chance next door of an event (see ``curves.py``). With the claim's own
            curve, a refutation is a proof.
        alpha: the chance that a true claim is refuted.
    """
    canaries, total, right = guesses.canaries, guesses.guesses, guesses.correct
    correct, wrong = alpha * right / canaries, alpha * (total - right) / canaries
    limit = total / canaries
    for count in range(right - 1, -1, -1):
        grown = max(wrong, curve(correct))
        correct += count * (grown - wrong) / (total - count)
        wrong = grown
        if correct + wrong > limit:
            return True
    return False


def refutes(guesses: Guesses, claim: Profile, *, alpha: float = ALPHA) -> bool:
    """Return whether the guesses refute a claim by its own curve: a proof that it is false."""
    check_levels(alpha, 0.0)
    return f_dp_refutes(guesses, claim.least, alpha=alpha)


def f_dp_bound(guesses: Guesses, *, delta: float, alpha: float = ALPHA) -> Bound:
    """Return the largest epsilon whose (epsilon, delta) curve is refuted: a proof.

    Mahloujifar et al. 2024 with the curve that every (epsilon, delta)-DP mechanism obeys. Beside
    :func:`one_run_bound` it loses less to delta and more where many guesses are wrong.

    Raises:
        ValueError: alpha or delta is no chance.
    """
    check_levels(alpha, delta)
    return _f_dp(guesses, delta, alpha, Method.F_DP, _approximate_value)


def f_dp_gaussian_estimate(guesses: Guesses, *, delta: float, alpha: float = ALPHA) -> Bound:
    """Return epsilon at ``delta`` of the strongest Gaussian curve that is refuted: an estimate.

    Mahloujifar et al. 2024. It assumes the shape: sampling bends the true curve of DP-SGD away from
    it, and the figure can then exceed a true claim.

    Raises:
        ValueError: alpha or delta is no chance, or delta is 0, where a Gaussian has no epsilon.
    """
    check_levels(alpha, delta)
    if delta == 0.0:
        raise ValueError("expected a delta above 0: no Gaussian has an epsilon at 0")
    return _f_dp(guesses, delta, alpha, Method.F_DP_GAUSSIAN, _gaussian_value)


def _f_dp(
    guesses: Guesses,
    delta: float,
    alpha: float,
    method: Method,
    value: Callable[[Guesses, float, float], float],
) -> Bound:
    return Bound(
        method=method,
        value=value(guesses, delta, alpha),
        alpha=alpha,
        delta=delta,
        canaries=guesses.canaries,
        guesses=guesses.guesses,
        correct=guesses.correct,
        ceiling=value(guesses.perfect(), delta, alpha),
        is_proof=method is Method.F_DP,
    )


@functools.lru_cache(maxsize=4096)
def _approximate_value(guesses: Guesses, delta: float, alpha: float) -> float:
    return _largest(
        lambda epsilon: f_dp_refutes(guesses, approximate_curve(epsilon, delta), alpha=alpha)
    )


@functools.lru_cache(maxsize=4096)
def _gaussian_value(guesses: Guesses, delta: float, alpha: float) -> float:
    mu = _largest(lambda mu: f_dp_refutes(guesses, gaussian_curve(mu), alpha=alpha))
    return gaussian_epsilon(mu, delta) if mu > 0.0 else 0.0


def _largest(is_refuted: Callable[[float], bool]) -> float:
    """Return the largest parameter that is refuted, by bisection from below; 0: none is.

    Where refutation is not monotone, any refuted parameter is a bound: a smaller one claims more.
    """
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2.0 * high
        if not math.isfinite(high):
            raise ArithmeticError("expected a parameter that is not refuted, got none")
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if is_refuted(middle):
            low = middle
        else:
            high = middle
    return low
