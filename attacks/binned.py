"""What histograms of scores tell: area, TPR at an FPR, and how sure they are.

Promises: intervals hold for sampling and for the noise on the counts together. What binning hides
is said: the figure of the unbinned scores lies between ``auc_bounds`` and between ``tpr_bounds``
(of the counts as they are; noise moves these as it moves the figure).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.points import (
    CONFIDENCE,
    LEAST_EXPECTED,
    Interval,
    Precision,
    clopper_pearson,
    precision_of,
)
from tacit.attacks.statistics import Roc, newcombe_interval
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.histograms import ScoreHistogram
    from tacit.attacks.points import Float64Array

_HALVINGS = 20  # of an interval of rates: to a millionth


@dataclass(frozen=True, kw_only=True)
class BinnedPoint:
    """Who is called a member at one public edge, or a share of a bin further.

    Attributes:
        asked_fpr: what it was chosen for, on the non-members of this histogram: optimistic.
        threshold: the edge from which all are called; infinite: nobody is.
        share: of the bin below that edge which is called too, by lot.
        tpr: as estimated, from 0 to 1.
        tpr_interval: of the TPR at this threshold and share, which depend on non-members alone.
        fpr_interval: of the FPR there.
        tpr_bounds: between these the TPR of unbinned scores lies at that FPR.
        members, non_members: as estimated.
    """

    asked_fpr: float
    threshold: float
    share: float
    tpr: float
    tpr_interval: Interval
    fpr_interval: Interval
    tpr_bounds: tuple[float, float]
    members: float
    non_members: float

    @property
    def supports_gate(self) -> bool:
        """Whether enough non-members are expected above for a gate to rest on the point."""
        return self.asked_fpr * self.non_members >= LEAST_EXPECTED - 1e-9

    def precision(self, prior: float) -> Precision:
        """Return the precision at a prior; its interval has the error of both rates together.

        For one of 95 %, ask for the point at a confidence of 97.5 %.
        """
        return precision_of(
            prior, (self.tpr, self.tpr_interval), (self.asked_fpr, self.fpr_interval)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class BinnedRoc:
    """The curve of a histogram: bins are ties, crossed on the straight line."""

    histogram: ScoreHistogram

    @functools.cached_property
    def _counts(self) -> tuple[Float64Array, Float64Array]:
        """Members' and non-members' counts, highest bin first."""
        return self.histogram.members[::-1], self.histogram.non_members[::-1]

    @property
    def members(self) -> float:
        """How many members there are, as estimated."""
        return float(self.histogram.members.sum())

    @property
    def non_members(self) -> float:
        """How many non-members there are, as estimated."""
        return float(self.histogram.non_members.sum())

    @property
    def auc(self) -> float:
        """The area, within a bin half right: without noise, that of scores cut to their bin."""
        return _clip(self._area(within=0.5))

    @property
    def auc_bounds(self) -> tuple[float, float]:
        """Between these the area of unbinned scores lies: within a bin all wrong, or all right."""
        return _clip(self._area(within=0.0)), _clip(self._area(within=1.0))

    def _area(self, *, within: float) -> float:
        found, false = self._counts
        return float(found @ _order(len(found), within) @ false) / (self.members * self.non_members)

    def auc_interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the area lies, for sampling and noise together.

        With counts a of members and b of non-members, S(t) = a' (L - t) b has mean zero at the
        true area t, also with noise, since both are noised separately. With M = L - t, its
        variance is sum (a + sd^2) (M b)^2 + sum (b + sd^2) (M' a)^2; that counts the product of
        both noises twice, which widens the interval by some per cent where noise is all there is.
        The interval is all t with S(t)^2 <= z^2 Var S(t), as Fieller 1954 does for a ratio; and
        never less than what the counts alone leave open (:func:`newcombe_interval`), which it would
        be near perfect separation. Without noise: that of :class:`tacit.attacks.statistics.Roc`.
        """
        found, false = self._counts
        noise = self.histogram.noise_sd**2
        if noise == 0.0:
            return self._exact_curve().auc_interval(confidence=confidence)
        order = _order(len(found), 0.5)

        def excess(theta: float) -> float:
            pairs = order - theta
            variance = (found + noise) @ np.square(pairs @ false)
            variance += (false + noise) @ np.square(found @ pairs)
            return float((found @ pairs @ false) ** 2 - _z(confidence) ** 2 * variance)

        low, middle, high = excess(0.0), excess(0.5), excess(1.0)
        square = 2.0 * (low + high) - 4.0 * middle
        both = _quadratic_interval(square, high - low - square, low, confidence)
        least = newcombe_interval(self.auc, self.members, self.non_members, confidence=confidence)
        return Interval(
            low=min(both.low, least.low), high=max(both.high, least.high), confidence=confidence
        )

    def _exact_curve(self) -> Roc:
        found, false = self._counts
        return Roc(
            thresholds=np.append(np.inf, np.append(self.histogram.edges[::-1], -np.inf)),
            true_positives=np.append(0.0, np.cumsum(found)),
            false_positives=np.append(0.0, np.cumsum(false)),
        )

    def tpr_at(self, fpr: float, *, confidence: float = CONFIDENCE) -> BinnedPoint:
        """Return the point at which the estimated FPR is ``fpr``: optimistic."""
        if not 0 <= fpr < 1:
            raise ValueError(f"expected an FPR from 0 to below 1, got {fpr}")
        found, false = self._counts
        bins, called = self._called(fpr)
        share = called[bins]
        edges = np.append(np.inf, self.histogram.edges[::-1])
        return BinnedPoint(
            asked_fpr=fpr,
            threshold=float(edges[bins]),
            share=float(share),
            tpr=_clip(float(called @ found) / self.members),
            tpr_interval=self._rate_interval(
                self.members, float(called @ found), called, confidence
            ),
            fpr_interval=self._rate_interval(
                self.non_members, float(called @ false), called, confidence
            ),
            tpr_bounds=(
                _clip(float(found[:bins].sum()) / self.members),
                _clip(float(found[: bins + 1].sum()) / self.members),
            ),
            members=self.members,
            non_members=self.non_members,
        )

    def tpr_interval_at(self, fpr: float, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the TPR at this very FPR lies, for whichever threshold that takes.

        The interval of a :class:`BinnedPoint` holds for its threshold, whose own FPR is known only
        within an interval. Curves rise: what is found at an edge whose FPR is surely at most
        ``fpr`` is found there too, and no more is found than at an edge whose FPR is surely at
        least that. Both edges' rates are taken at half the chance of being wrong.
        """
        if not 0 <= fpr < 1:
            raise ValueError(f"expected an FPR from 0 to below 1, got {fpr}")
        found, false = self._counts
        each = 1.0 - (1.0 - confidence) / 2.0
        low, high = 0.0, 1.0
        for bins in range(1, len(false)):
            called = (np.arange(len(false)) < bins).astype(np.float64)
            above = self._rate_interval(self.non_members, float(called @ false), called, each)
            if above.low < fpr < above.high:
                continue
            rate = self._rate_interval(self.members, float(called @ found), called, each)
            if above.high <= fpr:
                low = max(low, rate.low)
            else:
                high = min(high, rate.high)
        return Interval(low=low, high=max(low, high), confidence=confidence)

    def least_tpr_seen(
        self, fpr: float, *, tested: Sequence[float], confidence: float = CONFIDENCE
    ) -> float | None:
        """Return the least TPR at this very FPR that a test surely sees, whatever bins hide.

        Unbinned scores may put all that they tell of a bin at its upper end, and binned ones then
        show it whole at the bin's lower edge only. A test that calls a share of that bin by lot
        sees that share of it, one that calls the bin whole sees it all. And never less than what
        the interval at this FPR leaves open.

        Args:
            fpr: at which the TPR is.
            tested: at which FPRs :meth:`least_tpr_above` decides.
            confidence: of these tests.

        Returns:
            None where no TPR is surely seen.
        """
        crossed, seen = self._called(fpr)[0], []
        for each in tested:
            bins, called = self._called(each)
            share = 1.0 if bins > crossed else float(called[bins])
            least = self.least_tpr_above(each, confidence=confidence) if each >= fpr else None
            if least is not None and least <= share:
                seen.append(least / share)
        return max(min(seen), self.tpr_interval_at(fpr).high) if seen else None

    @property
    def least_fpr(self) -> float:
        """The smallest FPR that an edge has, as far as noise lets anything be known of it."""
        _, false = self._counts
        for bins in range(1, len(false)):
            called = (np.arange(len(false)) < bins).astype(np.float64)
            above = float(called @ false)
            interval = self._rate_interval(self.non_members, above, called, CONFIDENCE)
            if interval.low > 0.0 and above >= 1.0 - 1e-9:
                return _clip(above / self.non_members)
        return 1.0

    @property
    def tied(self) -> float:
        """The share of pairs of a member and a non-member that are in one bin."""
        low, high = self.auc_bounds
        return high - low

    def least_tpr_above(self, fpr: float, *, confidence: float = CONFIDENCE) -> float | None:
        """Return the smallest TPR there whose interval would lie above that of the FPR; None: none.

        The power of a comparison of the two intervals, for as many records and as much noise.
        """
        _, called = self._called(fpr)
        ceiling = self._rate_interval(
            self.non_members, fpr * self.non_members, called, confidence
        ).high

        def is_above(tpr: float) -> bool:
            interval = self._rate_interval(self.members, tpr * self.members, called, confidence)
            return interval.low > ceiling

        low, high = fpr, 1.0
        if not is_above(high):
            return None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            low, high = (low, middle) if is_above(middle) else (middle, high)
        return high

    def _called(self, fpr: float) -> tuple[int, Float64Array]:
        """Return which bin is crossed at an FPR, and the share of each that is called, high first.

        Whole bins are called as long as there are not too many non-members in them.
        """
        _, false = self._counts
        allowed, above = fpr * self.non_members, np.append(0.0, np.cumsum(false))
        beyond = np.flatnonzero(above[1:] > allowed + 1e-9)
        bins, share = len(false) - 1, 1.0  # whole bins, and how much of the next
        if len(beyond):
            bins = int(beyond[0])
            share = max(0.0, allowed - above[bins]) / false[bins]
        called = np.zeros(len(false))
        called[:bins], called[bins] = 1.0, share
        return bins, called

    def _rate_interval(
        self, total: float, above: float, called: Float64Array, confidence: float
    ) -> Interval:
        """Return where the share of records that are called lies.

        Wilson 1927 with the noise beside the sampling: all t with (K - t N)^2 <=
        z^2 (N t (1 - t) + sd^2 sum (called - t)^2). Without noise: Clopper-Pearson.

        Args:
            total: N, of the records.
            above: K, of those that are called.
            called: the share of each bin that is called.
            confidence: of the interval.
        """
        hits = min(total, max(0.0, above))
        noise, z2 = self.histogram.noise_sd**2, _z(confidence) ** 2
        if noise == 0.0:
            return clopper_pearson(hits, round(total), confidence=confidence)
        square = total**2 + z2 * total - z2 * noise * len(called)
        linear = -2.0 * hits * total - z2 * total + 2.0 * z2 * noise * float(called.sum())
        constant = hits**2 - z2 * noise * float(called @ called)
        return _quadratic_interval(square, linear, constant, confidence)


def roc_of_histograms(histogram: ScoreHistogram) -> BinnedRoc:
    """Return the curve of a histogram.

    Raises:
        DataError: there are no members or no non-members, or the noise hides that there are
            (``E-AUDIT-MEMBERS``).
    """
    curve = BinnedRoc(histogram=histogram)
    hidden = _z(CONFIDENCE) * histogram.noise_sd * math.sqrt(len(histogram.members))
    if min(curve.members, curve.non_members) <= hidden:
        raise DataError(
            "E-AUDIT-MEMBERS",
            f"expected more than {hidden:.0f} members and non-members, so that noise does not hide "
            f"them, got {curve.members:.0f} and {curve.non_members:.0f}",
            hint="use fewer bins, more records, or more of the budget for the results",
        )
    return curve


def _order(bins: int, within: float) -> Float64Array:
    """Return what a pair of bins counts, the members' by row: 1 above the other, 0 below."""
    return np.triu(np.ones((bins, bins)), 1) + within * np.eye(bins)


def _quadratic_interval(
    square: float, linear: float, constant: float, confidence: float
) -> Interval:
    """Return all t in [0, 1] with square t^2 + linear t + constant <= 0; [0, 1] if unbounded."""
    if square <= 0.0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    middle = -linear / (2.0 * square)
    half = math.sqrt(max(0.0, middle * middle - constant / square))
    return Interval(low=_clip(middle - half), high=_clip(middle + half), confidence=confidence)


def _clip(rate: float) -> float:
    return min(1.0, max(0.0, rate))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)
