"""The data contract of a run: what every owner's data set must look like, from public knowledge.

Ranges, categories and classes are declared by the operator before anybody looks at records, so that
standardisation learns nothing from them. ``learning/contract.py`` applies the contract at the
owner.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Mapping  # noqa: TC003 - read when a file is converted
from dataclasses import dataclass, field

MISSING_WORDS = ("", "?", "NA", "NaN", "nan")  # what a cell without a value says in most files

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")


class ColumnKind(enum.Enum):
    """How one column of a table becomes numbers."""

    NUMBER = "number"  # (x - low) / (high - low), clipped to [0, 1] by the declared range
    CATEGORY = "category"  # one-hot over the declared values
    BOOLEAN = "boolean"  # 0 or 1


class DataKind(enum.Enum):
    """What a data set looks like on the outside."""

    TABLE = "table"
    IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """One declared column of a table.

    Attributes:
        type: how the column becomes numbers.
        range: ``(low, high)`` public bounds of a number; values outside are violations.
        values: the public list of categories, or the two words of a boolean as (false, true).
        missing: the constant that stands in for an empty cell (a number, or one of ``values``);
            without it an empty cell is a violation.
        missing_values: words or numbers that mean "not measured" in the file, beside an empty cell.
        flag_missing: adds one 0/1 feature that says the cell was empty.
    """

    type: ColumnKind
    range: tuple[float, float] | None = None
    values: tuple[str, ...] = ()
    missing: float | str | None = None
    missing_values: tuple[str, ...] = MISSING_WORDS
    flag_missing: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.type is ColumnKind.NUMBER:
            if self.range is None:
                yield "range", "missing: a number needs range = [low, high], from public knowledge"
            elif not (math.isfinite(self.range[0]) and self.range[0] < self.range[1]):
                yield "range", f"expected low < high, both finite, got {list(self.range)}"
        elif self.range is not None:
            yield "range", f"only a number has a range, this column is a {self.type.value}"
        if self.type is ColumnKind.CATEGORY and len(self.values) < 2:
            lacks = "" if self.values else "missing: "
            yield "values", f"{lacks}a category needs at least two values, from public knowledge"
        if self.type is ColumnKind.BOOLEAN and len(self.values) not in (0, 2):
            yield "values", "a boolean needs its two words, as [false, true], or none"
        if len(set(self.values)) != len(self.values):
            yield "values", "expected each value once"
        if self.type is ColumnKind.NUMBER and isinstance(self.missing, str):
            yield "missing", "expected a number to stand in for an empty cell"
        stand_in = self.missing if self.type is ColumnKind.CATEGORY else None
        if stand_in is not None and str(stand_in) not in self.values:
            yield "missing", "expected one of `values` to stand in for an empty cell"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The data contract: what every owner's data set must look like.

    Attributes:
        kind: table or image.
        label: the label's column (table); an image's label is its folder or the array ``y``.
        classes: the label's values, in class order, as they are written in the file.
        label_map: further spellings of a class in the file, such as ``{"2" = "1"}``.
        columns: declared columns by name (table).
        shape: ``(channels, height, width)`` (image).
        range: the range of a pixel in the file (image); scaled to [0, 1].
        ignore_undeclared: columns of the file that are not declared are dropped instead of refused.
    """

    kind: DataKind = DataKind.TABLE
    label: str = "label"
    classes: tuple[str, ...]
    label_map: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    range: tuple[float, float] = (0.0, 255.0)
    ignore_undeclared: bool = True

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            yield "classes", "expected at least two different classes"
        for source, target in self.label_map.items():
            if target not in self.classes:
                yield f"label_map.{source}", f"expected one of `classes`, got {target!r}"
        if self.kind is DataKind.TABLE:
            if not self.columns:
                yield "columns", "missing: a table needs at least one declared column"
            if self.label in self.columns:
                yield (
                    f"columns.{self.label}",
                    "the label is declared by `label` and `classes` alone",
                )
            if self.shape is not None:
                yield "shape", "only images have a shape"
        elif self.shape is None:
            yield "shape", "missing: images need shape = [channels, height, width]"
        elif min(self.shape) < 1:
            yield "shape", "expected channels, height and width of at least 1"


def canonical_text(value: object) -> str:
    """Return a cell as text: trimmed, and 3.0 written as 3, so that a category has one spelling."""
    text = str(value).strip()
    whole = _WHOLE_NUMBER.fullmatch(text)
    return whole.group(1) if whole else text


def parse_number(text: str) -> float:
    """Return the number that a cell's text is; NaN if it is none."""
    try:
        # Python reads 1_000 as a number; a file that has it means something else.
        return float(text) if "_" not in text else math.nan
    except ValueError:
        return math.nan
