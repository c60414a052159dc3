"""The words for problems of configurations and data: what was expected, what came, what is near.

Data are named by column, count and place in the file, never by a value.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN_CHARACTERS = 60
_SHOWN_ROWS = 10


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the types of a dataclass' fields, with names resolved."""
    return typing.get_type_hints(kind)


def nearest_key(key: str, hints: Mapping[str, Any]) -> str:
    """Return the end of a sentence about an unknown key: what it may have meant."""
    if close := difflib.get_close_matches(key.lower().replace("-", "_"), hints, n=1):
        return f" (did you mean {close[0]}?)"
    for name, hint in hints.items():
        inner = _dataclass_in(hint)
        if inner is not None and key in {f.name for f in dataclasses.fields(inner)}:
            return f" (did you mean {name}.{key}?)"
    return f"; expected one of {', '.join(hints)}" if hints else "; expected no keys here"


def _dataclass_in(kind: Any) -> Any:  # noqa: ANN401
    candidates = (kind, *typing.get_args(kind))
    return next((c for c in candidates if dataclasses.is_dataclass(c)), None)


def described(kind: Any) -> str:  # noqa: ANN401
    """Say what a type expects."""
    kind = getattr(kind, "__supertype__", kind)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in (*names, Path):
        return names.get(kind, "a path")
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        present = [k for k in typing.get_args(kind) if k is not type(None)]
        return " or ".join(described(k) for k in present)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(f'"{member.value}"' for member in kind)
    return "a list" if typing.get_origin(kind) is tuple else "a table"


def shown(raw: object, *, secret: bool) -> str:
    """Say what came instead, on one line, and nothing of a secret."""
    if secret:
        return "something else (not shown)"
    if isinstance(raw, Mapping):
        return "a table"
    if isinstance(raw, (list, tuple)):
        return "a list"
    if isinstance(raw, bool):
        return str(raw).lower()
    text = repr(raw) if not isinstance(raw, str) else f"the text {json.dumps(raw)}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where records stand in their owner's file: what a message says, and a person looks up.

    Attributes:
        word: what is counted, from 1: each ``line`` of a text file, its header and empty ones
            included; each ``row`` of a table that has no lines; each ``image`` in sorted order.
        numbers: one per record; a record of several lines goes by its first.
        file: the file's name.
    """

    word: str = "row"
    numbers: Sequence[int]
    file: str = ""

    def some(self, positions: Iterable[int]) -> str:
        """Say how many records (positions from 0) are meant, and where the first of them stand."""
        found = [int(self.numbers[position]) for position in positions]
        listed = ", ".join(map(str, found[:_SHOWN_ROWS]))
        more = ", ..." if len(found) > _SHOWN_ROWS else ""
        several = "s" if len(found) > 1 else ""
        of = f" of {self.file}" if self.file else ""
        return (
            f"{len(found)} record{several} ({self.word}{several} {listed}{more}{of}{self._count})"
        )

    @property
    def _count(self) -> str:
        if self.word == "line":  # as every editor counts
            return ""
        order = ", in the order of names" if self.word == "image" else ""
        return f"; the first is {self.word} 1{order}"


def rows_line(column: str, kind: str, places: Places, positions: Iterable[int]) -> str:
    """Say which records (positions from 0) break a rule about a column."""
    return f"{column}: {kind}: {places.some(positions)}"


def some_of(names: Iterable[str], *, most: int = 5) -> str:
    """Return names in order for a sentence or a table; of many the first few, and how many more."""
    ordered = sorted(names)
    more = [f"and {len(ordered) - most} more"] if len(ordered) > most else []
    return ", ".join([*ordered[:most], *more])
