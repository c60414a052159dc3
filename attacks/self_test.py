"""The null self-test: does the machinery find anything where nothing can be found?

Membership is permuted, so that scores know nothing of it, and the very functions of the audit are
run again. An AUC away from 0.5, or bounds above zero more often than their alpha, is a fault of the
audit, whatever it says of the model: the report is void.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.statistics import checked, roc_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.random import Generator

    from tacit.attacks.bounds.bound import Bound
    from tacit.attacks.points import BoolArray, Float64Array

    BoundOf = Callable[[Float64Array, BoolArray], Bound]

PERMUTATIONS = 200


@dataclass(frozen=True, kw_only=True)
class BoundCheck:
    """How often one method found an epsilon above zero where there is none.

    Attributes:
        name: of the method, as the caller names it.
        positive: permutations with a bound above zero.
        permutations: how many there were.
        alpha: how often it may, as the method itself says.
    """

    name: str
    positive: int
    permutations: int
    alpha: float

    @property
    def allowed(self) -> float:
        """The share that is allowed: alpha and two standard errors."""
        return self.alpha + 2.0 * math.sqrt(self.alpha * (1.0 - self.alpha) / self.permutations)

    @property
    def passed(self) -> bool:
        """Whether the method kept its word."""
        return self.positive / self.permutations <= self.allowed


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What came of permuted membership.

    Attributes:
        permutations: how many.
        mean_auc: over them.
        standard_error: of that mean, by the exact variance of a permuted AUC.
        bounds: one row per method.
    """

    permutations: int
    mean_auc: float
    standard_error: float
    bounds: tuple[BoundCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether the audit's findings stand, as far as this test can tell."""
        centred = abs(self.mean_auc - 0.5) <= 3.0 * self.standard_error + 1e-12
        return centred and all(check.passed for check in self.bounds)


def null_self_test(
    scores: Float64Array,
    is_member: BoolArray,
    methods: Mapping[str, BoundOf],
    *,
    rng: Generator,
    permutations: int = PERMUTATIONS,
) -> SelfTest:
    """Permute membership, and score it as the audit does.

    A correct audit fails by chance: the AUC in 0.3 % of tests, a bound whose chance of being
    positive is alpha to the full in about 3 %; those here stay below it.

    Args:
        scores: float64, ``(n,)``; or of canaries, ``(m,)``.
        is_member: bool, likewise: membership, or the canaries' inclusion bits.
        methods: by name, what makes a bound of scores and bits, with whatever the audit fixed
            beforehand (number of guesses, threshold) already in it.
        rng: permutes.
        permutations: how many, at least 2.

    Raises:
        DataError: as :func:`tacit.attacks.statistics.roc_of`.
    """
    if permutations < 2:
        raise ValueError(f"expected at least 2 permutations, got {permutations}")
    scores, is_member = checked(scores, is_member)
    areas, found = [], dict.fromkeys(methods, 0)
    alphas: dict[str, float] = {}
    for _ in range(permutations):
        permuted = rng.permutation(is_member)
        areas.append(roc_of(scores, permuted).auc)
        for name, method in methods.items():
            bound = method(scores, permuted)
            found[name] += bound.value > 0.0
            alphas[name] = bound.alpha
    return SelfTest(
        permutations=permutations,
        mean_auc=float(np.mean(areas)),
        standard_error=_auc_deviation(scores, int(is_member.sum())) / math.sqrt(permutations),
        bounds=tuple(
            BoundCheck(name=name, positive=n, permutations=permutations, alpha=alphas[name])
            for name, n in found.items()
        ),
    )


def _auc_deviation(scores: Float64Array, members: int) -> float:
    """Return the standard deviation of the AUC under permutation, ties included.

    Lehmann 1975, "Nonparametrics", section 1.4: the rank sum of a random subset has variance
    n1 n0 (n^3 - n - sum over ties of (t^3 - t)) / (12 n (n - 1)).
    """
    n = float(len(scores))
    _, counts = np.unique(scores, return_counts=True)
    ties = counts.astype(np.float64)
    spread = n**3 - n - float(np.sum(ties**3 - ties))
    pairs = members * (n - members)
    return math.sqrt(max(0.0, spread) / (12.0 * n * (n - 1.0) * pairs))
