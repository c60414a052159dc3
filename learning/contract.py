"""The data contract applied: raw cells become features, or a list of violations.

Trusts: the specification. Promises:

1. A record's features depend on that record and on declared, public constants alone: ranges,
   categories and stand-ins, never a mean, rank or vocabulary of the other records.
2. Every violation is reported at once, as column, kind, count and first places: never a value.
   Nothing is dropped or repaired beyond what the contract says.
3. Feature order follows the sorted names of the columns, so that two spellings of one
   specification give the same model.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tacit.core.data_contract import canonical_text, parse_number
from tacit.core.errors import DataError
from tacit.core.specification import ColumnKind, ColumnSpec, DataKind, DataSpec
from tacit.core.wording import Places, rows_line
from tacit.learning.features import feature_names
from tacit.learning.loaders import Raw, RawImages, places_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.object_]

_SHOWN_COLUMNS = 20
_BOOLEAN_WORDS = (("0", "false"), ("1", "true"))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An owner's records in the form that models take.

    Attributes:
        features: float32, ``(n, features)`` or ``(n, channels, height, width)``, in [0, 1].
        labels: int64, ``(n,)``: positions in the declared classes.
        feature_names: one per feature of a table; empty for images.
        row_numbers: int64, ``(n,)``: the row in the owner's file, from 1.
    """

    features: Float32Array
    labels: Int64Array
    feature_names: tuple[str, ...]
    row_numbers: Int64Array


@dataclass
class _Violations:
    """What was found so far, by column and kind; records go by their places in the file."""

    places: Places
    lines: list[str] = field(default_factory=list)

    def add(self, column: str, kind: str, rows: npt.ArrayLike) -> None:
        """Note the records (positions from 0) that break a rule; none is fine."""
        positions = np.asarray(rows, dtype=np.int64).tolist()
        if positions:
            self.lines.append(rows_line(column, kind, self.places, positions))


def encode(
    data: DataSpec, raw: Raw, *, row_numbers: Int64Array | None = None, file: str = ""
) -> Prepared:
    """Turn what a loader read into features and labels.

    Args:
        data: the contract.
        raw: the records, cleaned.
        row_numbers: int64, ``(n,)``: each record's row in the owner's file, from 1; without it
            they are all there, in the file's order.
        file: its name, for messages.

    Raises:
        DataError: the data set is empty (``E-DATA-EMPTY``), lacks declared columns
            (``E-DATA-COLUMNS``), breaks the contract (``E-DATA-CONTRACT``), or holds records of
            one class only (``E-DATA-ONE-CLASS``).
    """
    records = len(raw.pixels) if isinstance(raw, RawImages) else len(raw)
    rows = np.arange(1, records + 1, dtype=np.int64) if row_numbers is None else row_numbers
    violations = _Violations(places_of(raw, file))
    if isinstance(raw, RawImages):
        features, labels = _encode_images(data, raw, violations)
        names: tuple[str, ...] = ()
    else:
        features, labels = _encode_table(data, raw, violations)
        names = feature_names(data)
    if len(np.unique(labels)) < 2:
        raise DataError(
            "E-DATA-ONE-CLASS",
            "expected records of at least two classes, all records have the same label",
            hint="check the label column and the declared classes",
        )
    return Prepared(features=features, labels=labels, feature_names=names, row_numbers=rows)


def _encode_table(
    data: DataSpec, frame: pd.DataFrame, violations: _Violations
) -> tuple[Float32Array, Int64Array]:
    _check_columns(data, frame)
    if frame.empty:
        names = [str(name) for name in frame.columns]
        shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
        raise DataError(
            "E-DATA-EMPTY",
            f"expected records, the data set has none, only the columns {shown}",
            hint="A CSV file holds one record per line below the line that names the columns.",
        )
    blocks = [
        _encode_column(name, column, canonical_texts(frame[name]), violations)
        for name, column in sorted(data.columns.items())
    ]
    labels = _encode_labels(data, canonical_texts(frame[data.label]), violations)
    _refuse(violations)
    return np.concatenate(blocks, axis=1), labels


def _check_columns(data: DataSpec, frame: pd.DataFrame) -> None:
    present = {str(name) for name in frame.columns}
    declared = {*data.columns, data.label}
    problems = [f"{name}: missing{_near(name, present)}" for name in sorted(declared - present)]
    if not data.ignore_undeclared:
        problems += [f"{name}: not declared" for name in sorted(present - declared)]
    if problems:
        raise DataError(
            "E-DATA-COLUMNS",
            f"expected the run's {len(declared)} columns, {len(problems)} differ",
            problems=tuple(problems),
            hint="the owner renames them in the file, or names them in client.toml (columns, with "
            "header = false); or the operator names the file's in run.toml ([data.columns], "
            "data.label)",
        )


def _near(name: str, present: set[str]) -> str:
    folded = {each.casefold(): each for each in sorted(present)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[close[0]]}?)" if close else ""


def canonical_texts(series: pd.Series[Any]) -> TextArray:
    """Return a column's cells as canonical texts; empty text where there is no value."""
    codes, uniques = pd.factorize(series)
    texts = np.array([*(canonical_text(value) for value in uniques), ""], dtype=object)
    chosen: TextArray = texts[codes]  # code -1, "no value", picks the last
    return chosen


