"""Bounds on epsilon: the published values, the limits, and what may not be chosen."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import bdtrc

from tacit.attacks.bounds.bound import Guesses, Method, guess, merged
from tacit.attacks.bounds.curves import Profile, approximate_curve, gaussian_curve
from tacit.attacks.bounds.fl_canaries import fl_canary_estimate
from tacit.attacks.bounds.one_run import (
    f_dp_bound,
    f_dp_gaussian_estimate,
    one_run_bound,
    one_run_p_value,
    refutes,
)
from tacit.attacks.bounds.two_sided import (
    clopper_pearson_bound,
    gaussian_dp_estimate,
    rates_refute,
)
from tacit.attacks.points import OperatingPoint
from tacit.attacks.statistics import roc_of
from tacit.core.errors import DataError
from tacit.privacy.accounting import gaussian_epsilon, gaussian_mu

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.attacks.bounds.bound import Bound

    BoundOf = Callable[..., Bound]

DELTA = 1e-5
CHANCES = st.floats(0, 1)
ONE_RUN_METHODS = (one_run_bound, f_dp_bound, f_dp_gaussian_estimate)


@st.composite
def counts(draw: st.DrawFn) -> Guesses:
    canaries = draw(st.integers(1, 200))
    total = draw(st.integers(1, canaries))
    return Guesses(canaries=canaries, guesses=total, correct=draw(st.integers(0, total)))


def of(canaries: int, total: int, correct: int) -> Guesses:
    return Guesses(canaries=canaries, guesses=total, correct=correct)


def at(tp: float, members: int, fp: float, others: int, **changes: bool) -> OperatingPoint:
    return OperatingPoint(
        threshold=0.0,
        true_positives=tp,
        members=members,
        false_positives=fp,
        non_members=others,
        is_optimistic=changes.get("is_optimistic", False),
    )


def gaussian_profile(mu: float) -> Profile:
    epsilons = np.linspace(0.0, mu * mu / 2 + 6 * mu, 400)
    cdf = [
        0.5 * math.erfc((e / mu - mu / 2) / math.sqrt(2))
        - math.exp(e) * 0.5 * math.erfc((e / mu + mu / 2) / math.sqrt(2))
        for e in epsilons
    ]
    return Profile(epsilons=epsilons, deltas=np.clip(cdf, 0.0, 1.0))


@pytest.mark.parametrize(
    ("guesses", "delta", "expected"),
    [
        (of(1000, 100, 100), 0.0, 3.4930),
        (of(1000, 100, 100), DELTA, 3.4654),
        (of(1000, 1000, 600), 0.0, 0.2975),
        (of(1000, 1000, 600), DELTA, 0.2972),
        (of(5000, 200, 200), 0.0, 4.1936),
        (of(5000, 200, 200), DELTA, 4.0555),
        (of(1000, 1000, 1000), 0.0, 5.8091),
        (of(5000, 5000, 5000), 0.0, 7.4197),
    ],
)
def test_one_run_values(guesses: Guesses, delta: float, expected: float) -> None:
    """The bound equals what the authors' own code gives, to four digits."""
    bound = one_run_bound(guesses, delta=delta)
    assert bound.value == pytest.approx(expected, abs=5e-5)
    assert (bound.method, bound.is_proof, bound.correct) == (Method.ONE_RUN, True, guesses.correct)


@pytest.mark.parametrize(
    ("guesses", "gaussian", "approximate"),
    [
        (of(1000, 100, 100), 5.5490, 3.4923),
        (of(5000, 200, 200), 5.9547, 4.1920),
        (of(1000, 1000, 600), 0.5835, 0.2918),
    ],
)
def test_f_dp_values(guesses: Guesses, gaussian: float, approximate: float) -> None:
    """The recursion gives the known values; only the curve that assumes no shape is a proof."""
    found = [method(guesses, delta=DELTA) for method in (f_dp_gaussian_estimate, f_dp_bound)]
    assert [bound.value for bound in found] == pytest.approx([gaussian, approximate], abs=5e-5)
    assert [bound.is_proof for bound in found] == [False, True]


