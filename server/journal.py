"""The shell of one run's exchange: what ``server/rounds.py`` decides is stored, then told.

Two desks work on it: ``server/reply_desk.py`` for nodes, ``server/grid_desk.py`` for the run's
worker. It trusts the worker, and of a node only who it is. Its promises:

1. Nothing is told before it is committed: a node hears of a message, a worker of a reply, a node
   of its receipt only after the database holds it.
2. Everything may be asked again: a repeated push, pull, question for nodes, Submit or checkpoint
   gets the first answer.
3. After a restart a payload counts only if its size and SHA-256 match; otherwise its receipt is
   void and the node, which keeps its update until the message is closed, sends it again.
4. If the database cannot be written, the exchange in memory is thrown away and read again, so
   memory never runs ahead of the disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tacit.core.errors import TacitError
from tacit.core.events import Event, EventKind
from tacit.protos import fleet_pb2, pipe_pb2
from tacit.server import rounds
from tacit.server.catalogue import add_event, change_run, last_event_sequence
from tacit.server.exchange_store import Checkpointed, ExchangeStore, MessageRow
from tacit.server.grid_messages import result_of
from tacit.server.rounds import Entry, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tacit.privacy.secagg.terms import Member
    from tacit.server.configuration import LimitsConfig
    from tacit.server.rounds import Effect
    from tacit.server.spool import Spool
    from tacit.server.store import Store

log = logging.getLogger("tacit.server.journal")


@dataclass(frozen=True, kw_only=True)
class JournalSurroundings:
    """What a journal works with.

    Attributes:
        store: the database.
        limits: how much peers may take.
        durable: whether payloads are flushed to the disk before their receipt.
        grace_s: see the rules of the exchange.
        tell: queues a task for a node.
        member: the name of a node's member.
        directory: all enrolled clients by name, for who sums updates unseen.
        keep_head: remembers how far a node's ledger has come; raises TrustError if it went back.
        changed: called after each event of the run.
        now: seconds since 1970.
        clock: monotonic seconds.
    """

    store: Store
    limits: LimitsConfig
    durable: bool
    grace_s: float
    tell: Callable[[int, fleet_pb2.Task], None]
    member: Callable[[int], str]
    directory: Callable[[], Mapping[str, Member]]
    keep_head: Callable[[int, fleet_pb2.LedgerHead], None]
    changed: Callable[[str], None]
    now: Callable[[], float]
    clock: Callable[[], float]


@dataclass
class WaitingCall:
    """A call of the worker that waits for its answer, put again after a reload.

    Attributes:
        future: gets the answer.
        sequence: of a question for nodes; None for a pull.
        message_ids: of a pull.
        deadline_s: of a pull, on the journal's clock.
    """

    future: asyncio.Future[pipe_pb2.GridReply]
    sequence: int | None = None
    message_ids: tuple[str, ...] = ()
    deadline_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is written beside the effects of one step, in the same transaction.

    Attributes:
        logged: events of the run.
        replied: the message whose reply is stored now.
        checkpoint: where the run resumes from now on.
        round_number: the round that has begun; 0 changes nothing.
    """

    logged: Sequence[tuple[EventKind, Mapping[str, Any]]] = ()
    replied: Entry | None = None
    checkpoint: Checkpointed | None = None
    round_number: int = 0


NOTHING = Changes()


@dataclass
class _Node:
    approved: bool
    connected: bool


@dataclass
class _Memory:
    exchange: Exchange
    rows: dict[str, MessageRow] = field(default_factory=dict)


