"""The desk of a run's journal where the run's worker asks for nodes, pushes and pulls.

The worker is trusted with its run: what it asks twice is answered twice, the second time from the
journal.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.core.events import EventKind
from tacit.protos import pipe_pb2
from tacit.server.exchange_store import Checkpointed, MessageRow
from tacit.server.grid_messages import instruction_of, spool_name_of
from tacit.server.journal import Changes, RunJournal, WaitingCall

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORKER_EVENTS = {
    kind.value: kind
    for kind in (
        EventKind.ROUND_STARTED,
        EventKind.ROUND_FINISHED,
        EventKind.EVALUATION_FINISHED,
        EventKind.CANARIES_ASKED,
        EventKind.CANARIES_OPENED,
    )
}


class GridDesk:
    """The calls of one run's worker."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._spool = journal.spool

    async def answer(self, request: pipe_pb2.GridRequest) -> pipe_pb2.GridReply:
        """Answer one call of the run's worker; waits where the exchange says so.

        Raises:
            ProtocolError: the worker broke a rule.
            UnavailableError: the database or the spool cannot take it now.
        """
        call_id = request.call_id
        match request.WhichOneof("request"):
            case "nodes":
                return await self._ask_nodes(request.nodes.sequence, call_id)
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
        return any(self._journal.exchange.is_new(instruction) for instruction in pushed)

    async def _ask_nodes(self, sequence: int, call_id: int) -> pipe_pb2.GridReply:
        now = self._journal.around.clock()
        effects = self._journal.exchange.ask_nodes(call_id, sequence, now=now)
        answer = self._journal.wait(call_id, WaitingCall(_future(), sequence=sequence))
        self._journal.apply(effects)
        return await answer

    def _push(self, pushed: Sequence[pipe_pb2.GridMessage]) -> None:
        instructions = [instruction_of(item) for item in pushed]
        fresh = {
            instruction.message_id: self._journal.exchange.is_new(instruction)
            for instruction in instructions
        }
        for item in pushed:
            self._adopt(item, wanted=fresh[item.instruction.message_id])
            if fresh[item.instruction.message_id]:
                row = MessageRow(head=item.instruction, payload_name=spool_name_of(item))
                self._journal.rows[item.instruction.message_id] = row
        self._journal.apply(
            self._journal.exchange.push(instructions, now=self._journal.around.clock())
        )

    def _adopt(self, item: pipe_pb2.GridMessage, *, wanted: bool) -> None:
        """Take over the worker's payload file, or drop it where it is here already."""
        if not item.payload_name:
            return
        name = spool_name_of(item)
        if self._spool.exists(name) or not self._spool.exists(item.payload_name):
            if not self._spool.exists(name):
                raise ProtocolError("E-SPOOL-MISSING", f"expected {item.payload_name}")
            if self._spool.exists(item.payload_name):
                self._spool.remove(item.payload_name)
        elif wanted or name in self._journal.payload_names():
            self._spool.adopt(item.payload_name, name)
        else:
            self._spool.remove(item.payload_name)

    async def _pull(self, pull: pipe_pb2.GridPull, call_id: int) -> pipe_pb2.GridReply:
        now = self._journal.around.clock()
        deadline = now + pull.timeout_s if pull.timeout_s > 0 else math.inf
        effects = self._journal.exchange.pull(
            call_id, pull.message_ids, timeout_s=pull.timeout_s, wait=pull.wait, now=now
        )
        call = WaitingCall(_future(), message_ids=tuple(pull.message_ids), deadline_s=deadline)
        answer = self._journal.wait(call_id, call)
        self._journal.apply(effects)
        return await answer

    def _note(self, event: pipe_pb2.GridEvent) -> None:
        """Store an event of the worker; those that the daemon knows better are dropped."""
        kind = _WORKER_EVENTS.get(event.kind)
        if kind is None:
            return
        fields = json.loads(event.fields_json)
        changes = Changes(logged=[(kind, fields)], round_number=int(fields.get("round", 0)))
        self._journal.apply([], changes)

    def _checkpoint(self, checkpoint: pipe_pb2.GridCheckpoint) -> None:
        point = Checkpointed(
            round=checkpoint.round, next_sequence=checkpoint.next_sequence, name=checkpoint.name
        )
        effects = self._journal.exchange.checkpoint(
            checkpoint.next_sequence, now=self._journal.around.clock()
        )
        logged = [(EventKind.CHECKPOINT, {"round": checkpoint.round})]
        self._journal.apply(effects, Changes(logged=logged, checkpoint=point))
        self._journal.checkpointed = point
        self._spool.keep_only(self._journal.payload_names())


def _future() -> asyncio.Future[pipe_pb2.GridReply]:
    return asyncio.get_running_loop().create_future()
