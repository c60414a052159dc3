"""What nodes may and may not do, over real mutual TLS: roles, revocation, uploads, bad replies."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from tacit.core.errors import TrustError
from tacit.core.identity import (
    Authority,
    Role,
    certificate_request,
    parse_token,
    pem_of,
)
from tacit.protos import control_pb2 as control
from tacit.protos import fleet_pb2 as fleet
from tacit.protos.channel import client_channel, enrolment_channel
from tacit.protos.control_pb2_grpc import ControlStub
from tacit.protos.enrolment_client import enrol, renew
from tacit.protos.frames import encode_chunk, encode_head, open_fleet
from tacit.server.configuration import JournalMode, LimitsConfig
from tests.server.federation import (
    Federation,
    Node,
    code_of,
    federation,
    fetch,
    plus_one,
    reply_of,
    specification,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow


async def silent_run(fed: Federation) -> tuple[str, Node]:
    """Start a run of one node that fetches nothing by itself; return its first message's id."""
    node = fed.nodes["node-0"]
    node.silent = True
    node.start()
    await fed.submit(specification(min_clients=1))
    await asyncio.wait_for(node.ready.wait(), 20)
    return node.received[0], node


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return code_of(refused.value)


def test_a_client_may_not_call_what_operators_call(tmp_path: Path) -> None:
    """A client's certificate is refused on Control, an operator's on Fleet, by role."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            async with fed.nodes["node-0"].channel() as channel:
                stub = ControlStub(channel)
                assert await refusal(stub.Status(control.StatusRequest())) == "E-ROLE-REFUSED"
                assert await refusal(stub.Stop(control.StopRequest())) == "E-ROLE-REFUSED"
            async with fed.control() as stub:
                assert await refusal(stub.Stop(control.StopRequest())) == "E-ROLE-REFUSED"

    asyncio.run(scenario())


def test_a_certificate_of_another_authority_does_not_connect(tmp_path: Path) -> None:
    """TLS itself refuses it: no call is served."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            membership = fed.nodes["node-0"].membership
            other = Authority.create("other")
            der = other.issue_member(
                certificate_request(membership.keys), name="node-0", role=Role.CLIENT, days=1
            )
            channel = client_channel(
                fed.address,
                authority_pem=membership.authority_pem,
                certificate_pem=pem_of(der),
                key_pem=membership.key_pem,
            )
            async with channel:
                join = open_fleet(channel).Join(fleet.JoinRequest(protocol_version=1), timeout=5)
                assert await refusal(join) in (
                    "StatusCode.UNAVAILABLE",
                    "StatusCode.DEADLINE_EXCEEDED",
                )

    asyncio.run(scenario())


def test_a_revoked_client_is_cut_off_at_once(tmp_path: Path) -> None:
    """Its open stream ends with the reason, and its next call is refused."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            _, node = await silent_run(fed)
            async with fed.control() as stub:
                reply = await stub.Revoke(control.RevokeRequest(name="node-0"))
            assert reply.certificates == 1
            assert node.task is not None
            await asyncio.wait_for(node.task, 10)
            assert node.code == "E-MEMBER-REVOKED"
            async with node.channel() as channel:
                join = open_fleet(channel).Join(fleet.JoinRequest(protocol_version=1))
                assert await refusal(join) == "E-MEMBER-REVOKED"

    asyncio.run(scenario())


def test_a_token_enrols_once(tmp_path: Path) -> None:
    """A second member with the same token is refused; so is one whose token has ended."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            token = parse_token(await fed.token("clinic"))
            first = await asyncio.to_thread(enrol, token, tmp_path / "one")
            assert first.identity.name == "clinic"
            with pytest.raises(TrustError) as used:
                await asyncio.to_thread(enrol, token, tmp_path / "two")
            assert used.value.code == "E-TOKEN-USED"
            wrong = replace(token, secret=bytes(32))
            with pytest.raises(TrustError) as refused:
                await asyncio.to_thread(enrol, wrong, tmp_path / "three")
            assert refused.value.code == "E-TOKEN-WRONG"
            late = token.expires_at + dt.timedelta(seconds=1)
            with pytest.raises(TrustError) as ended:
                await asyncio.to_thread(lambda: enrol(token, tmp_path / "four", now=late))
            assert ended.value.code == "E-TOKEN-EXPIRED"

    asyncio.run(scenario())


