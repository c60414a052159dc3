"""What a server has of an owner, held against what the owner's ledger says that it cost.

Both sides are read from outside, from the files of the daemons: the server's database and spool,
where also a part of an upload counts as a release, and the owner's ledger and decision log.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.client.ledger_view import find_problem, noted_heads, open_to_read
from tacit.privacy.accounting import SampledGaussian, epsilon_of_events
from tacit.protos.fleet_pb2 import ReplyHead
from tests.end_to_end.runs import PRIVACY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.privacy.ledger_account import Account
    from tests.end_to_end.federation import Federation

_PART = re.compile(r"in-(r-[0-9a-f]+\.[0-9.]+)-([0-9a-f]{24})\.part")
_SHORT = 24  # hex digits of a digest in the name of a part
_MECHANISM = SampledGaussian(noise_multiplier=PRIVACY.noise_multiplier or 0.0)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a daemon's database to look at."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30.0)
    try:
        yield connection
    finally:
        connection.close()


@dataclass(frozen=True, kw_only=True)
class Books:
    """Where both sides stand.

    Attributes:
        entries: of the ledger.
        epsilon: by the ledger, of all that it has charged.
        seen: messages of which the server has an answer, or a part of one.
        epsilon_seen: of so many releases.
        problems: what contradicts the promise; empty if nothing does.
    """

    entries: int
    epsilon: float
    seen: int
    epsilon_seen: float
    problems: tuple[str, ...]


class Auditor:
    """Follows one owner; what the server forgets once a round is committed is remembered here."""

    def __init__(self, played: Federation, owner: str) -> None:
        self._played = played
        self._owner = owner
        self._digests: dict[str, set[str]] = defaultdict(set)  # by message; none was seen whole

    def look(self) -> None:
        """Note what the server has now."""
        node = self._played.node_id(self._owner)
        with reading(self._played.home / "store.sqlite3") as database:
            rows = database.execute(
                "SELECT message_id, attempt, reply FROM messages WHERE node_id = ?", (node,)
            ).fetchall()
            events = database.execute("SELECT fields FROM events WHERE kind = 'reply_received'")
            told = [json.loads(fields) for (fields,) in events]
        mine = {_wire_id(message, attempt): reply for message, attempt, reply in rows}
        for fields in told:
            if fields["member"] == self._owner:
                self._digests[fields["message_id"]]
        for wire_id, reply in mine.items():
            if reply is not None:
                digest = ReplyHead.FromString(reply).manifest.payload_sha256.hex()
                self._digests[wire_id].add(digest[:_SHORT])
        for part in self._played.home.glob("runs/*/spool/in-*.part"):
            match = _PART.fullmatch(part.name)
            if match is not None and match[1] in mine:
                self._digests[match[1]].add(match[2])

    def check(self) -> Books:
        """Hold the ledger against all that the server has seen so far."""
        self.look()
        folder = self._played.root / self._owner
        with open_to_read(folder) as ledger:
            problem = find_problem(ledger, noted_heads(folder))
            entries = len(ledger.entries())
            account = ledger.account("default") if "default" in ledger.data_sets() else None
        epsilon = 0.0 if account is None else account.epsilon
        seen = len(self._digests)
        epsilon_seen = epsilon_of_events([_MECHANISM] * seen, PRIVACY.delta or 0.0) if seen else 0.0
        problems = [] if problem is None else [str(problem)]
        problems += self._contradictions(account)
        if epsilon < epsilon_seen * (1 - 1e-9):
            problems.append(f"the ledger says {epsilon}, the server has {epsilon_seen}")
        return Books(
            entries=entries,
            epsilon=epsilon,
            seen=seen,
            epsilon_seen=epsilon_seen,
            problems=tuple(problems),
        )

    def open_messages(self) -> list[str]:
        """Return the messages that the owner has not answered yet."""
        node = self._played.node_id(self._owner)
        with reading(self._played.home / "store.sqlite3") as database:
            query = "SELECT message_id, attempt FROM messages WHERE node_id = ? AND reply IS NULL"
            return [_wire_id(*row) for row in database.execute(query, (node,))]

    def part_bytes(self) -> int:
        """Return the size of what the server holds of an answer that is not whole."""
        mine = set(self.open_messages())
        parts = self._played.home.glob("runs/*/spool/in-*.part")
        found = [(_PART.fullmatch(part.name), part.stat().st_size) for part in parts]
        return sum(size for match, size in found if match is not None and match[1] in mine)

    def charged(self, run_id: str) -> int:
        """Return how many reserves a run has."""
        with open_to_read(self._played.root / self._owner) as ledger:
            held = ledger.account("default").charges
        return sum(each.charge.run == run_id for each in held)

    def _contradictions(self, account: Account | None) -> Iterator[str]:
        """Each answer was charged once, before; and is one answer, however often it was sent."""
        reserves = Counter(each.charge.message for each in account.charges) if account else {}
        logged = self._released()
        for message, digests in self._digests.items():
            if reserves.get(message, 0) != 1:
                yield f"{message}: {reserves.get(message, 0)} reserves"
            if len(digests | logged.get(message, set())) > 1:
                yield f"{message}: two different answers under one charge"
        for message in logged:
            if reserves.get(message, 0) != 1:
                yield f"{message}: released by the log, {reserves.get(message, 0)} reserves"

    def _released(self) -> dict[str, set[str]]:
        """Return the digests of what the owner's decision log says that was released."""
        found: dict[str, set[str]] = defaultdict(set)
        with reading(self._played.root / self._owner / "client.sqlite") as database:
            query = "SELECT message_id, payload_sha256 FROM decisions WHERE outcome = 'released'"
            for message, digest in database.execute(query):
                found[message].add(digest.hex()[:_SHORT])
        return found


def entries_of(folder: Path) -> int:
    """Return how many entries a ledger has, as fast as that can be asked."""
    path = folder / "ledger.sqlite"
    if not path.exists():
        return 0
    with reading(path) as database:
        row: Any = database.execute("SELECT count(*) FROM entries").fetchone()
    return int(row[0])


def _wire_id(message_id: str, attempt: int) -> str:
    return f"{message_id}.{attempt}" if attempt > 1 else str(message_id)
