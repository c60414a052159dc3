"""A daemon in this process and nodes without apps, over real mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from tacit.core.configuration import load_config
from tacit.core.identity import parse_token
from tacit.core.profiles import load_profile
from tacit.core.specification import (
    AppSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
    canonical_json,
)
from tacit.core.state import open_state
from tacit.protos import control_pb2 as control
from tacit.protos import fleet_pb2 as fleet
from tacit.protos.channel import channel_options, client_channel
from tacit.protos.control_pb2_grpc import ControlStub
from tacit.protos.enrolment_client import enrol
from tacit.protos.frames import encode_chunks, encode_head, open_fleet
from tacit.server.configuration import ServerConfig
from tacit.server.daemon import Daemon
from tacit.server.initialise import initialise
from tacit.server.store import STORE_FILE, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tacit.core.membership import Membership

SCRIPTED = Path(__file__).with_name("scripted_worker.py")
PATIENCE_S = 30.0


def specification(*, min_clients: int = 2, rounds: int = 2) -> RunSpec:
    return RunSpec(
        name="scripted",
        privacy=PrivacySpec(mode=PrivacyMode.NONE),
        participation=ParticipationSpec(rounds=rounds, min_clients=min_clients),
        app=AppSpec(client="scripted:app"),
        results={"train": ReplySpec(arrays="model")},
    )


@dataclass
class Node:
    """A client that answers each instruction with its arrays plus one, unless told otherwise."""

    membership: Membership
    address: str
    verdict: int = fleet.Decision.APPROVED
    answer: Callable[[fleet.InstructionHead, bytes], tuple[fleet.ReplyHead, bytes]] | None = None
    silent: bool = False
    received: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    offers: dict[str, bytes] = field(default_factory=dict)
    receipts: list[fleet.Receipt] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    end: fleet.RunEnded | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    code: str = ""
    outbox: dict[str, tuple[fleet.ReplyHead, bytes]] = field(default_factory=dict)

    def channel(self) -> grpc.aio.Channel:
        m = self.membership
        return client_channel(
            self.address,
            authority_pem=m.authority_pem,
            certificate_pem=m.certificate_pem,
            key_pem=m.key_pem,
        )

    def start(self) -> None:
        self.task = asyncio.create_task(self.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    async def run(self) -> None:
        try:
            async with self.channel() as channel:
                await self._watch(open_fleet(channel))
        except grpc.aio.AioRpcError as error:
            self.code = code_of(error)

    async def _watch(self, stub: Any) -> None:
        join = fleet.JoinRequest(software_version="0", protocol_version=1)
        joined = await stub.Join(join)
        async for task in stub.Watch(fleet.WatchRequest(server_id=joined.server_id)):
            kind = task.WhichOneof("task")
            if kind == "offer":
                self.offers[task.offer.run_id] = task.offer.specification_sha256
                await stub.Decide(self.decision(task.offer.run_id, self.verdict))
            elif kind == "ready":
                self.received.append(task.ready.message_id)
                self.ready.set()
                if not self.silent:
                    await self._work(stub, task.ready)
            elif kind == "closed":
                self.closed.append(task.closed.message_id)
                self.outbox.pop(task.closed.message_id, None)
            elif kind == "ended":
                self.end = task.ended
                self.ended.set()

    def decision(self, run_id: str, verdict: int) -> fleet.Decision:
        return fleet.Decision(
            run_id=run_id, specification_sha256=self.offers[run_id], verdict=verdict
        )

    async def _work(self, stub: Any, ready: fleet.MessageReady) -> None:
        reply = self.outbox.get(ready.message_id)
        if reply is None:
            head, payload = await fetch(stub, ready.run_id, ready.message_id)
            reply = (self.answer or plus_one)(head, payload)
            self.outbox[ready.message_id] = reply
        try:
            self.receipts.append(await submit(stub, *reply))
        except grpc.aio.AioRpcError as error:
            self.refusals.append(code_of(error))


async def fetch(
    stub: Any, run_id: str, message_id: str, *, offset: int = 0
) -> tuple[fleet.InstructionHead, bytes]:
    head, parts = None, []
    request = fleet.FetchRequest(run_id=run_id, message_id=message_id, offset=offset)
    async for frame in stub.Fetch(request):
        if frame.instruction is not None:
            head = frame.instruction
        parts.append(bytes(frame.data))
    assert head is not None
    return head, b"".join(parts)


async def submit(
    stub: Any, head: fleet.ReplyHead, payload: bytes, *, offset: int = 0
) -> fleet.Receipt:
    async def frames() -> AsyncIterator[bytes]:
        yield encode_head(head)
        for frame in encode_chunks(memoryview(payload), start=offset, chunk_bytes=1 << 16):
            yield frame

    return await stub.Submit(frames())


def reply_of(head: fleet.InstructionHead, payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
    """Return a reply with the instruction's schema and this payload."""
    reply = fleet.ReplyHead(run_id=head.run_id, message_id=head.message_id)
    reply.manifest.CopyFrom(head.manifest)
    reply.manifest.payload_sha256 = hashlib.sha256(payload).digest()
    return reply, payload


