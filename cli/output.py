"""What people and scripts see: tables or JSON on standard output, errors on standard error.

An error is rendered as ``error:``, its problems and a ``hint:``, and becomes the exit code of its
family; under ``--json`` it is the last line of standard error, one JSON object. What nobody
foresaw is exit code 70: its type and place are shown, not its text, which may hold a value of
somebody's record; ``TACIT_DEBUG=1`` shows everything. Text that comes from another machine is
stripped of control characters before it reaches a terminal.
"""

from __future__ import annotations

import contextlib
import enum
import json as json_module
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from tacit.core.errors import TacitError
from tacit.core.plain import plain

__all__ = [
    "Table",
    "emit",
    "foreign_output_aside",
    "plain",
    "render_failure",
    "table_text",
    "visible",
]

EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows for people.

    Attributes:
        columns: headings.
        rows: one sequence of cells per row; None is shown as a dash.
        empty: what to say when there are no rows.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    empty: str = "Nothing to show."


def emit(
    value: object, *, json: bool, table: Table | None = None, stream: IO[str] | None = None
) -> None:
    """Print a result: as JSON, or as a table, or as one ``key: value`` per line.

    Args:
        value: dataclasses, mappings, sequences and scalars.
        json: print ``value`` as JSON, for scripts.
        table: what people see instead of ``value``.
        stream: where to print instead of standard output.
    """
    out = sys.stdout if stream is None else stream
    if json:
        text = json_module.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    elif table is not None:
        text = table_text(table)
    else:
        text = _lines_of(plain(value))
    print(text, file=out)


@contextlib.contextmanager
def foreign_output_aside() -> Iterator[None]:
    """Send to standard error what apps print meanwhile: standard output holds our result alone.

    Somebody's app, factory or library may print when it is imported and when it runs, from Python
    or not, and so may the processes that it starts.
    """
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # one of the two is closed: nothing to mix
            _flush_output()
            saved = os.dup(_STDOUT)
            stack.callback(os.close, saved)
            os.dup2(_STDERR, _STDOUT)
            stack.callback(os.dup2, saved, _STDOUT)
            stack.callback(_flush_output)
        yield


def _flush_output() -> None:
    """Write what Python holds back for the descriptor of standard output."""
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()


def table_text(table: Table) -> str:
    """Return aligned columns, numbers to the right."""
    if not table.rows:
        return table.empty
    cells = [[_cell(value) for value in row] for row in table.rows]
    columns = range(len(table.columns))
    numeric = [all(_is_number(row[c]) for row in table.rows) for c in columns]
    widths = [max(len(table.columns[c]), *(len(row[c]) for row in cells)) for c in columns]
    lines = [
        "  ".join(
            row[c].rjust(widths[c]) if numeric[c] else row[c].ljust(widths[c]) for c in columns
        ).rstrip()
        for row in [list(table.columns), *cells]
    ]
    return "\n".join(lines)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def visible(text: str) -> str:
    """Return text on one line with control characters written out, safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What went wrong, and what to do next.

    Attributes:
        code: stable identifier.
        message, problems, hint: as the error has them, or words of our own.
        exit_code: of the process.
    """

    code: str
    message: str
    problems: tuple[str, ...] = ()
    hint: str = ""
    exit_code: int

    def text(self) -> str:
        """Return what people read."""
        lines = [f"error: {visible(self.message)} [{self.code}]"]
        lines += [f"  {visible(problem)}" for problem in self.problems]
        if self.hint:
            lines.append(f"hint: {visible(self.hint)}")
        return "\n".join(lines)

    def line(self) -> str:
        """Return what scripts read: a JSON object on one line."""
        return json_module.dumps({"error": plain(self)}, ensure_ascii=False)


def render_failure(
    error: BaseException, *, debug: bool = False, json: bool = False, stream: IO[str] | None = None
) -> int:
    """Print what went wrong and what to do next; return the exit code.

    Args:
        error: what left a verb.
        debug: print the traceback before it.
        json: print one line that holds a JSON object, for scripts; nothing follows it.
        stream: where to print instead of standard error.
    """
    out = sys.stderr if stream is None else stream
    if debug and not isinstance(error, (click.ClickException, click.Abort)):
        traceback.print_exception(error, file=out)
    failure = _failure(error)
    if json:
        text = failure.line()
    elif isinstance(error, click.exceptions.NoArgsIsHelpError):
        text = error.format_message()
    elif failure.exit_code == EXIT_INTERRUPTED:
        text = failure.message
    else:
        text = failure.text()
    with contextlib.suppress(BrokenPipeError):
        print(text, file=out, flush=True)
    return failure.exit_code


def _failure(error: BaseException) -> _Failure:
    if isinstance(error, TacitError):
        return _Failure(
            code=error.code,
            message=error.message,
            problems=tuple(getattr(error, "problems", ())),
            hint=error.hint,
            exit_code=error.exit_code,
        )
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _Failure(code="E-INTERRUPTED", message="interrupted", exit_code=EXIT_INTERRUPTED)
    if isinstance(error, click.ClickException):
        return _misuse(error)
    return _bug(error)


def _misuse(error: click.ClickException) -> _Failure:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = "expected a command"
    return _Failure(
        code="E-USAGE",
        message=message,
        hint="" if context is None else f"{context.command_path} --help",
        exit_code=EXIT_USAGE,
    )


def _bug(error: BaseException) -> _Failure:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return _Failure(
        code="E-BUG",
        message=f"unexpected {type(error).__name__}{place}: this is a bug in tacit",
        hint="Set TACIT_DEBUG=1 and run it again to see where; look before you share the output.",
        exit_code=EXIT_BUG,
    )


def _lines_of(value: object, indent: str = "") -> str:
    if isinstance(value, Mapping):
        return "\n".join(_entry(key, item, indent) for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_entry("-", item, indent) for item in value) or f"{indent}-"
    return indent + _cell(value)


def _entry(key: object, item: object, indent: str) -> str:
    name = f"{indent}{visible(str(key))}" + ("" if key == "-" else ":")
    if isinstance(item, list) and item and not any(isinstance(i, (Mapping, list)) for i in item):
        return f"{name} {', '.join(_cell(value) if value != '' else '(empty)' for value in item)}"
    if isinstance(item, (Mapping, list)) and item:
        return f"{name}\n{_lines_of(item, indent + '  ')}"
    return f"{name} {_cell(None if item in ({}, []) else item)}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(str(value.value if isinstance(value, enum.Enum) else value))
