"""What an attack's scores are worth: ROC curves, operating points, and how sure they are.

Trusts: nothing was chosen on the records that are scored here; larger score = member.
Promises:

1. Records that tie are never told apart. A curve crosses a tie on the straight line, which is what
   breaking it by lot gives on average; so neither the order of the records nor a seed moves a
   figure, where a lot would. A score that saturates is neither flattered by the order of the
   file nor read as zero because the tie is wider than the FPR asked for.
2. A threshold is chosen on reference models (:func:`thresholds_from_references`), or the point
   says that it was taken from its own curve.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, special

from tacit.attacks.points import CONFIDENCE, Interval, OperatingPoint, clopper_pearson
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.points import BoolArray, Float64Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """A curve of true against false positives, one step for each distinct score.

    Attributes:
        thresholds: float64, ``(k + 1,)``, falling; the first is infinite: nobody.
        true_positives, false_positives: counts at or above each threshold, float64, ``(k + 1,)``,
            from 0 to all.
    """

    thresholds: Float64Array
    true_positives: Float64Array
    false_positives: Float64Array

    @property
    def members(self) -> int:
        """How many members were scored."""
        return int(self.true_positives[-1])

    @property
    def non_members(self) -> int:
        """How many non-members were scored."""
        return int(self.false_positives[-1])

    @property
    def tpr(self) -> Float64Array:
        """True positive rates, ``(k + 1,)``, rising from 0 to 1."""
        return self.true_positives / self.members

    @property
    def fpr(self) -> Float64Array:
        """False positive rates, ``(k + 1,)``, rising from 0 to 1."""
        return self.false_positives / self.non_members

    @property
    def resolvable_fpr(self) -> float:
        """The smallest FPR that these non-members can show."""
        return 1.0 / self.non_members

    @property
    def auc(self) -> float:
        """Chance that a member scores above a non-member, a tie counting half (Mann-Whitney)."""
        steps, above = np.diff(self.false_positives), self.true_positives
        return float(np.sum(steps * (above[1:] + above[:-1]))) / (
            2.0 * self.members * self.non_members
        )

    @property
    def balanced_accuracy(self) -> float:
        """The best (TPR + 1 - FPR) / 2 on the curve: optimistic, and never gated on."""
        return float(np.max(self.tpr + 1.0 - self.fpr)) / 2.0

    def auc_interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the AUC lies.

        DeLong, DeLong & Clarke-Pearson 1988 on the logit scale: it assumes no shape of the scores
        (those of attacks have heavy tails), costs one pass over the steps where a bootstrap costs a
        thousand, needs no seed, and stays within [0, 1]. Where it has no width (perfect separation,
        one tie, a single record on one side), :func:`newcombe_interval`.
        """
        z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
        auc, variance = self.auc, self._delong_variance()
        if not (variance > 0 and 0 < auc < 1):
            return newcombe_interval(auc, self.members, self.non_members, confidence=confidence)
        centre, half = special.logit(auc), z * math.sqrt(variance) / (auc * (1.0 - auc))
        low, high = special.expit([centre - half, centre + half])
        return Interval(low=float(low), high=float(high), confidence=confidence)

    def _delong_variance(self) -> float:
        """Return the AUC's variance, from where each side stands in the other; 0: unknown."""
        if min(self.members, self.non_members) < 2:
            return 0.0
        members, others = np.diff(self.true_positives), np.diff(self.false_positives)
        below = 1.0 - (self.fpr[1:] + self.fpr[:-1]) / 2.0  # of the non-members, by member
        above = (self.tpr[1:] + self.tpr[:-1]) / 2.0  # of the members, by non-member
        auc = self.auc
        of_members = np.sum(members * np.square(below - auc)) / (self.members - 1.0)
        of_others = np.sum(others * np.square(above - auc)) / (self.non_members - 1.0)
        return float(of_members / self.members + of_others / self.non_members)

    def tpr_at(self, fpr: float) -> OperatingPoint:
        """Return the point of this curve with at most that FPR: optimistic.

        The FPR that comes of it is a whole number of non-members: the largest that fits. A tie that
        straddles it is crossed in proportion.
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"expected an FPR from 0 to 1, got {fpr}")
        allowed = math.floor(fpr * self.non_members + 1e-9)
        found, threshold = self._found(allowed)
        return OperatingPoint(
            threshold=threshold,
            true_positives=found,
            false_positives=float(allowed),
            members=self.members,
            non_members=self.non_members,
            asked_fpr=fpr,
            is_optimistic=True,
        )

    def _found(self, allowed: int) -> tuple[float, float]:
        """Return the members above the threshold that lets so many others pass, and that."""
        step = int(np.searchsorted(self.false_positives, allowed, side="right")) - 1
        found, threshold = self.true_positives[step], self.thresholds[step]
        if self.false_positives[step] < allowed:
            threshold = self.thresholds[step + 1]
            share = (allowed - self.false_positives[step]) / (
                self.false_positives[step + 1] - self.false_positives[step]
            )
            found = found + share * (self.true_positives[step + 1] - found)
        return float(found), float(threshold)

    def tpr_interval_at(self, fpr: float, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the TPR at this very FPR lies, whichever threshold has it.

        The interval of :meth:`tpr_at` holds for its threshold, whose own FPR the non-members leave
        open. Of n of them, Binomial(n, fpr) score above the threshold that truly has this FPR
        (equally: the FPR at the j-th largest score is Beta(j, n - j + 1)). Where surely more than j
        do, the members above the (j + 1)-th largest non-member are also above that threshold; where
        surely at most j do, no more members are above it than those. Each end is wrong by its count
        of non-members at most a quarter of the error, and by the members' interval (Clopper &
        Pearson 1934) what that leaves of a half. It assumes no shape of the scores; where the
        non-members are too few to say anything, its low end is 0.
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"expected an FPR from 0 to 1, got {fpr}")
        half = (1.0 - confidence) / 2.0

        def at_most(count: int) -> float:
            return float(special.bdtr(count, self.non_members, fpr))

        counts = range(self.non_members + 1)
        fewest = bisect.bisect_right(counts, half / 2.0, key=at_most) - 1  # -1: none is sure
        most = bisect.bisect_left(counts, 1.0 - half / 2.0, key=at_most)
        low, high = 0.0, self._rate_end(most, tail=half - (1.0 - at_most(most))).high
        if fewest >= 0:
            low = self._rate_end(fewest, tail=half - at_most(fewest)).low
        return Interval(low=low, high=high, confidence=confidence)

    def _rate_end(self, allowed: int, *, tail: float) -> Interval:
        """Return where the TPR lies where so many others pass, each end wrong that often."""
        found, _ = self._found(allowed)
        return clopper_pearson(min(found, self.members), self.members, confidence=1.0 - 2.0 * tail)


def newcombe_interval(
    auc: float, members: float, non_members: float, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return where an area lies, by its value and the counts alone.

    Newcombe 2006 ("Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic", part 2), method 5: all t with (t - AUC)^2 <= z^2 t (1 - t) (1 + (N - 1) ((1 - t) /
    (2 - t) + t / (1 + t))) / (members non_members), N half of all.
    """
    z, pairs = NormalDist().inv_cdf(0.5 + confidence / 2.0), members * non_members
    size = (members + non_members) / 2.0 - 1.0

    def excess(theta: float) -> float:
        spread = 1.0 + size * ((1.0 - theta) / (2.0 - theta) + theta / (1.0 + theta))
        return (theta - auc) ** 2 - z * z * theta * (1.0 - theta) * spread / pairs

    low = 0.0 if auc < 1e-9 else optimize.brentq(excess, 0.0, auc - 1e-12)
    high = 1.0 if auc > 1.0 - 1e-9 else optimize.brentq(excess, auc + 1e-12, 1.0)
    return Interval(low=float(low), high=float(high), confidence=confidence)


