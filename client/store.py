"""What the node remembers: runs and the owner's word, releases, the outbox, the decision log, keys.

One SQLite file in the state directory, in WAL mode: what a method has returned from survives the
death of the process. Verdicts, releases and noise keys also survive the death of the machine
(synchronous = FULL).
Deleted rows are overwritten (secure_delete), and wiping a noise key also empties the write-ahead
log. A release is recorded in the same transaction as its outbox entry, so that an update is never
counted twice and never sent uncounted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.approvals import Judgement, Verdict
from tacit.core.errors import UnavailableError
from tacit.privacy.ledger_head import Head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STORE_NAME = "client.sqlite"
_VERSION = 4
_TO_VERSION_2 = "ALTER TABLE runs ADD COLUMN ended_reason TEXT NOT NULL DEFAULT '';"
_TO_VERSION_3 = """
CREATE TABLE ledger_heads (
  ledger TEXT PRIMARY KEY,
  entries INTEGER NOT NULL,
  sha256 TEXT NOT NULL
);
"""
_TO_VERSION_4 = """
CREATE TABLE repeats (
  specification_sha256 BLOB PRIMARY KEY,
  app_sha256 BLOB NOT NULL,
  run_id TEXT NOT NULL,
  name TEXT NOT NULL,
  approved_at_s REAL NOT NULL
);
"""
_SCHEMA = """
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  specification BLOB NOT NULL,
  specification_sha256 BLOB NOT NULL,
  app_sha256 BLOB NOT NULL,
  verdict TEXT NOT NULL,
  code TEXT NOT NULL,
  reason TEXT NOT NULL,
  decided_by TEXT NOT NULL,
  epsilon REAL,
  offered_at_s REAL NOT NULL,
  decided_at_s REAL NOT NULL,
  ended TEXT NOT NULL DEFAULT '',
  ended_reason TEXT NOT NULL DEFAULT '',
  state_manifest BLOB NOT NULL DEFAULT x'',
  state_file TEXT NOT NULL DEFAULT ''
);
CREATE TABLE outbox (
  message_id TEXT PRIMARY KEY,
  run_id TEXT NOT NULL REFERENCES runs,
  attempt INTEGER NOT NULL,
  instruction_sha256 BLOB NOT NULL,
  head BLOB NOT NULL,
  payload_file TEXT NOT NULL,
  payload_bytes INTEGER NOT NULL,
  stored_at_s REAL NOT NULL,
  received_at_s REAL
);
CREATE TABLE releases (
  run_id TEXT NOT NULL REFERENCES runs,
  message_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  message_type TEXT NOT NULL,
  PRIMARY KEY (message_id, attempt)
);
CREATE TABLE decisions (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  at_s REAL NOT NULL,
  run_id TEXT NOT NULL,
  message_id TEXT NOT NULL,
  message_type TEXT NOT NULL,
  outcome TEXT NOT NULL,
  code TEXT NOT NULL,
  reason TEXT NOT NULL,
  payload_bytes INTEGER NOT NULL,
  payload_sha256 BLOB NOT NULL
);
CREATE INDEX decisions_by_run ON decisions (run_id);
CREATE TABLE noise_keys (
  message_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  key BLOB NOT NULL,
  PRIMARY KEY (message_id, attempt)
);
"""
# What each later version adds, by the version that it makes.
_ADDED = {2: _TO_VERSION_2, 3: _TO_VERSION_3, 4: _TO_VERSION_4}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as this node knows it; see the table ``runs``."""

    run_id: str
    name: str
    specification: bytes
    specification_sha256: bytes
    app_sha256: bytes
    verdict: Verdict
    code: str
    reason: str
    decided_by: str
    epsilon: float | None
    offered_at_s: float
    decided_at_s: float
    ended: str = ""
    ended_reason: str = ""
    state_manifest: bytes = b""
    state_file: str = ""

    @property
    def judgement(self) -> Judgement:
        """The owner's word on the run."""
        return Judgement(
            verdict=self.verdict, code=self.code, reason=self.reason, by=self.decided_by
        )