class RunJournal:
    """One run's exchange, stored; see the module for its promises."""

    def __init__(
        self,
        run_id: str,
        *,
        quorum: int,
        spool: Spool,
        surroundings: JournalSurroundings,
    ) -> None:
        self.run_id = run_id
        self.checkpointed = Checkpointed()
        self.spool = spool
        self.around = surroundings
        self._quorum = quorum
        self._calls: dict[int, WaitingCall] = {}
        self._nodes: dict[int, _Node] = {}
        self._refused: dict[int, str] = {}
        self._exchange_store = ExchangeStore(surroundings.store, run_id)
        self._memory = _Memory(self._new_exchange())
        self._timer: asyncio.TimerHandle | None = None
        self._last_event = last_event_sequence(surroundings.store, run_id)
        self._ended = False

    @property
    def exchange(self) -> Exchange:
        """The state machine; replaced as a whole after a write that failed."""
        return self._memory.exchange

    @property
    def rows(self) -> dict[str, MessageRow]:
        """What the exchange does not need to know of each message."""
        return self._memory.rows

    def load(self) -> int:
        """Read what the database holds; return how many messages that is."""
        stored = self._exchange_store.load()
        exchange, now = self._new_exchange(), self.around.clock()
        self.checkpointed = stored.checkpointed
        exchange.restore(
            stored.entries,
            stored.answers,
            next_sequence=stored.checkpointed.next_sequence,
            now=now,
        )
        self._memory = _Memory(exchange, stored.rows)
        for node_id, node in self._nodes.items():
            exchange.observe_node(
                node_id, approved=node.approved, connected=node.connected, now=now
            )
        return len(stored.rows)

    def verify_payloads(self) -> list[str]:
        """Void what the disk does not hold any more; return the ids of the messages (promise 3)."""
        void, lost = [], []
        for message_id, row in self.rows.items():
            if row.reply is not None and row.reply_name:
                manifest = row.reply.manifest
                size, sha256 = manifest.payload_bytes, manifest.payload_sha256
                if not self.spool.is_whole(row.reply_name, size=size, sha256=sha256):
                    void.append(message_id)
            sent = row.head.manifest
            if row.payload_name and not self.spool.is_whole(
                row.payload_name, size=sent.payload_bytes, sha256=sent.payload_sha256
            ):
                lost.append(row.payload_name)
        for name in set(lost):
            self.spool.remove(name)  # the worker writes it again when it repeats its push
        if void:
            self._exchange_store.void_replies(void)
            self.load()
        self.spool.keep_only(self.payload_names())
        return void

    def worker_starts(self) -> None:
        """Forget what an earlier worker was waiting for and wrote without pushing it."""
        for call in self._calls.values():
            call.future.cancel()
        self._calls.clear()
        self.exchange.drop_calls()
        self.spool.keep_only(self.payload_names())

    def end(self) -> None:
        """Close every message and remove every payload: the run has ended."""
        self._ended = True
        self.worker_starts()
        if self._timer is not None:
            self._timer.cancel()
        self.apply(self.exchange.finish())
        self.spool.clear()

    def observe_node(self, node_id: int, *, approved: bool, connected: bool) -> None:
        """Note a node's approval and presence."""
        known = self._nodes.get(node_id)
        if known == _Node(approved, connected) or self._ended:
            return
        self._nodes[node_id] = _Node(approved, connected)
        if connected:
            self._refused.pop(node_id, None)
        effects = self.exchange.observe_node(
            node_id, approved=approved, connected=connected, now=self.around.clock()
        )
        logged = []
        if approved and known is not None and connected != known.connected:
            kind = EventKind.NODE_JOINED if connected else EventKind.NODE_LEFT
            fields = {"member": self.around.member(node_id), "node_id": node_id}
            logged = [(kind, fields if connected else fields | {"code": ""})]
        self.apply(effects, Changes(logged=logged))

    def drop_node(self, node_id: int, code: str) -> None:
        """Fail what a node owes: it was revoked, has left, or its owner withdrew the approval."""
        known = self._nodes.get(node_id)
        self._nodes[node_id] = _Node(approved=False, connected=False)
        logged = []
        if known is not None and known.approved:
            fields = {"member": self.around.member(node_id), "node_id": node_id, "code": code}
            logged = [(EventKind.NODE_LEFT, fields)]
        effects = self.exchange.drop_node(node_id, code, now=self.around.clock())
        self.apply(effects, Changes(logged=logged))

    def note_refused(self, node_id: int, code: str) -> None:
        """Store once, until the node is connected again, that it was refused and why."""
        if self._refused.get(node_id) != code:
            self._refused[node_id] = code
            fields = {"member": self.around.member(node_id), "node_id": node_id, "code": code}
            self.note(EventKind.NODE_REFUSED, fields)

    def eligible(self) -> tuple[int, ...]:
        """Return the approved and connected nodes."""
        return self.exchange.eligible()

    def open_messages(self, node_id: int) -> list[str]:
        """Return the ids of the messages that wait for a node."""
        return [entry.wire_id for entry in self.exchange.open_for(node_id)]

    def note(self, kind: EventKind, fields: Mapping[str, Any]) -> None:
        """Store an event of the run."""
        self.apply([], Changes(logged=[(kind, fields)]))

    def _new_exchange(self) -> Exchange:
        return Exchange(self.run_id, quorum=self._quorum, grace_s=self.around.grace_s)

    def wait(self, call_id: int, call: WaitingCall) -> asyncio.Future[pipe_pb2.GridReply]:
        """Remember a call of the worker until its answer is known."""
        self._calls[call_id] = call
        return call.future

    def payload_names(self) -> set[str]:
        """Return the spool files that messages refer to."""
        rows = self.rows.values()
        return {name for row in rows for name in (row.payload_name, row.reply_name) if name}

    def message_fields(self, entry: Entry) -> dict[str, Any]:
        """Return what an event says of a message."""
        head = self.rows[entry.instruction.message_id].head
        return {
            "round": int(head.group_id) if head.group_id.isdecimal() else 0,
            "member": self.around.member(entry.instruction.node_id),
            "message_id": entry.instruction.message_id,
        }

    def apply(self, effects: Sequence[Effect], changes: Changes = NOTHING) -> None:
        """Store the effects in one transaction, then tell those whom they concern.

        Raises:
            UnavailableError: nothing was stored or told; the exchange is as it was stored last.
        """
        logged = [*changes.logged, *self._failures(effects)]
        writes = [effect for effect in effects if not isinstance(effect, rounds.PullAnswered)]
        if writes or logged or changes != NOTHING:
            try:
                self._last_event = self._write(writes, logged, changes)
            except TacitError:
                self._reload()
                raise
        for effect in effects:
            self._tell(effect)
        if logged:
            self.around.changed(self.run_id)
        self._schedule()

    def _failures(self, effects: Sequence[Effect]) -> list[tuple[EventKind, Mapping[str, Any]]]:
        return [
            (
                EventKind.REPLY_FAILED,
                {**self.message_fields(effect.entry), "code": effect.entry.code},
            )
            for effect in effects
            if isinstance(effect, rounds.Failed)
        ]

    def _write(
        self,
        writes: Sequence[Effect],
        logged: Sequence[tuple[EventKind, Mapping[str, Any]]],
        changes: Changes,
    ) -> int:
        """Write one transaction; return the number of the last event."""
        target, at_s, sequence = self._exchange_store, self.around.now(), self._last_event
        with self.around.store.transaction() as connection:
            if changes.replied is not None:
                row = self.rows[changes.replied.instruction.message_id]
                target.write_reply(connection, changes.replied, row, at_s=at_s)
            for effect in writes:
                target.write(connection, effect, self._row_of(effect), at_s=at_s)
            if changes.checkpoint is not None:
                target.write_checkpoint(connection, changes.checkpoint, at_s=at_s)
            if changes.round_number:
                change_run(connection, self.run_id, round=changes.round_number)
            for sequence, (kind, fields) in enumerate(logged, start=self._last_event + 1):
                event = Event(sequence=sequence, at_s=at_s, kind=kind, fields=fields)
                add_event(connection, self.run_id, event)
        return sequence

    def _row_of(self, effect: Effect) -> MessageRow | None:
        if isinstance(effect, (rounds.Opened, rounds.Failed)):
            return self.rows.get(effect.entry.instruction.message_id)
        return None

    def _tell(self, effect: Effect) -> None:
        match effect:
            case rounds.Opened(entry):
                ready = fleet_pb2.MessageReady(run_id=self.run_id, message_id=entry.wire_id)
                self.around.tell(entry.instruction.node_id, fleet_pb2.Task(ready=ready))
            case rounds.Failed(entry):
                self.spool.discard(entry.wire_id)
                self._tell_closed(entry, committed=False)
            case rounds.Forgotten(entry, committed):
                self._forget(entry)
                self._tell_closed(entry, committed=committed)
            case rounds.NodesAnswered(call_id, _, node_ids, _):
                self._resolve(call_id, pipe_pb2.GridReply(node_ids=node_ids))
            case rounds.PullAnswered(call_id, entries):
                results = [self._result(entry) for entry in entries]
                self._resolve(call_id, pipe_pb2.GridReply(results=results))

    def _tell_closed(self, entry: Entry, *, committed: bool) -> None:
        closed = fleet_pb2.MessageClosed(
            run_id=self.run_id, message_id=entry.wire_id, committed=committed
        )
        self.around.tell(entry.instruction.node_id, fleet_pb2.Task(closed=closed))

    def _forget(self, entry: Entry) -> None:
        self.spool.discard(entry.wire_id)
        current = self.exchange.entry(entry.instruction.message_id)
        if current is None:  # not superseded by a new attempt
            row = self.rows.pop(entry.instruction.message_id)
            if row.reply_name:
                self.spool.remove(row.reply_name)
            if row.payload_name and row.payload_name not in self.payload_names():
                self.spool.remove(row.payload_name)

    def _resolve(self, call_id: int, reply: pipe_pb2.GridReply) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None and not call.future.done():
            reply.call_id = call_id
            call.future.set_result(reply)

    def _result(self, entry: Entry) -> pipe_pb2.GridResult:
        return result_of(self.run_id, entry, self.rows[entry.instruction.message_id])

    def _reload(self) -> None:
        """Read the database again after a write that failed, and put the waiting calls again."""
        log.warning("journal read again", extra={"fields": {"run": self.run_id}})
        self.load()
        exchange, now = self.exchange, self.around.clock()
        for call_id, call in list(self._calls.items()):
            if call.sequence is None:
                left = max(call.deadline_s - now, 0.001) if call.deadline_s < math.inf else 0.0
                exchange.pull(call_id, call.message_ids, timeout_s=left, wait=True, now=now)
            else:
                exchange.ask_nodes(call_id, call.sequence, now=now)
        self._schedule(at_least_s=1.0)

    def _schedule(self, *, at_least_s: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self.around.clock()
        wait_s = self.exchange.next_deadline_s(now) - now
        if wait_s < math.inf and not self._ended:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(wait_s, at_least_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.apply(self.exchange.tick(self.around.clock()))
        except TacitError as error:  # stored at the next try; nothing was told
            log.warning("tick not stored", extra={"fields": {"code": error.code}})
            self._schedule(at_least_s=1.0)
