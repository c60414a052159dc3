"""One instruction from the server to the node, and its reply back: resumed, never repeated.

A Fetch goes on where the last one broke, and is then compared with the instruction's digest; what
came in one stream TLS has already vouched for. A Submit first tells what it sends, and asks how
much of it is there already after a break. A reply whose receipt does not carry our digest was not
received.
Bytes are written to a nameless file as they come, which the worker maps read-only; the next
instruction of the run is written into the same file once no mapping of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tacit.client.payload import DescriptorPayload, InstructionFiles, reader_of
from tacit.core.errors import ProtocolError
from tacit.protos import fleet_pb2
from tacit.protos.frames import ChunkSequence, DecodedFrame, encode_chunk, encode_head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Executor

    from tacit.client.node import Node
    from tacit.client.store import OutboxEntry
    from tacit.protos.fleet_pb2_grpc import FleetAsyncStub

logger = logging.getLogger("tacit.client.delivery")

CALL_TIMEOUT_S = 30.0
_CLOSED = "no receipt came; used or not, the message was closed when it was offered again"
T = TypeVar("T")

_BULK_TIMEOUT_S = 6 * 3600.0  # 2 GiB at 1 Mbit/s; a dead peer is found by keepalive much sooner


@dataclass
class Download:
    """The part of an instruction that has come so far.

    Attributes:
        run_id: whose instruction it is.
        files: where the file comes from and goes to.
        head: its head; None before the first frame.
        descriptor: the nameless file with its bytes; -1 before the first frame.
        reusable: whether the file may serve again: it is known who reads it.
        chunks: what is expected next.
        resumed: whether it came in more than one stream.
    """

    run_id: str
    files: InstructionFiles
    head: fleet_pb2.InstructionHead | None = None
    descriptor: int = -1
    reusable: bool = False
    chunks: ChunkSequence = field(default_factory=lambda: ChunkSequence(0))
    resumed: bool = False

    def begin(self, head: fleet_pb2.InstructionHead) -> None:
        """Take a head; a head other than before starts anew.

        Raises:
            ProtocolError: another head came in answer to a resumed Fetch.
        """
        if self.head is not None and self.chunks.received:
            if self.head.manifest != head.manifest or self.head.attempt != head.attempt:
                self.drop()
                raise ProtocolError("E-FETCH-CHANGED", "the instruction changed while it was read")
            self.resumed = True
            return
        self.drop()
        self.head = head
        self.descriptor = self.files.take(self.run_id)
        self.chunks = ChunkSequence(head.manifest.payload_bytes)

    def accept(self, frame: DecodedFrame) -> None:
        """Take the next chunk.

        Raises:
            ProtocolError: it is not the next chunk.
        """
        offset = self.chunks.received
        data = self.chunks.accept(frame)
        while data.nbytes:
            written = os.pwrite(self.descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def finish(self) -> DescriptorPayload:
        """Return the whole instruction's bytes, for the caller to close; they stay until then.

        Raises:
            ProtocolError: bytes are missing, or are not those that the head names.
        """
        self.chunks.finish()
        head = self.head
        if head is None:
            raise ProtocolError("E-FETCH-EMPTY", "expected an instruction, got nothing")
        os.ftruncate(self.descriptor, head.manifest.payload_bytes)
        if self.resumed:
            self._verify_digest(head.manifest.payload_sha256)
        try:
            reader = reader_of(self.descriptor)
            self.reusable = True
        except OSError:  # no /proc: then this file serves once
            reader = os.dup(self.descriptor)
        return DescriptorPayload(reader)

    def _verify_digest(self, sha256: bytes) -> None:
        digest = hashlib.sha256()
        for piece in DescriptorPayload(self.descriptor).pieces():
            digest.update(piece)
        if digest.digest() != sha256:
            self.drop()
            raise ProtocolError("E-PAYLOAD-DIGEST", "the instruction's bytes are not those named")

    def drop(self) -> None:
        """Forget what has come."""
        if self.reusable:
            self.files.give_back(self.run_id, self.descriptor)
        elif self.descriptor >= 0:
            os.close(self.descriptor)
        self.head, self.descriptor, self.reusable = None, -1, False
        self.chunks, self.resumed = ChunkSequence(0), False


class Delivery:
    """Carries messages between one node and whatever server it is connected to."""

    def __init__(self, node: Node, executor: Executor, *, chunk_bytes: Callable[[], int]) -> None:
        self._node = node
        self._executor = executor
        self._chunk_bytes = chunk_bytes
        self.files = InstructionFiles()

    async def fetch_and_answer(
        self, fleet: FleetAsyncStub, run_id: str, message_id: str, download: Download
    ) -> OutboxEntry:
        """Fetch an instruction, unless it is answered already, and get the node's answer.

        Raises:
            AioRpcError: the call broke; ``download`` knows how far it came.
            ProtocolError: the server broke a rule of the wire, and no answer can be made.
            UnavailableError: the node cannot answer at present.
        """
        entry = await self._fetch(fleet, run_id, message_id, download)
        if entry is not None:
            return entry
        head = download.head
        if head is None:
            raise ProtocolError("E-FETCH-EMPTY", "expected an instruction, got nothing")
        payload = download.finish()
        return await self._in_thread(self._answer, head, payload)

    def _answer(self, head: fleet_pb2.InstructionHead, payload: DescriptorPayload) -> OutboxEntry:
        with contextlib.closing(payload):  # here, since this goes on when the task is cancelled
            return self._node.answer(head, payload)

    async def _fetch(
        self, fleet: FleetAsyncStub, run_id: str, message_id: str, download: Download
    ) -> OutboxEntry | None:
        request = fleet_pb2.FetchRequest(
            run_id=run_id, message_id=message_id, offset=download.chunks.received
        )
        call = fleet.Fetch(request, timeout=_BULK_TIMEOUT_S)
        try:
            async for frame in call:
                if frame.instruction is None:
                    download.accept(frame)
                    continue
                entry = await self._admitted(frame.instruction, run_id, message_id)
                if entry is not None:
                    return entry
                download.begin(frame.instruction)
        finally:
            call.cancel()
        return None

    async def _admitted(
        self, head: fleet_pb2.InstructionHead, run_id: str, message_id: str
    ) -> OutboxEntry | None:
        """Check a head before its bytes are accepted; return an answer that is there already."""
        if (head.run_id, head.message_id) != (run_id, message_id):
            raise ProtocolError("E-FETCH-OTHER", "expected the instruction that was asked for")
        try:
            self._node.verify_instruction(head)
        except ProtocolError as error:
            return await self._in_thread(self._node.refuse, head, error)
        return await self._in_thread(self._node.find_reply, head)

    async def submit(self, fleet: FleetAsyncStub, entry: OutboxEntry, *, resumed: bool) -> bool:
        """Send a stored reply; return whether the server has it now, or no longer wants it.

        Args:
            fleet: the server.
            entry: the reply.
            resumed: whether some of it may be there already.

        Raises:
            AioRpcError: the call broke.
            ProtocolError: the receipt is for other bytes.
        """
        head = fleet_pb2.ReplyHead.FromString(entry.head)
        offset = 0
        if resumed:
            request = fleet_pb2.SubmitStatusRequest(
                run_id=entry.run_id, message_id=entry.message_id
            )
            status = await fleet.SubmitStatus(request, timeout=CALL_TIMEOUT_S)
            if status.state == fleet_pb2.SubmitStatusReply.CLOSED:
                await self._in_thread(self._node.close_message, entry.message_id, _CLOSED)
                return True
            if status.state == fleet_pb2.SubmitStatusReply.RECEIVED:
                return await self._received(entry, head, status.receipt)
            offset = min(status.offset, entry.payload_bytes)
        view = await self._in_thread(self._node.open_reply, entry)
        frames: Any = self._frames(head, view, offset)  # encoded already; see open_fleet
        receipt = await fleet.Submit(frames, timeout=_BULK_TIMEOUT_S)
        return await self._received(entry, head, receipt)

    async def _frames(
        self, head: fleet_pb2.ReplyHead, view: memoryview, offset: int
    ) -> AsyncIterator[bytes]:
        yield encode_head(head)
        step = self._chunk_bytes()
        for start in range(offset, view.nbytes, step):
            yield encode_chunk(start, view[start : start + step])

    async def _received(
        self, entry: OutboxEntry, head: fleet_pb2.ReplyHead, receipt: fleet_pb2.Receipt
    ) -> bool:
        ours = head.manifest.payload_sha256 if head.HasField("manifest") else b""
        if receipt.message_id != entry.message_id or (ours and receipt.payload_sha256 != ours):
            raise ProtocolError("E-RECEIPT", "the server's receipt is for other bytes than ours")
        await self._in_thread(self._node.mark_received, entry.message_id)
        return True

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, functools.partial(function, *arguments)
        )