@dataclass(frozen=True, kw_only=True)
class OutboxEntry:
    """One reply that was decided on and must reach the server; see the table ``outbox``."""

    message_id: str
    run_id: str
    attempt: int
    instruction_sha256: bytes
    head: bytes
    payload_file: str
    payload_bytes: int
    stored_at_s: float
    received_at_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of the decision log: what was about to leave, and what became of it.

    Attributes:
        outcome: ``released``, ``refused``, ``failed`` or, for a run, its verdict, or ``repeated``
            and ``withdrawn``, of the approval of later runs, or ``committed``, to canaries.
    """

    at_s: float
    run_id: str
    message_id: str = ""
    message_type: str = ""
    outcome: str
    code: str = ""
    reason: str = ""
    payload_bytes: int = 0
    payload_sha256: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A person's word on all runs of one specification with the same app files.

    Attributes:
        run_id, name: the run that the word was given on.
    """

    specification_sha256: bytes
    app_sha256: bytes
    run_id: str
    name: str
    approved_at_s: float


class Store:
    """The node's memory; safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, *, flushed: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if flushed else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def save_run(self, run: RunRecord) -> None:
        """Remember a run and the verdict on it, in place of what was known of it."""
        row = dataclasses.asdict(run) | {"verdict": run.verdict.value}
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        updates = ", ".join(f"{name} = excluded.{name}" for name in row if name != "run_id")
        with self._transaction() as connection:
            connection.execute(
                f"INSERT INTO runs ({names}) VALUES ({marks}) "  # noqa: S608 - our field names
                f"ON CONFLICT (run_id) DO UPDATE SET {updates}",
                row,
            )

    def load_run(self, run_id: str) -> RunRecord | None:
        """Return what is known of a run, or None."""
        rows = self._rows("SELECT * FROM runs WHERE run_id = ?", run_id)
        return _run_of(rows[0]) if rows else None

    def list_runs(self) -> list[RunRecord]:
        """Return all runs, the latest offer first."""
        return [_run_of(row) for row in self._rows("SELECT * FROM runs ORDER BY offered_at_s DESC")]

    def save_repeat(self, repeat: Repeat) -> None:
        """Remember an approval of later runs as well, in place of one of the same specification."""
        row = dataclasses.asdict(repeat)
        with self._transaction() as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO repeats ({', '.join(row)}) "  # noqa: S608 - our field names
                f"VALUES ({', '.join(f':{name}' for name in row)})",
                row,
            )

    def drop_repeat(self, specification_sha256: bytes) -> bool:
        """Forget the approval of later runs of a specification; say whether there was one."""
        with self._transaction() as connection:
            done = connection.execute(
                "DELETE FROM repeats WHERE specification_sha256 = ?", (specification_sha256,)
            )
        return done.rowcount > 0

    def list_repeats(self) -> list[Repeat]:
        """Return every approval of later runs, the latest first."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'repeats'"):
            return []  # an older store that is only read
        rows = self._rows("SELECT * FROM repeats ORDER BY approved_at_s DESC")
        return [Repeat(**dict(row)) for row in rows]

    def end_run(self, run_id: str, status: str, reason: str = "") -> list[OutboxEntry]:
        """Mark a run as ended, forget its outbox and keys; return the entries forgotten."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM outbox WHERE run_id = ?", (run_id,)).fetchall()
            connection.execute(
                "UPDATE runs SET ended = ?, ended_reason = ? WHERE run_id = ?",
                (status, reason, run_id),
            )
            connection.execute("DELETE FROM outbox WHERE run_id = ?", (run_id,))
            connection.execute("DELETE FROM noise_keys WHERE message_id LIKE ?", (f"{run_id}.%",))
        self._empty_log()
        return [_entry_of(row) for row in rows]

    def save_reply(
        self,
        entry: OutboxEntry,
        decision: Decision,
        *,
        state_manifest: bytes | None = None,
        state_file: str = "",
        charged: bool = False,
    ) -> None:
        """Put a decided reply into the outbox, with its decision, release and state, at once.

        Args:
            entry: the reply; it takes the place of an earlier attempt's.
            decision: the line for the decision log; ``released`` counts as a release.
            state_manifest: the app's new state, if it has changed.
            state_file: the file of that state.
            charged: it counts as a release, though nothing leaves but a code.
        """
        row = dataclasses.asdict(entry)
        with self._transaction() as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO outbox ({', '.join(row)}) "  # noqa: S608 - our field names
                f"VALUES ({', '.join(f':{name}' for name in row)})",
                row,
            )
            if charged or decision.outcome == "released":
                connection.execute(
                    "INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?)",
                    (entry.run_id, entry.message_id, entry.attempt, decision.message_type),
                )
            if state_manifest is not None:
                connection.execute(
                    "UPDATE runs SET state_manifest = ?, state_file = ? WHERE run_id = ?",
                    (state_manifest, state_file, entry.run_id),
                )
            _insert_decision(connection, decision)

    def load_reply(self, message_id: str) -> OutboxEntry | None:
        """Return the stored reply to a message, or None."""
        rows = self._rows("SELECT * FROM outbox WHERE message_id = ?", message_id)
        return _entry_of(rows[0]) if rows else None

    def list_replies(self) -> list[OutboxEntry]:
        """Return every stored reply, the oldest first."""
        return [_entry_of(row) for row in self._rows("SELECT * FROM outbox ORDER BY stored_at_s")]

    def mark_received(self, message_id: str, at_s: float) -> None:
        """Note that the server has given a receipt for a reply."""
        with self._transaction(flushed=False) as connection:
            connection.execute(
                "UPDATE outbox SET received_at_s = ? WHERE message_id = ?", (at_s, message_id)
            )

    def forget_message(self, message_id: str) -> OutboxEntry | None:
        """Drop a reply and its noise keys; return the entry that is gone."""
        entry = self.load_reply(message_id)
        with self._transaction(flushed=False) as connection:
            connection.execute("DELETE FROM outbox WHERE message_id = ?", (message_id,))
            keys = connection.execute("DELETE FROM noise_keys WHERE message_id = ?", (message_id,))
        if keys.rowcount > 0:
            self._empty_log()
        return entry

    def list_unanswered(self, pattern: str) -> list[tuple[str, int]]:
        """Return the attempts with a noise key of which no answer was ever stored.

        Args:
            pattern: which messages, in terms of SQL's LIKE.
        """
        rows = self._rows(
            "SELECT message_id, attempt FROM noise_keys AS k WHERE message_id LIKE ? AND NOT EXISTS"
            " (SELECT 1 FROM releases AS r WHERE r.message_id = k.message_id"
            " AND r.attempt = k.attempt)",
            pattern,
        )
        return [(str(row[0]), int(row[1])) for row in rows]

    def count_releases(self, run_id: str, message_type: str) -> int:
        """Return how many replies to this kind of message have been released in a run."""
        rows = self._rows(
            "SELECT count(*) FROM releases WHERE run_id = ? AND message_type = ?",
            run_id,
            message_type,
        )
        return int(rows[0][0])

    def noise_key(self, message_id: str, attempt: int, *, fresh: Callable[[], bytes]) -> bytes:
        """Return the key of one attempt: the one drawn before, or a fresh one, persisted first.

        Flushed: the ledger will say that the attempt was charged, and only this key answers it.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO noise_keys VALUES (?, ?, ?)", (message_id, attempt, fresh())
            )
            row = connection.execute(
                "SELECT key FROM noise_keys WHERE message_id = ? AND attempt = ?",
                (message_id, attempt),
            ).fetchone()
        return bytes(row[0])

    def has_noise_key(self, message_id: str, attempt: int) -> bool:
        """Say whether the key of one attempt is here: drawn, and not wiped yet."""
        return bool(
            self._rows(
                "SELECT 1 FROM noise_keys WHERE message_id = ? AND attempt = ?", message_id, attempt
            )
        )

    def keep_head(self, head: Head) -> None:
        """Note how far the ledger has come; an earlier head changes nothing.

        It is on the disk as soon as the release is that follows.
        """
        with self._transaction(flushed=False) as connection:
            connection.execute(
                "INSERT INTO ledger_heads VALUES (?, ?, ?) ON CONFLICT (ledger) DO UPDATE "
                "SET entries = excluded.entries, sha256 = excluded.sha256 "
                "WHERE excluded.entries > entries",
                (head.ledger, head.count, head.hash),
            )

    def list_heads(self) -> list[Head]:
        """Return the furthest head of every ledger that this node has worked with."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'ledger_heads'"):
            return []  # an older store that is only read
        rows = self._rows("SELECT * FROM ledger_heads")
        return [
            Head(ledger=row["ledger"], count=row["entries"], hash=row["sha256"]) for row in rows
        ]

    def log_decision(self, decision: Decision, *, keep: int) -> None:
        """Write one line of the decision log, and drop lines beyond the last ``keep``."""
        with self._transaction() as connection:
            number = _insert_decision(connection, decision)
            connection.execute("DELETE FROM decisions WHERE number <= ?", (number - keep,))

    def list_decisions(self, *, limit: int, run_id: str = "") -> list[Decision]:
        """Return the latest lines of the decision log, the last one first."""
        rows = self._rows(
            "SELECT * FROM decisions WHERE ? IN ('', run_id) ORDER BY number DESC LIMIT ?",
            run_id,
            limit,
        )
        return [Decision(**{k: row[k] for k in row.keys() if k != "number"}) for row in rows]  # noqa: SIM118 - a Row iterates over values

    def count_outcomes(self, run_id: str) -> dict[str, int]:
        """Return how many messages of a run ended in which outcome."""
        rows = self._rows(
            "SELECT outcome, count(*) FROM decisions WHERE run_id = ? AND message_id != '' "
            "GROUP BY outcome",
            run_id,
        )
        return {str(row[0]): int(row[1]) for row in rows}

    def _empty_log(self) -> None:
        """Leave no copy of what was just deleted in the write-ahead log."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def open_store(path: Path, *, read_only: bool = False) -> Store:
    """Open the node's memory, and make it where it does not exist.

    Args:
        path: the SQLite file.
        read_only: for verbs that look while the daemon works, or is stopped.

    Raises:
        UnavailableError: the file cannot be opened, or is of a later version.
    """
    try:
        if not read_only:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=10.0,
        )
        connection.row_factory = sqlite3.Row
        _prepare(connection, read_only=read_only)
    except (OSError, sqlite3.Error) as error:
        raise UnavailableError(
            "E-STORE", f"expected the node's store at {path}: {error}", hint="See the disk."
        ) from error
    return Store(connection)


def _prepare(connection: sqlite3.Connection, *, read_only: bool) -> None:
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA foreign_keys = ON")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > _VERSION:
        raise UnavailableError(
            "E-STORE-VERSION",
            f"expected a store of version {_VERSION} or less, got {version}",
            hint="A later version of tacit wrote it: install that version.",
        )
    if version == 0 and not read_only:
        connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = 2;COMMIT;")
        version = 2
    for newer in range(version + 1, _VERSION + 1) if not read_only else ():
        connection.executescript(f"BEGIN;{_ADDED[newer]}PRAGMA user_version = {newer};COMMIT;")


def _insert_decision(connection: sqlite3.Connection, decision: Decision) -> int:
    row = dataclasses.asdict(decision)
    cursor = connection.execute(
        f"INSERT INTO decisions ({', '.join(row)}) "  # noqa: S608 - our field names
        f"VALUES ({', '.join(f':{name}' for name in row)})",
        row,
    )
    return cursor.lastrowid or 0


def _run_of(row: sqlite3.Row) -> RunRecord:
    return RunRecord(**(dict(row) | {"verdict": Verdict(row["verdict"])}))


def _entry_of(row: sqlite3.Row) -> OutboxEntry:
    return OutboxEntry(**dict(row))
