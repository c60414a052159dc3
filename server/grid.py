"""Flower's ``Grid`` over a port: what a ServerApp or a strategy talks to, inside the run's worker.

The grid trusts its port (the daemon behind a pipe, or the simulator in the same process) and nobody
else: replies were checked against the run's schema before they reached the spool.

What it promises:

1. Message ids are counted, never random: a worker that starts again from a checkpoint asks for the
   same ids in the same order, so the journal can answer what it answered before.
2. Content that several messages share is encoded once and stored once.
3. Replies come back in the order of node ids, whatever the order of arrival, so folding them is
   reproducible to the bit.
4. Every message of :meth:`TacitGrid.send_and_receive` gets a reply: one that did not come by the
   deadline is a Flower error reply.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from tacit.protos.codec import decode_records, encode_records
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead, SecureStep
from tacit.protos.flower import empty_run, flower_run_id, make_instruction, make_reply
from tacit.protos.records_pb2 import AppFailure
from tacit.server.claims import plain_claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    _Encodings = dict[int, tuple[RecordDict, InstructionHead, str]]

EXPIRED = "E-MESSAGE-EXPIRED"
EXPIRED_FLOWER_CODE = 3  # flwr's ErrorCode.MESSAGE_UNAVAILABLE
GRACE_S = 30.0  # the port says what has expired, and remembers it; this is for a port that hangs
MAX_PULL_S = 3600.0  # one blocking pull; longer waits ask again


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One instruction on its way to one node; its payload is in the port's spool already."""

    head: InstructionHead
    node_id: int
    payload_name: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one node is asked beside Flower's messages.

    Attributes:
        node_id: whom.
        message_type: such as ``query.secagg-keys``.
        content: the records; what is one object for several nodes is stored once.
        secure: where the instruction stands in a session of secure aggregation.
    """

    node_id: int
    message_type: str
    content: RecordDict
    secure: SecureStep | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One node's reply and the bytes of its payload, read-only."""

    message_id: str
    node_id: int
    head: ReplyHead
    payload: memoryview = field(repr=False)


