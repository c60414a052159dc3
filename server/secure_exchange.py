"""One session of secure aggregation over the grid: its steps as messages, its sums.

It trusts members to send what they hold, never to be honest about it. A worker that starts again
repeats its questions, gets the journal's answers, and arrives where it was.

The rules:

1. Every member gets the very same instruction; its hash is a part of every mask.
2. Keys and shares are exchanged while the members train.
3. A member whose answer fails, is late or is malformed counts as lost; below the threshold the
   session ends without a sum.
4. Vectors are folded one at a time, out of the spool; none is kept.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from tacit.core.errors import ProtocolError, TrustError
from tacit.protos.codec import encode_records
from tacit.protos.fleet_pb2 import InstructionHead, SecureStep
from tacit.protos.flower import array_record
from tacit.protos.manifest import check_manifest
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

    from tacit.privacy.layout import Words
    from tacit.privacy.secagg.server import ServerSession, Sum
    from tacit.server.grid import Result, TacitGrid

STEP_S = 60.0  # for what a node's daemon answers by itself


class SecureExchange:
    """The five steps of one session, over the grid.

    Attributes:
        failed: why a node was lost, by id.
    """

    def __init__(self, grid: TacitGrid, session: ServerSession, *, terms_bytes: bytes) -> None:
        self._grid = grid
        self._session = session
        self._terms = terms_bytes
        self.failed: dict[int, str] = {}

    def first(self, nodes: Sequence[int], content: RecordDict, *, timeout_s: float) -> Sum:
        """Play the session up to the sum of its first step.

        Args:
            nodes: whom to ask, members all.
            content: what each of them is told.
            timeout_s: for the training.

        Raises:
            TacitError: it ended without a sum.
        """
        session, model = self._session, digest_of(content)
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

    def next(self, content: RecordDict, *, timeout_s: float) -> Sum:
        """Return the sum of the next step, of the same members under the same keys.

        Raises:
            TacitError: one of them is lost, or sent no vector of this step; the session has ended.
        """
        session, model = self._session, digest_of(content)
        number = session.start_step(model=model)
        step = SecureStep(session=session.terms.digest, step=number, model_sha256=model)
        questions = [
            Question(node_id=node, message_type="train", content=content, secure=step)
            for node in session.awaited
        ]
        sent = self._grid.send(questions, timeout_s=timeout_s)
        for result in self._grid.wait(sent, timeout_s=timeout_s):
            if self._answered(result):
                self._fold_one(result)
        return session.end_step()

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
            self._fold_one(result)

    def _fold_one(self, result: Result) -> None:
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


def digest_of(content: RecordDict) -> bytes:
    """Return the hash of an instruction to train, as its members compute it."""
    head = InstructionHead(message_type="train", manifest=encode_records(content).manifest)
    return model_digest(head)


def _read(result: Result) -> tuple[bytes, Words | None]:
    manifest = result.head.manifest
    check_manifest(manifest, max_bytes=len(result.payload))
    check_secure(manifest, most_vector_bytes=len(result.payload))
    return read_secure(manifest, result.payload)
