"""The owners of a simulated federation: whose data, and how one data set is shared out for a trial.

Owners come from a folder (one CSV or Parquet file each), or one file is dealt out: record by record
after a seeded shuffle, so that every owner's share looks like the whole. Real owners never do; use
a folder where it matters.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tacit.client.configuration import DataFormat, DataSet
from tacit.client.preparation import PREPARED_NAME, PrepareJob
from tacit.client.prepare import prepare_data
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.specification import canonical_json
from tacit.learning.contract import encode
from tacit.learning.loaders import Source, load_raw
from tacit.learning.prepared import PreparedSets, load_prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.core.specification import RunSpec

FORMATS = {".csv": DataFormat.CSV, ".parquet": DataFormat.PARQUET, ".npz": DataFormat.NPZ}
LARGEST_NODE_ID = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One simulated data owner.

    Attributes:
        name: what the tables call them.
        data_set: where their records are.
    """

    name: str
    data_set: DataSet

    @property
    def node_id(self) -> int:
        """A number that depends on the name alone, so that reruns agree."""
        digest = hashlib.sha256(b"tacit simulated owner|" + self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") & LARGEST_NODE_ID


def heart_folder() -> Path:
    """Return the folder of the heart disease data that ship with the package."""
    return Path(str(importlib.resources.files("tacit.simulation.data.heart")))


def owners_in(
    path: Path, specification: RunSpec, *, clients: int | None, scratch: Path
) -> list[Owner]:
    """Return the owners of a folder of files, or deal one file out to ``clients`` owners.

    Args:
        path: the folder, or the file.
        specification: the run, whose data contract one file is held against as a whole, and whose
            training seed deals it out.
        clients: how many owners.
        scratch: the folder in which shares of one file are put.

    Raises:
        UnavailableError: there are no data.
        UsageError: the number of clients does not fit.
        DataError: one file for all breaks the data contract; rows are its own.
    """
    if path.is_dir():
        return _owners_of_folder(path, clients)
    if not path.is_file():
        raise UnavailableError("E-DATA-MISSING", f"expected data at {path}, found nothing there")
    if path.suffix not in FORMATS:
        raise UsageError(
            "E-DATA-FORMAT", f"expected a file of {', '.join(FORMATS)}, got {path.name}"
        )
    if clients is None:
        raise UsageError("E-USAGE", "one file is dealt out to --clients N owners: give N")
    if specification.data is not None:
        # before it is dealt out: what a share would complain of, its user could not find
        encode(specification.data, load_raw(_source(path), specification.data), file=path.name)
    seed = specification.training.seed if specification.training is not None else 0
    return _dealt_out(path, clients, scratch, seed)


def _source(path: Path) -> Source:
    return Source(path=path, format=FORMATS[path.suffix].value)


def bare_owners(clients: int | None) -> list[Owner]:
    """Return owners for a run whose app brings its own data.

    Raises:
        UsageError: it is not said how many.
    """
    if clients is None:
        raise UsageError("E-USAGE", "expected --clients N for a run without a data contract")
    nothing = DataSet(path=Path(os.devnull), records=1)
    return [Owner(name=f"owner-{number}", data_set=nothing) for number in range(1, clients + 1)]


def owner_sets(specification: RunSpec, owner: Owner) -> PreparedSets:
    """Return an owner's training and validation records, split as their own node splits them.

    Raises:
        DataError: the records break the data contract.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = PrepareJob(
            specification=canonical_json(specification),
            data_set=owner.data_set,
            folder=Path(folder),
            split_key=bytes(32),  # keys the hashes of a note that is thrown away here
        )
        prepare_data(job)
        return load_prepared(Path(folder) / PREPARED_NAME)


def _owners_of_folder(folder: Path, clients: int | None) -> list[Owner]:
    files = sorted(path for path in folder.iterdir() if path.suffix in FORMATS)
    if not files:
        raise UnavailableError(
            "E-DATA-MISSING",
            f"expected files of {', '.join(FORMATS)} in {folder}, found none",
            hint="Say where the records are: --data FOLDER (one file per owner), or --data FILE "
            "with --clients N.",
        )
    if clients is not None and clients != len(files):
        raise UsageError(
            "E-USAGE",
            f"expected {len(files)} clients, one for each file in {folder}, got {clients}",
            hint="give one file with --data to deal it out to any number of clients",
        )
    return [
        Owner(
            name=path.stem,
            data_set=DataSet(path=path, format=FORMATS[path.suffix], records=max(1, _count(path))),
        )
        for path in files
    ]


def _dealt_out(path: Path, clients: int, scratch: Path, seed: int) -> list[Owner]:
    form = FORMATS[path.suffix]
    scratch.parent.parent.mkdir(parents=True, exist_ok=True)
    make_private_folder(scratch.parent)
    make_private_folder(scratch)
    count = _count(path)
    if not 1 <= clients <= count:
        raise UsageError("E-USAGE", f"expected 1 to {count} clients, got {clients}")
    order = np.random.default_rng(seed).permutation(count)
    owners = []
    for number, rows in enumerate(np.array_split(order, clients), start=1):
        name = f"owner-{number:0{len(str(clients))}d}"
        share = scratch / f"{name}{path.suffix}"
        _write_share(path, share, np.sort(rows))
        owners.append(
            Owner(name=name, data_set=DataSet(path=share, format=form, records=len(rows)))
        )
    return owners


def _count(path: Path) -> int:
    """Count a simulated owner's records; a real owner declares a public bound instead."""
    if path.suffix == ".csv":
        return max(0, len(_csv_lines(path)) - 1)
    if path.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415 - a tenth of a second, seldom needed

        return int(parquet.ParquetFile(path).metadata.num_rows)
    with np.load(path, allow_pickle=False) as arrays:
        return max((len(arrays[name]) for name in arrays.files), default=0)


def _write_share(path: Path, share: Path, rows: np.ndarray) -> None:
    if path.suffix == ".csv":
        header, *lines = _csv_lines(path)
        share.write_bytes(b"\n".join([header, *(lines[row] for row in rows)]) + b"\n")
    elif path.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415

        parquet.write_table(parquet.read_table(path).take(rows), share)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            np.savez(share, **{name: arrays[name][rows] for name in arrays.files})


def _csv_lines(path: Path) -> Sequence[bytes]:
    """Return the lines of a CSV file but empty ones; quoted line ends are not dealt out."""
    return [line for line in path.read_bytes().splitlines() if line]