class GridPort(Protocol):
    """What stands behind the grid: the daemon, the simulator, or a fake."""

    def nodes(self, sequence: int) -> list[int]:
        """Return the nodes that may be asked now; a repeated sequence gets the stored answer."""

    def store(self, name: str, segments: Sequence[bytes | memoryview]) -> None:
        """Write a payload to the run's spool; the same name always holds the same bytes."""

    def push(self, messages: Sequence[Outgoing]) -> None:
        """Hand over instructions; an id that is known already changes nothing."""

    def pull(self, message_ids: Sequence[str], *, timeout_s: float, wait: bool) -> list[Result]:
        """Return the replies that are here; with ``wait``, block until all are, or the timeout."""

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Tell whoever watches the run."""

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:
        """Make the checkpoint file ``name`` the place from which the run resumes."""


class TacitGrid(Grid):
    """Flower's Grid, counted and ordered.

    Attributes:
        next_sequence: the number of the next message or question to the port.
        claims: what owners' ledgers say that the run has cost, the latest, by node and side.
    """

    def __init__(
        self,
        port: GridPort,
        *,
        run_id: str,
        specification_sha256: bytes,
        next_sequence: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._port = port
        self._run_id = run_id
        self._specification_sha256 = specification_sha256
        self._run = empty_run(flower_run_id(run_id))
        self._pending: dict[str, Message] = {}
        self._fixed_nodes: list[int] | None = None
        self._group_id = ""
        self._clock = clock
        self.next_sequence = next_sequence
        self.claims: dict[str, dict[str, Any]] = {}

    @property
    def port(self) -> GridPort:
        """The port, for events and checkpoints."""
        return self._port

    @property
    def run(self) -> Any:  # noqa: ANN401 - flwr's Run has no public path
        """Flower's description of the run: the id, all else empty."""
        return self._run

    def set_run(self, run: Any) -> None:  # noqa: ANN401
        """Refuse: a worker serves one run, for ever.

        Raises:
            RuntimeError: the run is another one.
        """
        if run.run_id != self._run.run_id:
            raise RuntimeError(f"this grid serves run {self._run_id} only")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make an instruction as older Flower apps do."""
        return Message(
            content,
            dst_node_id=dst_node_id,
            message_type=message_type,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are approved and connected, in rising order."""
        if self._fixed_nodes is not None:
            return list(self._fixed_nodes)
        return sorted(self._port.nodes(self._take_sequence()))

    @contextmanager
    def attempt(self, round_number: int, node_ids: Sequence[int]) -> Iterator[None]:
        """Play one attempt of a round: ``get_node_ids`` stays the same, messages name the round."""
        self._fixed_nodes = sorted(node_ids)
        self._group_id = str(round_number)
        try:
            yield
        finally:
            self._fixed_nodes = None
            self._group_id = ""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send instructions and return their ids.

        Raises:
            UnavailableError: the spool is full or the daemon is gone.
        """
        return self._push(messages, deadline_s=None)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are here by now, in the order of node ids."""
        wanted = [name for name in message_ids if name in self._pending]
        if not wanted:
            return []
        return self._collect(self._port.pull(wanted, timeout_s=0.0, wait=False))

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        one_by_one: bool = False,
    ) -> list[Message]:
        """Send instructions and wait: one reply each, in the order of node ids.

        Args:
            messages: the instructions.
            timeout: seconds until those without a reply have failed.
            one_by_one: wait for each by itself, so that nobody is given up sooner because the
                others have answered (rule 5 of rounds.py).

        Raises:
            UnavailableError: the spool is full or the daemon is gone.
        """
        message_ids = self._push(messages, deadline_s=timeout)
        if not message_ids:
            return []
        deadline = None if timeout is None else self._clock() + timeout + GRACE_S
        replies: list[Message] = []
        waiting = list(message_ids)
        while waiting:
            left = MAX_PULL_S if deadline is None else deadline - self._clock()
            results = self._port.pull(
                waiting[:1] if one_by_one else waiting,
                timeout_s=max(0.0, min(left, MAX_PULL_S)),
                wait=left > 0,
            )
            replies += self._collect(results)
            waiting = [name for name in waiting if name in self._pending]
            if left <= 0:
                break
        replies += [self._expired(name) for name in waiting]
        return sorted(replies, key=_source)

    def send(self, questions: Iterable[Question], *, timeout_s: float) -> dict[str, int]:
        """Send what :meth:`wait` waits for; return the nodes by message id, in order.

        Raises:
            UnavailableError: the spool is full or the daemon is gone.
        """
        outgoing: list[Outgoing] = []
        encodings: _Encodings = {}
        for question in questions:
            sequence = self._take_sequence()
            head, name = self._encode(question.content, sequence, encodings)
            head.message_id = f"{self._run_id}.{sequence:06d}"
            head.message_type = question.message_type
            head.group_id = self._group_id
            head.ttl_s, head.created_at_s = timeout_s, time.time()
            if question.secure is not None:
                head.secure.CopyFrom(question.secure)
            outgoing.append(Outgoing(head=head, node_id=question.node_id, payload_name=name))
        if outgoing:
            self._port.push(outgoing)
        return {item.head.message_id: item.node_id for item in outgoing}

    def wait(self, sent: Mapping[str, int], *, timeout_s: float) -> Iterator[Result]:
        """Give each answer as it stands in the spool, in the order of node ids; failures too.

        Nothing is decoded: a payload is mapped, and its memory is the caller's to let go.
        """
        deadline = self._clock() + timeout_s + GRACE_S
        found: dict[str, Result] = {}
        while (
            missing := [name for name in sent if name not in found]
        ) and self._clock() < deadline:
            left = min(deadline - self._clock(), MAX_PULL_S)
            for result in self._port.pull(missing, timeout_s=max(left, 0.0), wait=True):
                self._note_claim(result)
                found[result.message_id] = result
        for name in missing:
            head = self._expired_head(name)
            found[name] = Result(
                message_id=name, node_id=sent[name], head=head, payload=memoryview(b"")
            )
        for name in sorted(sent, key=lambda name: sent[name]):
            yield found.pop(name)

    def _take_sequence(self) -> int:
        sequence = self.next_sequence
        self.next_sequence += 1
        return sequence

    def _push(self, messages: Iterable[Message], *, deadline_s: float | None) -> list[str]:
        outgoing: list[Outgoing] = []
        encodings: _Encodings = {}
        for message in messages:
            sequence = self._take_sequence()
            head, name = self._encode(message.content, sequence, encodings)
            head.message_id = f"{self._run_id}.{sequence:06d}"
            head.message_type = message.metadata.message_type
            head.group_id = message.metadata.group_id or self._group_id
            ttl_s = message.metadata.ttl
            head.ttl_s = ttl_s if deadline_s is None else min(ttl_s, deadline_s)
            head.created_at_s = message.metadata.created_at
            node_id = message.metadata.dst_node_id
            outgoing.append(Outgoing(head=head, node_id=node_id, payload_name=name))
            self._pending[head.message_id] = make_instruction(head, RecordDict(), node_id=node_id)
        if outgoing:
            self._port.push(outgoing)
        return [item.head.message_id for item in outgoing]

    def _encode(
        self,
        content: RecordDict,
        sequence: int,
        encodings: _Encodings,
    ) -> tuple[InstructionHead, str]:
        """Encode and store each distinct content object once; the dict keeps it alive meanwhile."""
        known = encodings.get(id(content))
        if known is None:
            encoded = encode_records(content)
            name = f"out-{sequence:06d}.bin"
            self._port.store(name, encoded.segments)
            head = InstructionHead(
                run_id=self._run_id,
                manifest=encoded.manifest,
                specification_sha256=self._specification_sha256,
            )
            known = encodings[id(content)] = (content, head, name)
        copy = InstructionHead()
        copy.CopyFrom(known[1])
        return copy, known[2]

    def _collect(self, results: Iterable[Result]) -> list[Message]:
        replies = []
        for result in results:
            instruction = self._pending.pop(result.message_id, None)
            if instruction is None:
                continue  # answered before, or not ours: a reply counts once
            content = None
            self._note_claim(result)
            if result.head.WhichOneof("outcome") == "manifest":
                content = decode_records(result.head.manifest, result.payload)
            replies.append(
                make_reply(result.head, content, node_id=result.node_id, instruction=instruction)
            )
        return sorted(replies, key=_source)

    def _note_claim(self, result: Result) -> None:
        if result.head.HasField("claim"):
            sides = self.claims.setdefault(str(result.node_id), {})
            sides[result.head.claim.side] = plain_claim(result.head.claim)

    def _expired(self, message_id: str) -> Message:
        instruction = self._pending.pop(message_id)
        head = self._expired_head(message_id)
        return make_reply(
            head, None, node_id=instruction.metadata.dst_node_id, instruction=instruction
        )

    def _expired_head(self, message_id: str) -> ReplyHead:
        return ReplyHead(
            run_id=self._run_id,
            message_id=message_id,
            failure=AppFailure(code=EXPIRED_FLOWER_CODE, reason=EXPIRED),
        )


def _source(message: Message) -> int:
    return message.metadata.src_node_id
