"""Scores as histograms: what a node can send. What can be read from them is in ``binned.py``.

Trusts: edges are public and fixed before any score was seen; a record counts once, as a member or
as a non-member, in one bin; its score depends on that record, public constants and released outputs
alone (a score that needs private references is no bounded contribution, and its histogram stays
with the owner unless those references were charged).

Promises: histograms of several owners add up, with or without noise of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.points import BoolArray, Float64Array

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreHistogram:
    """How many members and non-members score within each bin.

    Bin 0 holds scores below ``edges[0]``, bin j those from ``edges[j-1]`` to below ``edges[j]``,
    the last those from ``edges[-1]``: every score has one.

    Attributes:
        edges: public, rising, float64, ``(bins - 1,)``.
        members, non_members: float64, ``(bins,)``; with noise they may be negative.
        noise_sd: standard deviation of the noise on each count, the same for all.
    """

    edges: Float64Array
    members: Float64Array
    non_members: Float64Array
    noise_sd: float = 0.0

    def __post_init__(self) -> None:
        _check_edges(self.edges)
        expected = (len(self.edges) + 1,)
        if self.members.shape != expected or self.non_members.shape != expected:
            raise DataError(
                "E-AUDIT-HISTOGRAM",
                f"expected counts {expected}, got {self.members.shape} "
                f"and {self.non_members.shape}",
            )
        counts = np.concatenate([self.members, self.non_members])
        if not np.isfinite(counts).all() or not (
            math.isfinite(self.noise_sd) and self.noise_sd >= 0
        ):
            raise DataError("E-AUDIT-HISTOGRAM", "expected finite counts and noise, got others")
        if self.noise_sd == 0.0 and (counts < 0).any():
            raise DataError("E-AUDIT-HISTOGRAM", "expected counts from 0 where there is no noise")


def _check_edges(edges: Float64Array) -> None:
    rising = edges.ndim == 1 and len(edges) and np.isfinite(edges).all()
    if not rising or (np.diff(edges) <= 0).any():
        raise DataError(
            "E-AUDIT-HISTOGRAM", "expected rising, finite edges (bins - 1,), got others"
        )


def positions(edges: Float64Array, scores: Float64Array, is_member: BoolArray) -> Int64Array:
    """Return the one cell of each record among ``2 * bins``: members' bins first, then the others'.

    What a node hands to :func:`tacit.privacy.sums.one_hot`, as ONE histogram: two, of members and
    of non-members, would cost sqrt(2) times the noise, though no record is in both.

    Args:
        edges: public, rising, float64, ``(bins - 1,)``.
        scores: float64, ``(n,)``; n may be 0.
        is_member: bool, ``(n,)``.

    Raises:
        DataError: a score is no number (``E-AUDIT-SCORES``); edges do not rise.
    """
    _check_edges(edges)
    if scores.shape != is_member.shape or scores.ndim != 1 or np.isnan(scores).any():
        raise DataError("E-AUDIT-SCORES", "expected scores and membership (n,), every one a number")
    bins = np.searchsorted(edges, scores, side="right").astype(np.int64)
    return np.where(is_member, bins, bins + len(edges) + 1)


def histogram_of_counts(
    edges: Float64Array, counts: Float64Array, *, noise_sd: float = 0.0
) -> ScoreHistogram:
    """Return the histogram of a (noised) sum of one-hot :func:`positions`, ``(2 * bins,)``."""
    if counts.shape != (2 * (len(edges) + 1),):
        raise DataError(
            "E-AUDIT-HISTOGRAM",
            f"expected counts ({2 * (len(edges) + 1)},), got {counts.shape}",
        )
    members, others = np.split(np.asarray(counts, dtype=np.float64), 2)
    return ScoreHistogram(edges=edges, members=members, non_members=others, noise_sd=noise_sd)


def histogram_of(edges: Float64Array, scores: Float64Array, is_member: BoolArray) -> ScoreHistogram:
    """Return the histogram of some scores, without noise; see :func:`positions`."""
    cells = positions(edges, scores, is_member)
    counts = np.bincount(cells, minlength=2 * (len(edges) + 1))
    return histogram_of_counts(edges, counts.astype(np.float64))


def merge(parts: Sequence[ScoreHistogram]) -> ScoreHistogram:
    """Return the sum of the owners' histograms; noise that each added for itself adds up.

    Raises:
        DataError: edges differ, or there is nothing to merge (``E-AUDIT-HISTOGRAM``).
    """
    if not parts or any(not np.array_equal(part.edges, parts[0].edges) for part in parts):
        raise DataError("E-AUDIT-HISTOGRAM", "expected histograms over the same edges")
    return ScoreHistogram(
        edges=parts[0].edges,
        members=np.sum([part.members for part in parts], axis=0),
        non_members=np.sum([part.non_members for part in parts], axis=0),
        noise_sd=math.hypot(*(part.noise_sd for part in parts)),
    )
