"""ROC curves: exact areas, intervals that cover, ties that nobody breaks in anyone's favour."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from tacit.attacks.points import OperatingPoint, clopper_pearson, least_fpr
from tacit.attacks.statistics import Roc, realised, roc_of, thresholds_from_references
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from random import Random

FEW_SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=25)
RATES = st.floats(0, 1)


def both(members: list[int], others: list[int]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([*members, *others], dtype=np.float64)
    return scores, np.arange(len(scores)) < len(members)


def gaussian(rng: np.random.Generator, mu: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    is_member = np.arange(2 * n) < n
    return rng.standard_normal(2 * n) + mu * is_member, is_member


def figures(roc: Roc) -> tuple[list[float], ...]:
    return roc.tpr.tolist(), roc.fpr.tolist(), [roc.auc, roc.balanced_accuracy]


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES)
def test_area_is_share_of_pairs_in_order(members: list[int], others: list[int]) -> None:
    """The area equals the share of pairs that a member wins, a tie counting half."""
    wins = [(a > b) + (a == b) / 2 for a, b in itertools.product(members, others)]
    assert roc_of(*both(members, others)).auc == pytest.approx(np.mean(wins))


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES)
def test_variance_is_delongs(members: list[int], others: list[int]) -> None:
    """The variance from the steps equals DeLong's from every single pair."""
    wins = np.array([[(a > b) + (a == b) / 2 for b in others] for a in members])
    expected = 0.0
    if min(wins.shape) > 1:
        expected = sum(
            np.var(wins.mean(axis=axis), ddof=1) / wins.shape[1 - axis] for axis in (0, 1)
        )
    assert roc_of(*both(members, others))._delong_variance() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES, st.randoms(use_true_random=False))
def test_order_and_scale_change_nothing(
    members: list[int], others: list[int], random: Random
) -> None:
    """Neither the order of records nor a rising function of the scores moves a figure."""
    scores, is_member = both(members, others)
    order = random.sample(range(len(scores)), len(scores))
    again = roc_of(np.exp(scores[order] / 2.0) + 7.0, is_member[order])
    assert figures(again) == figures(roc_of(scores, is_member))


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES)
def test_sign_turns_the_area(members: list[int], others: list[int]) -> None:
    """Scores of the wrong sign have the area on the other side of one half."""
    scores, is_member = both(members, others)
    assert roc_of(-scores, is_member).auc == pytest.approx(1 - roc_of(scores, is_member).auc)


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES)
def test_interval_has_width_and_holds_the_area(members: list[int], others: list[int]) -> None:
    """No sample is so small, tied or separated that its area looks certain."""
    roc = roc_of(*both(members, others))
    interval = roc.auc_interval()
    assert 0 <= interval.low <= roc.auc <= interval.high <= 1
    assert interval.high - interval.low > 1e-3


@pytest.mark.parametrize(("mu", "n"), [(0.0, 20), (0.5, 50), (2.0, 50), (3.3, 200)])
def test_interval_of_area_covers(mu: float, n: int) -> None:
    """The interval holds the true area in 92 to 98 % of samples of Gaussian scores."""
    rng, truth = np.random.default_rng(7), float(ndtr(mu / np.sqrt(2)))
    found = [roc_of(*gaussian(rng, mu, n)).auc_interval() for _ in range(500)]
    assert 0.92 <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.98


def test_perfect_separation_leaves_doubt() -> None:
    """Ten against ten in perfect order give an area of 1, and an interval well below it."""
    roc = roc_of(*both([1] * 10, [0] * 10))
    assert (roc.auc, roc.auc_interval().high) == (1.0, 1.0)
    assert 0.6 < roc.auc_interval().low < 0.9


def test_balanced_accuracy_by_hand() -> None:
    """The best threshold finds 3 of 4 members with 1 of 5 non-members."""
    assert roc_of(*both([9, 8, 7, 1], [8, 3, 2, 2, 0])).balanced_accuracy == pytest.approx(0.775)


def test_tie_is_crossed_as_a_lot_would_on_average() -> None:
    """Where scores saturate, the TPR equals the mean over many ways to break the tie by lot."""
    rng = np.random.default_rng(3)
    scores, is_member = gaussian(rng, 1.0, 200)
    scores = np.minimum(scores, 1.2)
    point = roc_of(scores, is_member).tpr_at(0.05)
    lots = [
        roc_of(scores + 1e-9 * rng.random(len(scores)), is_member).tpr_at(0.05).tpr
        for _ in range(400)
    ]
    assert point.fpr == pytest.approx(0.05)
    assert point.tpr == pytest.approx(np.mean(lots), abs=4 * np.std(lots) / 20)
    assert point.tpr > 0


