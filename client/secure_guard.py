"""What a node still knows of secure sums after a crash: a file of its own in the state directory.

One SQLite file, mode 0600, WAL with synchronous = FULL; it holds hashes, node ids and numbers, no
secret. Trusts: the file system to keep what was flushed, and nobody to put back an older copy.
Promises, beside those of ``privacy/secagg/guard.py``:

1. What a method has returned from is on the disk. What it cannot write it refuses, and nothing
   leaves.
2. Where the file is missing a new one is made, in which every run that the node's store knows is
   over: attempts may have been begun, and sums without noise opened, that nobody here remembers,
   and the server's word on that is not taken. So it is after a restore, since a backup holds no
   such file; and after a removal. A run that the store does not know is new to this node: the
   policy, or the owner, judges it as such, and its releases are charged again.

An attempt that ended before anything was revealed leaves some hundred bytes here for good.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

from tacit.core.errors import TrustError, UnavailableError
from tacit.core.files import sync_path, write_error
from tacit.privacy.secagg.guard import (
    begun_before,
    cohort_changed,
    revealed_before,
    run_over,
    second_vector,
    signed_before,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tacit.privacy.secagg.guard import Attempt, Reveal

GUARD_NAME = "secagg.sqlite"
_VERSION = 1
_WAIT_S = 60.0  # another process may hold the file
_ID_BYTES = 8
_SCHEMA = """
CREATE TABLE begun (
  run TEXT NOT NULL,
  round INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  terms BLOB NOT NULL,
  PRIMARY KEY (run, round, attempt)
);
CREATE TABLE sent (
  session BLOB NOT NULL,
  step INTEGER NOT NULL,
  digest BLOB NOT NULL,
  PRIMARY KEY (session, step)
);
CREATE TABLE signed (session BLOB PRIMARY KEY, statement BLOB NOT NULL);
CREATE TABLE revealed (
  session BLOB PRIMARY KEY,
  run TEXT NOT NULL,
  round INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  survivors BLOB NOT NULL,
  dropped BLOB NOT NULL,
  noised INTEGER NOT NULL
);
CREATE INDEX revealed_by_round ON revealed (run, round);
CREATE TABLE over (run TEXT PRIMARY KEY);
"""


class SqliteGuard:
    """A guard on the disk; safe to use from several threads.

    Every method raises UnavailableError where the file cannot be written: ``E-DISK-FULL``,
    ``E-SECAGG-STORE``.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _named(), _committed(self._connection):
            yield self._connection

    def begin(self, attempt: Attempt, *, terms: bytes) -> None:
        """See Guard."""
        with self._transaction() as connection:
            if _is_over(connection, attempt.run):
                raise run_over(attempt.run)
            try:
                connection.execute(
                    "INSERT INTO begun (run, round, attempt, terms) VALUES (?, ?, ?, ?)",
                    (*_key_of(attempt), terms),
                )
            except sqlite3.IntegrityError as error:
                raise begun_before(attempt) from error

    def send(self, session: bytes, *, step: int, digest: bytes) -> None:
        """See Guard."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO sent (session, step, digest) VALUES (?, ?, ?)",
                (session, step, digest),
            )
            known = connection.execute(
                "SELECT digest FROM sent WHERE session = ? AND step = ?", (session, step)
            ).fetchone()
            if known != (digest,):
                raise second_vector(step)

    def sign(self, session: bytes, *, statement: bytes) -> None:
        """See Guard."""
        with self._transaction() as connection:
            try:
                connection.execute(
                    "INSERT INTO signed (session, statement) VALUES (?, ?)", (session, statement)
                )
            except sqlite3.IntegrityError as error:
                raise signed_before() from error

    def reveal(self, session: bytes, *, attempt: Attempt, what: Reveal) -> None:
        """See Guard."""
        with self._transaction() as connection:
            if _is_over(connection, attempt.run):
                raise revealed_before("the run is over")
            if connection.execute(
                "SELECT 1 FROM revealed WHERE session = ?", (session,)
            ).fetchone():
                raise revealed_before("shares of this session have left")
            if set(what.survivors) & set(what.dropped):
                raise revealed_before("a member is named as survivor and as dropped")
            survivors, dropped = _ids(what.survivors), _ids(what.dropped)
            if not what.noised and _has_other_survivors(connection, attempt, survivors):
                raise cohort_changed()
            connection.execute(
                "INSERT INTO revealed (session, run, round, attempt, survivors, dropped, noised) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (session, *_key_of(attempt), survivors, dropped, what.noised),
            )

    def forget_run(self, run: str) -> None:
        """See Guard."""
        with self._transaction() as connection:
            sessions = "(SELECT session FROM revealed WHERE run = ?)"
            connection.execute(f"DELETE FROM sent WHERE session IN {sessions}", (run,))  # noqa: S608 - ours
            connection.execute(f"DELETE FROM signed WHERE session IN {sessions}", (run,))  # noqa: S608 - ours
            connection.execute("DELETE FROM revealed WHERE run = ?", (run,))
            connection.execute("DELETE FROM begun WHERE run = ?", (run,))
            connection.execute("INSERT OR IGNORE INTO over (run) VALUES (?)", (run,))


def open_guard(folder: Path, *, known_runs: Iterable[str]) -> SqliteGuard:
    """Open a node's guard, and make it where there is none.

    Args:
        folder: the state directory.
        known_runs: every run in the node's store; they are over where the file is made.

    Raises:
        UnavailableError: the file cannot be opened or made, or is of a later version.
        TrustError: it is damaged (``E-SECAGG-STORE-CORRUPT``).
    """
    path = folder / GUARD_NAME
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sync_path(folder)  # the file's name survives a power cut as well
    except OSError as error:
        raise write_error(path, error) from error
    with _named():
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_WAIT_S,
        )
        try:
            _prepare(connection, known_runs)
        except BaseException:
            connection.close()
            raise
    return SqliteGuard(connection)


def _prepare(connection: sqlite3.Connection, known_runs: Iterable[str]) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with _committed(connection):
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > _VERSION:
            raise UnavailableError(
                "E-SECAGG-STORE-VERSION",
                f"expected {GUARD_NAME} of version {_VERSION} or less, got {version}",
                hint="A later version of tacit wrote it: install that version.",
            )
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.executemany("INSERT INTO over (run) VALUES (?)", ((r,) for r in known_runs))
            connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextlib.contextmanager
def _committed(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of it, flushed, or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Give what SQLite says its place in our tree."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise UnavailableError(
                "E-DISK-FULL",
                f"expected room for {GUARD_NAME}, got a full disk",
                hint="Free some space on this disk; nothing leaves until it can be written.",
            ) from error
        raise UnavailableError(
            "E-SECAGG-STORE",
            f"expected to use {GUARD_NAME}: {error}",
            hint="See the disk, and whether another process holds the state directory.",
        ) from error
    except sqlite3.ProgrammingError:  # a call after close: no word on the file
        raise
    except sqlite3.Error as error:
        raise TrustError(
            "E-SECAGG-STORE-CORRUPT",
            f"expected what this node knows of secure sums in {GUARD_NAME}: {error}",
            hint="Stop the node and remove the file: all runs that the node knows are then over "
            "for secure sums, and new ones go on.",
        ) from error


def _is_over(connection: sqlite3.Connection, run_id: str) -> bool:
    found = connection.execute("SELECT 1 FROM over WHERE run = ?", (run_id,)).fetchone()
    return found is not None


def _has_other_survivors(
    connection: sqlite3.Connection, attempt: Attempt, survivors: bytes
) -> bool:
    """Say whether an earlier sum of the same round was of other members."""
    found = connection.execute(
        "SELECT 1 FROM revealed WHERE run = ? AND round = ? AND survivors != ?",
        (attempt.run, _signed(attempt.round), survivors),
    ).fetchone()
    return found is not None


def _key_of(attempt: Attempt) -> tuple[str, int, int]:
    return attempt.run, _signed(attempt.round), attempt.attempt


def _signed(number: int) -> int:
    """Return a number below 2^64 as SQLite's integers have it."""
    return number - 2**64 if number >= 2**63 else number


def _ids(members: Iterable[int]) -> bytes:
    """Encode node ids, which are below 2^63."""
    return b"".join(one.to_bytes(_ID_BYTES, "big") for one in members)