def test_two_sided_values() -> None:
    """100 of 1000 against 5 of 1000 prove 1.9543; a perfect score of 100 each at most 3.28."""
    bound = clopper_pearson_bound(at(100, 1000, 5, 1000), delta=DELTA, independent_runs=True)
    small = clopper_pearson_bound(at(50, 100, 50, 100), delta=0.0, independent_runs=False)
    assert bound.value == pytest.approx(1.9543, abs=5e-5)
    assert small.ceiling == pytest.approx(3.2813, abs=5e-5)
    assert (bound.is_proof, small.is_proof, bound.correct) == (True, False, 1095)


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.5, 7.0318), (1, 3.7306), (3, 1.3906), (8, 0.6002)]
)
def test_gaussian_dp_on_many_records(epsilon: float, sigma: float) -> None:
    """With rates known almost exactly, the estimate is the epsilon of that noise."""
    size = 10**9
    found, false = (0.5 * math.erfc((0.5 / sigma - x) / math.sqrt(2)) for x in (1 / sigma, 0.0))
    point = at(round(found * size), size, round(false * size), size)
    bound = gaussian_dp_estimate(point, delta=DELTA)
    assert bound.value == pytest.approx(epsilon, rel=2e-3)
    assert (bound.method, bound.is_proof) == (Method.GAUSSIAN_DP, False)


@pytest.mark.parametrize(("size", "ceiling"), [(100, 3.4930), (1000, 5.8091), (5000, 7.4197)])
def test_ceiling_is_the_value_at_a_perfect_score(size: int, ceiling: float) -> None:
    """However little was guessed right, the ceiling says what the method could have shown."""
    assert one_run_bound(of(5000, size, 1), delta=0.0).ceiling == pytest.approx(ceiling, abs=5e-5)


@settings(max_examples=50)
@given(counts(), st.sampled_from(ONE_RUN_METHODS), st.sampled_from([1e-6, 1e-3]))
def test_bounds_rise_with_right_guesses(guesses: Guesses, method: BoundOf, delta: float) -> None:
    """One more right guess never lowers a bound, and none exceeds its ceiling."""
    bound = method(guesses, delta=delta)
    assert 0.0 <= bound.value <= bound.ceiling + 1e-9
    if guesses.correct < guesses.guesses:
        better = of(guesses.canaries, guesses.guesses, guesses.correct + 1)
        assert method(better, delta=delta).value >= bound.value - 1e-9


@settings(max_examples=25)
@given(counts(), st.sampled_from(ONE_RUN_METHODS))
def test_bounds_fall_with_certainty_and_delta(guesses: Guesses, method: BoundOf) -> None:
    """More confidence, or a larger delta in the claim, never gives a larger bound."""
    value = method(guesses, delta=1e-5).value
    assert method(guesses, delta=1e-5, alpha=0.01).value <= value + 1e-9
    assert method(guesses, delta=1e-3).value <= value + 1e-9


@settings(max_examples=25)
@given(counts(), st.sampled_from([0.0, 1e-4, 1e-2]))
def test_recursion_is_the_linear_programme(guesses: Guesses, delta: float) -> None:
    """At the bound, the most likely that the curve's constraints allow as many is just alpha.

    An independent oracle: the recursion's inequalities for every tail, solved as a programme.
    """
    small = of(min(guesses.canaries, 40), min(guesses.guesses, 40), min(guesses.correct, 40))
    value = f_dp_bound(small, delta=delta).value
    most = most_likely(small, value, delta)
    assert most == pytest.approx(0.05, abs=1e-6) if value > 0 else most >= 0.05 - 1e-9