def test_a_token_of_another_server_is_refused_by_its_authority(tmp_path: Path) -> None:
    """The token names an authority: a server of another one is not believed."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            token = parse_token(await fed.token("clinic"))
            strange = replace(token, authority_der=Authority.create("other").der)
            with pytest.raises(TrustError) as refused:
                await asyncio.to_thread(enrol, strange, tmp_path / "one")
            assert refused.value.code == "E-SERVER-CERTIFICATE"

    asyncio.run(scenario())


def test_the_enrolment_port_serves_nothing_else(tmp_path: Path) -> None:
    """Control calls on the enrolment port do not exist; neither does Renew."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            token = parse_token(await fed.token("clinic"))

            def ask() -> grpc.StatusCode:
                address = token.enrolment_addresses[0]
                with (
                    enrolment_channel(address, token.authority_der) as channel,
                    pytest.raises(grpc.RpcError) as refused,
                ):
                    ControlStub(channel).Status(control.StatusRequest(), timeout=5)
                return refused.value.code()

            assert await asyncio.to_thread(ask) is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


def test_a_member_renews_its_certificate(tmp_path: Path) -> None:
    """Renewal gives another certificate for the same node, and the member goes on with it."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            membership = fed.nodes["node-0"].membership
            before = membership.identity
            await asyncio.to_thread(renew, membership)
            after = membership.identity
            assert after.serial != before.serial
            assert after.node_id == before.node_id
            async with fed.nodes["node-0"].channel() as channel:
                await open_fleet(channel).Join(fleet.JoinRequest(protocol_version=1))

    asyncio.run(scenario())


def test_a_second_submit_gets_the_old_receipt(tmp_path: Path) -> None:
    """Sending a reply again changes nothing: the stored receipt comes back, marked as repeated."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            other = fed.nodes["node-1"]
            other.silent = True
            other.start()
            node = fed.nodes["node-0"]
            node.silent = True
            node.start()
            run_id = await fed.submit(specification())
            await asyncio.gather(*(n.ready.wait() for n in fed.nodes.values()))
            async with node.channel() as channel:
                stub = open_fleet(channel)
                head, payload = await fetch(stub, run_id, node.received[0])
                first = await submit(stub, *plus_one(head, payload))
                second = await submit(stub, *reply_of(head, bytes(len(payload))))
            assert not first.repeated
            assert second.repeated
            assert second.payload_sha256 == first.payload_sha256

    asyncio.run(scenario())


@pytest.mark.parametrize("restart", [False, True])
def test_an_interrupted_upload_goes_on_where_it_ended(tmp_path: Path, restart: bool) -> None:  # noqa: FBT001
    """Half a payload arrived; the rest is asked for, also after a restart of the daemon."""

    async def scenario() -> None:
        async with federation(tmp_path, "--numbers", "100000", nodes=1) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            half = 200_000
            async with node.channel() as channel:
                stub = open_fleet(channel)
                reply, data = plus_one(*await fetch(stub, run_id, message_id))
                sent = asyncio.Event()

                async def frames() -> AsyncIterator[bytes]:
                    yield encode_head(reply)
                    yield encode_chunk(0, memoryview(data)[:half])
                    sent.set()
                    await asyncio.Event().wait()

                upload = asyncio.ensure_future(stub.Submit(frames()))
                await sent.wait()
                status = fleet.SubmitStatusRequest(run_id=run_id, message_id=message_id)
                async with asyncio.timeout(20):
                    while (await stub.SubmitStatus(status)).offset < half:
                        pass
                upload.cancel()
            if restart:
                await node.stop()
                await fed.stop()
                await fed.start()
            async with node.channel() as channel:
                stub = open_fleet(channel)
                found = await stub.SubmitStatus(status)
                assert (found.state, found.offset) == (fleet.SubmitStatusReply.WANTED, half)
                receipt = await submit(stub, reply, data, offset=half)
                assert receipt.payload_sha256 == reply.manifest.payload_sha256
                found = await stub.SubmitStatus(status)
                assert found.state != fleet.SubmitStatusReply.WANTED

    asyncio.run(scenario())


