"""Configuration from the environment: TACIT_SERVER_LISTEN stands for the key ``listen``.

Only keys of fixed tables can be set this way; tables whose keys the user chooses belong in the
file. A variable with the prefix that fits no key is a problem, since it was surely meant to do
something; ``<PREFIX>_HOME`` names the state directory and is left alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EnvironmentValues:
    """What the environment says.

    Attributes:
        values: path of the key to (variable, plain value).
        problems: one line per variable that fits nothing or cannot be read.
    """

    values: Mapping[tuple[str, ...], tuple[str, Any]]
    problems: tuple[str, ...]


def environment_values(
    kind: type[Any], environ: Mapping[str, str], *, prefix: str
) -> EnvironmentValues:
    """Read every variable that begins with ``prefix`` as a key of ``kind``."""
    start = prefix.rstrip("_") + "_"
    known = {start + "_".join(path).upper(): (path, hint) for path, hint in _settable(kind, ())}
    values: dict[tuple[str, ...], tuple[str, Any]] = {}
    problems: list[str] = []
    for name in sorted(name for name in environ if name.startswith(start)):
        if name == f"{start}HOME":
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            nearest = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"environment {name}: unknown variable{nearest}")
            continue
        path, hint = known[name]
        try:
            values[path] = (name, _plain(environ[name], hint))
        except ValueError:
            problems.append(f"environment {name}: expected a value as it stands in TOML")
    return EnvironmentValues(values=values, problems=tuple(problems))


def _settable(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint = _without_none(hints[item.name])
        if dataclasses.is_dataclass(hint):
            yield from _settable(hint, (*path, item.name))
        elif typing.get_origin(hint) not in (Mapping, dict):
            yield (*path, item.name), hint


def _without_none(hint: Any) -> Any:  # noqa: ANN401
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        present = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return present[0] if len(present) == 1 else hint
    return getattr(hint, "__supertype__", hint)


def _plain(text: str, hint: Any) -> Any:  # noqa: ANN401
    """Return the variable's text as a plain value of the kind that the key has."""
    if hint in (str, Path) or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return text
    if typing.get_origin(hint) is typing.Literal:
        return text
    if typing.get_origin(hint) is tuple and not text.lstrip().startswith("["):
        inner = typing.get_args(hint)[0]
        return [_plain(part.strip(), inner) for part in text.split(",") if part.strip()]
    return tomllib.loads(f"value = {text}\n")["value"]
