"""Who is found: slice by slice, and record by record.

Rows and slices' scores stay with the owner of the records: what leaves a node is in
``histograms.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tacit.attacks.statistics import checked, realised, roc_of
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.attacks.points import BoolArray, Float64Array, Interval, OperatingPoint

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """What an attack makes of one slice of the records.

    Attributes:
        name: of the slice.
        members, non_members: of the slice.
        auc, auc_interval: within the slice; None where it has no members, or no non-members.
        point: at the threshold of all slices: how much of this one is found; None likewise.
    """

    name: str
    members: int
    non_members: int
    auc: float | None
    auc_interval: Interval | None
    point: OperatingPoint | None


def slice_table(
    scores: Float64Array,
    is_member: BoolArray,
    slices: Mapping[str, Int64Array],
    *,
    threshold: float,
) -> tuple[SliceRow, ...]:
    """Return a row for each slice, in the given order.

    Many slices are many comparisons: at 95 %, one interval in twenty misses.

    Args:
        scores: float64, ``(n,)``.
        is_member: bool, ``(n,)``.
        slices: the rows of each slice, int64; slices may overlap.
        threshold: one for all slices, as an attacker would use it; best one chosen on references.

    Raises:
        DataError: as :func:`tacit.attacks.statistics.roc_of`, and for rows that there are not, or
            that are named twice (``E-AUDIT-SLICES``).
    """
    scores, is_member = checked(scores, is_member)
    return tuple(
        _slice_row(name, scores, is_member, _checked_rows(name, rows, len(scores)), threshold)
        for name, rows in slices.items()
    )


def _checked_rows(name: str, rows: Int64Array, records: int) -> Int64Array:
    rows = np.asarray(rows)
    if (
        rows.ndim != 1
        or not np.issubdtype(rows.dtype, np.integer)
        or not _all_within(rows, records)
    ):
        raise DataError(
            "E-AUDIT-SLICES",
            f"expected for slice {name!r} rows from 0 to {records - 1}, each once, got "
            f"{rows.dtype} {rows.shape} with others",
        )
    return rows.astype(np.int64)


def _all_within(rows: Int64Array, records: int) -> bool:
    return bool(((rows >= 0) & (rows < records)).all()) and len(np.unique(rows)) == len(rows)


def _slice_row(
    name: str, scores: Float64Array, is_member: BoolArray, rows: Int64Array, threshold: float
) -> SliceRow:
    scores, is_member = scores[rows], is_member[rows]
    members = int(is_member.sum())
    if members in {0, len(rows)}:
        return SliceRow(
            name=name,
            members=members,
            non_members=len(rows) - members,
            auc=None,
            auc_interval=None,
            point=None,
        )
    roc = roc_of(scores, is_member)
    return SliceRow(
        name=name,
        members=members,
        non_members=len(rows) - members,
        auc=roc.auc,
        auc_interval=roc.auc_interval(),
        point=realised(scores, is_member, threshold),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class MostExposed:
    """The members with the highest scores, and whether another attack would name the same.

    Attributes:
        rows: int64, ``(k,)``, most exposed first; of equal scores the lower row.
        scores: float64, ``(k,)``.
        recurrence: share of the replicates that have the record among their own k, ``(k,)``.
        jaccard: mean over replicates of |both| / |either|, of the two sets of k.
        spearman: mean over replicates of the rank correlation over all members.
    """

    rows: Int64Array
    scores: Float64Array
    recurrence: Float64Array
    jaccard: float
    spearman: float


def most_exposed(
    scores: Float64Array, is_member: BoolArray, replicates: Float64Array, *, count: int
) -> MostExposed:
    """Return the most exposed members, with the stability of their ranks.

    Args:
        scores: float64, ``(n,)``.
        is_member: bool, ``(n,)``.
        replicates: float64, ``(b, n)``: scores of the same attack with its references drawn again
            (a bootstrap over references, or one half of them each).
        count: k, how many to name; fewer if there are fewer members.

    Raises:
        DataError: as :func:`tacit.attacks.statistics.roc_of`.
        ValueError: no replicates, or count is below 1.
    """
    scores, is_member = checked(scores, is_member)
    if replicates.ndim != 2 or not len(replicates) or replicates.shape[1] != len(scores):
        raise ValueError(
            f"expected replicates (b, {len(scores)}), at least one, got {replicates.shape}"
        )
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    members = np.flatnonzero(is_member)
    top = _top(scores[members], count)
    again = [checked(row, is_member)[0][members] for row in replicates]
    tops = [_top(row, count) for row in again]
    shared = [len(np.intersect1d(top, other)) for other in tops]
    return MostExposed(
        rows=members[top],
        scores=scores[members[top]],
        recurrence=np.mean([np.isin(top, other) for other in tops], axis=0),
        jaccard=float(np.mean([both / (2 * len(top) - both) for both in shared])),
        spearman=float(np.mean([_spearman(scores[members], row) for row in again])),
    )


def _top(scores: Float64Array, count: int) -> Int64Array:
    return np.argsort(-scores, kind="stable")[:count]


def _spearman(first: Float64Array, second: Float64Array) -> float:
    """Return the correlation of mid-ranks; 0 where one of both orders nothing."""
    x, y = (_ranks(scores) - (len(scores) + 1) / 2.0 for scores in (first, second))
    scale = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return float(np.sum(x * y)) / scale if scale > 0 else 0.0


def _ranks(scores: Float64Array) -> Float64Array:
    _, positions, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Float64Array = last - (counts - 1) / 2.0
    return middle[positions]
