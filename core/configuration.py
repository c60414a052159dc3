"""The only reader of configuration: TOML or JSON in, frozen typed values out.

Every process has one TOML file, described by keyword-only dataclasses. Values come, in this order,
from the defaults of the class, the file, the environment and the flags; the result remembers where
each came from. All problems are reported at once, each with file, line and key, what was expected
and what came; an unknown key names the nearest known one. A dataclass may define ``problems()``,
which yields ``(key, text)`` for every rule that its values break.

A field whose metadata says ``{"secret": True}`` is never shown in a problem.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tacit.core.conversion import Conversion, dotted, leaves_of
from tacit.core.environment import environment_values
from tacit.core.errors import ConfigError, UnavailableError
from tacit.core.toml_lines import locate_keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")

_MAX_FILE_BYTES = 4 << 20  # a data contract of ten thousand columns is a tenth of it
_HINT = "Correct these places; `tacit config check FILE` tells whether all is well."


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[T]):
    """A configuration and where each of its values came from.

    Attributes:
        value: the frozen configuration.
        sources: dotted key to ``"default"``, ``"server.toml:12"``,
            ``"environment TACIT_SERVER_LISTEN"`` or ``"flag"``.
    """

    value: T
    sources: Mapping[str, str]


def load_config(
    path: Path,
    kind: type[T],
    *,
    environ: Mapping[str, str] | None = None,
    prefix: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Resolved[T]:
    """Read a TOML file into ``kind``; see :func:`parse_toml`.

    ``environ`` defaults to this process' environment, which is consulted only with a ``prefix``.

    Raises:
        ConfigError: E-CONFIG with all problems, or E-CONFIG-MISSING.
        UnavailableError: the file is there but cannot be read.
    """
    text = read_config_text(path)
    environment = os.environ if environ is None else environ
    return parse_toml(
        text, kind, source=path.name, environ=environment, prefix=prefix, overrides=overrides
    )


def read_config_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: there is no such file, it is too large, or it is not UTF-8.
        UnavailableError: the file is there but cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(
                "E-CONFIG", f"expected at most {_MAX_FILE_BYTES} bytes of TOML in {path}"
            )
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError as error:
        raise ConfigError(
            "E-CONFIG-MISSING",
            f"expected a configuration file at {path}, found none",
            hint="Check the path; deploy/ has a sample of every file.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "E-CONFIG",
            f"expected UTF-8 text in {path}, got other bytes at position {error.start}",
        ) from error
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE", f"expected to read {path}: {error.strerror or error}"
        ) from error


def parse_toml(
    text: str,
    kind: type[T],
    *,
    source: str,
    environ: Mapping[str, str] | None = None,
    prefix: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Resolved[T]:
    """Read TOML text into ``kind``.

    Args:
        text: the file's content.
        kind: a frozen, keyword-only dataclass.
        source: what to call the file in messages.
        environ: environment variables, of which those that begin with ``prefix`` are read.
        prefix: such as ``TACIT_SERVER``; the key ``limits.max_clients`` is then
            ``TACIT_SERVER_LIMITS_MAX_CLIENTS``.
        overrides: flags by dotted key; one that is None was not given.

    Raises:
        ConfigError: E-CONFIG, with every problem of file, environment and flags.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(source, (_syntax_problem(source, text, str(error)),)) from error
    origins = {path: f"{source}:{line}" for path, line in locate_keys(text).items()}
    problems: list[str] = []
    if prefix and environ is not None:
        found = environment_values(kind, environ, prefix=prefix)
        problems += found.problems
        for path, (name, value) in found.values.items():
            _place(tree, path, value)
            origins[path] = f"environment {name}"
    for key, value in (overrides or {}).items():
        if value is not None:
            _place(tree, tuple(key.split(".")), value)
            origins[tuple(key.split("."))] = "flag"
    conversion = Conversion(source=source, origins=origins)
    value = conversion.convert(tree, kind)
    problems += conversion.problems
    if problems:
        raise _wrong(source, tuple(problems))
    return Resolved(value=value, sources=_sources(value, tree, conversion))


def from_plain(data: Mapping[str, Any], kind: type[T], *, source: str = "specification") -> T:
    """Turn dicts, lists and scalars, such as parsed canonical JSON, into ``kind``.

    Raises:
        ConfigError: E-CONFIG with all problems.
    """
    conversion = Conversion(source=source, origins={})
    value = conversion.convert(data, kind)
    if conversion.problems:
        raise _wrong(source, tuple(conversion.problems))
    return value


def _wrong(source: str, problems: tuple[str, ...]) -> ConfigError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("E-CONFIG", f"{source} has {count}", problems=problems, hint=_HINT)


def _syntax_problem(source: str, text: str, message: str) -> str:
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if match is None:
        return f"{source}: expected TOML, got: {message}"
    line = match.group(1) or str(text.count("\n") + 1)
    return f"{source}:{line}: expected TOML, got: {message[: match.start()]}"


def _place(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:  # noqa: ANN401
    for part in path[:-1]:
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):  # the file put a scalar there: a problem of the file
            return
        tree = inner
    tree[path[-1]] = value


def _sources(value: object, tree: Mapping[str, Any], conversion: Conversion) -> dict[str, str]:
    return {
        dotted(path): conversion.origin(path) if _holds(tree, path) else "default"
        for path in leaves_of(value)
    }


def _holds(tree: object, path: tuple[str, ...]) -> bool:
    for part in path:
        if isinstance(tree, list):
            if not part.isdecimal() or int(part) >= len(tree):
                return False
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return False
    return True
