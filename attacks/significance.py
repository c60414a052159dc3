"""When members found are more than chance finds: exact tests, and one level for all of them.

Trusts: scores were made without membership (attacks/probe.py), so that, were the target's answers
independent of it, every assignment of membership to the scored records would be equally likely.
Promises: tests of a whole plan are wrong at most ``LEVEL`` of the time together (Bonferroni): the
number of tests follows from the plan and the number of records, before anything is scored. A test
stays valid at a threshold read off the same records, since what it allows for is that very choice.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL = 0.05  # that anything at all is called evidence where nothing leaks


def resolvable(fprs: Sequence[float], *, non_members: int) -> tuple[float, ...]:
    """Return the rates that one non-member or more can show."""
    return tuple(fpr for fpr in fprs if fpr * non_members >= 1.0 - 1e-9)


def number_of_tests(probes: int, fprs: Sequence[float], *, non_members: int) -> int:
    """Return how many tests a plan makes: each probe's AUC, and each rate that can be resolved."""
    return probes * (1 + len(resolvable(fprs, non_members=non_members)))


def chance_of_finding(found: int, *, allowed: int, members: int, non_members: int) -> float:
    """Return the chance that a score which tells nothing finds as many members or more.

    The threshold lets ``allowed`` non-members pass. At least ``found`` members stand before the
    next one exactly if the first ``found + allowed`` records hold at most ``allowed`` non-members:
    a hypergeometric tail.

    Args:
        found: members above the threshold.
        allowed: non-members above it.
        members: how many there are.
        non_members: how many there are.
    """
    drawn = found + allowed
    if allowed >= non_members or found <= 0:
        return 1.0
    hits = np.arange(found, min(members, drawn) + 1)
    logs = _log_choose(members, hits) + _log_choose(non_members, drawn - hits)
    logs -= _log_choose(members + non_members, np.array([drawn]))
    return min(1.0, float(np.exp(logs).sum()))


def _log_choose(total: int, chosen: np.ndarray) -> np.ndarray:
    result: np.ndarray = (
        special.gammaln(total + 1)
        - special.gammaln(chosen + 1)
        - special.gammaln(total - chosen + 1)
    )
    return result


def least_evident_tpr(fpr: float, *, members: int, non_members: int, level: float) -> float | None:
    """Return the smallest TPR that would be called evidence at an FPR; None: no TPR would."""
    allowed = math.floor(fpr * non_members + 1e-9)

    def chance(found: int) -> float:
        return chance_of_finding(found, allowed=allowed, members=members, non_members=non_members)

    if chance(members) > level:
        return None
    low, high = 0, members
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) <= level else (middle, high)
    return high / members


def chance_of_auc(auc: float, *, members: int, non_members: int) -> float:
    """Return the chance of that AUC or a larger one from a score that tells nothing.

    Normal approximation of the rank sum (Mann & Whitney 1947). Ties make the true spread smaller,
    so with them the chance returned is too large: on the safe side.
    """
    return NormalDist().cdf((0.5 - auc) / _auc_deviation(members, non_members))


def least_evident_auc(*, members: int, non_members: int, level: float) -> float:
    """Return the smallest AUC that would be called evidence; above 1: none would."""
    z = NormalDist().inv_cdf(1.0 - level)
    return 0.5 + z * _auc_deviation(members, non_members)


def _auc_deviation(members: int, non_members: int) -> float:
    return math.sqrt((members + non_members + 1.0) / (12.0 * members * non_members))