def test_a_fetch_goes_on_from_an_offset(tmp_path: Path) -> None:
    """The same instruction from byte n on is the rest of the same bytes."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            async with node.channel() as channel:
                stub = open_fleet(channel)
                _, whole = await fetch(stub, run_id, message_id)
                _, rest = await fetch(stub, run_id, message_id, offset=1001)
            assert rest == whole[1001:]

    asyncio.run(scenario())


def spoiled(value: float) -> Any:
    def answer(head: fleet.InstructionHead, payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
        array = np.frombuffer(payload, dtype="<f4").copy()
        array[7] = value
        return reply_of(head, array.tobytes())

    return answer


def reshaped(head: fleet.InstructionHead, payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
    reply, data = reply_of(head, payload)
    reply.manifest.records[0].arrays[0].shape[:] = [len(payload) // 8, 2]
    return reply, data


def retyped(head: fleet.InstructionHead, payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
    reply, data = reply_of(head, payload)
    reply.manifest.records[0].arrays[0].dtype = "int32"
    return reply, data


def failed(head: fleet.InstructionHead, _payload: bytes) -> tuple[fleet.ReplyHead, bytes]:
    reply = fleet.ReplyHead(run_id=head.run_id, message_id=head.message_id)
    reply.failure.code = 2
    reply.failure.reason = "Traceback: patient 17 has no age"
    return reply, b""


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (spoiled(float("nan")), "E-REPLY-NOT-FINITE", "E-REPLY-NOT-FINITE"),
        (spoiled(float("inf")), "E-REPLY-NOT-FINITE", "E-REPLY-NOT-FINITE"),
        (reshaped, "E-REPLY-SCHEMA", "E-REPLY-SCHEMA"),
        (retyped, "E-REPLY-SCHEMA", "E-REPLY-SCHEMA"),
        (failed, "E-APP-FAILED", ""),
    ],
    ids=["nan", "infinity", "shape", "dtype", "failure"],
)
def test_a_bad_reply_fails_its_message_and_not_the_run(
    tmp_path: Path, answer: Any, code: str, told: str
) -> None:
    """The others' replies count, the run goes on, and only stable codes travel."""

    async def scenario() -> None:
        async with federation(tmp_path, "--rounds", "1", "--cohort", "2", nodes=2) as fed:
            fed.nodes["node-1"].answer = answer
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification(rounds=1))
            events = await fed.events(run_id)
            finished = next(fields for kind, fields in events if kind == "round_finished")
            failure = next(fields for kind, fields in events if kind == "reply_failed")
            assert finished["metrics"] == {"total": 2000.0, "replies": 1}
            assert finished["codes"] == [code]
            assert (failure["code"], failure["member"]) == (code, "node-1")
            assert fed.nodes["node-1"].refusals == ([told] if told else [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ([(0, 4096)], "E-UPLOAD-SIZE"),
        ([(8, 8)], "E-UPLOAD-SIZE"),
        ([(0, 8), (0, 8)], "E-UPLOAD-SIZE"),
        ([(0, 3999)], "E-UPLOAD-SHORT"),
        ([(0, 2000), (2000, 2000)], "E-UPLOAD-DIGEST"),
    ],
    ids=["too-many", "gap", "twice", "too-few", "other-bytes"],
)
def test_a_stream_that_lies_is_refused_and_may_try_again(
    tmp_path: Path, chunks: list[tuple[int, int]], code: str
) -> None:
    """Too many bytes, a gap, a repetition, too few, other bytes: refused, and the message stays.

    Other bytes than were announced are looked for on arrival with ``journal = power`` only.
    """
    journal = JournalMode.POWER if code == "E-UPLOAD-DIGEST" else JournalMode.KILL

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1, journal=journal) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            async with node.channel() as channel:
                stub = open_fleet(channel)
                reply, data = plus_one(*await fetch(stub, run_id, message_id))

                async def frames() -> AsyncIterator[bytes]:
                    yield encode_head(reply)
                    for offset, size in chunks:
                        yield encode_chunk(offset, bytes(size))

                assert await refusal(stub.Submit(frames())) == code
                status = fleet.SubmitStatusRequest(run_id=run_id, message_id=message_id)
                found = await stub.SubmitStatus(status)
                assert found.state == fleet.SubmitStatusReply.WANTED
                if found.offset == 0:
                    assert not (await submit(stub, reply, data)).repeated

    asyncio.run(scenario())


