"""Fakes that stand in for the network and the nodes, behind the same protocols as the real ones.

``AppNode`` answers instructions by calling a ClientApp on the spot; ``DyingPort`` is a local port
whose worker dies at a chosen moment, as if its process had been killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import Context, RecordDict

from tacit.protos.codec import decode_records, encode_records
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead
from tacit.protos.flower import make_instruction, reply_parts
from tacit.protos.manifest import check_manifest
from tacit.protos.records_pb2 import AppFailure
from tacit.simulation.port import LocalPort

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flwr.clientapp import ClientApp

    from tacit.server.grid import Outgoing

MAX_BYTES = 1 << 30


class AppNode:
    """A node without policy or envelope: it calls its app.

    Attributes:
        calls: ids of the messages that it trained for, in order.
        failing: ids (or ``"*"``) that it answers with a failure.
    """

    def __init__(self, node_id: int, app: ClientApp) -> None:
        self._app = app
        self._context = Context(
            run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
        )
        self.calls: list[str] = []
        self.failing: set[str] = set()

    def answer(self, head: InstructionHead, payload: memoryview) -> tuple[ReplyHead, memoryview]:
        self.calls.append(head.message_id)
        reply = ReplyHead(run_id=head.run_id, message_id=head.message_id)
        if self.failing & {"*", head.message_id}:
            reply.failure.CopyFrom(AppFailure(code=2, reason="E-APP-FAILED"))
            return reply, memoryview(b"")
        check_manifest(head.manifest, max_bytes=MAX_BYTES)
        content = decode_records(head.manifest, payload)
        message = make_instruction(head, content, node_id=self._context.node_id)
        outcome = reply_parts(self._app(message, self._context))
        if isinstance(outcome, AppFailure):
            reply.failure.CopyFrom(outcome)
            return reply, memoryview(b"")
        encoded = encode_records(outcome)
        reply.manifest.CopyFrom(encoded.manifest)
        return reply, memoryview(encoded.payload())


class WorkerDied(Exception):  # noqa: N818 - an event
    """The run's worker was killed."""


class DyingPort(LocalPort):
    """A local port that kills the worker at its n-th call; everything before is remembered."""

    def __init__(self, nodes: Mapping[int, AppNode], *, die_at: int = 0) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        super().__init__(nodes, lambda kind, fields: self.events.append((kind, dict(fields))))
        self.calls = 0
        self.die_at = die_at

    def push(self, messages: Sequence[Outgoing]) -> None:
        self._tick()
        super().push(messages)
        self._tick()

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:
        self._tick()
        super().checkpoint(round_number=round_number, next_sequence=next_sequence, name=name)
        self._tick()

    def _tick(self) -> None:
        self.calls += 1
        if self.calls == self.die_at:
            raise WorkerDied


def app_nodes(app: ClientApp, node_ids: Sequence[int]) -> dict[int, AppNode]:
    return {node_id: AppNode(node_id, app) for node_id in node_ids}
