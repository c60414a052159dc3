"""A Fleet service that breaks on purpose, over real mutual TLS on loopback."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc

from tacit.core.identity import Authority, MemberKeys, Role, certificate_request, pem_of
from tacit.core.membership import Membership, save_membership
from tacit.core.specification import canonical_json, specification_sha256
from tacit.protos import fleet_pb2
from tacit.protos.channel import server_credentials, server_options
from tacit.protos.frames import add_fleet_servicer, encode_chunk, encode_head
from tests.client.fakes import RUN, instruction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tacit.core.specification import RunSpec
    from tacit.protos.frames import DecodedFrame

Context = Any  # grpc's own, generic in types that are private


@dataclass
class Received:
    """A reply, as far as it has come."""

    head: fleet_pb2.ReplyHead
    data: bytearray = field(default_factory=bytearray)
    complete: bool = False


class FakeFleet:
    """One server; what it is told to break, it breaks once.

    Attributes:
        break_fetch_at, break_submit_at: bytes after which a stream is cut, once; -1 never.
        chunk_bytes: of its own chunks, and what it asks for.
        extra: bytes that every Fetch sends beyond what its head says.
        forged_receipt: a digest that receipts carry instead of the right one.
        heartbeats: whether Watch gives a sign of life.
        members: what it tells of the clients.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.instructions: dict[str, tuple[fleet_pb2.InstructionHead, bytes]] = {}
        self.replies: dict[str, Received] = {}
        self.decisions: list[fleet_pb2.Decision] = []
        self.fetches: list[int] = []
        self.submits: list[int] = []
        self.joins = 0
        self.break_fetch_at = -1
        self.break_submit_at = -1
        self.chunk_bytes = 8
        self.extra = b""
        self.forged_receipt = b""
        self.heartbeats = True
        self.members: list[fleet_pb2.MemberEntry] = []
        self.changed = asyncio.Condition()
        self._tasks: asyncio.Queue[fleet_pb2.Task] = asyncio.Queue()

    def add(self, number: int = 1, **changes: Any) -> fleet_pb2.InstructionHead:
        """Have an instruction ready."""
        head, payload = instruction(self.spec, number, **changes)
        self.instructions[head.message_id] = head, bytes(b"".join(payload.pieces()))
        return head

    def offer(self) -> None:
        canonical = canonical_json(self.spec)
        sha256 = specification_sha256(canonical)
        task = fleet_pb2.RunOffer(run_id=RUN, specification=canonical, specification_sha256=sha256)
        self._tasks.put_nowait(fleet_pb2.Task(offer=task))

    def ready(self, head: fleet_pb2.InstructionHead) -> None:
        task = fleet_pb2.MessageReady(run_id=RUN, message_id=head.message_id)
        self._tasks.put_nowait(fleet_pb2.Task(ready=task))

    def closed(self, head: fleet_pb2.InstructionHead) -> None:
        task = fleet_pb2.MessageClosed(run_id=RUN, message_id=head.message_id, committed=True)
        self._tasks.put_nowait(fleet_pb2.Task(closed=task))

    def has(self, head: fleet_pb2.InstructionHead) -> bool:
        """Say whether the whole reply to an instruction has come."""
        received = self.replies.get(head.message_id)
        return received is not None and received.complete

    def send(self, task: fleet_pb2.Task) -> None:
        self._tasks.put_nowait(task)

    async def until(self, condition: Any) -> None:
        """Wait until something has happened here."""
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(condition)

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def Join(  # noqa: N802 - the name of the call
        self, _request: fleet_pb2.JoinRequest, _context: Context
    ) -> fleet_pb2.JoinReply:
        self.joins += 1
        await self._note()
        return fleet_pb2.JoinReply(
            server_id="s", heartbeat_s=0.2, chunk_bytes=self.chunk_bytes, unix_time_s=1.0
        )

    async def Watch(  # noqa: N802 - the name of the call
        self, _request: fleet_pb2.WatchRequest, _context: Context
    ) -> AsyncIterator[fleet_pb2.Task]:
        while True:
            try:
                yield await asyncio.wait_for(self._tasks.get(), 0.2)
            except TimeoutError:
                if self.heartbeats:
                    yield fleet_pb2.Task(heartbeat=fleet_pb2.Heartbeat())

    async def Decide(  # noqa: N802 - the name of the call
        self, request: fleet_pb2.Decision, _context: Context
    ) -> fleet_pb2.DecisionReply:
        self.decisions.append(request)
        await self._note()
        return fleet_pb2.DecisionReply()

    async def Fetch(  # noqa: N802 - the name of the call
        self, request: fleet_pb2.FetchRequest, context: Context
    ) -> AsyncIterator[bytes]:
        head, payload = self.instructions[request.message_id]
        self.fetches.append(request.offset)
        yield encode_head(head)
        payload += self.extra
        for start in range(request.offset, len(payload), self.chunk_bytes):
            if 0 <= self.break_fetch_at <= start:
                self.break_fetch_at = -1
                await context.abort(grpc.StatusCode.UNAVAILABLE)
            yield encode_chunk(start, payload[start : start + self.chunk_bytes])

    async def Submit(  # noqa: N802 - the name of the call
        self, frames: AsyncIterator[DecodedFrame], context: Context
    ) -> fleet_pb2.Receipt:
        head = (await anext(frames)).reply
        assert head is not None
        received = self.replies.setdefault(head.message_id, Received(head))
        self.submits.append(len(received.data))
        await self._note()
        async for frame in frames:
            assert frame.offset == len(received.data)
            received.data += frame.data
            if 0 <= self.break_submit_at <= len(received.data):
                self.break_submit_at = -1
                await context.abort(grpc.StatusCode.UNAVAILABLE)
        received.complete = True
        await self._note()
        return self._receipt(head)

    async def SubmitStatus(  # noqa: N802 - the name of the call
        self, request: fleet_pb2.SubmitStatusRequest, _context: Context
    ) -> fleet_pb2.SubmitStatusReply:
        received = self.replies.get(request.message_id)
        if received is not None and received.complete:
            return fleet_pb2.SubmitStatusReply(
                state=fleet_pb2.SubmitStatusReply.RECEIVED, receipt=self._receipt(received.head)
            )
        if request.message_id not in self.instructions:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        offset = len(received.data) if received is not None else 0
        return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.WANTED, offset=offset)

    async def Leave(  # noqa: N802 - the name of the call
        self, _request: fleet_pb2.LeaveRequest, _context: Context
    ) -> fleet_pb2.LeaveReply:
        return fleet_pb2.LeaveReply()

    async def Members(  # noqa: N802 - the name of the call
        self, _request: fleet_pb2.MembersRequest, _context: Context
    ) -> AsyncIterator[fleet_pb2.MemberEntry]:
        for entry in self.members:
            yield entry

    def _receipt(self, head: fleet_pb2.ReplyHead) -> fleet_pb2.Receipt:
        sha256 = self.forged_receipt or head.manifest.payload_sha256
        return fleet_pb2.Receipt(message_id=head.message_id, payload_sha256=sha256)


