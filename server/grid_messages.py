"""The worker's messages (pipe.proto) in terms of the exchange, and back."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from tacit.protos import fleet_pb2, pipe_pb2
from tacit.protos.records_pb2 import AppFailure
from tacit.server import rounds
from tacit.server.rounds import Entry, Instruction

if TYPE_CHECKING:
    from tacit.server.exchange_store import MessageRow

_NODE_UNAVAILABLE = 5  # flwr's ErrorCode.NODE_UNAVAILABLE
_MESSAGE_UNAVAILABLE = 3  # flwr's ErrorCode.MESSAGE_UNAVAILABLE

REVOKED = "E-MEMBER-REVOKED"
LEFT = "E-NODE-LEFT"
DENIED = "E-RUN-DENIED"

_GONE = (rounds.GONE, rounds.UNKNOWN_NODE, REVOKED, LEFT, DENIED)


def instruction_of(item: pipe_pb2.GridMessage) -> Instruction:
    """Return what the exchange knows of a pushed message.

    The digest leaves out times, which differ when a restarted worker pushes the same again.
    """
    head = item.instruction
    manifest = head.manifest.SerializeToString(deterministic=True)
    parts = [head.message_type.encode(), head.group_id.encode(), manifest]
    if head.HasField("secure"):
        parts.append(head.secure.SerializeToString(deterministic=True))
    content = b"\0".join(parts)
    return Instruction(
        message_id=head.message_id,
        node_id=item.node_id,
        content_sha256=hashlib.sha256(content).digest(),
        ttl_s=head.ttl_s if head.ttl_s > 0 else math.inf,
    )


def spool_name_of(item: pipe_pb2.GridMessage) -> str:
    """Name a payload by its content: the worker never writes to such a name."""
    if not item.payload_name:
        return ""
    return f"send-{item.instruction.manifest.payload_sha256.hex()[:40]}.bin"


def head_for_node(entry: Entry, row: MessageRow) -> fleet_pb2.InstructionHead:
    """Return an instruction's head with the id and attempt that the node knows it by."""
    head = fleet_pb2.InstructionHead()
    head.CopyFrom(row.head)
    head.message_id, head.attempt = entry.wire_id, entry.attempt
    return head


def result_of(run_id: str, entry: Entry, row: MessageRow) -> pipe_pb2.GridResult:
    """Return how a message was answered, in the worker's terms."""
    head = fleet_pb2.ReplyHead()
    if row.reply is None:
        code = _NODE_UNAVAILABLE if entry.code in _GONE else _MESSAGE_UNAVAILABLE
        head.failure.CopyFrom(AppFailure(code=code, reason=entry.code))
    else:
        head.CopyFrom(row.reply)
    head.run_id, head.message_id = run_id, entry.instruction.message_id
    return pipe_pb2.GridResult(
        message_id=entry.instruction.message_id,
        node_id=entry.instruction.node_id,
        reply=head,
        payload_name=row.reply_name,
    )


def receipt_of(entry: Entry, row: MessageRow, *, repeated: bool) -> fleet_pb2.Receipt | None:
    """Return the receipt of a stored reply; None if there is none."""
    if row.reply is None:
        return None
    return fleet_pb2.Receipt(
        message_id=entry.wire_id,
        payload_bytes=row.reply.manifest.payload_bytes,
        payload_sha256=row.reply.manifest.payload_sha256,
        repeated=repeated,
    )
