"""Epsilon as canary clients see it: random directions, and how far the model moved along them."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.bounds.bound import ALPHA, Bound, Method, check_levels
from tacit.core.errors import DataError
from tacit.privacy.accounting import gaussian_epsilon

if TYPE_CHECKING:
    from tacit.attacks.points import Float64Array


def fl_canary_estimate(
    cosines: Float64Array, *, dimension: int, delta: float, alpha: float = ALPHA
) -> Bound:
    """Return the epsilon that k canary clients see: an estimate, never a bound.

    Andrew et al. 2024 (arXiv 2302.03098), section 3: the cosines of canaries that took part against
    those of canaries that did not, which follow N(0, 1/d). We take that known deviation for both:
    mu = sqrt(d) mean(cosines), whose error is 1 / sqrt(k). With the sample's own deviation the
    estimate is biased upwards.

    Args:
        cosines: float64, ``(k,)``: of each canary's random unit direction and theta_T - theta_0.
        dimension: d, the number of parameters.
        delta: at which epsilon is meant.
        alpha: of the lower end.

    Raises:
        DataError: a cosine is none (``E-AUDIT-SCORES``).
        ValueError: no canary, no dimension; alpha or delta is no chance, or delta is 0.
    """
    check_levels(alpha, delta)
    cosines = np.asarray(cosines, dtype=np.float64)
    if cosines.ndim != 1 or not len(cosines) or dimension < 1 or delta == 0.0:
        raise ValueError(
            "expected cosines (k,), a dimension and a delta above 0, "
            f"got {cosines.shape}, {dimension} and {delta}"
        )
    if not (np.abs(cosines) <= 1.0 + 1e-6).all():
        raise DataError("E-AUDIT-SCORES", "expected cosines from -1 to 1, got others")
    error = NormalDist().inv_cdf(1.0 - alpha) / math.sqrt(len(cosines))

    def epsilon(mu: float) -> float:
        return gaussian_epsilon(mu, delta) if mu > 0.0 else 0.0

    mu = math.sqrt(dimension) * float(cosines.mean())
    return Bound(
        method=Method.FL_CANARIES,
        value=epsilon(mu - error),
        alpha=alpha,
        delta=delta,
        canaries=len(cosines),
        guesses=None,
        correct=None,
        ceiling=epsilon(math.sqrt(dimension) - error),
        is_proof=False,
        point=epsilon(mu),
    )