def roc_of(scores: Float64Array, is_member: BoolArray) -> Roc:
    """Return the curve of some scores.

    Args:
        scores: ``(n,)``, larger = member; infinite ones are ordered as such.
        is_member: bool, ``(n,)``.

    Raises:
        DataError: a score is no number (``E-AUDIT-SCORES``); there are no members, or no
            non-members (``E-AUDIT-MEMBERS``).
    """
    scores, is_member = checked(scores, is_member)
    order = np.argsort(-scores)
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    found = np.cumsum(is_member[order])[ends]
    return Roc(
        thresholds=np.concatenate([[np.inf], falling[ends]]),
        true_positives=np.concatenate([[0.0], found]),
        false_positives=np.concatenate([[0.0], ends + 1.0 - found]),
    )


def checked(scores: Float64Array, is_member: BoolArray) -> tuple[Float64Array, BoolArray]:
    """Return scores and membership of both kinds, or refuse; see :func:`roc_of`."""
    scores, is_member = checked_pairs(scores, is_member)
    if not is_member.any() or is_member.all():
        raise DataError(
            "E-AUDIT-MEMBERS",
            f"expected members and non-members, got {is_member.sum()} members "
            f"among {len(is_member)} records",
            hint="an attack is scored on both; take non-members from the same source",
        )
    return scores, is_member


