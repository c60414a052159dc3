"""From plain values to typed ones: strict, complete in its complaints, and nothing guessed.

Rules: unknown keys are refused with the nearest known one; a whole number passes for a number but a
truth value never passes for either; infinity and "not a number" are refused; whole numbers fit in
64 bits; text is valid Unicode. Lists become tuples, tables become dataclasses or dicts. A value
that cannot be converted is reported and the reading goes on, so that every problem of a file is
found in one go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tacit.core.wording import described, hints_of, nearest_key, shown

T = TypeVar("T")
Location = tuple[str, ...]

_MAX_INTEGER = 2**63 - 1
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class _Bad:
    """Stands for a value that could not be converted; its problem has been noted."""


_BAD = _Bad()


@dataclass(kw_only=True)
class Conversion:
    """One reading of one tree of plain values.

    Attributes:
        source: what to call the input in problems.
        origins: where each key of the input came from, such as ``server.toml:12``.
        problems: what was wrong, one line each, in the order of the input.
    """

    source: str
    origins: Mapping[Location, str]
    problems: list[str] = field(default_factory=list)

    def convert(self, tree: object, kind: type[T]) -> T:
        """Return the tree as ``kind``; the result counts only while ``problems`` is empty."""
        value: T = self._table(tree, kind, (), secret=False)
        return value

    def origin(self, path: Location) -> str:
        """Return where the value at ``path`` came from: its own place, or that of its table."""
        for length in range(len(path), 0, -1):
            if found := self.origins.get(path[:length]):
                return found
        return self.source

    def _note(self, path: Location, text: str) -> _Bad:
        key = dotted(path)
        self.problems.append(
            f"{self.origin(path)}: {key}: {text}" if key else f"{self.source}: {text}"
        )
        return _BAD

    def _value(  # noqa: PLR0911 - one line per kind of value
        self,
        raw: object,
        kind: Any,  # noqa: ANN401
        path: Location,
        *,
        secret: bool,
    ) -> Any:  # noqa: ANN401
        kind = getattr(kind, "__supertype__", kind)  # a NewType
        origin = typing.get_origin(kind)
        if kind is Any:
            return raw
        if origin in (typing.Union, types.UnionType):
            return self._one_of(raw, typing.get_args(kind), path, secret=secret)
        if origin is tuple:
            return self._tuple(raw, typing.get_args(kind), path, secret=secret)
        if origin in (Mapping, dict):
            return self._mapping(raw, typing.get_args(kind)[1], path, secret=secret)
        if origin is typing.Literal:
            return self._choice(raw, {str(a): a for a in typing.get_args(kind)}, path)
        if dataclasses.is_dataclass(kind):
            return self._table(raw, kind, path, secret=secret)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return self._choice(raw, {str(member.value): member for member in kind}, path)
        return self._scalar(raw, kind, path, secret=secret)

    def _table(self, raw: object, kind: Any, path: Location, *, secret: bool) -> Any:  # noqa: ANN401
        if not isinstance(raw, Mapping):
            return self._note(path, f"expected a table, got {shown(raw, secret=secret)}")
        hints = hints_of(kind)
        known = {f.name: f for f in dataclasses.fields(kind) if f.init}
        for key in (str(key) for key in raw if key not in known):
            self._note((*path, key), f"unknown key{nearest_key(key, hints_of(kind))}")
        values: dict[str, Any] = {}
        bad: set[str] = set()
        for name, description in known.items():
            inner = (*path, name)
            hidden = secret or bool(description.metadata.get("secret"))
            if name in raw:
                values[name] = self._value(raw[name], hints[name], inner, secret=hidden)
                if values[name] is _BAD:
                    bad.add(name)
                    del values[name]
            elif _required(description):
                self._note(inner, f"missing: expected {described(hints[name])}")
                bad.add(name)
        if not bad:
            value = kind(**values)
            return _BAD if self._broken_rules(value, path, bad) else value
        with contextlib.suppress(AttributeError):  # a rule about what could not be read
            self._broken_rules(_partial(kind, values), path, bad)
        return _BAD

    def _broken_rules(self, value: object, path: Location, bad: set[str]) -> int:
        """Note the rules that a value breaks, less those about keys that were bad already."""
        rules: Callable[[], Iterable[tuple[str, str]]] = getattr(value, "problems", tuple)
        found = 0
        for key, text in rules():
            if key.split(".")[0] not in bad:
                self._note((*path, *(part for part in key.split(".") if part)), text)
                found += 1
        return found

    def _mapping(self, raw: object, kind: Any, path: Location, *, secret: bool) -> Any:  # noqa: ANN401
        if not isinstance(raw, Mapping):
            return self._note(path, f"expected a table, got {shown(raw, secret=secret)}")
        values: dict[str, Any] = {}
        for key, item in raw.items():
            name = self._text(key, (*path, str(key)))
            values[str(key)] = self._value(item, kind, (*path, str(key)), secret=secret)
            if name is _BAD:
                return _BAD
        if any(value is _BAD for value in values.values()):
            return _BAD
        return values

    def _tuple(self, raw: object, kinds: Sequence[Any], path: Location, *, secret: bool) -> Any:  # noqa: ANN401
        if not isinstance(raw, (list, tuple)):
            return self._note(path, f"expected a list, got {shown(raw, secret=secret)}")
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(raw)
        if len(raw) != len(kinds):
            return self._note(path, f"expected a list of {len(kinds)} values, got {len(raw)}")
        items = [
            self._value(item, kind, (*path, str(place)), secret=secret)
            for place, (item, kind) in enumerate(zip(raw, kinds, strict=True))
        ]
        return _BAD if any(item is _BAD for item in items) else tuple(items)

    def _one_of(self, raw: object, kinds: Sequence[Any], path: Location, *, secret: bool) -> Any:  # noqa: ANN401
        if raw is None and type(None) in kinds:
            return None
        present = [kind for kind in kinds if kind is not type(None)]
        exact = [kind for kind in present if kind is type(raw)]
        if len(present) == 1 or exact:
            return self._value(raw, (exact or present)[0], path, secret=secret)
        for kind in present:
            attempt = Conversion(source=self.source, origins=self.origins)
            value = attempt._value(raw, kind, path, secret=secret)
            if not attempt.problems:
                return value
        expected = " or ".join(described(kind) for kind in present)
        return self._note(path, f"expected {expected}, got {shown(raw, secret=secret)}")

    def _choice(self, raw: object, members: Mapping[str, Any], path: Location) -> Any:  # noqa: ANN401
        if not isinstance(raw, bool) and str(raw) in members:
            return members[str(raw)]
        close = difflib.get_close_matches(str(raw), members, n=1)
        nearest = f' (did you mean "{close[0]}"?)' if close else ""
        allowed = ", ".join(f'"{name}"' for name in members)
        return self._note(
            path, f"expected one of {allowed}, got {shown(raw, secret=False)}{nearest}"
        )

    def _scalar(self, raw: object, kind: Any, path: Location, *, secret: bool) -> Any:  # noqa: ANN401
        if kind is bool and isinstance(raw, bool):
            return raw
        if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
            if -_MAX_INTEGER <= raw <= _MAX_INTEGER:
                return raw
            return self._note(path, "expected a whole number of at most 64 bits")
        if kind is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
            return self._number(raw, path)
        if kind in (str, Path) and isinstance(raw, (str, Path)):
            text = self._text(str(raw), path)
            return text if text is _BAD else kind(text)
        if kind is object or kind not in (bool, int, float, str, Path):
            raise TypeError(f"{kind} has no rule for being read from a configuration")
        return self._note(path, f"expected {described(kind)}, got {shown(raw, secret=secret)}")

    def _number(self, raw: float, path: Location) -> Any:  # noqa: ANN401
        try:
            number = float(raw)
        except OverflowError:
            number = math.inf
        return number if math.isfinite(number) else self._note(path, "expected a finite number")

    def _text(self, raw: object, path: Location) -> Any:  # noqa: ANN401
        if isinstance(raw, str) and "\0" not in raw and raw.isascii():
            return raw
        try:
            if not isinstance(raw, str) or "\0" in raw:
                raise ValueError(raw)  # noqa: TRY301 - one way out
            raw.encode("utf-8")
        except ValueError:
            return self._note(path, "expected text in valid Unicode without zero characters")
        return raw


def dotted(path: Location) -> str:
    """Return a key as it would stand in TOML."""
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part) for part in path)


def leaves_of(value: object, path: Location = ()) -> Iterator[Location]:
    """Yield the path of every value of a configuration that is not itself a table."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from leaves_of(getattr(value, item.name), (*path, item.name))
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves_of(item, (*path, str(key)))
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        for place, item in enumerate(value):
            yield from leaves_of(item, (*path, str(place)))
    else:
        yield path


def _partial(kind: Any, values: Mapping[str, Any]) -> object:  # noqa: ANN401
    """Return a value of which only some keys could be read, so that its other rules can run."""
    partial: object = object.__new__(kind)
    for item in dataclasses.fields(kind):
        if item.name in values:
            object.__setattr__(partial, item.name, values[item.name])
        elif item.default_factory is not dataclasses.MISSING:
            object.__setattr__(partial, item.name, item.default_factory())
        elif item.default is not dataclasses.MISSING:
            object.__setattr__(partial, item.name, item.default)
        elif (hint := hints_of(kind)[item.name]) in (int, float):
            object.__setattr__(partial, item.name, hint(1))
    return partial


def _required(description: dataclasses.Field[Any]) -> bool:
    return (
        description.default is dataclasses.MISSING
        and description.default_factory is dataclasses.MISSING
    )
