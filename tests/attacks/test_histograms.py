"""Histograms of scores: what is sent adds up, what is read of it holds for sampling and noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from tacit.attacks.binned import BinnedPoint, roc_of_histograms
from tacit.attacks.histograms import (
    ScoreHistogram,
    histogram_of,
    histogram_of_counts,
    merge,
    positions,
)
from tacit.attacks.statistics import roc_of
from tacit.core.errors import DataError
from tacit.privacy.sums import histograms, noised_sums, one_hot

EDGES = np.linspace(-3.0, 5.0, 31)
FEW = st.lists(st.integers(-6, 10), min_size=1, max_size=30)


def scored(members: list[int], others: list[int]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([*members, *others]) / 2.0
    return scores, np.arange(len(scores)) < len(members)


def chances(mu: float) -> np.ndarray:
    """Return the exact chance of each bin for N(mu, 1)."""
    return np.diff(np.concatenate([[0.0], ndtr(EDGES - mu), [1.0]]))


def drawn(rng: np.random.Generator, mu: float, n: int, noise: float) -> ScoreHistogram:
    members, others = (
        rng.multinomial(n, chances(m)) + noise * rng.standard_normal(32) for m in (mu, 0.0)
    )
    return ScoreHistogram(edges=EDGES, members=members, non_members=others, noise_sd=noise)


def true_tpr(mu: float, point: BinnedPoint) -> float:
    """Return the chance of a member to be called at a point's threshold and share."""
    falling = chances(mu)[::-1]
    whole = int(np.sum(point.threshold <= EDGES))
    return float(falling[:whole].sum() + point.share * falling[whole])


@settings(max_examples=40)
@given(FEW, FEW)
def test_exact_figures_lie_between_what_binning_leaves_open(
    members: list[int], others: list[int]
) -> None:
    """Area and TPR of the scores themselves lie within the bounds that the bins leave."""
    scores, is_member = scored(members, others)
    exact, edges = roc_of(scores, is_member), np.array([-1.1, 0.4, 2.0])
    curve = roc_of_histograms(histogram_of(edges, scores, is_member))
    low, high = curve.auc_bounds
    assert low - 1e-9 <= exact.auc <= high + 1e-9
    for fpr in (0.0, 0.1, 0.5, 0.9):
        low, high = curve.tpr_at(fpr).tpr_bounds
        assert low - 1e-9 <= exact.tpr_at(fpr).tpr <= high + 1e-9


@settings(max_examples=40)
@given(FEW, FEW)
def test_without_noise_a_histogram_is_a_curve_with_ties(
    members: list[int], others: list[int]
) -> None:
    """Bins that hold one score each lose nothing: area, interval and TPR are the exact ones."""
    scores, is_member = scored(members, others)
    exact = roc_of(scores, is_member)
    edges = np.arange(-6, 11) / 2.0
    curve = roc_of_histograms(histogram_of(edges, scores, is_member))
    fpr = (len(others) // 3) / len(others)
    assert curve.auc == pytest.approx(exact.auc)
    assert curve.tpr_at(fpr).tpr == pytest.approx(exact.tpr_at(fpr).tpr)
    found, expected = curve.auc_interval(), exact.auc_interval()
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high])


@settings(max_examples=40)
@given(FEW, FEW, FEW, FEW)
def test_owners_add_up(a: list[int], b: list[int], c: list[int], d: list[int]) -> None:
    """The merged histogram is that of all records together."""
    parts = [histogram_of(EDGES, *scored(a, b)), histogram_of(EDGES, *scored(c, d))]
    both, whole = merge(parts), histogram_of(EDGES, *scored(a + c, b + d))
    assert both.members.tolist() == whole.members.tolist()
    assert both.non_members.tolist() == whole.non_members.tolist()


def test_noise_of_owners_adds_up() -> None:
    """Three owners' own noise of 3, 4 and 12 is noise of 13 on the sum."""
    rng = np.random.default_rng(0)
    assert merge([drawn(rng, 0.0, 50, sd) for sd in (3.0, 4.0, 12.0)]).noise_sd == 13.0


@settings(max_examples=40)
@given(FEW, FEW)
def test_a_record_counts_once(members: list[int], others: list[int]) -> None:
    """Every record is in one cell, its own side's, and an edge belongs to the bin above."""
    scores, is_member = scored(members, others)
    cells = positions(EDGES, scores, is_member)
    assert one_hot(cells, bins=64).sum(axis=1).tolist() == [1.0] * len(scores)
    assert (cells < 32).tolist() == is_member.tolist()
    assert positions(np.array([0.0]), np.array([0.0]), np.array([True])).tolist() == [1]


@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0, 20.0])
@pytest.mark.parametrize("mu", [0.0, 1.0, 2.5])
def test_intervals_cover_sampling_and_noise(mu: float, noise: float) -> None:
    """Intervals of area and TPR at 5 % FPR hold the truth in 92 to 98 % of 500 releases."""
    rng = np.random.default_rng(round(10 * mu + noise))
    falling = np.cumsum(chances(0.0)) - chances(0.0) / 2
    area, held = float(chances(mu) @ falling), []
    for _ in range(500):
        curve = roc_of_histograms(drawn(rng, mu, 1500, noise))
        point, found = curve.tpr_at(0.05), curve.auc_interval()
        interval, tpr = point.tpr_interval, true_tpr(mu, point)
        held.append((found.low <= area <= found.high, interval.low <= tpr <= interval.high))
    assert (np.mean(held, axis=0) >= 0.92).all()
    assert (np.mean(held, axis=0) <= 0.98).all()


