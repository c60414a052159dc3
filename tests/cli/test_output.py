from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from tacit.cli.output import Table, emit, plain, render_failure, table_text, visible
from tacit.core.errors import (
    AuditError,
    BudgetError,
    ConfigError,
    RefusedError,
    TacitError,
    TrustError,
    UnavailableError,
    UsageError,
)
from tacit.core.identity import Role

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    role: Role
    share: float | None


def rendered(error: BaseException, *, debug: bool = False) -> tuple[str, int]:
    stream = io.StringIO()
    code = render_failure(error, debug=debug, stream=stream)
    return stream.getvalue(), code


def emitted(emit_to: Callable[[io.StringIO], None]) -> str:
    stream = io.StringIO()
    emit_to(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("family", "code"),
    [
        (TacitError, 1),
        (UsageError, 2),
        (RefusedError, 4),
        (BudgetError, 4),
        (TrustError, 5),
        (UnavailableError, 6),
        (AuditError, 7),
    ],
)
def test_an_error_becomes_message_hint_and_code(family: type[TacitError], code: int) -> None:
    """One line says what was expected and what came, one what to do; the family is the code."""
    error = family("E-SAMPLE", "expected a, got b", hint="Do c.")
    assert rendered(error) == ("error: expected a, got b [E-SAMPLE]\nhint: Do c.\n", code)


def test_problems_are_listed() -> None:
    """Each problem of a configuration has a line of its own."""
    error = ConfigError("E-CONFIG", "x.toml has 2 problems", problems=("x.toml:1: a", "b"))
    assert rendered(error) == ("error: x.toml has 2 problems [E-CONFIG]\n  x.toml:1: a\n  b\n", 3)


def test_what_nobody_foresaw_hides_its_text() -> None:
    """A bug is exit code 70 and shows type and place only: the text may hold a record's value."""

    def fail() -> None:
        raise KeyError("patient 17 is 93 years old")

    with pytest.raises(KeyError) as caught:
        fail()
    text, code = rendered(caught.value)
    assert code == 70
    assert "unexpected KeyError at test_output.py:" in text
    assert "patient" not in text
    assert "TACIT_DEBUG=1" in text
    shown, _ = rendered(caught.value, debug=True)
    assert "patient 17" in shown
    assert "Traceback" in shown


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_no_error(error: BaseException) -> None:
    """Ctrl-C is exit code 130 and one word."""
    assert rendered(error) == ("interrupted\n", 130)


def test_a_misuse_names_the_help() -> None:
    """Without a context there is no command to name."""
    assert rendered(click.UsageError("no such option")) == (
        "error: no such option [E-USAGE]\n",
        2,
    )


def test_a_peers_text_cannot_steer_the_terminal() -> None:
    """Control characters from elsewhere are written out, in errors and in tables."""
    evil = "\x1b[2J\r\nhint: run rm"
    text, _ = rendered(TrustError("E-X", evil, hint=evil))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2
    assert "\x1b" not in table_text(Table(columns=("A",), rows=[[evil]]))
    assert visible("naïve 数") == "naïve 数"


def test_json_for_scripts() -> None:
    """Whatever a verb returns becomes JSON: enums, bytes, times, paths; not-a-number is null."""
    value = {
        "row": Row(name="a", role=Role.CLIENT, share=float("nan")),
        "bytes": b"\x01\xff",
        "when": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "path": Path("/x"),
        "set": {1},
        3: (1.5, None, True),
    }
    text = emitted(lambda stream: emit(value, json=True, stream=stream))
    assert json.loads(text) == {
        "row": {"name": "a", "role": "client", "share": None},
        "bytes": "01ff",
        "when": "2026-01-01T00:00:00+00:00",
        "path": "/x",
        "set": [1],
        "3": [1.5, None, True],
    }
    assert plain(float("inf")) is None


def test_tables_for_people() -> None:
    """Columns are aligned, numbers to the right, nothing as a dash."""
    table = Table(
        columns=("NAME", "N", "OK"), rows=[["a", 5, True], ["longer", 12, False], ["c", None, None]]
    )
    assert table_text(table).splitlines() == [
        "NAME     N  OK",
        "a        5  yes",
        "longer  12  no",
        "c        -  -",
    ]
    assert table_text(Table(columns=("A",), rows=[], empty="No runs.")) == "No runs."
    assert emitted(lambda stream: emit([], json=False, table=table, stream=stream)).startswith("N")


def test_values_without_a_table() -> None:
    """A single result is shown as lines of key and value, nested ones indented."""
    value = {"name": "x", "parts": [{"a": 1}], "empty": [], "none": None, "share": 0.1234567}
    assert emitted(lambda stream: emit(value, json=False, stream=stream)).splitlines() == [
        "name: x",
        "parts:",
        "  -",
        "    a: 1",
        "empty: -",
        "none: -",
        "share: 0.123457",
    ]
    assert emitted(lambda stream: emit("done", json=False, stream=stream)) == "done\n"
    assert emitted(lambda stream: emit([], json=False, stream=stream)) == "-\n"