def most_likely(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return the largest P[V >= v] under Mahloujifar et al. 2024, theorem 9, for all tails."""
    m, total, grown = guesses.canaries, guesses.guesses, math.exp(epsilon)
    values = np.arange(total + 1)
    rows, limits = [], []
    for tail in range(1, total + 1):
        right = np.where(values >= tail, values / m, 0.0)
        wrong = np.where(values >= tail - 1, (total - values) / m, 0.0)
        rows += [right / grown - wrong, grown * right - wrong]
        limits += [delta / grown, grown - 1.0 + delta]
    solved = linprog(
        -(values >= guesses.correct).astype(float),
        A_ub=np.array(rows),
        b_ub=np.array(limits),
        A_eq=np.ones((1, total + 1)),
        b_eq=[1.0],
        bounds=(0.0, 1.0),
    )
    return -float(solved.fun)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize(("total", "delta"), [(200, 0.0), (200, 1e-4)])
@pytest.mark.parametrize("method", [one_run_bound, f_dp_bound])
def test_randomised_response_is_within_its_epsilon(
    method: BoundOf, epsilon: float, total: int, delta: float
) -> None:
    """The exact chance that the bound exceeds the truth is at most alpha.

    Bits flipped with chance 1 / (1 + e^eps), or shown as they are with chance delta, are the worst
    that (epsilon, delta)-DP allows to a single canary.
    """
    right = delta + (1 - delta) / (1 + math.exp(-epsilon))
    least = bisect.bisect(
        range(total), epsilon, key=lambda v: method(of(total, total, v), delta=delta).value
    )
    assert method(of(total, total, least), delta=delta).value > epsilon
    assert bdtrc(least - 1, total, right) <= 0.05


@given(CHANCES, st.floats(0, 6), st.floats(0, 0.1), st.floats(0.01, 6))
def test_curves_are_trade_offs(chance: float, epsilon: float, delta: float, mu: float) -> None:
    """No event is likelier next door than it was at the least, nor less likely than at the most."""
    profile = Profile(epsilons=np.array([epsilon]), deltas=np.array([delta]))
    assert profile.least(chance) == pytest.approx(approximate_curve(epsilon, delta)(chance))
    assert 0.0 <= profile.least(chance) <= chance + 1e-12 <= profile.most(chance) + 2e-12
    assert profile.most(profile.least(chance)) >= chance - 1e-9
    assert 0.0 <= gaussian_curve(mu)(chance) <= chance


@given(st.floats(0.001, 0.999), st.floats(0.2, 4))
def test_profile_meets_the_gaussian_from_below(chance: float, mu: float) -> None:
    """The curve of a claim's pairs lies below the true one, and close to it."""
    profile, exact = gaussian_profile(mu), gaussian_curve(mu)(chance)
    assert exact - 2e-3 <= profile.least(chance) <= exact + 1e-9


def test_claims_by_their_own_curve() -> None:
    """What a claim allows refutes it neither way; what it forbids does, both ways."""
    tight, wide = gaussian_profile(0.5), gaussian_profile(3.0)
    guesses, point = of(1000, 100, 90), at(700, 1000, 20, 1000)
    assert [refutes(guesses, claim) for claim in (tight, wide)] == [True, False]
    assert [rates_refute(point, claim) for claim in (tight, wide)] == [True, False]


def test_guesses_go_to_both_ends() -> None:
    """The highest are guessed in, the lowest out, and all between are left alone."""
    scores = np.arange(10.0)
    bits = np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1], dtype=bool)
    rng = np.random.default_rng(0)
    found = [guess(scores, bits, guesses=r, rng=rng).correct for r in (1, 4, 5, 10)]
    assert found == [1, 4, 4, 4]


def test_order_of_canaries_tells_nothing() -> None:
    """Constant scores of canaries listed by inclusion are guessed right half of the time."""
    bits, rng = np.arange(2000) < 1000, np.random.default_rng(6)
    assert guess(np.zeros(2000), bits, guesses=1000, rng=rng).correct == pytest.approx(500, abs=60)


def test_bits_that_fell_alike_are_guessed_too() -> None:
    """Three canaries that are all in are no error: to refuse them would bias the bound."""
    bits, rng = np.ones(3, dtype=bool), np.random.default_rng(0)
    assert guess(np.arange(3.0), bits, guesses=3, rng=rng) == of(3, 3, 2)


def test_owners_guesses_add_up() -> None:
    """Guesses of several owners are one set of guesses."""
    assert merged([of(100, 20, 18), of(50, 10, 5)]) == of(150, 30, 23)


