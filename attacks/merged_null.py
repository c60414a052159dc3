"""The null self-test of merged histograms: what an audit makes of scores that tell nothing.

Nobody can permute the membership of records that stay where they are. But under the hypothesis that
scores tell nothing, members and non-members fall into the bins with the same chances: those of all
records together. Histograms are drawn so, as many records and as much noise as the real ones have.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.binned import roc_of_histograms
from tacit.attacks.findings import SelfTestFinding
from tacit.attacks.histograms import ScoreHistogram
from tacit.attacks.significance import LEVEL
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.random import Generator

    from tacit.attacks.binned import BinnedRoc

_THREE_ERRORS = NormalDist().cdf(-3.0)


def null_test(
    histograms: Sequence[ScoreHistogram],
    *,
    is_evidence: Callable[[BinnedRoc], bool],
    permutations: int,
    seed: int,
) -> SelfTestFinding | None:
    """Return what comes of histograms drawn where there is nothing to find; None without any.

    Args:
        histograms: the merged ones, a probe each.
        is_evidence: what the audit decides by.
        permutations: how many sets of histograms are drawn.
        seed: of the draws.
    """
    if not histograms:
        return None
    rng = np.random.default_rng(seed)
    areas = np.full((permutations, len(histograms)), 0.5)
    false_evidence = 0
    for row in range(permutations):
        rocs = [_curve(_drawn(histogram, rng)) for histogram in histograms]
        areas[row] = [0.5 if roc is None else roc.auc for roc in rocs]
        false_evidence += any(roc is not None and is_evidence(roc) for roc in rocs)
    means = areas.mean(axis=0)
    errors = areas.std(axis=0, ddof=1) / math.sqrt(permutations)
    strays = np.abs(means - 0.5) / np.maximum(errors, 1e-12)
    worst = int(strays.argmax())
    allowed = -NormalDist().inv_cdf(_THREE_ERRORS / len(histograms))
    allowed_share = LEVEL + 2.0 * math.sqrt(LEVEL * (1.0 - LEVEL) / permutations)
    share = false_evidence / permutations
    return SelfTestFinding(
        permutations=permutations,
        mean_auc=float(means[worst]),
        deviations=float(strays[worst]),
        allowed_deviations=allowed,
        false_evidence=share,
        allowed_false_evidence=allowed_share,
        passed=bool(strays[worst] <= allowed and share <= allowed_share),
    )


def _drawn(histogram: ScoreHistogram, rng: Generator) -> ScoreHistogram:
    """Return a histogram of as many records whose scores tell nothing, with noise of its own."""
    counts = np.maximum(histogram.members + histogram.non_members, 0.0)
    shares = counts / counts.sum()
    sides = []
    for side in (histogram.members, histogram.non_members):
        drawn = rng.multinomial(max(1, round(float(side.sum()))), shares).astype(np.float64)
        sides.append(drawn + histogram.noise_sd * rng.standard_normal(len(drawn)))
    return ScoreHistogram(
        edges=histogram.edges, members=sides[0], non_members=sides[1], noise_sd=histogram.noise_sd
    )


def _curve(histogram: ScoreHistogram) -> BinnedRoc | None:
    try:
        return roc_of_histograms(histogram)
    except DataError:  # noise hides the records: such a draw finds nothing
        return None
