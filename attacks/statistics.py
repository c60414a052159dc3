"""What an attack's scores are worth: ROC curves, operating points, and how sure they are.

Trusts: nothing was chosen on the records that are scored here; larger score = member.
Promises:

1. Every rate comes with an interval, and no interval is a single point because a sample was small.
2. Records that tie are never told apart. A curve crosses a tie on the straight line, which is what
   breaking it by lot gives on average; so neither the order of the records nor a seed moves a
   figure, where a lot would. A score that saturates is neither flattered by the order of the
   file nor read as zero because the tie is wider than the FPR asked for.
3. A point whose threshold was taken from its own curve says so (``is_optimistic``), and no bound on
   epsilon accepts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
LEAST_EXPECTED = 10  # non-members expected above a threshold before a gate may rest on it


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Ends between which a figure lies, at a stated confidence."""

    low: float
    high: float
    confidence: float = CONFIDENCE


def clopper_pearson(successes: float, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval of a chance (Clopper & Pearson 1934), half the error at each end.

    Args:
        successes: of the trials; where a tie was crossed in part, not a whole number: the beta
            quantiles are continuous in it, and the crossing varies less than a lot would.
        trials: 0 tells nothing: the interval is [0, 1].
        confidence: that both ends hold together.

    Raises:
        ValueError: expected ``0 <= successes <= trials`` and ``0 < confidence < 1``.
    """
    if not (0 <= successes <= trials and 0 < confidence < 1):
        raise ValueError(
            f"expected 0 <= successes <= trials and 0 < confidence < 1, "
            f"got {successes}, {trials} and {confidence}"
        )
    tail = (1.0 - confidence) / 2.0
    low, high = 0.0, 1.0
    if successes > 0:
        low = float(special.betaincinv(successes, trials - successes + 1.0, tail))
    if successes < trials:
        high = float(special.betaincinv(successes + 1.0, trials - successes, 1.0 - tail))
    return Interval(low=low, high=high, confidence=confidence)


def least_fpr(non_members: int) -> float:
    """Return the smallest FPR at which enough non-members are expected for a gate to rest on it."""
    return min(1.0, LEAST_EXPECTED / non_members)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How many of those called members are members, at a declared prior.

    Attributes:
        value: None where nobody is called a member.
    """

    prior: float
    value: float | None
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Who is called a member at one threshold, and how many of them are.

    Attributes:
        threshold: whoever scores at least that is called a member; infinite: nobody is.
        true_positives: of the members; a part of a record where a tie was crossed in part.
        false_positives: of the non-members.
        members, non_members: how many records there are.
        asked_fpr: what the threshold was chosen for; None: for no FPR.
        is_optimistic: the threshold was taken from the curve of these very records.
    """

    threshold: float
    true_positives: float
    false_positives: float
    members: int
    non_members: int
    asked_fpr: float | None = None
    is_optimistic: bool

    @property
    def tpr(self) -> float:
        """Share of the members that are called members."""
        return self.true_positives / self.members

    @property
    def fpr(self) -> float:
        """Share of the non-members that are called members: what came of the FPR asked for."""
        return self.false_positives / self.non_members

    @property
    def is_resolvable(self) -> bool:
        """Whether one non-member or more is expected above: below 1/n_out, nothing is measured."""
        return self._expected >= 1.0 - 1e-9

    @property
    def supports_gate(self) -> bool:
        """Whether enough non-members are expected above for a gate to rest on the point."""
        return self._expected >= LEAST_EXPECTED - 1e-9

    @property
    def _expected(self) -> float:
        asked = self.fpr if self.asked_fpr is None else self.asked_fpr
        return asked * self.non_members

    def tpr_interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the TPR at this threshold lies.

        Also for an optimistic point: its threshold depends on the non-members alone. What is not
        certain there is the FPR, which :meth:`fpr_interval` shows.
        """
        return clopper_pearson(self.true_positives, self.members, confidence=confidence)

    def fpr_interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the FPR at this threshold lies."""
        return clopper_pearson(self.false_positives, self.non_members, confidence=confidence)

    def precision(self, prior: float, *, confidence: float = CONFIDENCE) -> Precision:
        """Return the precision where a share ``prior`` of the candidates are members.

        By Bayes' rule; the interval takes the worst ends of both rates, each at half the error
        (Bonferroni), since precision rises with the TPR and falls with the FPR.
        """
        if not 0 < prior < 1:
            raise ValueError(f"expected 0 < prior < 1, got {prior}")
        each = 1.0 - (1.0 - confidence) / 2.0
        tpr, fpr = self.tpr_interval(confidence=each), self.fpr_interval(confidence=each)
        low = _precision(prior, tpr.low, fpr.high)
        high = _precision(prior, tpr.high, fpr.low)
        interval = Interval(
            low=low or 0.0, high=1.0 if high is None else high, confidence=confidence
        )
        return Precision(
            prior=prior, value=_precision(prior, self.tpr, self.fpr), interval=interval
        )


def _precision(prior: float, tpr: float, fpr: float) -> float | None:
    true, false = prior * tpr, (1.0 - prior) * fpr
    return true / (true + false) if true + false > 0 else None


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
        one tie, a single record on one side), Newcombe 2006, part 2, method 5, which needs only the
        AUC and the counts.
        """
        z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
        auc, variance = self.auc, self._delong_variance()
        if not (variance > 0 and 0 < auc < 1):
            return self._newcombe_interval(z, confidence)
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

    def _newcombe_interval(self, z: float, confidence: float) -> Interval:
        auc, pairs = self.auc, self.members * self.non_members
        size = (self.members + self.non_members) / 2.0 - 1.0

        def excess(theta: float) -> float:
            spread = 1.0 + size * ((1.0 - theta) / (2.0 - theta) + theta / (1.0 + theta))
            return (theta - auc) ** 2 - z * z * theta * (1.0 - theta) * spread / pairs

        low = 0.0 if auc <= 0 else optimize.brentq(excess, 0.0, auc - 1e-12)
        high = 1.0 if auc >= 1 else optimize.brentq(excess, auc + 1e-12, 1.0)
        return Interval(low=float(low), high=float(high), confidence=confidence)

    def tpr_at(self, fpr: float) -> OperatingPoint:
        """Return the point of this curve with at most that FPR: optimistic.

        The FPR that comes of it is a whole number of non-members: the largest that fits. A tie that
        straddles it is crossed in proportion.
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"expected an FPR from 0 to 1, got {fpr}")
        allowed = math.floor(fpr * self.non_members + 1e-9)
        step = int(np.searchsorted(self.false_positives, allowed, side="right")) - 1
        found, threshold = self.true_positives[step], self.thresholds[step]
        if self.false_positives[step] < allowed:
            threshold = self.thresholds[step + 1]
            share = (allowed - self.false_positives[step]) / (
                self.false_positives[step + 1] - self.false_positives[step]
            )
            found = found + share * (self.true_positives[step + 1] - found)
        return OperatingPoint(
            threshold=float(threshold),
            true_positives=float(found),
            false_positives=float(allowed),
            members=self.members,
            non_members=self.non_members,
            asked_fpr=fpr,
            is_optimistic=True,
        )


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
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    found = np.cumsum(is_member[order])[ends]
    return Roc(
        thresholds=np.concatenate([[np.inf], falling[ends]]),
        true_positives=np.concatenate([[0.0], found]),
        false_positives=np.concatenate([[0.0], ends + 1.0 - found]),
    )


def checked(scores: Float64Array, is_member: BoolArray) -> tuple[Float64Array, BoolArray]:
    """Return scores and membership as they can be used, or refuse; see :func:`roc_of`."""
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
    if not is_member.any() or is_member.all():
        raise DataError(
            "E-AUDIT-MEMBERS",
            f"expected members and non-members, got {is_member.sum()} members "
            f"among {len(is_member)} records",
            hint="an attack is scored on both; take non-members from the same source",
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
