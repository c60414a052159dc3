"""Rates with their intervals, and what follows from them at one threshold.

Promises: every rate comes with an interval, and no interval is a single point because a sample was
small. A point whose threshold was taken from its own curve says so (``is_optimistic``), and no
bound on epsilon accepts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
PRIORS = (0.01, 0.1, 0.5)  # shares of members among candidates, for which precision is reported
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
        certain there is the FPR, which :meth:`fpr_interval` shows; where the TPR lies at the FPR
        asked for is :meth:`tacit.attacks.statistics.Roc.tpr_interval_at`.
        """
        return clopper_pearson(self.true_positives, self.members, confidence=confidence)

    def fpr_interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return where the FPR at this threshold lies."""
        return clopper_pearson(self.false_positives, self.non_members, confidence=confidence)

    def precision(self, prior: float, *, confidence: float = CONFIDENCE) -> Precision:
        """Return the precision where a share ``prior`` of the candidates are members.

        See :func:`precision_of`; each rate gets half of the error.
        """
        each = 1.0 - (1.0 - confidence) / 2.0
        return precision_of(
            prior,
            (self.tpr, self.tpr_interval(confidence=each)),
            (self.fpr, self.fpr_interval(confidence=each)),
        )


def precision_of(
    prior: float, tpr: tuple[float, Interval], fpr: tuple[float, Interval]
) -> Precision:
    """Return the precision at a prior, of two rates and their intervals.

    By Bayes' rule; the interval takes the worst ends of both rates, since precision rises with the
    TPR and falls with the FPR. It misses at most as often as the two together (Bonferroni).

    Raises:
        ValueError: expected ``0 < prior < 1``.
    """
    if not 0 < prior < 1:
        raise ValueError(f"expected 0 < prior < 1, got {prior}")
    low = _precision(prior, tpr[1].low, fpr[1].high)
    high = _precision(prior, tpr[1].high, fpr[1].low)
    interval = Interval(
        low=low or 0.0,
        high=1.0 if high is None else high,
        confidence=tpr[1].confidence + fpr[1].confidence - 1.0,
    )
    return Precision(prior=prior, value=_precision(prior, tpr[0], fpr[0]), interval=interval)


def _precision(prior: float, tpr: float, fpr: float) -> float | None:
    true, false = prior * tpr, (1.0 - prior) * fpr
    return true / (true + false) if true + false > 0 else None
