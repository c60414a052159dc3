"""Who gets through the doors, over real mutual TLS on loopback."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from tacit.core.errors import ProtocolError, RefusedError, TacitError, TrustError, UnavailableError
from tacit.core.identity import Authority, MemberKeys, Role, certificate_request, pem_of
from tacit.protos.channel import (
    abort_with,
    channel_options,
    client_channel,
    control_channel,
    enrolment_channel,
    enrolment_credentials,
    error_from_rpc,
    local_channel,
    local_credentials,
    peer_certificate,
    server_credentials,
    server_options,
)
from tacit.protos.fleet_pb2 import (
    FetchRequest,
    InstructionHead,
    JoinReply,
    JoinRequest,
    LeaveRequest,
    Receipt,
    ReplyHead,
)
from tacit.protos.fleet_pb2_grpc import FleetStub
from tacit.protos.frames import (
    ChunkSequence,
    add_fleet_servicer,
    encode_chunk,
    encode_chunks,
    encode_head,
    open_fleet,
)
from tacit.protos.records_pb2 import Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

    from tacit.protos.frames import DecodedFrame

pytestmark = pytest.mark.slow

PAYLOAD = bytes(range(256)) * 5000
TIMEOUT_S = 20


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Certificates and keys of one authority, in PEM."""

    authority: Authority
    server: dict[str, bytes]
    member: dict[str, bytes]

    @classmethod
    def create(cls, *hosts: str) -> Federation:
        authority, server, member = Authority.create("test"), MemberKeys.generate(), keys()
        request = certificate_request(member)
        issued = authority.issue_member(request, name="a", role=Role.CLIENT, days=2)
        certificate = authority.issue_server(server.tls.public_key(), hosts, 2)
        return cls(
            authority=authority,
            server={"certificate_pem": pem_of(certificate), "key_pem": key_pem(server)},
            member={"certificate_pem": pem_of(issued), "key_pem": key_pem(member)},
        )


def keys() -> MemberKeys:
    return MemberKeys.generate()


def key_pem(keys: MemberKeys) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return keys.tls.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


class Service:
    """A Fleet that echoes and refuses."""

    Watch = Decide = SubmitStatus = Members = None

    async def Join(  # noqa: N802 - the name of the call
        self, _request: JoinRequest, context: Any
    ) -> JoinReply:
        return JoinReply(server_id=(peer_certificate(context) or b"nobody").decode())

    async def Leave(  # noqa: N802 - the name of the call
        self, _request: LeaveRequest, context: Any
    ) -> None:
        await abort_with(context, RefusedError("E-NOT-NOW", "a secret of the server"))

    async def Fetch(  # noqa: N802 - the name of the call
        self, request: FetchRequest, _context: Any
    ) -> AsyncIterator[bytes]:
        if request.run_id == "garbage":
            yield b"\xff"
        yield encode_head(InstructionHead(manifest=Manifest(payload_bytes=len(PAYLOAD))))
        for frame in encode_chunks(memoryview(PAYLOAD), start=request.offset, chunk_bytes=99_999):
            yield frame

    async def Submit(  # noqa: N802 - the name of the call
        self, frames: AsyncIterator[DecodedFrame], context: Any
    ) -> Receipt | None:
        received = bytearray()
        try:
            head = (await anext(frames)).reply
            assert head is not None
            sequence = ChunkSequence(head.manifest.payload_bytes)
            async for frame in frames:
                received += sequence.accept(frame)
            sequence.finish()
        except ProtocolError as error:
            await abort_with(context, error)
        return Receipt(payload_bytes=len(received))


@pytest.fixture(scope="module")
def home() -> Federation:
    return Federation.create("127.0.0.1")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


