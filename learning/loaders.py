"""From a file at the owner to a raw table or raw images: CSV, Parquet, NPZ, a folder of images.

Trusts: nothing about the file. Loads no pickle, runs nothing that the file says.
Promises: cells come back as the file has them; what they mean is for the data contract to say
(contract.py). A column that the owner forbids is dropped before anything else sees it. Errors name
files, columns and places in them, never a cell.
"""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from tacit.core.errors import DataError, UnavailableError
from tacit.core.specification import DataKind, DataSpec
from tacit.core.wording import Places
from tacit.learning import image_files
from tacit.privacy.cleaning import verify_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set lies and how it is written; client.toml's words.

    Attributes:
        path: a file, or a folder of images.
        format: csv, parquet, npz or images.
        separator: of a CSV file, one character.
        header: whether a CSV file's first line names the columns.
        columns: the names of the columns, in order, where the file has none.
        forbidden: columns that are dropped as soon as the file is read.
        named: further columns that must be there, each with the key of client.toml that names it.
    """

    path: Path
    format: str = "csv"
    separator: str = ","
    header: bool = True
    columns: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RawImages:
    """Images before the contract has seen them.

    Attributes:
        pixels: ``(n, channels, height, width)`` in the file's own range and dtype.
        labels: class names or numbers as text.
        broken: numbers (from 1) of images that could not be read, by kind of violation.
    """

    pixels: Array
    labels: Array
    broken: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


_LINE = "line"
Raw: TypeAlias = "pd.DataFrame | RawImages"


def load_raw(source: Source, data: DataSpec) -> Raw:
    """Read an owner's file as what the data contract says it is.

    Raises:
        UnavailableError: the file is not there or cannot be opened (``E-DATA-MISSING``).
        DataError: it cannot be read as this format (``E-DATA-UNREADABLE``), holds nothing
            (``E-DATA-EMPTY``), the format does not hold this kind of data (``E-DATA-FORMAT``), or
            a column that client.toml names is not there (``E-CLEAN-COLUMNS``, ``E-CLEAN-IMAGES``).
    """
    readers = _IMAGE_READERS if data.kind is DataKind.IMAGE else _TABLE_READERS
    reader = readers.get(source.format)
    if reader is None:
        raise DataError(
            "E-DATA-FORMAT",
            f"expected {data.kind.value} data in one of {', '.join(readers)}, "
            f"got format {source.format!r}",
        )
    if not source.path.exists():
        raise UnavailableError(
            "E-DATA-MISSING",
            f"expected a data set at {source.path}, found nothing there",
            hint="correct the path in client.toml; relative paths start at that file",
        )
    try:
        raw = reader(source, data)
    except OSError as error:
        raise UnavailableError(
            "E-DATA-MISSING",
            f"{source.path} cannot be opened: {error.strerror or type(error).__name__}",
            hint="let the user that runs the client read it",
        ) from error
    except (ValueError, csv.Error, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # The reader's own words may quote the file, so they are dropped.
        raise unreadable(source.path, source.format) from error
    return _without_forbidden(raw, source)


def _without_forbidden(raw: Raw, source: Source) -> Raw:
    """Drop forbidden columns; a name that fits none is refused, since it may be misspelt."""
    named = {**source.named, **dict.fromkeys(source.forbidden, "forbidden")}
    if not isinstance(raw, RawImages):
        verify_columns(named, [str(name) for name in raw.columns])
        return raw.drop(columns=list(source.forbidden))
    if named:
        keys = ", ".join(sorted(set(named.values())))
        raise DataError(
            "E-CLEAN-IMAGES",
            f"expected a table for {keys}, got images",
            hint="remove these keys of the data set from client.toml",
        )
    return raw


def places_of(raw: Raw, file: str) -> Places:
    """Return where the records of a loaded data set stand in its file, also when some were dropped.

    The index of a table from a CSV file holds the lines; that of any other counts rows from 0.
    """
    if isinstance(raw, RawImages):
        return Places(word="image", numbers=range(1, len(raw.pixels) + 1), file=file)
    if raw.index.name == _LINE:
        return Places(word=_LINE, numbers=raw.index.tolist(), file=file)
    return Places(numbers=[int(row) + 1 for row in raw.index], file=file)


def unreadable(path: Path, form: str, detail: str = "") -> DataError:
    """Return the error for a file that is not what client.toml says it is."""
    return DataError(
        "E-DATA-UNREADABLE",
        f"{path} cannot be read as {form}" + (f": {detail}" if detail else ""),
        hint="check format, separator, header and columns in client.toml; text must be UTF-8",
    )


def _read_csv(source: Source, _data: DataSpec) -> pd.DataFrame:
    # Not pandas' reader: it drops cells that are too many, and fills cells that are too few.
    lines, rows = _csv_rows(source)
    if not rows:
        raise DataError("E-DATA-EMPTY", f"expected columns and records, {source.path} is empty")
    names = list(source.columns)
    if source.header:
        names = [name.strip() for name in rows.pop(0)]
        lines.pop(0)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise unreadable(source.path, "csv", f"columns named twice: {', '.join(repeated)}")
    ragged = [position for position, row in enumerate(rows) if len(row) != len(names)]
    if ragged:
        where = Places(word=_LINE, numbers=lines, file=source.path.name).some(ragged)
        raise unreadable(
            source.path, "csv", f"{len(names)} columns are named; more or fewer in {where}"
        )
    cells = np.array(rows, dtype=object).reshape(len(rows), len(names))
    columns = {name: cells[:, index] for index, name in enumerate(names)}
    return pd.DataFrame(columns, index=pd.Index(lines, dtype=np.int64, name=_LINE))


def _csv_rows(source: Source) -> tuple[list[int], list[list[str]]]:
    """Return each record's first line (from 1) and its cells; no field is interpreted."""
    opener: Callable[..., Any] = gzip.open if source.path.suffix == ".gz" else open
    lines, rows = [], []
    with opener(source.path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=source.separator, skipinitialspace=True, strict=True)
        first = 1
        for row in reader:
            if row:  # an empty line is no record
                lines.append(first)
                rows.append(row)
            first = reader.line_num + 1
    return lines, rows