def plus_one(head: fleet.InstructionHead, payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
    return reply_of(head, (np.frombuffer(payload, dtype="<f4") + np.float32(1)).tobytes())


def code_of(error: grpc.RpcError) -> str:
    metadata = error.trailing_metadata() or ()
    found = [str(value) for key, value in metadata if key == "tacit-code"]
    return found[0] if found else str(error.code())


@dataclass
class Federation:
    """A state directory with its operator; the daemon can be started again and again."""

    root: Path
    options: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    daemon: Daemon | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def init(self) -> None:
        initialise(
            self.root / "s",
            names=("127.0.0.1",),
            listen="127.0.0.1:0",
            enrolment_listen="127.0.0.1:0",
            operator_home=self.root / "o",
        )

    def config(self) -> ServerConfig:
        config = load_config(self.root / "s" / "server.toml", ServerConfig, environ={}).value
        return replace(config, **self.changes)

    async def start(self) -> None:
        state = open_state(self.root / "s", create=False)
        store = self._open.enter_context(open_store(state.path / STORE_FILE))
        command = (sys.executable, str(SCRIPTED), *self.options)
        self.daemon = Daemon(state, self.config(), store, worker_command=command)
        await self.daemon.start()
        for node in self.nodes.values():
            node.address = self.address

    async def stop(self) -> None:
        assert self.daemon is not None
        await self.daemon.stop()
        self._open.close()
        self.daemon = None

    @property
    def address(self) -> str:
        assert self.daemon is not None
        return f"127.0.0.1:{self.daemon.ports.main}"

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[ControlStub]:
        """Open the operator's channel."""
        m = load_profile(home=self.root / "o", environ={}).membership
        credentials = grpc.ssl_channel_credentials(m.authority_pem, m.key_pem, m.certificate_pem)
        options = channel_options(self.address)
        async with grpc.aio.secure_channel(self.address, credentials, options) as channel:
            yield ControlStub(channel)

    async def token(self, name: str, role: str = "client") -> str:
        async with self.control() as stub:
            reply = await stub.Invite(control.InviteRequest(name=name, role=role))
        return reply.token

    async def enrol(self, name: str, **options: Any) -> Node:
        token = parse_token(await self.token(name))
        membership = await asyncio.to_thread(enrol, token, self.root / name)
        node = self.nodes[name] = Node(membership, self.address, **options)
        return node

    async def submit(self, spec: RunSpec, *, source: bytes = b"name = 'scripted'") -> str:
        canonical = canonical_json(spec)
        weights = b"weights" * 1000
        head = control.SubmitRunHead(
            specification=canonical,
            source_toml=source,
            initial_bytes=len(weights),
            initial_sha256=hashlib.sha256(weights).digest(),
        )

        async def frames() -> AsyncIterator[control.SubmitRunFrame]:
            yield control.SubmitRunFrame(head=head)
            yield control.SubmitRunFrame(data=weights)

        async with self.control() as stub:
            return (await stub.SubmitRun(frames())).run_id

    async def events(self, run_id: str, *, until: str = "") -> list[tuple[str, dict[str, Any]]]:
        """Return a run's events, up to its end or to the first of kind ``until``."""
        found = []
        async with asyncio.timeout(PATIENCE_S), self.control() as stub:
            async for event in stub.WatchRun(control.WatchRunRequest(run_id=run_id)):
                found.append((event.kind, json.loads(event.fields_json)))
                if event.kind == until:
                    break
        return found

    async def show(self, run_id: str) -> control.Run:
        async with self.control() as stub:
            return (await stub.ShowRun(control.ShowRunRequest(run_id=run_id))).run


@contextlib.asynccontextmanager
async def federation(
    root: Path, *options: str, nodes: int = 0, **changes: Any
) -> AsyncIterator[Federation]:
    """Give a running federation with that many enrolled nodes, not yet started."""
    made = Federation(root, tuple(options), changes)
    made.init()
    await made.start()
    try:
        for number in range(nodes):
            await made.enrol(f"node-{number}")
        yield made
    finally:
        for node in made.nodes.values():
            await node.stop()
        if made.daemon is not None:
            await made.stop()