async def serve(home: Federation, *, enrolment: bool = False) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=server_options())
    add_fleet_servicer(Service(), server)
    credentials = (
        enrolment_credentials(**home.server)
        if enrolment
        else server_credentials(authority_pem=home.authority.pem, **home.server)
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def with_fleet(home: Federation, body: Any, **identity: bytes) -> Any:
    """Run ``body(fleet)`` against a server of ``home``, as one of its members by default."""
    server, address = await serve(home)
    identity = {"authority_pem": home.authority.pem, **home.member, **identity}
    try:
        async with client_channel(address, **identity) as channel:
            return await body(open_fleet(channel))
    finally:
        await server.stop(None)


def failure(home: Federation, body: Any, **identity: bytes) -> TacitError:
    with pytest.raises(grpc.RpcError) as caught:
        run(with_fleet(home, body, **identity))
    return error_from_rpc(caught.value)


async def join(fleet: Any) -> JoinReply:
    return await fleet.Join(JoinRequest(), wait_for_ready=False)


def test_members_are_known_by_their_certificate(home: Federation) -> None:
    """The server sees the certificate that TLS has checked."""
    reply = run(with_fleet(home, join))
    assert home.member["certificate_pem"] == reply.server_id.encode()


@pytest.mark.parametrize("start", [0, 123_456, len(PAYLOAD)])
def test_payloads_pass_both_ways_and_resume(home: Federation, start: int) -> None:
    """Fetch gives the bytes from the offset on; Submit takes a whole payload."""

    async def body(fleet: Any) -> tuple[bytes, int]:
        frames = fleet.Fetch(FetchRequest(offset=start))
        head = (await anext(aiter(frames))).instruction
        sequence = ChunkSequence(head.manifest.payload_bytes, start=start)
        received = b"".join([bytes(sequence.accept(frame)) async for frame in frames])
        sequence.finish()
        return received, (await fleet.Submit(submission(PAYLOAD))).payload_bytes

    assert (PAYLOAD[start:], len(PAYLOAD)) == run(with_fleet(home, body))


def submission(payload: bytes, *, claimed: int | None = None) -> Iterator[bytes]:
    size = len(payload) if claimed is None else claimed
    yield encode_head(ReplyHead(manifest=Manifest(payload_bytes=size)))
    yield from encode_chunks(memoryview(payload))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([*submission(b"abc", claimed=4)], "E-FRAME-SHORT"),
        ([*submission(b"abc", claimed=2)], "E-FRAME-OVERRUN"),
        ([*submission(b"abc"), encode_chunk(9, b"x")], "E-FRAME-OFFSET"),
        ([*submission(b"abc"), b"\xff\xff"], "E-FRAME-MALFORMED"),
    ],
    ids=["short", "overrun", "gap", "garbage"],
)
def test_lying_uploads_are_refused_by_code(
    home: Federation, frames: list[bytes], code: str
) -> None:
    """The uploader learns the code of the rule that it broke."""
    error = failure(home, lambda fleet: fleet.Submit(iter(frames)))
    assert (ProtocolError, code) == (type(error), error.code)


def test_garbage_from_a_server_is_a_protocol_error(home: Federation) -> None:
    """A node that receives no frame gets our error when it looks at it, not a silent None."""

    async def body(fleet: Any) -> None:
        async for frame in fleet.Fetch(FetchRequest(run_id="garbage")):
            assert frame.instruction is not None

    with pytest.raises(ProtocolError):
        run(with_fleet(home, body))


def test_peers_learn_the_code_only(home: Federation) -> None:
    """The text of an error stays at the server."""
    error = failure(home, lambda fleet: fleet.Leave(LeaveRequest()))
    assert (RefusedError, "E-NOT-NOW") == (type(error), error.code)
    assert "secret" not in str(error)


def test_messages_above_the_cap_are_refused(home: Federation) -> None:
    """4 MiB are the most that a message may have."""
    frame = encode_chunk(0, bytes(5 << 20))
    error = failure(home, lambda fleet: fleet.Submit(iter([frame])))
    assert error.code == "E-MESSAGE-TOO-LARGE"