def checked_pairs(scores: Float64Array, is_member: BoolArray) -> tuple[Float64Array, BoolArray]:
    """Return a score and a boolean for each record, or refuse; see :func:`roc_of`."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise DataError(
            "E-AUDIT-SCORES",
            f"expected scores (n,), every one a number, got shape {scores.shape} "
            f"with {np.isnan(scores).sum()} that are none",
        )
    is_member = np.asarray(is_member)
    if is_member.dtype != np.bool_ or is_member.shape != scores.shape:
        raise DataError(
            "E-AUDIT-MEMBERS",
            f"expected membership as booleans {scores.shape}, "
            f"got {is_member.dtype} {is_member.shape}",
        )
    return scores, is_member


def thresholds_from_references(
    scores: Float64Array, is_in: BoolArray, fprs: Sequence[float]
) -> Float64Array:
    """Return a threshold for each FPR, chosen on reference models taken for the target.

    All references' non-members are pooled: on average over references the FPR is what was asked
    for, and an FPR can be chosen that one reference alone could not resolve. A tie that straddles
    the FPR stays below the threshold.

    Args:
        scores: ``(models, n)``: what the attack made of each reference.
        is_in: bool, ``(models, n)``: which records each was trained on.
        fprs: ``(f,)``.

    Returns:
        Thresholds, float64, ``(f,)``, for :func:`realised`.

    Raises:
        DataError: as :func:`roc_of`.
    """
    if np.shape(scores) != np.shape(is_in):
        raise DataError(
            "E-AUDIT-SCORES",
            f"expected scores and membership of one shape, got {np.shape(scores)} "
            f"and {np.shape(is_in)}",
        )
    pooled, is_member = checked(np.ravel(scores), np.ravel(is_in))
    falling = np.sort(pooled[~is_member])[::-1]
    chosen = []
    for fpr in fprs:
        if not 0 <= fpr <= 1:
            raise ValueError(f"expected FPRs from 0 to 1, got {fpr}")
        allowed = math.floor(fpr * len(falling) + 1e-9)
        excluded = falling[allowed] if allowed < len(falling) else -np.inf
        chosen.append(np.nextafter(excluded, np.inf))
    return np.array(chosen, dtype=np.float64)


def realised(
    scores: Float64Array,
    is_member: BoolArray,
    threshold: float,
    *,
    asked_fpr: float | None = None,
) -> OperatingPoint:
    """Return what comes of a threshold that was fixed without these records' membership.

    Args:
        scores: ``(n,)``.
        is_member: bool, ``(n,)``.
        threshold: whoever scores at least that is called a member.
        asked_fpr: what it was chosen for, if anything.

    Raises:
        DataError: as :func:`roc_of`.
    """
    scores, is_member = checked(scores, is_member)
    called = scores >= threshold
    return OperatingPoint(
        threshold=float(threshold),
        true_positives=float(np.sum(called & is_member)),
        false_positives=float(np.sum(called & ~is_member)),
        members=int(is_member.sum()),
        non_members=int((~is_member).sum()),
        asked_fpr=asked_fpr,
        is_optimistic=False,
    )