@dataclass(frozen=True)
class Domain:
    """An authority with a server's certificate for loopback."""

    authority: Authority
    keys: MemberKeys
    certificate_pem: bytes
    servers: list[grpc.aio.Server] = field(default_factory=list)

    @classmethod
    def create(cls) -> Domain:
        authority, keys = Authority.create("test"), MemberKeys.generate()
        issued = authority.issue_server(keys.tls.public_key(), ["localhost", "127.0.0.1"], 2)
        return cls(authority, keys, pem_of(issued))

    def member(self, folder: Path, port: int, *, trusts: Authority | None = None) -> Membership:
        """Enrol a client that looks for the server at a port of this machine."""
        authority, keys = trusts or self.authority, MemberKeys.generate()
        request = certificate_request(keys)
        return save_membership(
            folder,
            keys=keys,
            certificate_der=authority.issue_member(request, name="a", role=Role.CLIENT, days=2),
            authority_der=authority.der,
            addresses=[f"127.0.0.1:{port}"],
        )

    async def serve(self, fleet: FakeFleet, port: int = 0) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=server_options())
        add_fleet_servicer(fleet, server)
        credentials = server_credentials(
            authority_pem=self.authority.pem,
            certificate_pem=self.certificate_pem,
            key_pem=self.keys.tls_key_pem,
        )
        bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        self.servers.append(server)
        return server, bound

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            await server.stop(None)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)
