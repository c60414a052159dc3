"""From files to what is audited: records, saved predictions, and the model of a recipe.

Trusts: nothing about the files. Loads no pickle, runs nothing that they say; a recipe's own model
factory runs only where it is installed here. Errors name files, arrays, columns and rows, never a
value.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tacit.attacks.subject import Records, Subject, subject_of_outputs
from tacit.attacks.target import Outputs, outputs_of_probabilities
from tacit.core.artifacts import load_arrays
from tacit.core.errors import ConfigError, DataError, UnavailableError
from tacit.core.specification import ColumnKind, DataSpec, RunSpec
from tacit.learning.contract import canonical_texts, encode
from tacit.learning.loaders import RawImages, Source, load_raw
from tacit.learning.models import build_model, load_model_arrays
from tacit.learning.prepared import Examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from torch import nn

Array = npt.NDArray[Any]

_FORMATS = {".csv": "csv", ".gz": "csv", ".parquet": "parquet", ".npz": "npz"}
_MOST_VALUES = 50  # of a column that slices: beyond, it is no category
_PARTS = 4  # of a number's declared range
_SIDES = ("member", "nonmember", "population")


def load_model(path: Path, spec: RunSpec) -> nn.Module:
    """Return a run's model with the weights of a safetensors file, in evaluation mode.

    Raises:
        ConfigError: the run brings its own app (``E-AUDIT-APP``), or these are the weights of
            another model (``E-MODEL-WEIGHTS``).
        UnavailableError: the file is missing or damaged.
        AppError: the factory is not installed (``E-MODEL-FACTORY``).
    """
    if spec.model is None or spec.data is None:
        raise ConfigError(
            "E-AUDIT-APP",
            "expected a recipe with [data] and [model], got a run that brings its own app",
            hint="save the model's predictions, and audit those: --predictions",
        )
    model = build_model(spec.model, spec.data, private=spec.privacy.trains_with_noise)
    load_model_arrays(model, load_arrays(path))
    return model.eval()


def load_records(path: Path, spec: RunSpec, *, slices: Sequence[str] = ()) -> Records:
    """Read records as the recipe's model takes them.

    Args:
        path: an NPZ file with the arrays ``features`` (``(n, ...)``, as the model takes them) and
            ``labels`` (``(n,)``, class numbers from 0); or CSV, Parquet, NPZ or a folder of images
            that keeps the recipe's data contract.
        spec: the recipe.
        slices: columns of the file to slice findings by; numbers are cut by their declared range.

    Raises:
        UnavailableError: there is no such file, or it cannot be opened (``E-DATA-MISSING``).
        DataError: it cannot be read (``E-DATA-UNREADABLE``), breaks the contract
            (``E-DATA-CONTRACT`` and the like), or has no such column (``E-AUDIT-SLICES``).
    """
    if spec.data is None:
        raise DataError("E-DATA-FORMAT", "expected a recipe with [data], got one without")
    if not path.exists():
        raise _missing(path)
    form = "images" if path.is_dir() else _FORMATS.get(path.suffix)
    if form is None:
        raise DataError(
            "E-DATA-FORMAT",
            f"expected a file that ends in {', '.join(_FORMATS)}, got {path.name}",
        )
    if form == "npz":
        arrays = open_npz(path)
        if {"features", "labels"} <= arrays.keys():
            return _of_arrays(path, arrays, slices)
    return _through_contract(path, form, spec.data, slices)


def load_predictions(path: Path) -> Subject:
    """Read saved predictions.

    Args:
        path: an NPZ file with ``member_probabilities`` and ``nonmember_probabilities``, float
            ``(n, classes)``, or ``..._logits`` instead, and ``member_labels`` and
            ``nonmember_labels``, integers ``(n,)``; the same of ``population_`` if there is one.

    Raises:
        UnavailableError, DataError: as :func:`load_records`; and as
            :func:`tacit.attacks.target.outputs_of_probabilities`.
    """
    if not path.exists():
        raise _missing(path)
    arrays = open_npz(path)
    groups = [_predicted(path, arrays, side) for side in _SIDES]
    members, non_members, population = groups
    if members is None or non_members is None:
        raise _unreadable(
            path,
            "expected the arrays member_probabilities (or member_logits), member_labels, and the "
            f"same of nonmember_; got {', '.join(sorted(arrays)) or 'none'}",
        )
    return subject_of_outputs(members=members, non_members=non_members, population=population)


def open_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an NPZ file.

    Raises:
        DataError: it is none, or holds objects (``E-DATA-UNREADABLE``).
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # The reader's own words may quote the file, so they are dropped.
        raise _unreadable(path, "it is no NPZ archive of plain arrays") from error
    raise _unreadable(path, "it holds a single array")


def _predicted(path: Path, arrays: Mapping[str, Array], side: str) -> Outputs | None:
    labels = arrays.get(f"{side}_labels")
    probabilities, logits = (arrays.get(f"{side}_{what}") for what in ("probabilities", "logits"))
    if labels is None or (probabilities is None) == (logits is None):
        if labels is None and probabilities is None and logits is None:
            return None
        raise _unreadable(path, f"expected {side}_labels and one of {side}_probabilities, _logits")
    numbers = _class_numbers(path, labels)
    if logits is not None:
        return Outputs(logits=_as_floats(path, logits), labels=numbers)
    name = f"{side}_probabilities of {path.name}"
    return outputs_of_probabilities(_as_floats(path, probabilities), numbers, name=name)


def _of_arrays(path: Path, arrays: Mapping[str, Array], slices: Sequence[str]) -> Records:
    features, labels = arrays["features"], _class_numbers(path, arrays["labels"])
    if features.ndim < 2 or len(features) != len(labels):
        raise _unreadable(
            path, f"expected features (n, ...) and labels (n,), got {features.shape} {labels.shape}"
        )
    columns = {}
    for name in slices:
        column = arrays.get(name)
        if column is None or column.shape != labels.shape:
            raise _no_column(path, name, sorted(arrays))
        columns[name] = _category(path, name, column.astype(str).astype(object))
    return Records(
        examples=Examples(
            features=np.ascontiguousarray(_as_floats(path, features), dtype=np.float32),
            labels=labels,
        ),
        columns=columns,
    )


def _through_contract(path: Path, form: str, data: DataSpec, slices: Sequence[str]) -> Records:
    try:
        raw = load_raw(Source(path=path, format=form), data)
    except (DataError, UnavailableError) as error:
        if error.code not in ("E-DATA-UNREADABLE", "E-DATA-MISSING"):
            raise
        raise type(error)(  # the loader's hints speak of client.toml, which is not in play here
            error.code, error.message, hint="text is UTF-8, separated by commas, with a header line"
        ) from error
    prepared = encode(data, raw)
    columns = {}
    for name in slices:
        if isinstance(raw, RawImages) or name not in raw.columns:
            known = [] if isinstance(raw, RawImages) else sorted(map(str, raw.columns))
            raise _no_column(path, name, known)
        columns[name] = _sliced(path, name, raw, data)
    return Records(
        examples=Examples(features=prepared.features, labels=prepared.labels),
        rows=prepared.row_numbers,
        columns=columns,
    )


def _sliced(path: Path, name: str, raw: pd.DataFrame, data: DataSpec) -> Array:
    texts = canonical_texts(raw[name])
    column = data.columns.get(name)
    if column is None or column.type is not ColumnKind.NUMBER or column.range is None:
        return _category(path, name, texts)
    low, high = column.range
    edges = np.linspace(low, high, _PARTS + 1)
    numbers = np.array([_number(text) for text in texts])
    names = [
        *(f"{first:g} to {last:g}" for first, last in itertools.pairwise(edges)),
        "missing",
    ]
    parts = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, _PARTS - 1)
    return np.array(names, dtype=object)[np.where(np.isnan(numbers), _PARTS, parts)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _category(path: Path, name: str, texts: Array) -> Array:
    values = len(set(texts.tolist()))
    if values > _MOST_VALUES:
        raise DataError(
            "E-AUDIT-SLICES",
            f"expected at most {_MOST_VALUES} values in column {name} of {path.name}, got {values}",
            hint="slice by a category; a number is cut by the range that the recipe declares",
        )
    return texts


def _class_numbers(path: Path, labels: Array) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _unreadable(
            path, f"expected labels as integers (n,), got {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def _as_floats(path: Path, array: Array | None) -> npt.NDArray[np.float64]:
    if array is None or array.dtype.kind not in "fiu":
        raise _unreadable(path, "expected arrays of numbers")
    return array.astype(np.float64)


def _no_column(path: Path, name: str, known: Sequence[str]) -> DataError:
    return DataError(
        "E-AUDIT-SLICES",
        f"expected a column {name} in {path.name} to slice by, it has {', '.join(known) or 'none'}",
    )


def _missing(path: Path) -> UnavailableError:
    return UnavailableError("E-DATA-MISSING", f"expected a file at {path}, found nothing there")


def _unreadable(path: Path, why: str) -> DataError:
    return DataError("E-DATA-UNREADABLE", f"{path} cannot be read: {why}")