def test_another_nodes_message_looks_like_none(tmp_path: Path) -> None:
    """Fetching, asking about and answering somebody else's message give the same as an unknown."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            async with node.channel() as mine, fed.nodes["node-1"].channel() as other:
                head, payload = await fetch(open_fleet(mine), run_id, message_id)
                stub = open_fleet(other)
                assert await refusal(fetch(stub, run_id, message_id)) == "E-MESSAGE-CLOSED"
                assert await refusal(submit(stub, *plus_one(head, payload))) == "E-MESSAGE-CLOSED"
                status = fleet.SubmitStatusRequest(run_id=run_id, message_id=message_id)
                found = await stub.SubmitStatus(status)
                assert found.state == fleet.SubmitStatusReply.CLOSED

    asyncio.run(scenario())


def test_a_full_disk_refuses_an_upload_without_harm(tmp_path: Path) -> None:
    """While there is no room, uploads and runs are refused; with room, the same upload is taken."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            assert fed.daemon is not None
            space = fed.daemon.scheduler.space
            async with node.channel() as channel:
                stub = open_fleet(channel)
                reply = plus_one(*await fetch(stub, run_id, message_id))
                space.keep_free_bytes = 1 << 60
                assert await refusal(submit(stub, *reply)) == "E-DISK-FULL"
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await fed.submit(specification())
                assert code_of(refused.value) == "E-DISK-FULL"
                space.keep_free_bytes = 0
                assert (await submit(stub, *reply)).payload_bytes == len(reply[1])

    asyncio.run(scenario())


def test_a_payload_above_the_limit_is_refused_before_its_bytes(tmp_path: Path) -> None:
    """The manifest alone decides: nothing was staged."""

    async def scenario() -> None:
        limits = LimitsConfig(max_update_bytes=100_000)
        async with federation(tmp_path, "--numbers", "50000", nodes=1, limits=limits) as fed:
            message_id, node = await silent_run(fed)
            run_id = next(iter(node.offers))
            async with node.channel() as channel:
                stub = open_fleet(channel)
                reply = plus_one(*await fetch(stub, run_id, message_id))
                assert await refusal(submit(stub, *reply)) == "E-MANIFEST-TOO-LARGE"
            spool = tmp_path / "s" / "runs" / run_id / "spool"
            assert not list(spool.glob("in-*"))

    asyncio.run(scenario())


def test_a_node_leaves(tmp_path: Path) -> None:
    """Leaving ends the membership: the stream closes and the certificate is of no more use."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed:
            _, node = await silent_run(fed)
            async with node.channel() as channel:
                stub = open_fleet(channel)
                await stub.Leave(fleet.LeaveRequest())
                join = stub.Join(fleet.JoinRequest(protocol_version=1))
                assert await refusal(join) == "E-MEMBER-REVOKED"
            assert node.task is not None
            await asyncio.wait_for(node.task, 10)

    asyncio.run(scenario())
