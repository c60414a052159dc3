"""The grid's port inside one process: nodes answer where they are asked, nothing is sent.

It stands where the daemon, its journal and the wire stand in a real run: payloads stay in memory,
replies are kept by message id (so that a run which resumes is answered, not retrained), events go
to whoever listens. Each node answers for itself and replies are ordered by node id, so the same
specification gives the same bits, also when several nodes answer at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from tacit.core.events import EventKind
from tacit.server.grid import Outgoing, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead

    Tell = Callable[[str, Mapping[str, object]], None]


class Answerer(Protocol):
    """One node, as the port sees it."""

    def answer(self, head: InstructionHead, payload: memoryview) -> tuple[ReplyHead, memoryview]:
        """Return the reply to an instruction: a manifest with its payload, or a failure."""


class LocalPort:
    """``GridPort`` over nodes in this process.

    Attributes:
        resume_from: the name of the last checkpoint file.
        bytes_sent, bytes_received: payload bytes that would have crossed the wire.
    """

    def __init__(
        self, nodes: Mapping[int, Answerer], tell: Tell, *, answers_at_once: int = 1
    ) -> None:
        self._nodes = dict(sorted(nodes.items()))
        self._tell = tell
        self._answers_at_once = answers_at_once
        self._payloads: dict[str, bytearray] = {}
        self._results: dict[str, Result] = {}
        self.resume_from = ""
        self.bytes_sent = 0
        self.bytes_received = 0

    def nodes(self, sequence: int) -> list[int]:  # noqa: ARG002 - nobody joins or leaves here
        """Return every node."""
        return list(self._nodes)

    def store(self, name: str, segments: Sequence[bytes | memoryview]) -> None:
        """Keep a payload until the next checkpoint."""
        payload = bytearray()
        for segment in segments:
            payload += segment
        self._payloads[name] = payload

    def push(self, messages: Sequence[Outgoing]) -> None:
        """Let each node answer; an id that is known changes nothing."""
        fresh = [item for item in messages if item.head.message_id not in self._results]
        if self._answers_at_once == 1:
            results = [self._answer(item) for item in fresh]
        else:
            with ThreadPoolExecutor(self._answers_at_once) as threads:
                results = list(threads.map(self._answer, fresh))
        for item, result in zip(fresh, results, strict=True):
            self._results[result.message_id] = result
            self.bytes_sent += len(self._payloads.get(item.payload_name, b""))
            self.bytes_received += len(result.payload)
            if result.head.HasField("failure"):
                group = item.head.group_id
                fields = {
                    "round": int(group) if group.isdecimal() else 0,
                    "member": str(item.node_id),
                    "message_id": result.message_id,
                    "code": result.head.failure.reason,
                }
                self._tell(EventKind.REPLY_FAILED.value, fields)

    def pull(self, message_ids: Sequence[str], *, timeout_s: float, wait: bool) -> list[Result]:  # noqa: ARG002 - every reply is here already
        """Return the replies."""
        return [self._results[name] for name in message_ids if name in self._results]

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Pass the event on."""
        self._tell(kind, fields)

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:
        """Forget what lies before the checkpoint."""
        self.resume_from = name
        self._results = {
            key: result
            for key, result in self._results.items()
            if int(key.rsplit(".", 1)[1]) >= next_sequence
        }
        self._payloads.clear()
        self._tell(EventKind.CHECKPOINT.value, {"round": round_number})

    def _answer(self, item: Outgoing) -> Result:
        payload = memoryview(self._payloads.get(item.payload_name, bytearray())).toreadonly()
        head, reply = self._nodes[item.node_id].answer(item.head, payload)
        return Result(
            message_id=item.head.message_id, node_id=item.node_id, head=head, payload=reply
        )
