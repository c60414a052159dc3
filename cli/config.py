"""`tacit config`: check a TOML file, and show every value with where it came from."""

from __future__ import annotations

import enum
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.cli.output import Table, emit, plain
from tacit.client.configuration import ClientConfig
from tacit.core.configuration import Resolved, parse_toml, read_config_text
from tacit.core.specification import RunSpec
from tacit.server.configuration import ServerConfig

app = typer.Typer(help="Check a TOML file, and show where each value comes from.")

_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")


class Kind(enum.Enum):
    """The three files that people write."""

    SERVER = "server"
    CLIENT = "client"
    RUN = "run"


_CLASSES: dict[Kind, tuple[type[Any], str]] = {
    Kind.SERVER: (ServerConfig, "TACIT_SERVER"),
    Kind.CLIENT: (ClientConfig, "TACIT_CLIENT"),
    Kind.RUN: (RunSpec, ""),
}

FileArgument = Annotated[Path, typer.Argument(help="A server.toml, client.toml or run.toml.")]
KindOption = Annotated[
    Kind | None, typer.Option(help="Which of the three it is, if its content does not tell.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def show(file: FileArgument, *, kind: KindOption = None, json: JsonOption = False) -> None:
    """Show every value of a file, defaults included, and where each came from."""
    found, resolved = _read(file, kind)
    values = {key: _value_at(resolved.value, key) for key in resolved.sources}
    rows = [(key, _shown(values[key]), origin) for key, origin in resolved.sources.items()]
    result = {
        "kind": found.value,
        "values": {
            key: {"value": _masked(plain(values[key])), "source": resolved.sources[key]}
            for key in values
        },
    }
    emit(result, json=json, table=Table(columns=("KEY", "VALUE", "SOURCE"), rows=rows))


@app.command()
def check(file: FileArgument, *, kind: KindOption = None, json: JsonOption = False) -> None:
    """Check a file; every problem is named with its line and key."""
    found, resolved = _read(file, kind)
    given = sum(origin != "default" for origin in resolved.sources.values())
    result = {"file": file, "kind": found, "given": given, "keys": len(resolved.sources)}
    line = f"{file} is a valid {found.value}.toml: {given} keys given, the rest are defaults."
    emit(result if json else line, json=json)


def _read(file: Path, kind: Kind | None) -> tuple[Kind, Resolved[Any]]:
    text = read_config_text(file)
    found = kind or recognise(text, file.name)
    cls, prefix = _CLASSES[found]
    return found, parse_toml(text, cls, source=file.name, environ=os.environ, prefix=prefix)


def recognise(text: str, name: str) -> Kind:
    """Return which of the three files a text is: by its keys, and by its name if they tie."""
    try:
        keys = set(tomllib.loads(text))
    except tomllib.TOMLDecodeError:  # the reader will say what is wrong with it
        keys = set()
    named = next((kind for kind in Kind if kind.value in name.lower()), Kind.SERVER)

    def score(kind: Kind) -> tuple[int, bool]:
        known = {field.name for field in fields(_CLASSES[kind][0])}
        return len(keys & known), kind is named

    return max(Kind, key=score)


def _value_at(value: object, key: str) -> object:
    for part in _parts(key):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part)
    return value


def _parts(key: str) -> list[str]:
    path: list[str] = []
    table: Any = tomllib.loads(f"{key} = 0")
    while isinstance(table, dict):
        path += table
        table = table[path[-1]]
    return path


def _shown(value: object) -> object:
    value = _masked(plain(value))
    if isinstance(value, (list, dict)):
        return ", ".join(str(item) for item in value) if value else "(empty)"
    return "(not set)" if value is None else value if value != "" else '""'


def _masked(value: Any) -> Any:  # noqa: ANN401 - JSON
    return _URL_PASSWORD.sub(r"\1***@", value) if isinstance(value, str) else value
