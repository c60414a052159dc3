"""The ledger's file: SQLite, flushed at every commit, and its failures by name.

Trusts: SQLite and the file system. Promises: mode 0600; what is committed survives the death of the
machine (WAL with synchronous = FULL); the schema itself refuses to change or drop a row. Rules
about what the rows say are in ``ledger.py``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from tacit.core.errors import TrustError, UnavailableError
from tacit.core.files import write_error
from tacit.privacy.ledger_entries import RESTORE_HINT, Row, damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_VERSION = 1
_WAIT_S = 60.0  # another process may hold the file while its accountant works
_FIRST = -(2**63)  # a changed number may be any
_SCHEMA = """
CREATE TABLE entries (
  sequence INTEGER PRIMARY KEY,
  previous BLOB NOT NULL,
  content BLOB NOT NULL,
  hash BLOB NOT NULL
);
CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_never_go BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


def connected(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; make it, with mode 0600, unless it is only read."""
    try:
        if not read_only:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise write_error(path, error) from error
    with named():
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_WAIT_S,
        )
    connection.text_factory = bytes  # whatever a damaged row holds can be read
    if read_only:
        connection.execute("PRAGMA writable_schema = ON")  # a truncated file too; writes nothing
    return connection


def prepare(connection: sqlite3.Connection, *, read_only: bool) -> bool:
    """Check the version, have commits flushed, and return whether the file is empty."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > _VERSION:
        raise UnavailableError(
            "E-LEDGER-VERSION",
            f"expected a ledger of version {_VERSION} or less, got {version}",
            hint="A later version of tacit wrote it: install that version.",
        )
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return version == 0


def begin(connection: sqlite3.Connection, first: Callable[[], Sequence[object]]) -> None:
    """Make an empty file a ledger with its first entry, at once: so none is ever without one."""
    connection.execute("BEGIN IMMEDIATE")  # another process may be here too
    if not connection.execute("PRAGMA user_version").fetchone()[0]:
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", first())
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def stored_rows(connection: sqlite3.Connection, since: int = _FIRST) -> Iterator[Row]:
    """Yield what is stored from an entry on, undamaged or not, by its number.

    Rows are asked for one by one, so that all that precede a damaged page are given.

    Raises:
        UnavailableError: the file cannot be used at present.
        TrustError: the file cannot be read further (``E-LEDGER-CORRUPT``, naming the entry).
    """
    query = (
        "SELECT sequence, previous, content, hash FROM entries WHERE sequence {} ? "
        "ORDER BY sequence LIMIT 1"
    )
    comparison, last, expected = ">=", since, max(since, 1)
    while True:
        try:
            with named():
                row = connection.execute(query.format(comparison), (last,)).fetchone()
        except TrustError as error:
            why = f"it cannot be read from the file ({error.__cause__})"
            raise damaged(expected, why) from error
        if row is None:
            return
        yield Row(*row)
        comparison, last, expected = ">", row[0], expected + 1


def file_id(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one of the same name; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def verify_in_place(path: Path, opened: tuple[int, int]) -> None:
    """Check that the file that was opened is still the one of that name.

    Raises:
        TrustError: ``E-LEDGER-CORRUPT``: what is written here would be in no file of that name.
    """
    if file_id(path) != opened:
        raise TrustError(
            "E-LEDGER-CORRUPT",
            f"expected the ledger at {path} to stay the file that was opened, got another or none",
            hint="It was moved or replaced while this process used it: stop the node, put the file "
            f"back that was there, and see `tacit ledger verify`. {RESTORE_HINT}",
        )


def verify_pages(connection: sqlite3.Connection, *, after: int) -> None:
    """Check that the file's pages agree with one another.

    Raises:
        TrustError: ``E-LEDGER-CORRUPT``, naming what comes after the entries that hold.
    """
    try:
        with named():
            (said,) = connection.execute("PRAGMA quick_check").fetchone()
    except TrustError as error:
        said = str(error.__cause__).encode()
    if said != b"ok":
        raise damaged(after + 1, "the file's pages disagree")


def written_by_others(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection has written to the file."""
    with named():
        return int(connection.execute("PRAGMA data_version").fetchone()[0])


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Give what SQLite says its place in our tree.

    Raises:
        UnavailableError: the disk is full, or the file cannot be used at present.
        TrustError: the file is no ledger, or its pages are damaged (``E-LEDGER-CORRUPT``).
    """
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter from its own texts
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise _unavailable(error) from error
        raise TrustError(
            "E-LEDGER-CORRUPT",
            f"expected a ledger, got a file that cannot be read as one: {error}",
            hint=RESTORE_HINT,
        ) from error


def _unavailable(error: sqlite3.Error) -> UnavailableError:
    """Return the error for a file that cannot be used at present."""
    if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
        return UnavailableError(
            "E-DISK-FULL",
            "expected room for an entry of the ledger, got a full disk",
            hint="Free some space on this disk; nothing leaves until the ledger can be written.",
        )
    return UnavailableError(
        "E-LEDGER-UNAVAILABLE",
        f"expected to use the ledger: {error}",
        hint="See the disk, and whether another process holds the state directory.",
    )
