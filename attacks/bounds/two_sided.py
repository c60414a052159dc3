"""Bounds from a true and a false positive rate at one threshold that was fixed beforehand.

Trusts: the threshold was chosen without these records' membership (points that were taken from
their own curve are refused), and records are scored independently of each other. That holds
across independent runs. Within one run it does not, and a true claim can be exceeded: the figures
are then named estimates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from tacit.attacks.bounds.bound import ALPHA, Bound, Method, check_levels
from tacit.privacy.accounting import gaussian_epsilon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.attacks.bounds.curves import Profile
    from tacit.attacks.points import OperatingPoint

_NORMAL = NormalDist()


def clopper_pearson_bound(
    point: OperatingPoint, *, delta: float, independent_runs: bool, alpha: float = ALPHA
) -> Bound:
    """Return ln((TPR_low - delta) / FPR_high), or 0 (Jagielski, Ullman & Oprea 2020, section 4.1).

    Args:
        point: of :func:`tacit.attacks.statistics.realised`; one trial a record.
        delta: at which epsilon is claimed.
        independent_runs: every trial was a run of its own: only then is it a proof.
        alpha: split evenly over the two rates.

    Raises:
        ValueError: the threshold was taken from the point's own curve; alpha or delta is no chance.
    """

    def epsilon(tpr: float, fpr: float) -> float:
        return max(0.0, math.log((tpr - delta) / fpr)) if tpr > delta else 0.0

    return _bound(point, Method.CLOPPER_PEARSON, epsilon, delta, alpha, is_proof=independent_runs)


def gaussian_dp_estimate(point: OperatingPoint, *, delta: float, alpha: float = ALPHA) -> Bound:
    """Return epsilon at ``delta`` of mu = Phi^-1(1 - FPR_high) - Phi^-1(FNR_high), or 0.

    Nasr et al. 2023 (arXiv 2302.07956), from Dong, Roth & Su 2022, equation 6. Tight for what is
    Gaussian, such as full-batch DP-SGD; an estimate, since it assumes the shape.

    Raises:
        ValueError: as :func:`clopper_pearson_bound`, and for a delta of 0.
    """
    if delta == 0.0:
        raise ValueError("expected a delta above 0: no Gaussian has an epsilon at 0")

    def epsilon(tpr: float, fpr: float) -> float:
        if not (tpr > 0.0 and fpr < 1.0):
            return 0.0
        mu = _NORMAL.inv_cdf(1.0 - fpr) - _NORMAL.inv_cdf(1.0 - tpr)
        return gaussian_epsilon(mu, delta) if mu > 0.0 else 0.0

    return _bound(point, Method.GAUSSIAN_DP, epsilon, delta, alpha, is_proof=False)


def rates_refute(point: OperatingPoint, claim: Profile, *, alpha: float = ALPHA) -> bool:
    """Return whether TPR_low lies above all that the claim's own curve allows at FPR_high.

    A proof that the claim is false where every trial was a run of its own; with confidence
    1 - alpha, split evenly over the two rates. Several methods or thresholds share one alpha.

    Raises:
        ValueError: the threshold was taken from the point's own curve; alpha is no chance.
    """
    tpr, fpr = _rates(point, alpha, 0.0)
    return tpr > claim.most(fpr)


def _rates(point: OperatingPoint, alpha: float, delta: float) -> tuple[float, float]:
    """Return the low end of the TPR and the high end of the FPR, alpha/2 of error each."""
    check_levels(alpha, delta)
    if point.is_optimistic:
        raise ValueError("expected a threshold fixed beforehand, got one from the curve itself")
    confidence = 1.0 - alpha
    return (
        point.tpr_interval(confidence=confidence).low,
        point.fpr_interval(confidence=confidence).high,
    )


def _bound(
    point: OperatingPoint,
    method: Method,
    epsilon: Callable[[float, float], float],
    delta: float,
    alpha: float,
    *,
    is_proof: bool,
) -> Bound:
    records = point.members + point.non_members
    perfect = replace(point, true_positives=float(point.members), false_positives=0.0)
    return Bound(
        method=method,
        value=epsilon(*_rates(point, alpha, delta)),
        alpha=alpha,
        delta=delta,
        canaries=records,
        guesses=records,
        correct=round(point.true_positives + point.non_members - point.false_positives),
        ceiling=epsilon(*_rates(perfect, alpha, delta)),
        is_proof=is_proof,
    )
