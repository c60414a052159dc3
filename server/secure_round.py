"""One attempt of a round through secure aggregation, in the run's worker: a sum, and nobody's part.

It trusts members to send what they hold, never to be honest about it; what it may know is in the
terms, and the nodes check it (privacy/secagg). A worker that starts again repeats its questions,
gets the journal's answers, and arrives where it was.

The rules:

1. Every member gets the very same instruction; its hash is a part of every mask.
2. Keys and shares go to and fro while the members train.
3. A member whose answer fails, is late or is malformed counts as lost; below the threshold the
   attempt fails, and the next one has keys, masks and noise of its own.
4. Vectors are folded one at a time, out of the spool; none is kept.
5. The strategy gets one reply: the mean, with the weight of all, as if one client had sent it.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from tacit.core.errors import AppError, ProtocolError, TacitError, TrustError
from tacit.privacy.secagg.server import ServerSession
from tacit.privacy.secure_sum import forms_of, secure_plan, terms_of, weight_key
from tacit.protos.codec import encode_records
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead, SecureStep
from tacit.protos.flower import array_record, make_reply
from tacit.protos.manifest import check_manifest
from tacit.protos.records_pb2 import AppFailure
from tacit.protos.secure import (
    BODY,
    CONSISTENCY,
    KEYS,
    MASKED,
    RECORD,
    SHARES,
    UNMASK,
    check_secure,
    model_digest,
    read_secure,
)
from tacit.server.grid import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tacit.core.artifacts import Arrays
    from tacit.core.specification import RunSpec
    from tacit.privacy.layout import Words
    from tacit.privacy.secagg.server import Sum
    from tacit.privacy.secagg.terms import Member
    from tacit.server.grid import Result, TacitGrid

log = logging.getLogger("tacit.server.secure_round")

STEP_S = 60.0  # for what a node's daemon answers by itself
_RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@dataclass(frozen=True, kw_only=True)
class Secured:
    """What an attempt came to.

    Attributes:
        replies: one reply with the mean, if there is one, and an error for each member lost.
        survivors: whose vectors are in the mean.
        reason: why there is no mean; empty if there is one.
    """

    replies: list[Message]
    survivors: tuple[int, ...] = ()
    reason: str = ""


class SecureRounds:
    """The rounds of one run whose updates are summed unseen."""

    def __init__(
        self,
        run_id: str,
        specification: RunSpec,
        specification_sha256: bytes,
        *,
        grid: TacitGrid,
        members: Sequence[Member],
    ) -> None:
        """Take the members whom the run names, with their enrolment keys."""
        self._run_id = run_id
        self._spec = specification
        self._sha256 = specification_sha256
        self._grid = grid
        self._members = members

    def attempt(
        self, messages: Sequence[Message], *, round_number: int, attempt: int, timeout_s: float
    ) -> Secured:
        """Send one instruction to the cohort and return the mean of what the survivors make of it.

        Args:
            messages: of the strategy, one for each node, all of the same content.
            round_number: from 1.
            attempt: of the round, from 1.
            timeout_s: for the training.

        Raises:
            AppError: the strategy asks members for different things (``E-SECAGG-CONTENT``).
        """
        content = _one_content(messages)
        key, received = _model_of(content)
        plan = secure_plan(self._spec, forms_of(received))
        terms = terms_of(
            plan,
            self._members,
            specification_sha256=self._sha256,
            run=self._run_id,
            round_number=round_number,
            attempt=attempt,
            steps=1,
        )
        exchange = _Exchange(self._grid, ServerSession(terms), terms_bytes=terms.encode())
        total, reason = None, ""
        try:
            total = exchange.run(messages, content, timeout_s=timeout_s)
        except TacitError as error:
            reason = error.message
            log.warning("attempt failed", extra={"fields": {"code": error.code, "why": reason}})
        replies = [_failure(m, exchange.failed) for m in messages if _node(m) in exchange.failed]
        if total is None:
            return Secured(replies=replies, reason=reason)
        weight, metrics = plan.layout.sums(
            total.values[plan.layout.changes :], members=len(total.survivors)
        )
        mean = plan.decode(total.values)
        mean /= weight
        arrays = plan.layout.updated(received, mean)
        metrics[weight_key(self._spec)] = weight
        mean_reply = self._reply(messages, total, RecordDict({key: array_record(arrays)}), metrics)
        return Secured(replies=[mean_reply, *replies], survivors=total.survivors)

    def _reply(
        self,
        messages: Sequence[Message],
        total: Sum,
        content: RecordDict,
        metrics: Mapping[str, int | float],
    ) -> Message:
        first = next(m for m in messages if _node(m) == total.survivors[0])
        content["metrics"] = MetricRecord(dict(metrics))
        head = ReplyHead(run_id=self._run_id, message_id=first.metadata.message_id)
        return make_reply(head, content, node_id=_node(first), instruction=first)


class _Exchange:
    """The five steps of one session, over the grid.

    Attributes:
        failed: why a node was lost, by id.
    """

    def __init__(self, grid: TacitGrid, session: ServerSession, *, terms_bytes: bytes) -> None:
        self._grid = grid
        self._session = session
        self._terms = terms_bytes
        self.failed: dict[int, str] = {}

    def run(self, messages: Sequence[Message], content: RecordDict, *, timeout_s: float) -> Sum:
        """Play the session.

        Raises:
            TacitError: it ended without a sum.
        """
        session, nodes = self._session, [_node(message) for message in messages]
        member_ids = {member.node_id for member in session.terms.members}
        nodes = [node for node in nodes if node in member_ids]
        model = _digest_of(content)
        step = SecureStep(
            terms=self._terms, session=session.terms.digest, step=1, model_sha256=model
        )
        questions = [
            Question(node_id=node, message_type="train", content=content, secure=step)
            for node in nodes
        ]
        training = self._grid.send(questions, timeout_s=timeout_s)
        self._play(KEYS, dict.fromkeys(nodes, b""), session.take_keys, step)
        key_list = session.end_keys(model=model)
        step = SecureStep(session=session.terms.digest, step=1, model_sha256=model)
        self._play(SHARES, dict.fromkeys(self._left(), key_list), session.take_shares, step)
        deliveries = session.end_shares()
        held = set()
        for result in self._grid.wait(training, timeout_s=timeout_s):
            if self._answered(result):
                held.add(result.node_id)
        due = {node: deliveries[node] for node in self._left() if node in held}
        self._fold(due, step)
        survivors = session.end_masked()
        self._play(
            CONSISTENCY, dict.fromkeys(session.awaited, survivors), session.take_signature, step
        )
        signatures = session.end_signatures()
        self._play(UNMASK, dict.fromkeys(session.awaited, signatures), session.take_unmask, step)
        return session.end_unmask()

    def _left(self) -> tuple[int, ...]:
        return tuple(node for node in self._session.awaited if node not in self.failed)

    def _play(
        self,
        message_type: str,
        bodies: Mapping[int, bytes],
        take: Callable[[int, bytes], None],
        step: SecureStep,
    ) -> None:
        """Ask each node for its part of a step; who does not give it is lost."""
        for result in self._asked(message_type, bodies, step):
            with self._losing(result.node_id):
                body, _ = _read(result)
                take(result.node_id, body)

    def _fold(self, bodies: Mapping[int, bytes], step: SecureStep) -> None:
        for result in self._asked(MASKED, bodies, step):
            with self._losing(result.node_id):
                body, vector = _read(result)
                if vector is None:
                    raise ProtocolError("E-SECAGG-VECTOR", "expected a masked vector, got none")
                self._session.fold(result.node_id, body, vector)

    def _asked(
        self, message_type: str, bodies: Mapping[int, bytes], step: SecureStep
    ) -> Iterator[Result]:
        contents: dict[bytes, RecordDict] = {}
        for body in bodies.values():
            if body not in contents:
                array = np.frombuffer(body, dtype=np.uint8)
                contents[body] = RecordDict({RECORD: array_record({BODY: array})})
        questions = [
            Question(node_id=node, message_type=message_type, content=contents[body], secure=step)
            for node, body in sorted(bodies.items())
        ]
        sent = self._grid.send(questions, timeout_s=STEP_S)
        for result in self._grid.wait(sent, timeout_s=STEP_S):
            if self._answered(result):
                yield result

    @contextlib.contextmanager
    def _losing(self, node_id: int) -> Iterator[None]:
        """Count a member as lost if what it sent is refused; the round goes on without it."""
        try:
            yield
        except (ProtocolError, TrustError) as error:
            self.failed.setdefault(node_id, error.code)

    def _answered(self, result: Result) -> bool:
        if result.head.WhichOneof("outcome") == "manifest":
            return True
        self.failed.setdefault(result.node_id, result.head.failure.reason)
        return False


def _one_content(messages: Sequence[Message]) -> RecordDict:
    """Return what all messages say; most strategies give them one object."""
    first = messages[0].content
    if all(message.content is first for message in messages):
        return first
    digests = {_digest_of(message.content) for message in messages}
    if len(digests) != 1:
        raise AppError(
            "E-SECAGG-CONTENT",
            "expected the strategy to ask all members for the same, got different instructions",
            hint="Under secure aggregation masks cancel only between members who got the same.",
        )
    return first


def _digest_of(content: RecordDict) -> bytes:
    head = InstructionHead(message_type="train", manifest=encode_records(content).manifest)
    return model_digest(head)


def _model_of(content: RecordDict) -> tuple[str, Arrays]:
    """Return the one record of arrays of an instruction: its key, and the arrays by name."""
    records = list(content.array_records.items())
    if len(records) != 1:
        raise AppError(
            "E-SECAGG-CONTENT", f"expected an instruction with one model, got {len(records)}"
        )
    key, record = records[0]
    return key, {name: array.numpy() for name, array in record.items()}


def _read(result: Result) -> tuple[bytes, Words | None]:
    manifest = result.head.manifest
    check_manifest(manifest, max_bytes=len(result.payload))
    check_secure(manifest, most_vector_bytes=len(result.payload))
    return read_secure(manifest, result.payload)


def _node(message: Message) -> int:
    return int(message.metadata.dst_node_id)


def _failure(message: Message, failed: Mapping[int, str]) -> Message:
    reason = failed[_node(message)]
    head = ReplyHead(failure=AppFailure(code=_RAISED, reason=reason))
    return make_reply(head, None, node_id=_node(message), instruction=message)
