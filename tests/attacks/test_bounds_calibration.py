"""How often bounds are wrong: where nothing leaks, and where exactly as much leaks as is claimed.

Every canary is its own Gaussian mechanism, N(0, 1) against N(mu, 1), whose epsilon is known
exactly. Guesses and thresholds are fixed beforehand, as in an audit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.attacks.bounds.bound import Guesses, guess
from tacit.attacks.bounds.curves import Profile
from tacit.attacks.bounds.one_run import (
    f_dp_bound,
    f_dp_gaussian_estimate,
    one_run_bound,
    refutes,
)
from tacit.attacks.bounds.two_sided import (
    clopper_pearson_bound,
    gaussian_dp_estimate,
    rates_refute,
)
from tacit.attacks.statistics import realised
from tacit.privacy.accounting import gaussian_epsilon, gaussian_mu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.attacks.points import OperatingPoint

DELTA = 1e-5
TRIALS = 300
ALLOWED = 0.05 + 2 * math.sqrt(0.05 * 0.95 / TRIALS)
ONE_RUN = (one_run_bound, f_dp_bound, f_dp_gaussian_estimate)


def trials(mu: float, *, canaries: int = 500, guesses: int = 100) -> Iterator[tuple]:
    """Yield guesses, and the point at a fixed threshold, of fresh canaries each time."""
    rng = np.random.default_rng(round(1000 * mu) + guesses)
    for _ in range(TRIALS):
        bits = rng.random(canaries) < 0.5
        scores = rng.standard_normal(canaries) + mu * bits
        yield guess(scores, bits, guesses=guesses, rng=rng), realised(scores, bits, mu / 2 + 1.0)


def values(guesses: Guesses, point: OperatingPoint) -> list[float]:
    """Return every method's value for the same canaries, proofs and estimates."""
    return [
        *(method(guesses, delta=DELTA).value for method in ONE_RUN),
        clopper_pearson_bound(point, delta=DELTA, independent_runs=True).value,
        gaussian_dp_estimate(point, delta=DELTA).value,
    ]


@pytest.mark.parametrize("guesses", [20, 100, 500])
def test_where_nothing_leaks_few_bounds_are_positive(guesses: int) -> None:
    """On identical scores at most 5 % and two standard errors of bounds exceed zero."""
    found = np.array([values(*trial) for trial in trials(0.0, guesses=guesses)])
    assert ((found > 0).mean(axis=0) <= ALLOWED).all()


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("guesses", [20, 100, pytest.param(500, marks=pytest.mark.slow)])
def test_bounds_hold_for_a_known_epsilon(epsilon: float, guesses: int) -> None:
    """At least 95 % of bounds (less two standard errors) do not exceed the true epsilon."""
    mu = gaussian_mu(epsilon, DELTA)
    found = np.array([values(*trial) for trial in trials(mu, guesses=guesses)])
    assert ((found > epsilon + 1e-6).mean(axis=0) <= ALLOWED).all()


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_true_claims_are_seldom_refuted(mu: float) -> None:
    """By its own curve a true claim is refuted in at most 5 % of trials, both ways."""
    epsilons = np.linspace(0.0, mu * mu / 2 + 6 * mu, 60)
    deltas = np.array([delta_of(mu, epsilon) for epsilon in epsilons])
    claim = Profile(epsilons=epsilons, deltas=deltas)
    found = [(refutes(g, claim), rates_refute(p, claim)) for g, p in trials(mu, guesses=40)]
    assert (np.mean(found, axis=0) <= ALLOWED).all()


def delta_of(mu: float, epsilon: float) -> float:
    first, second = (
        0.5 * math.erfc((epsilon / mu + sign * mu / 2) / math.sqrt(2)) for sign in (-1, 1)
    )
    return max(0.0, first - math.exp(epsilon) * second)


def test_a_false_claim_is_refuted() -> None:
    """Noise ten times too small for a claim of 1 is beyond every bound, nearly always."""
    mu = 10 * gaussian_mu(1.0, DELTA)
    found = np.array([values(*trial) for trial in trials(mu, guesses=100)])
    assert ((found > 1.0).mean(axis=0) >= 0.95).all()
    assert gaussian_epsilon(mu, DELTA) >= found[:, [0, 1, 3]].max()