def test_a_point_of_its_own_curve_bounds_nothing() -> None:
    """A threshold that was chosen on what it is evaluated on is refused by every bound."""
    chosen = roc_of(np.arange(40.0), np.arange(40) > 19).tpr_at(0.1)
    claim = Profile(epsilons=np.array([1.0]), deltas=np.array([DELTA]))
    with pytest.raises(ValueError, match="beforehand"):
        clopper_pearson_bound(chosen, delta=DELTA, independent_runs=True)
    with pytest.raises(ValueError, match="beforehand"):
        gaussian_dp_estimate(chosen, delta=DELTA)
    with pytest.raises(ValueError, match="beforehand"):
        rates_refute(chosen, claim)


@pytest.mark.parametrize(("mu", "dimension"), [(0.0, 1000), (0.27, 10_000), (2.0, 500)])
def test_fl_estimate_is_unbiased(mu: float, dimension: int) -> None:
    """Over many canaries the point lies at the true epsilon, the lower end below it."""
    rng = np.random.default_rng(9)
    cosines = (rng.standard_normal(40_000) + mu) / math.sqrt(dimension)
    bound = fl_canary_estimate(np.clip(cosines, -1, 1), dimension=dimension, delta=DELTA)
    truth = gaussian_epsilon(mu, DELTA) if mu else 0.0
    assert bound.point == pytest.approx(truth, abs=0.08)
    assert bound.value <= bound.point <= bound.ceiling
    assert (bound.is_proof, bound.guesses) == (False, None)


def test_fl_lower_end_covers() -> None:
    """With 50 canaries the lower end exceeds the truth in about 5 % of trials."""
    rng, mu = np.random.default_rng(10), gaussian_mu(1.0, DELTA)
    rows = (rng.standard_normal((300, 50)) + mu) / 100
    above = [fl_canary_estimate(row, dimension=10_000, delta=DELTA).value > 1.0 for row in rows]
    assert 0.01 <= np.mean(above) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("counts_", [(10, 11, 5), (10, 5, 6), (10, 0, 0), (10, 5, -1)])
def test_impossible_guesses_are_refused(counts_: tuple[int, int, int]) -> None:
    """No more right than guessed, no more guessed than there are, and at least one."""
    with pytest.raises(ValueError, match="correct"):
        of(*counts_)


def test_impossible_levels_are_refused() -> None:
    """Alpha and delta are chances, no Gaussian has an epsilon at delta 0, cosines are cosines."""
    point, guesses = at(1, 2, 1, 2), of(2, 2, 1)
    for call in (
        lambda: one_run_bound(guesses, delta=1.0),
        lambda: f_dp_bound(guesses, delta=0.0, alpha=0.0),
        lambda: f_dp_gaussian_estimate(guesses, delta=0.0),
        lambda: gaussian_dp_estimate(point, delta=0.0),
        lambda: clopper_pearson_bound(point, delta=-0.1, independent_runs=True),
        lambda: fl_canary_estimate(np.array([]), dimension=3, delta=DELTA),
        lambda: guess(np.zeros(2), np.array([True, False]), guesses=3, rng=np.random.default_rng()),
        lambda: Profile(epsilons=np.array([-1.0]), deltas=np.array([0.1])),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
    with pytest.raises(DataError, match="E-AUDIT-SCORES"):
        fl_canary_estimate(np.array([np.nan]), dimension=3, delta=DELTA)


@given(st.integers(1, 5), st.data())
def test_tiny_sizes_have_bounds(size: int, data: st.DataObject) -> None:
    """A handful of canaries gives a finite bound, a p-value that is a chance, and no error."""
    guesses = of(size, size, data.draw(st.integers(0, size)))
    for method in ONE_RUN_METHODS:
        assert math.isfinite(method(guesses, delta=DELTA).value)
    assert 0 <= one_run_p_value(guesses, 0.0, DELTA) <= 1
    point = at(guesses.correct, size, size - guesses.correct, size)
    assert math.isfinite(gaussian_dp_estimate(point, delta=DELTA).value)
    assert math.isfinite(clopper_pearson_bound(point, delta=0.0, independent_runs=False).ceiling)
