"""The exchange of one run, as a pure state machine: which message is open, answered or given up.

It trusts its caller to say who a node is and what time it is; it holds no clock, socket or file.
``server/journal.py`` is the shell that stores what this decides before anybody is told.

The rules, in order:

1.  A run worker *pushes* instructions with ids that it counts. A new id opens a message. The same
    id with the same content and node changes nothing; with other content, the old message is
    closed and a new attempt opens under an id of its own, so that no node ever sees one id with
    two contents.
2.  Each message is answered by its own node only, once: with a reply or with a failure. The first
    answer stands.
3.  A message that nobody answered within its time to live has failed (``E-MESSAGE-EXPIRED``).
4.  A waiting *pull* is answered when all its messages are, or with what is there when its time is
    up; the open ones stay open until rule 3 ends them, so a worker may wait in slices.
5.  A pull also ends early: when every message still open belongs to a node that has been gone for
    longer than the grace time, and the quorum has answered well, those have failed
    (``E-NODE-GONE``). Below the quorum it waits, because a round that is tried again would cost
    the others' budget.
6.  A node that is revoked, leaves or withdraws its approval fails its open messages at once.
7.  Asking for nodes waits until the quorum is approved and connected; the answer to a sequence
    number never changes until the next checkpoint.
8.  A checkpoint closes and forgets every message before it. The end of the run closes them all.
9.  Restored messages get their whole time to live again: time when nobody could answer is not
    counted.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EXPIRED = "E-MESSAGE-EXPIRED"
GONE = "E-NODE-GONE"
UNKNOWN_NODE = "E-NODE-UNKNOWN"
UNKNOWN_MESSAGE = "E-MESSAGE-UNKNOWN"


class Outcome(enum.Enum):
    """Where a message stands."""

    OPEN = "open"
    REPLIED = "replied"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What a run worker wants a node to do: the content itself is the shell's business.

    Attributes:
        message_id: the worker's id, ``<run id>.<sequence>``.
        node_id: who shall answer.
        content_sha256: a digest of type and content; not of creation time or time to live.
        ttl_s: seconds until it has failed.
    """

    message_id: str
    node_id: int
    content_sha256: bytes
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message in the exchange.

    Attributes:
        instruction: what was pushed.
        attempt: 1, and one more each time that other content superseded it.
        outcome: where it stands.
        code: why it failed.
        deadline_s: when it expires, on the shell's clock.
    """

    instruction: Instruction
    attempt: int = 1
    outcome: Outcome = Outcome.OPEN
    code: str = ""
    deadline_s: float = math.inf

    @property
    def wire_id(self) -> str:
        """The id that nodes see: the worker's own, with the attempt from the second one on."""
        suffix = f".{self.attempt}" if self.attempt > 1 else ""
        return self.instruction.message_id + suffix

    @property
    def sequence(self) -> int:
        return sequence_of(self.instruction.message_id)


@dataclass(frozen=True)
class Opened:
    """Store this message, then tell its node."""

    entry: Entry


@dataclass(frozen=True)
class Failed:
    """Store that this message failed, then tell its node to drop it."""

    entry: Entry


@dataclass(frozen=True)
class Forgotten:
    """Remove this message and its payload, then tell its node to forget it."""

    entry: Entry
    committed: bool


@dataclass(frozen=True)
class NodesAnswered:
    """Store the answer (unless it was stored), then give it to the worker's call."""

    call_id: int
    sequence: int
    node_ids: tuple[int, ...]
    stored: bool


@dataclass(frozen=True)
class PullAnswered:
    """Give these messages' outcomes to the worker's call."""

    call_id: int
    entries: tuple[Entry, ...]


Effect = Opened | Failed | Forgotten | NodesAnswered | PullAnswered


@dataclass
class _Node:
    approved: bool = False
    connected: bool = False
    gone_since_s: float = -math.inf


@dataclass(frozen=True)
class _Pull:
    message_ids: tuple[str, ...]
    deadline_s: float


@dataclass
class _State:
    entries: dict[str, Entry] = field(default_factory=dict)
    wire_ids: dict[str, str] = field(default_factory=dict)
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    nodes: dict[int, _Node] = field(default_factory=dict)
    pulls: dict[int, _Pull] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)


def sequence_of(message_id: str) -> int:
    """Return the sequence number of a worker's message id."""
    tail = message_id.rpartition(".")[2]
    if not (tail.isascii() and tail.isdigit()):
        raise ProtocolError("E-GRID-MESSAGE-ID", f"expected <run>.<sequence>, got {message_id!r}")
    return int(tail)


