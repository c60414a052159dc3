"""The Fleet service: nodes join, watch, decide, fetch instructions and submit replies.

The node is who its certificate says, whatever a request claims. Chunks go from the connection to
the file and from the file to the connection, without a copy of a whole payload in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ProtocolError, RefusedError, TacitError, TrustError, UnavailableError
from tacit.protos import fleet_pb2
from tacit.protos.channel import MAX_MESSAGE_BYTES
from tacit.protos.frames import encode_chunks, encode_head
from tacit.protos.payload import map_payload
from tacit.server.catalogue import NodeVerdict, Verdict
from tacit.server.grid_messages import LEFT
from tacit.server.replies import stable_code
from tacit.server.services.access import caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from tacit.protos.frames import DecodedFrame
    from tacit.server.authority import Membership
    from tacit.server.configuration import ServerConfig
    from tacit.server.ledger_heads import LedgerHeads
    from tacit.server.reply_desk import ReplyDesk
    from tacit.server.scheduler import Scheduler
    from tacit.server.sessions import Sessions
    from tacit.server.spool import Staged

    Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger("tacit.server.fleet")

PROTOCOL_VERSION = 1
_TWICE = 2  # one stream in the place of another may be a connection that died; two in turn are not
_TWICE_AGAIN = 50  # said again after so many, for runs that began meanwhile
STALL_S = 60.0  # an upload that sends nothing for so long gives its place to others

_VERDICTS = {
    fleet_pb2.Decision.APPROVED: Verdict.APPROVED,
    fleet_pb2.Decision.PENDING: Verdict.PENDING,
    fleet_pb2.Decision.DENIED: Verdict.DENIED,
}


class FleetService:
    """What data owners' nodes may ask; see fleet.proto.

    Attributes:
        uploads: how many replies are being received.
    """

    def __init__(
        self,
        *,
        config: ServerConfig,
        server_id: str,
        software_version: str,
        membership: Membership,
        sessions: Sessions,
        scheduler: Scheduler,
        ledger_heads: LedgerHeads,
    ) -> None:
        self.uploads = 0
        self._config = config
        self._server_id = server_id
        self._version = software_version
        self._membership = membership
        self._sessions = sessions
        self._scheduler = scheduler
        self._heads = ledger_heads
        self._joined_with: dict[int, fleet_pb2.LedgerHead] = {}
        self._places = asyncio.Semaphore(config.limits.uploads_at_once)

    async def Join(  # noqa: N802
        self, request: fleet_pb2.JoinRequest, _context: Context
    ) -> fleet_pb2.JoinReply:
        """Tell a node how to work with this server, and how far it has seen the node's ledger."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(
                "E-PROTOCOL-VERSION",
                f"expected version {PROTOCOL_VERSION} of the protocol, "
                f"got {request.protocol_version}",
            )
        node_id = caller().node_id
        self._membership.touch(node_id, request.software_version)
        self._joined_with.pop(node_id, None)
        if request.HasField("ledger"):
            self._verify_ledger(node_id, request.ledger)
        return fleet_pb2.JoinReply(
            server_id=self._server_id,
            node_id=node_id,
            unix_time_s=time.time(),
            heartbeat_s=self._config.times.heartbeat_s,
            chunk_bytes=self._config.chunk_bytes,
            max_message_bytes=MAX_MESSAGE_BYTES,
            software_version=self._version,
            ledger=self._heads.furthest(node_id),
        )

    async def Watch(self, request: fleet_pb2.WatchRequest, context: Context) -> None:  # noqa: N802
        """Stream tasks to a node, and signs of life, until one side ends it.

        Raises:
            ProtocolError: the node has not joined this daemon (``E-SERVER-RESTARTED``).
            TrustError: the node was revoked, or another with its keys has connected
                (``E-NODE-TWICE``).
        """
        who = caller()
        if request.server_id != self._server_id:
            raise ProtocolError("E-SERVER-RESTARTED", "expected a Join to this daemon first")
        head = self._joined_with.pop(who.node_id, None)
        if head is not None:
            self._heads.keep(who.node_id, head)
        session = self._sessions.open(who.node_id)
        log.info("node connected", extra={"fields": {"member": who.name}})
        if session.taken % _TWICE_AGAIN == _TWICE:
            self._note_twice(who.node_id, who.name)
        try:
            for greeting in self._scheduler.greetings(who.node_id):
                session.send(greeting)
            while (task := await session.next(self._config.times.heartbeat_s)) is not None:
                if task.WhichOneof("task") == "revoked":
                    await context.write(task)
                self._membership.verify(who.verified_identity)
                await context.write(task)
            if session.replaced:
                raise TrustError(
                    "E-NODE-TWICE", f"{who.name} has connected again while it was connected"
                )
        finally:
            self._sessions.end(session)
            self._note_left(who.node_id, who.name)

    async def Decide(  # noqa: N802
        self, request: fleet_pb2.Decision, _context: Context
    ) -> fleet_pb2.DecisionReply:
        """Take note of an owner's decision about a run.

        Raises:
            RefusedError: a yes comes to a no, which the others are told; see commitments.py.
        """
        verdict = _VERDICTS.get(request.verdict)
        if verdict is None:
            raise ProtocolError("E-DECISION-VERDICT", "expected approved, pending or denied")
        code = stable_code(request.code) if request.code else ""
        decision = NodeVerdict(node_id=caller().node_id, verdict=verdict, code=code)
        heard = self._scheduler.decide(
            request.run_id,
            decision,
            specification_sha256=request.specification_sha256,
            canary_commitment=request.canary_commitment,
        )
        if heard.verdict is not verdict:
            raise RefusedError(heard.code, "the run goes on without this node")
        return fleet_pb2.DecisionReply()

    async def Fetch(self, request: fleet_pb2.FetchRequest, context: Context) -> None:  # noqa: N802
        """Send an instruction: its head, then its payload from the offset on."""
        desk = self._scheduler.reply_desk(request.run_id)
        head, path = desk.fetch(caller().node_id, request.message_id)
        if request.offset > head.manifest.payload_bytes:
            raise ProtocolError("E-FRAME-OFFSET", "expected an offset within the payload")
        if path is not None and not path.is_file():
            raise UnavailableError("E-PAYLOAD-LOST", "the payload will be written again")
        payload = memoryview(b"") if path is None else map_payload(path)
        await context.write(encode_head(head))
        chunk_bytes = self._config.chunk_bytes
        for frame in encode_chunks(payload, start=request.offset, chunk_bytes=chunk_bytes):
            await context.write(frame)

    async def Submit(  # noqa: N802
        self, frames: AsyncIterator[DecodedFrame], _context: Context
    ) -> fleet_pb2.Receipt:
        """Receive a reply; the receipt is stored before it is sent."""
        first = await anext(frames, None)
        if first is None or first.reply is None or len(first.data):
            raise ProtocolError("E-FRAME-ORDER", "expected the head of a reply first")
        head = first.reply
        node_id = caller().node_id
        desk = self._scheduler.reply_desk(head.run_id)
        step = desk.begin_reply(node_id, head)
        if isinstance(step, fleet_pb2.Receipt):
            return step
        self.uploads += 1
        try:
            async with self._places:
                await self._receive(frames, step)
            return await desk.commit_reply(node_id, head, step)
        finally:
            self.uploads -= 1

    async def SubmitStatus(  # noqa: N802
        self, request: fleet_pb2.SubmitStatusRequest, _context: Context
    ) -> fleet_pb2.SubmitStatusReply:
        """Say whether a reply is wanted, and from where on."""
        try:
            desk: ReplyDesk = self._scheduler.reply_desk(request.run_id)
        except ProtocolError:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        return desk.submit_status(caller().node_id, request.message_id)

    async def Leave(  # noqa: N802
        self, _request: fleet_pb2.LeaveRequest, _context: Context
    ) -> fleet_pb2.LeaveReply:
        """End the caller's own membership."""
        who = caller()
        self._membership.revoke(who.name, "left")
        self._scheduler.drop_node(who.node_id, LEFT)
        self._sessions.revoke(who.node_id)
        return fleet_pb2.LeaveReply()

    async def Members(  # noqa: N802
        self, _request: fleet_pb2.MembersRequest, context: Context
    ) -> None:
        """Tell a node of all clients; it believes only what its owner has pinned."""
        for entry in await asyncio.to_thread(self._membership.directory):
            await context.write(
                fleet_pb2.MemberEntry(
                    name=entry.name,
                    enrolment_key=entry.enrolment_key,
                    certificate=entry.certificate_der,
                )
            )

    async def _receive(self, frames: AsyncIterator[DecodedFrame], staged: Staged) -> None:
        writer = await asyncio.to_thread(staged.begin)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STALL_S) as patience:
                async for frame in frames:
                    if frame.reply is not None or frame.instruction is not None:
                        raise ProtocolError("E-FRAME-ORDER", "expected data, got a second head")
                    staged.write(writer, frame.offset, frame.data)
                    patience.reschedule(loop.time() + STALL_S)
        except TimeoutError as error:
            raise UnavailableError("E-UPLOAD-STALLED", "expected chunks to keep coming") from error

    def _verify_ledger(self, node_id: int, head: fleet_pb2.LedgerHead) -> None:
        """Check where a joining node's ledger ends; a refusal shows in the runs it takes part in.

        Raises:
            ProtocolError, TrustError: see :meth:`LedgerHeads.verify`.
        """
        try:
            self._heads.verify(node_id, head)
        except TacitError as error:
            self._scheduler.note_refused(node_id, error.code)
            raise
        self._joined_with[node_id] = head

    def _note_twice(self, node_id: int, name: str) -> None:
        """Tell the operator, here and in its runs, that two nodes have one identity."""
        fields = {
            "member": name,
            "code": "E-NODE-TWICE",
            "hint": "two nodes work on copies of one state directory, or the network drops "
            "connections unnoticed: ask the owner to stop one for good",
        }
        log.warning("the same node is connected twice", extra={"fields": fields})
        self._scheduler.note_refused(node_id, "E-NODE-TWICE")

    def _note_left(self, node_id: int, name: str) -> None:
        log.info("node gone", extra={"fields": {"member": name}})
        try:
            self._membership.touch(node_id)
        except TacitError as error:  # only a time for the list of members
            log.warning("last seen not stored", extra={"fields": {"code": error.code}})
