"""Whose gradient is clipped: each record's own, or the sum over the records of one subject.

Promises: a subject's records are never cut apart, what one subject keeps depends on that subject's
records alone, and batches are cut by public sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grouping:
    """Which rows of a chunk belong to which unit.

    Attributes:
        units: how many units there are.
        unit_of_row: int64 ``(rows,)``.
        slot_of_row: int64 ``(rows,)``: the row's place among its unit's rows, from 0.
        slots: the most rows that one of these units has.
    """

    units: int
    unit_of_row: torch.Tensor
    slot_of_row: torch.Tensor
    slots: int

    def summed(self, rows: torch.Tensor) -> torch.Tensor:
        """Return each unit's sum of rows: ``(rows, ...)`` becomes ``(units, ...)``."""
        if self.slots == 1:
            return rows
        total = rows.new_zeros((self.units, *rows.shape[1:]))
        return total.index_add_(0, self.unit_of_row, rows)

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Return each unit's rows end to end, filled up with zeros.

        ``(rows, positions, width)`` becomes ``(units, slots x positions, width)``.
        """
        if self.slots == 1:
            return rows
        joined = rows.new_zeros((self.units, self.slots, *rows.shape[1:]))
        joined[self.unit_of_row, self.slot_of_row] = rows
        return joined.flatten(1, 2)


def one_row_each(rows: int) -> Grouping:
    """Return the grouping in which every row is a unit of its own."""
    numbers = torch.arange(rows)
    return Grouping(rows, numbers, torch.zeros_like(numbers), 1)


Rows: TypeAlias = "torch.Tensor | slice"


class Records:
    """The unit is a record: row i is unit i."""

    def __init__(self, rows: int) -> None:
        self.units = self.records = rows

    def chunks(self, chosen: Int64Array, size: int) -> Iterator[tuple[Rows, Grouping]]:
        """Yield the chosen rows, at most ``size`` at a time."""
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            whole = len(chosen) == self.units  # then a slice does, which copies nothing
            rows = slice(start, start + len(part)) if whole else torch.from_numpy(part)
            yield rows, one_row_each(len(part))


class Subjects:
    """The unit is a subject with one or more records."""

    def __init__(self, subjects: Int64Array, *, most_records: int) -> None:
        """Sort the rows by subject.

        Args:
            subjects: int64 ``(n,)``, the subject of each record; the numbers themselves mean
                nothing.
            most_records: of a subject with more, the first so many count, in the data set's order.
        """
        names, counts = np.unique(subjects, return_counts=True)
        self._rows = np.argsort(subjects, kind="stable").astype(np.int64)
        self._starts = np.cumsum(counts) - counts
        self._counts = np.minimum(counts, most_records)
        self.units = len(names)
        self.records = len(subjects)

    def chunks(self, chosen: Int64Array, size: int) -> Iterator[tuple[Rows, Grouping]]:
        """Yield the chosen subjects' rows, about ``size`` at a time, no subject in two chunks.

        Subjects with equally many records come together: joined, they need no filling up.
        """
        order = chosen[np.argsort(self._counts[chosen], kind="stable")]
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * self._counts[order[stop]] <= size:
                stop += 1
            yield self._chunk(order[start:stop])
            start = stop

    def _chunk(self, subjects: Int64Array) -> tuple[torch.Tensor, Grouping]:
        counts = self._counts[subjects]
        ends = np.cumsum(counts)
        slots = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        rows = self._rows[np.repeat(self._starts[subjects], counts) + slots]
        grouping = Grouping(
            units=len(subjects),
            unit_of_row=torch.from_numpy(np.repeat(np.arange(len(subjects)), counts)),
            slot_of_row=torch.from_numpy(slots),
            slots=int(counts.max()),
        )
        return torch.from_numpy(rows), grouping
