"""The shell of one run's exchange: what ``server/rounds.py`` decides is stored, then told.

It trusts the run's worker, and of a node only who it is. Its promises:

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
import contextlib
import json
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ProtocolError, TacitError
from tacit.core.events import Event, EventKind
from tacit.protos import fleet_pb2, pipe_pb2
from tacit.protos.payload import map_payload
from tacit.protos.records_pb2 import AppFailure
from tacit.server import rounds
from tacit.server.catalogue import add_event, change_run, last_event_sequence
from tacit.server.exchange_store import Checkpointed, ExchangeStore, MessageRow
from tacit.server.grid_messages import (
    head_for_node,
    instruction_of,
    receipt_of,
    result_of,
    spool_name_of,
)
from tacit.server.replies import stable_code, verify_finite, verify_reply
from tacit.server.rounds import Entry, Exchange, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tacit.core.specification import ReplySpec
    from tacit.server.configuration import LimitsConfig
    from tacit.server.rounds import Effect
    from tacit.server.spool import Spool, Staged
    from tacit.server.store import Store

log = logging.getLogger("tacit.server.journal")

_WORKER_EVENTS = {
    kind.value: kind
    for kind in (
        EventKind.ROUND_STARTED,
        EventKind.ROUND_FINISHED,
        EventKind.EVALUATION_FINISHED,
    )
}


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
    changed: Callable[[str], None]
    now: Callable[[], float]
    clock: Callable[[], float]


@dataclass
class _Call:
    """A waiting call of the worker, so that it can be put again after a reload."""

    future: asyncio.Future[pipe_pb2.GridReply]
    sequence: int = 0
    message_ids: tuple[str, ...] = ()
    deadline_s: float = math.inf


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
        schema: Mapping[str, ReplySpec],
        spool: Spool,
        surroundings: JournalSurroundings,
    ) -> None:
        self.run_id = run_id
        self.checkpointed = Checkpointed()
        self.spool = spool
        self._quorum = quorum
        self._schema = schema
        self._around = surroundings
        self._calls: dict[int, _Call] = {}
        self._nodes: dict[int, _Node] = {}
        self._exchange_store = ExchangeStore(surroundings.store, run_id)
        self._memory = _Memory(self._new_exchange())
        self._timer: asyncio.TimerHandle | None = None
        self._last_event = last_event_sequence(surroundings.store, run_id)
        self._ended = False

    # -- life ---------------------------------------------------------------------------------

    def load(self) -> int:
        """Read what the database holds; return how many messages that is."""
        stored = self._exchange_store.load()
        exchange, now = self._new_exchange(), self._around.clock()
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
        for message_id, row in self._memory.rows.items():
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
        self.spool.keep_only(self._payload_names())
        return void

    def worker_starts(self) -> None:
        """Forget what an earlier worker was waiting for and wrote without pushing it."""
        for call in self._calls.values():
            call.future.cancel()
        self._calls.clear()
        self._memory.exchange.drop_calls()
        self.spool.keep_only(self._payload_names())

    def end(self) -> None:
        """Close every message and remove every payload: the run has ended."""
        self._ended = True
        self.worker_starts()
        if self._timer is not None:
            self._timer.cancel()
        self._apply(self._memory.exchange.finish())
        self.spool.clear()

    # -- nodes --------------------------------------------------------------------------------

    def observe_node(self, node_id: int, *, approved: bool, connected: bool) -> None:
        """Note a node's approval and presence."""
        known = self._nodes.get(node_id)
        if known == _Node(approved, connected) or self._ended:
            return
        self._nodes[node_id] = _Node(approved, connected)
        effects = self._memory.exchange.observe_node(
            node_id, approved=approved, connected=connected, now=self._around.clock()
        )
        logged = []
        if approved and known is not None and connected != known.connected:
            kind = EventKind.NODE_JOINED if connected else EventKind.NODE_LEFT
            logged = [(kind, {"member": self._around.member(node_id), "node_id": node_id})]
        self._apply(effects, logged=logged)

    def drop_node(self, node_id: int, code: str) -> None:
        """Fail what a node owes: it was revoked, has left, or its owner withdrew the approval."""
        self._nodes[node_id] = _Node(approved=False, connected=False)
        self._apply(
            self._memory.exchange.drop_node(node_id, code, now=self._around.clock()),
        )

    def eligible(self) -> tuple[int, ...]:
        """Return the approved and connected nodes."""
        return self._memory.exchange.eligible()

    def open_messages(self, node_id: int) -> list[str]:
        """Return the ids of the messages that wait for a node."""
        return [entry.wire_id for entry in self._memory.exchange.open_for(node_id)]

    def fetch(self, node_id: int, wire_id: str) -> tuple[fleet_pb2.InstructionHead, Path | None]:
        """Return an instruction's head and where its payload stands.

        Raises:
            ProtocolError: it is closed, or not this node's (E-MESSAGE-CLOSED).
        """
        entry = self._memory.exchange.find(wire_id, node_id)
        if entry is None or entry.outcome is not Outcome.OPEN:
            raise _closed(wire_id)
        row = self._memory.rows[entry.instruction.message_id]
        return head_for_node(entry, row), self.spool.path(
            row.payload_name
        ) if row.payload_name else None

    def submit_status(self, node_id: int, wire_id: str) -> fleet_pb2.SubmitStatusReply:
        """Say whether a reply is wanted, and from which byte on."""
        entry = self._memory.exchange.find(wire_id, node_id)
        if entry is None:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        receipt = self._receipt(entry)
        if receipt is not None:
            return fleet_pb2.SubmitStatusReply(
                state=fleet_pb2.SubmitStatusReply.RECEIVED, receipt=receipt
            )
        if entry.outcome is not Outcome.OPEN:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        return fleet_pb2.SubmitStatusReply(
            state=fleet_pb2.SubmitStatusReply.WANTED, offset=self.spool.staged_bytes(wire_id)
        )

    def begin_reply(self, node_id: int, head: fleet_pb2.ReplyHead) -> Staged | fleet_pb2.Receipt:
        """Look at a reply's head before any of its bytes: where to stage them, or the receipt.

        Raises:
            ProtocolError: the message is closed; or the reply breaks a rule, and the message has
                then failed, since this node has no other reply to give.
            UnavailableError: there is no room at present.
        """
        entry = self._memory.exchange.find(head.message_id, node_id)
        if entry is None:
            raise _closed(head.message_id)
        receipt = self._receipt(entry)
        if receipt is not None:
            return receipt
        if entry.outcome is not Outcome.OPEN:
            raise _closed(head.message_id)
        if head.WhichOneof("outcome") == "failure":
            return self._accept_failure(entry, head)
        instruction = self._memory.rows[entry.instruction.message_id].head
        with self._failing(entry):
            verify_reply(
                head.manifest,
                instruction=instruction.manifest,
                message_type=instruction.message_type,
                schema=self._schema,
                limits=self._around.limits,
            )
        size, sha256 = head.manifest.payload_bytes, head.manifest.payload_sha256
        return self.spool.stage(entry.wire_id, size=size, sha256=sha256)

    async def commit_reply(
        self, node_id: int, head: fleet_pb2.ReplyHead, staged: Staged
    ) -> fleet_pb2.Receipt:
        """Check a whole reply, store it, and return its receipt.

        Raises:
            ProtocolError: bytes are missing (they may follow), the digest is wrong (all are sent
                again), numbers are not finite (the message has failed), or it was closed meanwhile.
        """
        try:
            staged.verify_complete()
        except ProtocolError as error:
            if error.code == "E-UPLOAD-DIGEST":
                self.spool.discard(head.message_id)
            raise
        entry = self._open_entry(head.message_id, node_id)
        with self._failing(entry):
            await asyncio.to_thread(self._inspect, head, staged)
        entry = self._open_entry(head.message_id, node_id)
        name = f"reply-{entry.wire_id}.bin"
        self.spool.finish(entry.wire_id, name, durable=self._around.durable)
        self._accept(entry, head, name)
        receipt = self._receipt(entry, repeated=False)
        if receipt is None:
            raise _closed(head.message_id)
        return receipt

    # -- the run's worker ---------------------------------------------------------------------

    async def answer(self, request: pipe_pb2.GridRequest) -> pipe_pb2.GridReply:
        """Answer one call of the run's worker; waits where the exchange says so.

        Raises:
            ProtocolError: the worker broke a rule.
            UnavailableError: the database or the spool cannot take it now.
        """
        exchange, now, call_id = self._memory.exchange, self._around.clock(), request.call_id
        match request.WhichOneof("request"):
            case "nodes":
                call = self._call(call_id, sequence=request.nodes.sequence)
                self._apply(exchange.ask_nodes(call_id, request.nodes.sequence, now=now))
                return await call.future
            case "push":
                self._push(request.push.messages)
            case "pull":
                return await self._pull(request.pull, call_id)
            case "event":
                self._note(request.event)
            case "checkpoint":
                self._checkpoint(request.checkpoint)
            case kind:
                raise ProtocolError("E-GRID-REQUEST", f"expected a call of the grid, got {kind}")
        return pipe_pb2.GridReply(call_id=call_id)

    def opens_messages(self, request: pipe_pb2.GridRequest) -> bool:
        """Tell whether a request would begin new work, which a draining daemon holds back."""
        pushed = (instruction_of(item) for item in request.push.messages)
        return any(self._memory.exchange.is_new(instruction) for instruction in pushed)

    def note(self, kind: EventKind, fields: Mapping[str, Any]) -> None:
        """Store an event of the run."""
        self._apply([], logged=[(kind, fields)])

    # -- inside -------------------------------------------------------------------------------

    def _new_exchange(self) -> Exchange:
        return Exchange(self.run_id, quorum=self._quorum, grace_s=self._around.grace_s)

    def _call(self, call_id: int, **kind: Any) -> _Call:  # noqa: ANN401 - fields of _Call
        call = _Call(asyncio.get_running_loop().create_future(), **kind)
        self._calls[call_id] = call
        return call

    def _push(self, pushed: Sequence[pipe_pb2.GridMessage]) -> None:
        instructions = [instruction_of(item) for item in pushed]
        fresh = {
            instruction.message_id: self._memory.exchange.is_new(instruction)
            for instruction in instructions
        }
        for item in pushed:
            self._adopt(item, wanted=fresh[item.instruction.message_id])
            if fresh[item.instruction.message_id]:
                row = MessageRow(head=item.instruction, payload_name=spool_name_of(item))
                self._memory.rows[item.instruction.message_id] = row
        self._apply(self._memory.exchange.push(instructions, now=self._around.clock()))

    def _adopt(self, item: pipe_pb2.GridMessage, *, wanted: bool) -> None:
        """Take over the worker's payload file, or drop it where it is here already."""
        if not item.payload_name:
            return
        name = spool_name_of(item)
        if self.spool.exists(name) or not self.spool.exists(item.payload_name):
            if not self.spool.exists(name):
                raise ProtocolError("E-SPOOL-MISSING", f"expected a payload {item.payload_name}")
            if self.spool.exists(item.payload_name):
                self.spool.remove(item.payload_name)
        elif wanted or name in self._payload_names():
            self.spool.adopt(item.payload_name, name)
        else:
            self.spool.remove(item.payload_name)

    async def _pull(self, pull: pipe_pb2.GridPull, call_id: int) -> pipe_pb2.GridReply:
        now = self._around.clock()
        deadline = now + pull.timeout_s if pull.timeout_s > 0 else math.inf
        call = self._call(call_id, message_ids=tuple(pull.message_ids), deadline_s=deadline)
        try:
            effects = self._memory.exchange.pull(
                call_id, pull.message_ids, timeout_s=pull.timeout_s, wait=pull.wait, now=now
            )
        except ProtocolError:
            self._calls.pop(call_id, None)
            raise
        self._apply(effects)
        return await call.future

    def _note(self, event: pipe_pb2.GridEvent) -> None:
        """Store an event of the worker; those that the daemon knows better are dropped."""
        kind = _WORKER_EVENTS.get(event.kind)
        if kind is None:
            return
        fields = json.loads(event.fields_json)
        self._apply([], logged=[(kind, fields)], round_number=int(fields.get("round", 0)))

    def _checkpoint(self, checkpoint: pipe_pb2.GridCheckpoint) -> None:
        point = Checkpointed(
            round=checkpoint.round, next_sequence=checkpoint.next_sequence, name=checkpoint.name
        )
        effects = self._memory.exchange.checkpoint(
            checkpoint.next_sequence, now=self._around.clock()
        )
        logged = [(EventKind.CHECKPOINT, {"round": checkpoint.round})]
        self._apply(effects, logged=logged, checkpoint=point)
        self.checkpointed = point
        self.spool.keep_only(self._payload_names())

    def _inspect(self, head: fleet_pb2.ReplyHead, staged: Staged) -> None:
        staged.close(durable=self._around.durable)
        payload = map_payload(staged.path) if head.manifest.payload_bytes else memoryview(b"")
        verify_finite(head.manifest, payload)

    def _accept_failure(self, entry: Entry, head: fleet_pb2.ReplyHead) -> fleet_pb2.Receipt:
        clean = fleet_pb2.ReplyHead(run_id=self.run_id, message_id=head.message_id)
        code = stable_code(head.failure.reason)
        clean.failure.CopyFrom(AppFailure(code=head.failure.code, reason=code))
        row = self._memory.rows[entry.instruction.message_id]
        row.reply = clean
        self._fail(entry, code)
        return fleet_pb2.Receipt(message_id=head.message_id)

    def _accept(self, entry: Entry, head: fleet_pb2.ReplyHead, name: str) -> None:
        row = self._memory.rows[entry.instruction.message_id]
        row.reply, row.reply_name = head, name
        fields = {
            **self._message_fields(entry),
            "bytes": head.manifest.payload_bytes,
        }
        effects = self._memory.exchange.accept_reply(
            entry.wire_id, entry.instruction.node_id, now=self._around.clock()
        )
        self._apply(effects, logged=[(EventKind.REPLY_RECEIVED, fields)], replied=entry)

    def _fail(self, entry: Entry, code: str) -> None:
        effects = self._memory.exchange.fail(
            entry.wire_id, entry.instruction.node_id, code, now=self._around.clock()
        )
        self._apply(effects)

    @contextlib.contextmanager
    def _failing(self, entry: Entry) -> Iterator[None]:
        """Fail a message when its reply breaks a rule of content: the node has no other."""
        try:
            yield
        except ProtocolError as error:
            self.spool.discard(entry.wire_id)
            current = self._memory.exchange.find(entry.wire_id, entry.instruction.node_id)
            if current is not None and current.outcome is Outcome.OPEN:
                self._fail(entry, error.code)
            raise

    def _open_entry(self, wire_id: str, node_id: int) -> Entry:
        entry = self._memory.exchange.find(wire_id, node_id)
        if entry is None or entry.outcome is not Outcome.OPEN:
            self.spool.discard(wire_id)
            raise _closed(wire_id)
        return entry

    def _receipt(self, entry: Entry, *, repeated: bool = True) -> fleet_pb2.Receipt | None:
        row = self._memory.rows.get(entry.instruction.message_id)
        return None if row is None else receipt_of(entry, row, repeated=repeated)

    def _payload_names(self) -> set[str]:
        rows = self._memory.rows.values()
        return {name for row in rows for name in (row.payload_name, row.reply_name) if name}

    def _message_fields(self, entry: Entry) -> dict[str, Any]:
        head = self._memory.rows[entry.instruction.message_id].head
        return {
            "round": int(head.group_id) if head.group_id.isdecimal() else 0,
            "member": self._around.member(entry.instruction.node_id),
            "message_id": entry.instruction.message_id,
        }

    def _apply(
        self,
        effects: Sequence[Effect],
        *,
        logged: Sequence[tuple[EventKind, Mapping[str, Any]]] = (),
        replied: Entry | None = None,
        checkpoint: Checkpointed | None = None,
        round_number: int = 0,
    ) -> None:
        """Store the effects in one transaction, then tell those whom they concern."""
        logged = [*logged, *self._failures(effects)]
        writes = [effect for effect in effects if not isinstance(effect, rounds.PullAnswered)]
        last_event = self._last_event
        if writes or logged or replied is not None or checkpoint is not None:
            try:
                last_event = self._write(writes, logged, replied, checkpoint, round_number)
            except TacitError:
                self._reload()
                raise
        self._last_event = last_event
        for told in effects:
            self._tell(told)
        if logged:
            self._around.changed(self.run_id)
        self._schedule()

    def _failures(self, effects: Sequence[Effect]) -> list[tuple[EventKind, Mapping[str, Any]]]:
        return [
            (
                EventKind.REPLY_FAILED,
                {**self._message_fields(effect.entry), "code": effect.entry.code},
            )
            for effect in effects
            if isinstance(effect, rounds.Failed)
        ]

    def _write(
        self,
        writes: Sequence[Effect],
        logged: Sequence[tuple[EventKind, Mapping[str, Any]]],
        replied: Entry | None,
        checkpoint: Checkpointed | None,
        round_number: int,
    ) -> int:
        """Write one transaction; return the number of the last event."""
        target, at_s, sequence = self._exchange_store, self._around.now(), self._last_event
        with self._around.store.transaction() as connection:
            if replied is not None:
                row = self._memory.rows[replied.instruction.message_id]
                target.write_reply(connection, replied, row, at_s=at_s)
            for effect in writes:
                target.write(connection, effect, self._row_of(effect), at_s=at_s)
            if checkpoint is not None:
                target.write_checkpoint(connection, checkpoint, at_s=at_s)
            if round_number:
                change_run(connection, self.run_id, round=round_number)
            for sequence, (kind, fields) in enumerate(logged, start=self._last_event + 1):
                event = Event(sequence=sequence, at_s=at_s, kind=kind, fields=fields)
                add_event(connection, self.run_id, event)
        return sequence

    def _row_of(self, effect: Effect) -> MessageRow | None:
        if isinstance(effect, (rounds.Opened, rounds.Failed)):
            return self._memory.rows.get(effect.entry.instruction.message_id)
        return None

    def _tell(self, effect: Effect) -> None:
        match effect:
            case rounds.Opened(entry):
                ready = fleet_pb2.MessageReady(run_id=self.run_id, message_id=entry.wire_id)
                self._around.tell(entry.instruction.node_id, fleet_pb2.Task(ready=ready))
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
        self._around.tell(entry.instruction.node_id, fleet_pb2.Task(closed=closed))

    def _forget(self, entry: Entry) -> None:
        self.spool.discard(entry.wire_id)
        current = self._memory.exchange.entry(entry.instruction.message_id)
        if current is None:  # not superseded by a new attempt
            row = self._memory.rows.pop(entry.instruction.message_id)
            if row.reply_name:
                self.spool.remove(row.reply_name)
            if row.payload_name and row.payload_name not in self._payload_names():
                self.spool.remove(row.payload_name)

    def _resolve(self, call_id: int, reply: pipe_pb2.GridReply) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None and not call.future.done():
            reply.call_id = call_id
            call.future.set_result(reply)

    def _result(self, entry: Entry) -> pipe_pb2.GridResult:
        return result_of(self.run_id, entry, self._memory.rows[entry.instruction.message_id])

    def _reload(self) -> None:
        """Read the database again after a write that failed, and put the waiting calls again."""
        log.warning("journal read again", extra={"fields": {"run": self.run_id}})
        self.load()
        exchange, now = self._memory.exchange, self._around.clock()
        for call_id, call in list(self._calls.items()):
            if call.message_ids:
                left = max(call.deadline_s - now, 0.001) if call.deadline_s < math.inf else 0.0
                exchange.pull(call_id, call.message_ids, timeout_s=left, wait=True, now=now)
            else:
                exchange.ask_nodes(call_id, call.sequence, now=now)
        self._schedule(at_least_s=1.0)

    def _schedule(self, *, at_least_s: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._around.clock()
        wait_s = self._memory.exchange.next_deadline_s(now) - now
        if wait_s < math.inf and not self._ended:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(wait_s, at_least_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._apply(self._memory.exchange.tick(self._around.clock()))
        except TacitError as error:  # stored at the next try; nothing was told
            log.warning("tick not stored", extra={"fields": {"code": error.code}})
            self._schedule(at_least_s=1.0)


def _closed(wire_id: str) -> ProtocolError:
    return ProtocolError("E-MESSAGE-CLOSED", f"{wire_id[:80]!r} is not open for this node")