@pytest.mark.slow
@pytest.mark.parametrize("ceiling", [np.inf, 1.5])
@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0])
def test_interval_at_an_fpr_covers_whichever_threshold_has_it(mu: float, ceiling: float) -> None:
    """Of 500 samples at least 95 %, less two standard errors, hold the TPR at 0.1, 1 and 5 % FPR.

    With nothing to find and with shifts of one and two deviations; with a ceiling, 6.7 % of the
    non-members tie at the top, and the curve is straight there.
    """
    rng, fprs, trials = np.random.default_rng(31), (0.001, 0.01, 0.05), 500
    top = 1.0 - ndtr(ceiling)
    held = []
    for _ in range(trials):
        scores, is_member = gaussian(rng, mu, 1000)
        roc = roc_of(np.minimum(scores, ceiling), is_member)
        truth = [
            ndtr(mu - ndtri(1 - fpr)) if fpr > top else ndtr(mu - ceiling) * fpr / top
            for fpr in fprs
        ]
        intervals = [roc.tpr_interval_at(fpr) for fpr in fprs]
        held.append([i.low <= tpr <= i.high for i, tpr in zip(intervals, truth, strict=True)])
    assert (np.mean(held, axis=0) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / trials)).all()


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES, RATES)
def test_interval_at_an_fpr_holds_its_own_estimate(
    members: list[int], others: list[int], fpr: float
) -> None:
    """The TPR on the curve itself lies within, and more confidence is never narrower."""
    roc = roc_of(*both(members, others))
    near, far = (roc.tpr_interval_at(fpr, confidence=c) for c in (0.95, 0.999))
    assert far.low <= near.low <= roc.tpr_at(fpr).tpr + 1e-12
    assert roc.tpr_at(fpr).tpr - 1e-12 <= near.high <= far.high


def test_too_few_non_members_bound_no_tpr_from_below() -> None:
    """Of 300 others any may stand above 1 % of all; of 700, surely one of them does."""
    ends = [roc_of(*both([1] * 500, [0] * others)).tpr_interval_at(0.01) for others in (300, 700)]
    assert (ends[0].low, ends[0].high) == (0.0, 1.0)
    assert ends[1].low > 0.98


@pytest.mark.parametrize("ceiling", [np.inf, 1.5])
def test_interval_at_an_own_threshold_covers(ceiling: float) -> None:
    """Though the threshold is the curve's own, the TPR there is held in 95 % of samples.

    With a ceiling, scores saturate and the threshold goes through the tie.
    """
    rng, held = np.random.default_rng(12), []
    for _ in range(500):
        scores, is_member = gaussian(rng, 1.0, 150)
        interval = roc_of(np.minimum(scores, ceiling), is_member).tpr_at(0.04).tpr_interval()
        sixth = np.sort(scores[~is_member])[-7]  # above it lie the six that 4 % of 150 allow
        tied = np.mean(scores[~is_member] >= ceiling)
        truth = ndtr(1.0 - sixth) if tied <= 0.04 else ndtr(1.0 - ceiling) * 0.04 / tied
        held.append(interval.low <= truth <= interval.high)
    assert np.mean(held) >= 0.94


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES, RATES, RATES)
def test_tpr_rises_with_fpr(members: list[int], others: list[int], a: float, b: float) -> None:
    """More false positives never find fewer members, and never more than asked come of them."""
    roc = roc_of(*both(members, others))
    low, high = (roc.tpr_at(fpr) for fpr in sorted((a, b)))
    assert low.tpr <= high.tpr + 1e-12
    assert high.fpr <= max(a, b) + 1e-9 / len(others)


def test_a_point_says_what_it_can_carry() -> None:
    """1/n_out is resolvable, 10/n_out supports a gate, and both ends of floats are met."""
    roc = roc_of(*both([3, 2, 1], list(range(-1000, 0))))
    points = [roc.tpr_at(fpr) for fpr in (0.0005, 0.001, least_fpr(1000))]
    assert [(p.is_resolvable, p.supports_gate) for p in points] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert (roc.resolvable_fpr, least_fpr(1000), least_fpr(4)) == (0.001, 0.01, 1.0)


def test_rounding_costs_no_record() -> None:
    """0.29 of 100 non-members are 29, though the product of the floats is below."""
    assert roc_of(*both([1], list(range(100)))).tpr_at(0.29).false_positives == 29


@pytest.mark.parametrize(
    ("scores", "is_member", "code"),
    [
        ([0.0, np.nan], [True, False], "E-AUDIT-SCORES"),
        ([[0.0, 1.0]], [[True, False]], "E-AUDIT-SCORES"),
        ([0.0, 1.0], [True, True], "E-AUDIT-MEMBERS"),
        ([0.0, 1.0], [False, False], "E-AUDIT-MEMBERS"),
        ([0.0, 1.0], [1, 0], "E-AUDIT-MEMBERS"),
        ([0.0, 1.0], [True], "E-AUDIT-MEMBERS"),
        ([], [], "E-AUDIT-MEMBERS"),
    ],
)
def test_what_cannot_be_scored_is_refused(scores: list, is_member: list, code: str) -> None:
    """NaN, a side without records, and membership that is no boolean are errors."""
    with pytest.raises(DataError) as caught:
        roc_of(np.array(scores, dtype=np.float64), np.array(is_member, dtype=None))
    assert caught.value.code in {code, "E-AUDIT-MEMBERS"}