def _encode_column(
    name: str, column: ColumnSpec, texts: TextArray, violations: _Violations
) -> Float32Array:
    absent = np.isin(texts, [canonical_text(word) for word in column.missing_values])
    if column.missing is None:
        violations.add(name, "empty cell", np.flatnonzero(absent))
    if column.type is ColumnKind.NUMBER:
        block = _numbers(name, column, texts, absent, violations)
    elif column.type is ColumnKind.CATEGORY:
        block = _categories(name, column, texts, absent, violations)
    else:
        block = _booleans(name, column, texts, absent, violations)
    if column.flag_missing:
        block = np.concatenate([block, absent[:, None].astype(np.float32)], axis=1)
    return block


def _numbers(
    name: str, column: ColumnSpec, texts: TextArray, absent: BoolArray, violations: _Violations
) -> Float32Array:
    if column.range is None:
        raise ValueError(f"column {name} is a number without a range")
    codes, uniques = pd.factorize(texts)
    values = np.array([parse_number(text) for text in uniques], dtype=np.float64)[codes]
    low, high = column.range
    values[absent] = low if column.missing is None else float(column.missing)
    violations.add(name, "not a number", np.flatnonzero(np.isnan(values)))
    violations.add(name, "not finite", np.flatnonzero(np.isinf(values)))
    outside = np.isfinite(values) & ~absent & ((values < low) | (values > high))
    violations.add(name, "outside the declared range", np.flatnonzero(outside))
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(scaled, dtype=np.float32)[:, None]


def _categories(
    name: str, column: ColumnSpec, texts: TextArray, absent: BoolArray, violations: _Violations
) -> Float32Array:
    position = {canonical_text(value): index for index, value in enumerate(column.values)}
    chosen = _positions(texts, position)
    chosen[absent] = 0 if column.missing is None else position[canonical_text(column.missing)]
    violations.add(name, "not one of the declared values", np.flatnonzero(chosen < 0))
    return np.eye(len(column.values), dtype=np.float32)[chosen]


def _booleans(
    name: str, column: ColumnSpec, texts: TextArray, absent: BoolArray, violations: _Violations
) -> Float32Array:
    pairs = column.values or _BOOLEAN_WORDS  # noqa: PD011 - ours, not pandas'
    words = {
        canonical_text(word).lower(): index
        for index, entry in enumerate(pairs)
        for word in ((entry,) if isinstance(entry, str) else entry)
    }
    lowered = np.array([text.lower() for text in texts], dtype=object)
    values = _positions(lowered, words).astype(np.float64)
    violations.add(name, "not a boolean", np.flatnonzero((values < 0) & ~absent))
    if column.missing is not None:
        stand_in = canonical_text(column.missing).lower()
        values[absent] = words.get(stand_in, parse_number(stand_in))
    return np.clip(values, 0.0, 1.0).astype(np.float32)[:, None]


def _positions(texts: TextArray, position: Mapping[str, int]) -> Int64Array:
    codes, uniques = pd.factorize(texts)
    found = np.array([position.get(text, -1) for text in uniques], dtype=np.int64)
    return found[codes] if len(found) else np.zeros(0, dtype=np.int64)


def _encode_labels(data: DataSpec, texts: TextArray, violations: _Violations) -> Int64Array:
    position = {canonical_text(name): index for index, name in enumerate(data.classes)}
    for spelling, target in data.label_map.items():
        position[canonical_text(spelling)] = data.classes.index(target)
    labels = _positions(texts, position)
    empty = texts == ""
    column = data.label if data.kind is DataKind.TABLE else "label"
    violations.add(column, "label missing", np.flatnonzero(empty & (labels < 0)))
    violations.add(column, "unknown label", np.flatnonzero(~empty & (labels < 0)))
    return labels


def _encode_images(
    data: DataSpec, raw: RawImages, violations: _Violations
) -> tuple[Float32Array, Int64Array]:
    if len(raw.pixels) == 0:
        raise DataError("E-DATA-EMPTY", "expected records, the data set has none")
    for kind, broken in raw.broken.items():
        violations.add("image", kind, np.array(broken) - 1)
    low, high = data.range
    flat = raw.pixels.reshape(len(raw.pixels), -1)
    finite = np.isfinite(flat).all(axis=1)
    violations.add("image", "not finite", np.flatnonzero(~finite))
    outside = finite & ((flat.min(axis=1) < low) | (flat.max(axis=1) > high))
    violations.add("image", "outside the declared range", np.flatnonzero(outside))
    texts = np.array([canonical_text(label) for label in raw.labels], dtype=object)
    labels = _encode_labels(data, texts, violations)
    _refuse(violations)
    scaled = (raw.pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0), labels


def _refuse(violations: _Violations) -> None:
    if violations.lines:
        raise DataError(
            "E-DATA-CONTRACT",
            f"expected data that keeps the run's contract, got {len(violations.lines)} kinds of "
            "violation",
            problems=tuple(violations.lines),
            hint="correct these records, or ask the operator to widen the contract",
        )
