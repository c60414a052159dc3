"""Trade-off curves: how much two neighbouring data sets must look alike under a claim.

A curve gives, for the chance y of an event under one of two neighbouring data sets, the least
chance B(y) of it under the other: B(y) = f(1 - y) for a symmetric trade-off function f (Dong, Roth
& Su 2022, definition 2.1). B rises from B(0) = 0, and B(y) <= y. All curves here hold in both
directions of the claim's own relation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tacit.attacks.points import Float64Array

Curve = Callable[[float], float]
_NORMAL = NormalDist()
_ROOT_HALF = math.sqrt(0.5)


def gaussian_curve(mu: float) -> Curve:
    """Return the curve of N(0, 1) against N(mu, 1): B(y) = Phi(Phi^-1(y) - mu).

    Dong, Roth & Su 2022, equation 6.
    """

    def least(chance: float) -> float:
        if not 0.0 < chance < 1.0:
            return 0.0 if chance <= 0.0 else 1.0
        return 0.5 * math.erfc((mu - _NORMAL.inv_cdf(chance)) * _ROOT_HALF)

    return least


def approximate_curve(epsilon: float, delta: float) -> Curve:
    """Return the curve of every (epsilon, delta)-DP mechanism: their lower envelope.

    Dong, Roth & Su 2022, equation 5 (Wasserman & Zhou 2010; Kairouz, Oh & Viswanath 2015).
    """
    grown, shrunk = math.exp(epsilon), math.exp(-epsilon)

    def least(chance: float) -> float:
        return max(0.0, shrunk * (chance - delta), 1.0 - delta - grown * (1.0 - chance))

    return least


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """A claim as its accountant gives it: a delta for each of many epsilons.

    Any number of pairs is a true curve if each is a true claim: more pairs only sharpen it.

    Attributes:
        epsilons: float64, ``(k,)``, none negative.
        deltas: float64, ``(k,)``, from 0 to 1.
    """

    epsilons: Float64Array
    deltas: Float64Array

    def __post_init__(self) -> None:
        if self.epsilons.ndim != 1 or self.epsilons.shape != self.deltas.shape:
            raise ValueError(
                f"expected a delta for each epsilon, got {self.epsilons.shape} "
                f"and {self.deltas.shape}"
            )
        if not (len(self.epsilons) and np.isfinite(self.epsilons).all()):
            raise ValueError("expected at least one epsilon, every one finite")
        if self.epsilons.min() < 0 or not ((self.deltas >= 0) & (self.deltas <= 1)).all():
            raise ValueError("expected epsilons from 0 and deltas from 0 to 1")

    def least(self, chance: float) -> float:
        """Return the curve's B: the least chance next door of an event with that chance."""
        shrunk = np.exp(-self.epsilons) * (chance - self.deltas)
        grown = 1.0 - self.deltas - np.exp(self.epsilons) * (1.0 - chance)
        return max(0.0, float(shrunk.max()), float(grown.max()))

    def most(self, chance: float) -> float:
        """Return the largest chance next door, such as the TPR that the claim allows at an FPR.

        The least over e of e^e chance + delta(e), and of what the other direction of the relation
        leaves, 1 - e^-e (1 - delta(e) - chance); at most 1.
        """
        grown = np.exp(self.epsilons) * chance + self.deltas
        shrunk = 1.0 - np.exp(-self.epsilons) * (1.0 - self.deltas - chance)
        return min(1.0, float(grown.min()), float(shrunk.min()))