def _read_parquet(source: Source, _data: DataSpec) -> pd.DataFrame:
    frame = pd.read_parquet(source.path, engine="pyarrow")
    return frame.set_axis(pd.RangeIndex(len(frame)), axis="index")  # the file may bring its own


def _open_npz(source: Source) -> dict[str, Array]:
    with np.load(source.path, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise unreadable(source.path, "npz", "it holds a single array")
        return {name: archive[name] for name in archive.files}


def _read_npz_table(source: Source, data: DataSpec) -> pd.DataFrame:
    arrays = _open_npz(source)
    if source.columns and "x" in arrays:
        matrix = arrays.pop("x")
        if matrix.ndim != 2 or matrix.shape[1] != len(source.columns):
            raise unreadable(
                source.path,
                "npz",
                f"{len(source.columns)} columns are named, x has shape {matrix.shape}",
            )
        arrays.update(zip(source.columns, matrix.T, strict=True))
        if "y" in arrays:
            arrays[data.label] = arrays.pop("y")
    wrong = sorted(name for name, array in arrays.items() if array.ndim != 1)
    if wrong or len({len(array) for array in arrays.values()}) > 1:
        raise unreadable(
            source.path, "npz", "expected one array of one dimension per column, all of one length"
        )
    return pd.DataFrame(arrays)


def _read_npz_images(source: Source, data: DataSpec) -> RawImages:
    arrays = _open_npz(source)
    if "x" not in arrays or "y" not in arrays:
        raise unreadable(source.path, "npz", "expected the arrays x (images) and y (labels)")
    pixels = image_files.records_first(arrays["x"], image_shape(data))
    labels = arrays["y"]
    if pixels is None or labels.shape != (len(pixels),):
        raise unreadable(
            source.path,
            "npz",
            f"expected images of shape {image_shape(data)} and one label each, "
            f"got x {arrays['x'].shape} and y {labels.shape}",
        )
    return RawImages(pixels=pixels, labels=labels.astype(str))


def _read_image_folder(source: Source, data: DataSpec) -> RawImages:
    if not source.path.is_dir():
        raise unreadable(source.path, "images", "expected a folder with one folder per class")
    pixels, labels, broken = image_files.read_folder(source.path, image_shape(data))
    return RawImages(pixels=pixels, labels=labels, broken=broken)


def image_shape(data: DataSpec) -> tuple[int, int, int]:
    """Return the declared ``(channels, height, width)``."""
    if data.shape is None:
        raise DataError("E-DATA-FORMAT", "the run declares images without a shape")
    return data.shape


_TABLE_READERS: Mapping[str, Callable[[Source, DataSpec], Raw]] = MappingProxyType(
    {"csv": _read_csv, "parquet": _read_parquet, "npz": _read_npz_table}
)
_IMAGE_READERS: Mapping[str, Callable[[Source, DataSpec], Raw]] = MappingProxyType(
    {"npz": _read_npz_images, "images": _read_image_folder}
)
