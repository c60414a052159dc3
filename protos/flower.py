"""The one file that touches what flwr does not promise to keep; all else imports from here.

flwr 1.41 builds messages from process-global identity and has no public way to make one with given
metadata, or an array without a copy of its bytes. Import this in worker processes and in the
simulator only: flwr loads gRPC and cryptography, and its identity is one per process.

Apps see ordinary Flower objects. :class:`WireArray` answers an app as flwr's Array does, at less
cost: what ``numpy()`` returns is the caller's own to write, as with flwr, and usually no byte has
been copied for it. Its ``object_id`` differs, so Flower's own engine cannot send one: convert it.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from tacit.protos.manifest import NUMPY_STYPE, RAW_DTYPES
from tacit.protos.records_pb2 import AppFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead
    from tacit.protos.payload import PayloadMap

UserScalar = bool | int | float | str  # what flwr lets node_config and run_config hold

__all__ = [
    "SERVER_NODE_ID",
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "Context",
    "Error",
    "ErrorCode",
    "Message",
    "Metadata",
    "MetricRecord",
    "RecordDict",
    "Run",
    "WireArray",
    "array_record",
    "empty_run",
    "flower_run_id",
    "make_instruction",
    "make_reply",
    "new_context",
    "reply_parts",
    "set_task_identity",
]

SERVER_NODE_ID = SUPERLINK_NODE_ID

_SAFE_REASON = re.compile(r"E-[A-Z0-9-]{1,60}")


class WireArray(Array):
    """An Array over bytes that are here already: a mapped payload, or an array of this process.

    Attributes:
        raw: the numbers, read-only, in C order and little-endian.
    """

    raw: np.ndarray
    _twin: memoryview | None
    _start: int

    def __init__(
        self, raw: np.ndarray, *, mapping: PayloadMap | None = None, start: int = 0
    ) -> None:
        own = self.__dict__  # Array watches its attributes, and has nothing to watch here
        own["raw"] = raw
        own["_twin"] = mapping.twin if mapping is not None and start % raw.itemsize == 0 else None
        own["_start"] = start
        own["dtype"] = raw.dtype.name
        own["shape"] = raw.shape
        own["stype"] = NUMPY_STYPE

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as npy bytes, made at each call; few ask for it."""
        buffer = io.BytesIO()
        np.save(buffer, self.raw, allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """Return the array, writable and the caller's own.

        The first call lends the copy-on-write pages of a mapped payload; later calls, and arrays
        that are not mapped or not aligned, cost a copy.
        """
        twin, self.__dict__["_twin"] = self._twin, None
        if twin is None:
            return np.array(self.raw, order="C")
        end = self._start + self.raw.nbytes
        return np.frombuffer(twin[self._start : end], dtype=self.raw.dtype).reshape(self.raw.shape)

    def __repr__(self) -> str:
        return f"WireArray({self.dtype}, {self.shape})"  # never the numbers

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("dtype", "shape", "stype", "data"):  # from now on like any other Array
            self.__dict__["data"] = self.data
            self.__class__ = Array  # type: ignore[assignment]
        Array.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine = (self.dtype, self.shape, self.stype)
        return mine == (other.dtype, other.shape, other.stype) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Array], tuple[Any, ...]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return a record over the arrays themselves: they must not be written afterwards.

    Raises:
        TypeError: a dtype that has no wire form, such as object or text.
    """
    record = ArrayRecord()
    for name, array in arrays.items():
        if array.dtype.name not in RAW_DTYPES:
            raise TypeError(f"expected numbers or booleans under {name!r}, got {array.dtype}")
        raw = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").view()
        raw.flags.writeable = False
        record[name] = WireArray(raw)
    return record


def flower_run_id(run_id: str) -> int:
    """Return Flower's integer for a run id such as ``r-7f3a9c20``."""
    return int(run_id.removeprefix("r-"), 16)


def set_task_identity(*, run_id: int, node_id: int) -> None:
    """Tell flwr who this process is; it is global, so it is one run and one node per process."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def make_instruction(head: InstructionHead, content: RecordDict, *, node_id: int) -> Message:
    """Return the message that a ClientApp gets, from the server to ``node_id``."""
    metadata = Metadata(
        run_id=flower_run_id(head.run_id),
        message_id=head.message_id,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id=head.group_id,
        created_at=head.created_at_s,
        ttl=head.ttl_s,
        message_type=head.message_type,
        src_task_id=1,
    )
    return make_message(metadata, content=content)


def make_reply(
    head: ReplyHead, content: RecordDict | None, *, node_id: int, instruction: Message
) -> Message:
    """Return the message that a strategy gets, in answer to ``instruction``.

    Without content it is an error reply, with the code of the head's failure.
    """
    asked = instruction.metadata
    metadata = Metadata(
        run_id=asked.run_id,
        message_id=f"{asked.message_id}.{node_id}",
        src_node_id=node_id,
        dst_node_id=SERVER_NODE_ID,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=head.created_at_s,
        ttl=head.ttl_s,
        message_type=asked.message_type,
        dst_task_id=asked.src_task_id,
    )
    if content is not None:
        return make_message(metadata, content=content)
    return make_message(metadata, error=Error(head.failure.code, head.failure.reason or None))


def reply_parts(message: Message) -> RecordDict | AppFailure:
    """Return what an app answered: its content, or its failure without any text of the app.

    Error texts may quote records, so only a stable ``E-`` code passes.
    """
    if message.has_content():
        return message.content
    if not message.has_error():
        return AppFailure(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="E-APP-EMPTY")
    reason = message.error.reason or ""
    safe = reason if _SAFE_REASON.fullmatch(reason) else "E-APP-FAILED"
    return AppFailure(code=message.error.code, reason=safe)


def empty_run(run_id: int) -> Run:
    """Return flwr's description of a run, with nothing in it but the id."""
    return Run.create_empty(run_id)


def new_context(
    *,
    run_id: int,
    node_id: int,
    node_config: Mapping[str, UserScalar],
    run_config: Mapping[str, UserScalar],
    state: RecordDict | None = None,
) -> Context:
    """Return the context that an app is called with."""
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict() if state is None else state,
        run_config=dict(run_config),
    )
