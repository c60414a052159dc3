"""The grid's port over Flower's own Grid: where Tacit's daemon, journal and wire stand otherwise.

The server's loop is the one of ``tacit.server.app``, unchanged: it writes encoded payloads to this
port, which turns them into Flower messages and the replies back. Nothing is journalled here: a
process that dies takes the run with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.app import Array, Message, RecordDict

from tacit.core.errors import UnavailableError
from tacit.protos.codec import decode_records, encode_records
from tacit.protos.fleet_pb2 import ReplyHead
from tacit.protos.flower import WireArray, reply_parts
from tacit.protos.records_pb2 import AppFailure
from tacit.server.grid import Outgoing, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flwr.serverapp import Grid

PAUSE_S = 0.2  # between two looks for replies; Flower's grid has no call that waits


class FlowerPort:
    """``GridPort`` over a Grid of Flower's."""

    def __init__(self, grid: Grid, tell: Callable[[str, Mapping[str, object]], None]) -> None:
        self._grid = grid
        self._tell = tell
        self._payloads: dict[str, bytes] = {}
        self._flower_ids: dict[str, str] = {}
        self._results: dict[str, Result] = {}

    def nodes(self, sequence: int) -> list[int]:  # noqa: ARG002 - nothing is replayed here
        """Return the nodes that are connected now."""
        return list(self._grid.get_node_ids())

    def store(self, name: str, segments: Sequence[bytes | memoryview]) -> None:
        """Keep a payload until it is pushed."""
        self._payloads[name] = b"".join(segments)

    def push(self, messages: Sequence[Outgoing]) -> None:
        """Send the instructions as Flower messages.

        Raises:
            UnavailableError: the SuperLink did not take one.
        """
        made = [self._message(item) for item in messages]
        flower_ids = list(self._grid.push_messages(made))
        for item, flower_id in zip(messages, flower_ids, strict=True):
            if not flower_id:
                raise UnavailableError(
                    "E-FLOWER-PUSH", f"the SuperLink did not take the message to {item.node_id}"
                )
            self._flower_ids[flower_id] = item.head.message_id
        for name in {item.payload_name for item in messages}:
            self._payloads.pop(name, None)

    def pull(self, message_ids: Sequence[str], *, timeout_s: float, wait: bool) -> list[Result]:
        """Return the replies that are here; with ``wait``, ask until all are, or time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._look()
            missing = [name for name in message_ids if name not in self._results]
            if not missing or not wait or time.monotonic() >= deadline:
                break
            time.sleep(PAUSE_S)
        here = [name for name in message_ids if name in self._results]
        return [self._results.pop(name) for name in here]

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Pass the event on."""
        self._tell(kind, fields)

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:  # noqa: ARG002
        """Tell of the checkpoint; under Flower's engine nobody resumes from it."""
        self._tell("checkpoint", {"round": round_number})

    def _message(self, item: Outgoing) -> Message:
        payload = memoryview(self._payloads[item.payload_name])
        return Message(
            content=plain(decode_records(item.head.manifest, payload)),
            dst_node_id=item.node_id,
            message_type=item.head.message_type,
            group_id=item.head.group_id,
            ttl=item.head.ttl_s,
        )

    def _look(self) -> None:
        if not self._flower_ids:
            return
        for reply in self._grid.pull_messages(list(self._flower_ids)):
            message_id = self._flower_ids.pop(reply.metadata.reply_to_message_id, None)
            if message_id is not None:
                self._results[message_id] = _result(message_id, reply)


def plain(content: RecordDict) -> RecordDict:
    """Return the content with arrays of Flower's own class, the only one its engine can send."""
    for record in content.array_records.values():
        for name, array in record.items():
            if isinstance(array, WireArray):
                record[name] = Array(array.numpy())
    return content


def _result(message_id: str, reply: Message) -> Result:
    run_id = message_id.partition(".")[0]
    head = ReplyHead(
        run_id=run_id,
        message_id=message_id,
        ttl_s=reply.metadata.ttl,
        created_at_s=reply.metadata.created_at,
    )
    content, payload = reply_parts(reply), b""
    if isinstance(content, AppFailure):
        head.failure.CopyFrom(content)
    else:
        encoded = encode_records(content)
        head.manifest.CopyFrom(encoded.manifest)
        payload = encoded.payload()
    return Result(
        message_id=message_id,
        node_id=reply.metadata.src_node_id,
        head=head,
        payload=memoryview(payload),
    )
