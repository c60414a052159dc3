"""One file of records, dealt out to the owners of a trial.

After a seeded shuffle, so that every owner's share looks like the whole; record by record, or
subject by subject where the data set names them, since one person's records at two owners would be
two people. Real owners' records never look so alike: use a folder of files where it matters.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from tacit.client.configuration import DataFormat
from tacit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tacit.client.configuration import DataSet
    from tacit.learning.contract import Int64Array


def deal_records(count: int, clients: int, *, seed: int) -> list[Int64Array]:
    """Return the rows (from 0) of each owner, shares as equal as can be.

    Raises:
        UsageError: there are too few records for so many owners.
    """
    _verify_clients(clients, count, "records")
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(rows) for rows in np.array_split(order, clients)]


def deal_subjects(
    names: Sequence[str], counting: Sequence[bool], clients: int, *, seed: int
) -> list[Int64Array]:
    """Return the rows (from 0) of each owner, no subject at two of them.

    Args:
        names: whose record each row is.
        counting: whether cleaning leaves the row in; a subject without such a row is dealt last,
            so that every owner gets one to train on.
        clients: how many owners.
        seed: of the shuffle.

    Raises:
        UsageError: there are too few subjects for so many owners.
    """
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    there = list(dict.fromkeys(n for n, counts in zip(names, counting, strict=True) if counts))
    _verify_clients(clients, len(there), "subjects")
    shuffled = [there[place] for place in np.random.default_rng(seed).permutation(len(there))]
    shares: list[list[int]] = [[] for _ in range(clients)]
    smallest = [(0, number) for number in range(clients)]
    last = rows_of.keys() - set(there)
    for name in [*shuffled, *(name for name in rows_of if name in last)]:
        held, number = heapq.heappop(smallest)
        shares[number] += rows_of[name]
        heapq.heappush(smallest, (held + len(rows_of[name]), number))
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in shares]


def _verify_clients(clients: int, most: int, what: str) -> None:
    if not 1 <= clients <= most:
        raise UsageError(
            "E-USAGE", f"expected 1 to {most} clients, as many as there are {what}, got {clients}"
        )


def count_records(data_set: DataSet) -> int:
    """Count a simulated owner's records; a real owner declares a public bound instead."""
    path = data_set.path
    if data_set.format is DataFormat.CSV:
        return max(0, len(_csv_lines(path)) - data_set.header)
    if data_set.format is DataFormat.PARQUET:
        from pyarrow import parquet  # noqa: PLC0415 - a tenth of a second, seldom needed

        return int(parquet.ParquetFile(path).metadata.num_rows)
    with np.load(path, allow_pickle=False) as arrays:
        return max((len(arrays[name]) for name in arrays.files), default=0)


def verify_lines(data_set: DataSet, records: int) -> None:
    """Check that a CSV file has a line for each of the records that a loader has read from it.

    Raises:
        DataError: a record has several lines (``E-DATA-FORMAT``).
    """
    lines = count_records(data_set)
    if data_set.format is DataFormat.CSV and lines != records:
        raise DataError(
            "E-DATA-FORMAT",
            f"expected a line for each of {records} records in {data_set.path}, got {lines} lines: "
            "a line end inside quotes cannot be dealt out",
            hint="store the records as Parquet, or give a folder with one file per owner",
        )


def write_share(data_set: DataSet, share: Path, rows: Int64Array) -> None:
    """Write some of a data set's records, in order, into a file of the same format."""
    path = data_set.path
    if data_set.format is DataFormat.CSV:
        lines = _csv_lines(path)
        start = int(data_set.header)
        kept = [*lines[:start], *(lines[start + row] for row in rows)]
        share.write_bytes(b"\n".join(kept) + b"\n")
    elif data_set.format is DataFormat.PARQUET:
        from pyarrow import parquet  # noqa: PLC0415 - see count_records

        parquet.write_table(parquet.read_table(path).take(rows), share)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            np.savez(share, **{name: arrays[name][rows] for name in arrays.files})


def _csv_lines(path: Path) -> Sequence[bytes]:
    """Return the lines of a CSV file but empty ones."""
    return [line for line in path.read_bytes().splitlines() if line]