class Exchange:
    """The messages of one run between its worker and its nodes; see the module for the rules."""

    def __init__(self, run_id: str, *, quorum: int, grace_s: float) -> None:
        self.run_id = run_id
        self.quorum = quorum
        self.grace_s = grace_s
        self.next_sequence = 0
        self._state = _State()

    def restore(
        self,
        entries: Iterable[Entry],
        answers: Iterable[tuple[int, tuple[int, ...]]],
        *,
        next_sequence: int,
        now: float,
    ) -> None:
        """Take up what the journal holds; open messages get their whole time again (rule 9)."""
        self.next_sequence = next_sequence
        for entry in entries:
            self._put(dataclasses.replace(entry, deadline_s=now + entry.instruction.ttl_s))
        self._state.answers.update(answers)

    def observe_node(
        self, node_id: int, *, approved: bool, connected: bool, now: float
    ) -> list[Effect]:
        """Note a node's approval and presence."""
        node = self._state.nodes.setdefault(node_id, _Node(gone_since_s=now))
        if node.connected and not connected:
            node.gone_since_s = now
        node.approved, node.connected = approved, connected
        return self._settle(now)

    def drop_node(self, node_id: int, code: str, *, now: float) -> list[Effect]:
        """Fail what a node owes, because it will not answer (rule 6)."""
        node = self._state.nodes.get(node_id)
        if node is not None:
            node.approved = False
        mine = [e for e in self._open() if e.instruction.node_id == node_id]
        return [self._fail(entry, code) for entry in mine] + self._settle(now)

    def eligible(self) -> tuple[int, ...]:
        """Return the approved and connected nodes, in order."""
        nodes = self._state.nodes.items()
        return tuple(sorted(key for key, node in nodes if node.approved and node.connected))

    def open_for(self, node_id: int) -> list[Entry]:
        """Return what a node still owes an answer to, oldest first."""
        mine = [entry for entry in self._open() if entry.instruction.node_id == node_id]
        return sorted(mine, key=lambda entry: entry.sequence)

    def ask_nodes(self, call_id: int, sequence: int, *, now: float) -> list[Effect]:
        """Ask who may take part; the answer may have to wait (rule 7)."""
        self._state.asks[call_id] = sequence
        return self._settle(now)

    def is_new(self, instruction: Instruction) -> bool:
        """Tell whether a push of this instruction would open a message (rule 1)."""
        known = self._state.entries.get(instruction.message_id)
        return known is None or not _same(known.instruction, instruction)

    def push(self, instructions: Sequence[Instruction], *, now: float) -> list[Effect]:
        """Open messages (rule 1).

        Raises:
            ProtocolError: an id is not this run's, or lies before the last checkpoint.
        """
        for instruction in instructions:
            self._verify_id(instruction.message_id)
        effects: list[Effect] = []
        for instruction in instructions:
            if not self.is_new(instruction):
                continue
            attempt = 1
            known = self._state.entries.get(instruction.message_id)
            if known is not None:
                attempt = known.attempt + 1
                effects.append(self._forget(known, committed=False))
            deadline = now + instruction.ttl_s
            entry = Entry(instruction=instruction, attempt=attempt, deadline_s=deadline)
            self._put(entry)
            effects.append(Opened(entry))
            node = self._state.nodes.get(instruction.node_id)
            if node is None or not node.approved:
                effects.append(self._fail(entry, UNKNOWN_NODE))
        return effects + self._settle(now)

    def pull(
        self,
        call_id: int,
        message_ids: Sequence[str],
        *,
        timeout_s: float,
        wait: bool,
        now: float,
    ) -> list[Effect]:
        """Ask for answers: those that are here, or with ``wait`` all of them (rules 4 and 5)."""
        if not wait:
            return [PullAnswered(call_id, self._final(message_ids))]
        missing = [m for m in message_ids if m not in self._state.entries]
        if missing:
            raise ProtocolError(UNKNOWN_MESSAGE, f"{missing[0]} was never pushed, or is forgotten")
        deadline = now + timeout_s if timeout_s > 0 else math.inf
        self._state.pulls[call_id] = _Pull(tuple(message_ids), deadline)
        return self._settle(now)

    def find(self, wire_id: str, node_id: int) -> Entry | None:
        """Return a node's own message, or None where it is closed, unknown or somebody else's.

        The three cases look alike to the asker, so that nobody learns of others' messages.
        """
        entry = self._state.entries.get(self._state.wire_ids.get(wire_id, ""))
        return entry if entry is not None and entry.instruction.node_id == node_id else None

    def entry(self, message_id: str) -> Entry | None:
        """Return a message by the worker's id."""
        return self._state.entries.get(message_id)

    def accept_reply(self, wire_id: str, node_id: int, *, now: float) -> list[Effect]:
        """Note that a node's reply is stored (rule 2).

        Raises:
            ProtocolError: the message is not open for this node.
        """
        entry = self._still_open(wire_id, node_id)
        self._put(dataclasses.replace(entry, outcome=Outcome.REPLIED))
        return self._settle(now)

    def fail(self, wire_id: str, node_id: int, code: str, *, now: float) -> list[Effect]:
        """Note that a node answered with a failure, or with what may not be accepted (rule 2).

        Raises:
            ProtocolError: the message is not open for this node.
        """
        return [self._fail(self._still_open(wire_id, node_id), code), *self._settle(now)]

    def checkpoint(self, next_sequence: int, *, now: float) -> list[Effect]:
        """Forget everything before a checkpoint (rule 8)."""
        self.next_sequence = max(self.next_sequence, next_sequence)
        self._state.answers.clear()
        past = [e for e in self._state.entries.values() if e.sequence < self.next_sequence]
        return [self._forget_finally(entry) for entry in past] + self._settle(now)

    def finish(self) -> list[Effect]:
        """Close everything: the run has ended (rule 8)."""
        self.drop_calls()
        return [self._forget_finally(entry) for entry in list(self._state.entries.values())]

    def drop_calls(self) -> None:
        """Forget the worker's waiting calls: it has gone, and will ask again."""
        self._state.pulls.clear()
        self._state.asks.clear()

    def tick(self, now: float) -> list[Effect]:
        """Let time pass (rules 3 to 5)."""
        return self._settle(now)

    def next_deadline_s(self, now: float) -> float:
        """Return when :meth:`tick` may next have something to do; infinity if never."""
        times = [entry.deadline_s for entry in self._open()]
        for pull in self._state.pulls.values():
            times.append(pull.deadline_s)
            times.extend(self._gone_at(entry) for entry in self._open_of(pull))
        return min((time for time in times if time > now), default=math.inf)

    def _settle(self, now: float) -> list[Effect]:
        effects: list[Effect] = [
            self._fail(entry, EXPIRED) for entry in self._open() if entry.deadline_s <= now
        ]
        for call_id, pull in list(self._state.pulls.items()):
            effects += self._give_up(pull, now)
            if pull.deadline_s <= now or not self._open_of(pull):
                del self._state.pulls[call_id]
                effects.append(PullAnswered(call_id, self._final(pull.message_ids)))
        for call_id, sequence in list(self._state.asks.items()):
            stored = self._state.answers.get(sequence)
            nodes = self.eligible() if stored is None else stored
            if stored is not None or len(nodes) >= self.quorum:
                del self._state.asks[call_id]
                self._state.answers[sequence] = nodes
                answered = NodesAnswered(call_id, sequence, nodes, stored=stored is not None)
                effects.append(answered)
        return effects

    def _give_up(self, pull: _Pull, now: float) -> list[Effect]:
        waiting = self._open_of(pull)
        entries = [self._state.entries[m] for m in pull.message_ids if m in self._state.entries]
        good = sum(entry.outcome is Outcome.REPLIED for entry in entries)
        if good < min(self.quorum, len(entries)):
            return []
        if waiting and all(self._gone_at(entry) <= now for entry in waiting):
            return [self._fail(entry, GONE) for entry in waiting]
        return []

    def _gone_at(self, entry: Entry) -> float:
        node = self._state.nodes.get(entry.instruction.node_id)
        if node is None or node.connected:
            return math.inf
        return node.gone_since_s + self.grace_s

    def _open(self) -> list[Entry]:
        return [e for e in self._state.entries.values() if e.outcome is Outcome.OPEN]

    def _final(self, message_ids: Sequence[str]) -> tuple[Entry, ...]:
        entries = (self._state.entries.get(message_id) for message_id in message_ids)
        return tuple(e for e in entries if e is not None and e.outcome is not Outcome.OPEN)

    def _open_of(self, pull: _Pull) -> list[Entry]:
        entries = (self._state.entries.get(message_id) for message_id in pull.message_ids)
        return [e for e in entries if e is not None and e.outcome is Outcome.OPEN]

    def _still_open(self, wire_id: str, node_id: int) -> Entry:
        entry = self.find(wire_id, node_id)
        if entry is None or entry.outcome is not Outcome.OPEN:
            raise ProtocolError("E-MESSAGE-CLOSED", f"{wire_id} is not open for this node")
        return entry

    def _verify_id(self, message_id: str) -> None:
        run_id, _, _ = message_id.rpartition(".")
        if run_id != self.run_id:
            raise ProtocolError("E-GRID-MESSAGE-ID", f"{message_id!r} is not of {self.run_id}")
        if sequence_of(message_id) < self.next_sequence:
            raise ProtocolError(
                "E-GRID-BEFORE-CHECKPOINT",
                f"expected a sequence of at least {self.next_sequence}, got {message_id}",
            )

    def _put(self, entry: Entry) -> None:
        self._state.entries[entry.instruction.message_id] = entry
        self._state.wire_ids[entry.wire_id] = entry.instruction.message_id

    def _fail(self, entry: Entry, code: str) -> Failed:
        failed = dataclasses.replace(entry, outcome=Outcome.FAILED, code=code)
        self._put(failed)
        return Failed(failed)

    def _forget(self, entry: Entry, *, committed: bool) -> Forgotten:
        self._state.entries.pop(entry.instruction.message_id, None)
        self._state.wire_ids.pop(entry.wire_id, None)
        return Forgotten(entry, committed)

    def _forget_finally(self, entry: Entry) -> Forgotten:
        return self._forget(entry, committed=entry.outcome is Outcome.REPLIED)


def _same(known: Instruction, pushed: Instruction) -> bool:
    return (known.node_id, known.content_sha256) == (pushed.node_id, pushed.content_sha256)