@pytest.mark.parametrize("noise", [0.0, 6.0])
@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_tpr_at_an_fpr_is_covered_whatever_threshold_that_takes(
    mu: float, noise: float
) -> None:
    """In at least 95 % of 100 releases, also where noise leaves a threshold's own FPR open."""
    rng = np.random.default_rng(round(10 * mu + noise))
    truth = [np.append(0.0, np.cumsum(chances(m)[::-1])) for m in (0.0, mu)]
    held = []
    for _ in range(100):
        curve = roc_of_histograms(drawn(rng, mu, 500, noise))
        intervals = {fpr: curve.tpr_interval_at(fpr) for fpr in (0.1, 0.05, 0.01)}
        held.append([i.low <= np.interp(fpr, *truth) <= i.high for fpr, i in intervals.items()])
    assert (np.mean(held, axis=0) >= 0.95).all()


def test_precision_through_noise_covers() -> None:
    """The true precision at a prior of 10 % lies in the interval in at least 95 % of releases."""
    rng, held = np.random.default_rng(21), []
    for _ in range(500):
        point = roc_of_histograms(drawn(rng, 1.0, 1500, 4.0)).tpr_at(0.05, confidence=0.975)
        tpr, fpr = true_tpr(1.0, point), true_tpr(0.0, point)
        interval = point.precision(0.1).interval
        held.append(interval.low <= tpr / (tpr + 9 * fpr) <= interval.high)
    assert interval.confidence == pytest.approx(0.95)
    assert np.mean(held) >= 0.95


def test_nearly_every_non_member() -> None:
    """An FPR just below one has a point too, and one of no record at all does as well."""
    rng = np.random.default_rng(0)
    curve = roc_of_histograms(drawn(rng, 1.0, 50, 0.0))
    assert curve.tpr_at(1.0 - 1e-12).tpr == pytest.approx(1.0)
    assert curve.tpr_at(0.0).tpr_interval.high > 0.0


def test_little_noise_and_perfect_separation_leave_doubt() -> None:
    """Where sampling is the larger part, noise that is nearly none makes nothing certain."""
    members, others = np.zeros(32), np.zeros(32)
    members[-1], others[0] = 20.0, 20.0
    small = ScoreHistogram(edges=EDGES, members=members, non_members=others, noise_sd=0.01)
    interval = roc_of_histograms(small).auc_interval()
    assert (interval.low < 0.95, interval.high) == (True, 1.0)


def test_noise_widens_what_is_known() -> None:
    """Intervals grow with the noise, from the exact one on."""
    rng = np.random.default_rng(3)
    clean = drawn(rng, 1.0, 2000, 0.0)
    widths = []
    for noise in (0.0, 2.0, 10.0, 50.0):
        noised = ScoreHistogram(
            edges=EDGES,
            members=clean.members,
            non_members=clean.non_members,
            noise_sd=noise,
        )
        curve = roc_of_histograms(noised)
        found = (curve.auc_interval(), curve.tpr_at(0.05).tpr_interval)
        widths.append([interval.high - interval.low for interval in found])
    assert (np.diff(widths, axis=0) > 0).all()


def test_through_the_noised_sum() -> None:
    """One bounded sum carries both sides: the noise is what it declares, the truth in reach."""
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.normal(1.0, 1.0, 4000), rng.normal(0.0, 1.0, 4000)])
    is_member = np.arange(8000) < 4000
    query = histograms({"scores": 64}, deviation=8.0)
    cells = one_hot(positions(EDGES, scores, is_member), bins=64)
    sums = noised_sums(query, cells, key=bytes(range(32)), purpose="test")
    noise = query.deviation("scores")
    found = roc_of_histograms(histogram_of_counts(EDGES, sums.values["scores"], noise_sd=noise))
    interval = found.auc_interval()
    assert noise == pytest.approx(8.0)
    assert interval.low < ndtr(np.sqrt(0.5)) < interval.high
    assert interval.high - interval.low < 0.1


def test_noise_that_hides_the_records_is_refused() -> None:
    """Where the noise could have made all the counts, nothing is read from them."""
    with pytest.raises(DataError, match="E-AUDIT-MEMBERS"):
        roc_of_histograms(drawn(np.random.default_rng(0), 1.0, 100, 50.0))
    with pytest.raises(DataError, match="E-AUDIT-MEMBERS"):
        roc_of_histograms(histogram_of(EDGES, np.zeros(3), np.ones(3, dtype=bool)))


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": np.array([1.0, 1.0])},
        {"edges": np.array([np.nan, 1.0])},
        {"members": np.zeros(2)},
        {"members": np.array([1.0, np.inf, 0.0])},
        {"non_members": np.array([1.0, -1.0, 0.0])},
        {"noise_sd": -1.0},
    ],
)
def test_malformed_histograms_are_refused(changes: dict) -> None:
    """Edges rise, counts are finite and fit them, and only noise makes a count negative."""
    parts = {"edges": np.array([0.0, 1.0]), "members": np.ones(3), "non_members": np.ones(3)}
    with pytest.raises(DataError, match="E-AUDIT-HISTOGRAM"):
        ScoreHistogram(**(parts | changes))


def test_unlike_histograms_are_not_merged() -> None:
    """Different edges do not add up, and neither does nothing; NaN scores have no bin."""
    rng = np.random.default_rng(0)
    other = histogram_of(EDGES[:-1], rng.random(4), np.arange(4) < 2)
    for parts in ([], [drawn(rng, 0.0, 9, 0.0), other]):
        with pytest.raises(DataError, match="E-AUDIT-HISTOGRAM"):
            merge(parts)
    with pytest.raises(DataError, match="E-AUDIT-SCORES"):
        positions(EDGES, np.array([np.nan]), np.array([True]))