def test_infinite_scores_are_ordered() -> None:
    """Infinite scores are the first and the last, not errors."""
    scores = np.array([np.inf, 0.0, 1.0, -np.inf])
    assert roc_of(scores, np.array([True, False, True, False])).auc == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_clopper_pearson_is_the_binomials_own(first: int, second: int) -> None:
    """At each end of the interval, as many successes or more extreme have half of the error."""
    successes, trials = sorted((first, second))
    interval = clopper_pearson(successes, trials)
    tails = [0.0, 0.0]
    for k in range(trials + 1):
        if k >= successes:
            tails[0] += binomial(k, trials, interval.low)
        if k <= successes:
            tails[1] += binomial(k, trials, interval.high)
    low, high = (0.025 if successes else 1.0), (0.025 if successes < trials else 1.0)
    assert tails == pytest.approx([low, high])


def binomial(k: int, n: int, p: float) -> float:
    ways = 1.0
    for i in range(k):
        ways *= (n - i) / (i + 1)
    return ways * p**k * (1 - p) ** (n - k)


def point(tp: float, fp: float, members: int = 100, others: int = 1000) -> OperatingPoint:
    return OperatingPoint(
        threshold=0.0,
        true_positives=tp,
        false_positives=fp,
        members=members,
        non_members=others,
        is_optimistic=False,
    )


def test_precision_by_hand() -> None:
    """At a prior of 1 %, TPR 50 % and FPR 1 % make one in three of those called a member."""
    found = point(50, 10).precision(0.01)
    assert found.value == pytest.approx(0.005 / (0.005 + 0.0099))
    assert found.interval.low < found.value < found.interval.high


@given(st.integers(0, 100), st.integers(0, 1000), st.floats(0.01, 0.5), st.floats(0.5, 0.99))
def test_precision_rises_with_the_prior(tp: int, fp: int, low: float, high: float) -> None:
    """Where members are more common, more of those called are members; or nobody is called."""
    few, many = point(tp, fp).precision(low), point(tp, fp).precision(high)
    if tp + fp == 0:
        assert few.value is None
        assert (few.interval.low, many.interval.high) == (0.0, 1.0)
    else:
        assert few.value <= many.value + 1e-12
        assert few.interval.low - 1e-12 <= few.value <= few.interval.high + 1e-12


def test_interval_of_precision_covers() -> None:
    """The true precision lies in the interval in at least 95 % of trials."""
    rng, truth = np.random.default_rng(5), 0.3 / (0.3 + 0.05 * 9)
    found = [
        point(rng.binomial(100, 0.3), rng.binomial(1000, 0.05)).precision(0.1).interval
        for _ in range(500)
    ]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.95


def test_realistic_threshold_holds_what_it_promises() -> None:
    """A threshold from references has nearly the FPR asked for, on a target never seen."""
    rng = np.random.default_rng(11)
    is_in = rng.random((16, 4000)) < 0.5
    scores = rng.standard_normal((16, 4000)) + is_in
    chosen = thresholds_from_references(scores, is_in, [0.001, 0.01, 0.1])
    target, is_member = gaussian(rng, 1.0, 4000)
    found = [realised(target, is_member, t, asked_fpr=0.01) for t in chosen]
    assert chosen == pytest.approx([3.09, 2.326, 1.2816], abs=0.15)
    assert [p.fpr for p in found] == pytest.approx([0.001, 0.01, 0.1], abs=0.008)
    assert not any(p.is_optimistic for p in found)


@settings(max_examples=40)
@given(FEW_SCORES, FEW_SCORES, RATES)
def test_chosen_threshold_never_exceeds_the_fpr(
    members: list[int], others: list[int], fpr: float
) -> None:
    """On the references themselves at most the FPR asked for is realised, ties included."""
    scores, is_member = both(members, others)
    (chosen,) = thresholds_from_references(scores[None], is_member[None], [fpr])
    assert realised(scores, is_member, chosen).fpr <= fpr + 1e-9


def test_threshold_of_a_curve_is_marked() -> None:
    """A point of its own curve says that it is optimistic; its threshold realises it."""
    scores, is_member = gaussian(np.random.default_rng(2), 1.0, 300)
    own = roc_of(scores, is_member).tpr_at(0.1)
    again = realised(scores, is_member, own.threshold)
    assert (own.is_optimistic, again.is_optimistic) == (True, False)
    assert (own.tpr, own.fpr) == (again.tpr, again.fpr)