def test_another_authority_is_not_trusted(home: Federation) -> None:
    """A node does not talk to a server of another federation, and says why."""
    other = Federation.create("127.0.0.1")
    error = failure(home, join, authority_pem=other.authority.pem)
    assert (TrustError, "E-SERVER-CERTIFICATE") == (type(error), error.code)


def test_members_of_others_are_not_let_in(home: Federation) -> None:
    """A certificate of another authority does not open the connection."""
    error = failure(home, join, **Federation.create("127.0.0.1").member)
    assert (UnavailableError, "E-SERVER-CLOSED") == (type(error), error.code)


def test_a_server_must_have_the_name() -> None:
    """A genuine certificate for another host is refused."""
    error = failure(Federation.create("elsewhere.example"), join)
    assert (TrustError, "E-SERVER-CERTIFICATE-NAME") == (type(error), error.code)


def test_a_member_is_no_server(home: Federation) -> None:
    """A member's own certificate cannot pass for the server's."""
    impostor = Federation(authority=home.authority, server=home.member, member=home.member)
    assert isinstance(failure(impostor, join), TrustError)


def test_no_certificate_opens_the_enrolment_port_only(home: Federation) -> None:
    """Without a certificate of ours the main port stays shut; enrolment is one-sided TLS."""

    async def ask(*, enrolment: bool) -> str:
        server, address = await serve(home, enrolment=enrolment)
        try:
            return await asyncio.to_thread(blocking, address)
        finally:
            await server.stop(None)

    def blocking(address: str) -> str:
        with enrolment_channel(address, home.authority.der) as channel:
            return str(FleetStub(channel).Join(JoinRequest(), timeout=TIMEOUT_S).server_id)

    assert run(ask(enrolment=True)) == "nobody"
    with pytest.raises(grpc.RpcError):
        run(ask(enrolment=False))


def test_blocking_channels(home: Federation, tmp_path: Path) -> None:
    """The command line's channels: mutual TLS, and the Unix socket without any certificate."""

    async def body() -> tuple[str, str]:
        server, address = await serve(home)
        server.add_secure_port(f"unix:{tmp_path}/s", local_credentials())
        local = grpc.aio.server(options=server_options())
        add_fleet_servicer(Service(), local)
        local.add_secure_port(f"unix:{tmp_path}/socket", local_credentials())
        await local.start()
        try:
            return await asyncio.to_thread(blocking, address)
        finally:
            await server.stop(None)
            await local.stop(None)

    def blocking(address: str) -> tuple[str, str]:
        identity = {"authority_pem": home.authority.pem, **home.member}
        with (
            control_channel(address, **identity) as remote,
            local_channel(tmp_path / "socket") as local,
        ):
            asked = [
                FleetStub(channel).Join(JoinRequest(), timeout=TIMEOUT_S).server_id
                for channel in (remote, local)
            ]
        return asked[0], asked[1]

    remote, local = run(body())
    assert (home.member["certificate_pem"].decode(), "nobody") == (remote, local)


def test_nobody_at_home(home: Federation, tmp_path: Path) -> None:
    """A port without a server and a socket that is not there say so."""

    async def body() -> None:
        server, address = await serve(home)
        await server.stop(None)
        identity = {"authority_pem": home.authority.pem, **home.member}
        async with client_channel(address, **identity) as channel:
            await join(open_fleet(channel))

    with pytest.raises(grpc.RpcError) as caught:
        run(body())
    assert error_from_rpc(caught.value).code == "E-SERVER-UNREACHABLE"
    with local_channel(tmp_path / "none") as channel, pytest.raises(grpc.RpcError) as caught:
        FleetStub(channel).Join(JoinRequest(), timeout=TIMEOUT_S)
    assert error_from_rpc(caught.value).code == "E-SERVER-UNREACHABLE"


def test_proxies_are_for_other_machines() -> None:
    """Loopback never goes through a proxy of the environment; other addresses may."""
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert ("grpc.enable_http_proxy", 0) in channel_options(address)
    assert "grpc.enable_http_proxy" not in dict(channel_options("server.example:1"))
