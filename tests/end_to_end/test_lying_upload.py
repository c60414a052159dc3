"""A node with a real certificate that lies about its upload: refused, and nothing is lost.

The node speaks the Fleet service directly, without Tacit's client. After all its lies an honest
upload is received, and the run ends with it.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from tacit.core.identity import parse_token
from tacit.protos import fleet_pb2 as fleet
from tacit.protos.codec import encode_records
from tacit.protos.enrolment_client import enrol
from tacit.protos.flower import MetricRecord, RecordDict, array_record
from tacit.protos.frames import encode_chunk, encode_head, open_fleet
from tests.end_to_end.federation import PATIENCE_S, TICK_S, federation
from tests.end_to_end.runs import Arrays, initial_arrays, initial_file, quick_spec, with_clients
from tests.server.federation import Node, code_of, fetch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

POWER = 'journal = "power"'  # every digest is checked on arrival: docs/adr/0005
Upload = tuple[fleet.ReplyHead, list[bytes]]


def honest(head: fleet.InstructionHead, arrays: Arrays) -> Upload:
    """Return a reply that keeps every rule, in two chunks."""
    content = RecordDict(
        {"arrays": array_record(arrays), "metrics": MetricRecord({"num-examples": 1})}
    )
    encoded = encode_records(content)
    payload = b"".join(bytes(segment) for segment in encoded.segments)
    reply = fleet.ReplyHead(run_id=head.run_id, message_id=head.message_id)
    reply.manifest.CopyFrom(encoded.manifest)
    reply.manifest.payload_sha256 = hashlib.sha256(payload).digest()
    view, half = memoryview(payload), len(payload) // 2
    return reply, [encode_chunk(0, view[:half]), encode_chunk(half, view[half:])]


def ends_early(head: fleet.ReplyHead, chunks: list[bytes]) -> Upload:
    return head, chunks[:1]


def goes_on(head: fleet.ReplyHead, chunks: list[bytes]) -> Upload:
    end = head.manifest.payload_bytes
    return head, [chunks[1], encode_chunk(end, memoryview(b"more"))]  # resumes, then goes on


def begins_in_the_middle(head: fleet.ReplyHead, chunks: list[bytes]) -> Upload:
    return head, chunks[1:]


def jumps(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    return head, [encode_chunk(1 << 40, memoryview(b"far away"))]


def other_bytes(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    zeros = memoryview(bytes(head.manifest.payload_bytes))
    return head, [encode_chunk(0, zeros)]


def announces_more(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    head.manifest.payload_bytes += 4
    return head, []  # refused before any byte


def announces_a_terabyte(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    (arrays,) = [record for record in head.manifest.records if record.arrays]
    arrays.arrays[0].bytes = head.manifest.payload_bytes = 1 << 40
    return head, []  # refused before any byte


def other_shape(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    (arrays,) = [record for record in head.manifest.records if record.arrays]
    arrays.arrays[0].shape[:] = [7, 31]
    return head, []  # refused before any byte


def undeclared_metric(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    (metrics,) = [record for record in head.manifest.records if record.items]
    metrics.items.add(key="age-of-patient-1", real=63.0)
    return head, []  # refused before any byte


def not_a_number(head: fleet.ReplyHead, _chunks: list[bytes]) -> Upload:
    payload = np.full(head.manifest.payload_bytes // 4, np.nan, dtype="<f4").tobytes()
    head.manifest.payload_sha256 = hashlib.sha256(payload).digest()
    return head, [encode_chunk(0, memoryview(payload))]


ARRIVED_BADLY = {  # the same reply may be sent again
    other_bytes: "E-UPLOAD-DIGEST",
    jumps: "E-UPLOAD-SIZE",
    begins_in_the_middle: "E-UPLOAD-SIZE",
    ends_early: "E-UPLOAD-SHORT",
    goes_on: "E-UPLOAD-SIZE",
}
BREAKS_A_RULE = {  # the message has failed; the next attempt asks anew
    announces_more: "E-MANIFEST-SUM",
    announces_a_terabyte: "E-MANIFEST-TOO-LARGE",
    other_shape: "E-REPLY-SCHEMA",
    undeclared_metric: "E-REPLY-METRIC",
    not_a_number: "E-REPLY-NOT-FINITE",
}
LIES = ARRIVED_BADLY | BREAKS_A_RULE


async def submit(stub: Any, head: fleet.ReplyHead, chunks: list[bytes]) -> fleet.Receipt:
    async def frames() -> AsyncIterator[bytes]:
        yield encode_head(head)
        for chunk in chunks:
            yield chunk

    return await stub.Submit(frames(), timeout=30)


async def tell_lies(node: Node, arrays: Arrays) -> dict[str, str]:
    """Tell every lie, then the truth; return the code that each lie met."""
    met = {}
    node.start()
    async with node.channel() as channel:
        stub = open_fleet(channel)
        head = await next_instruction(stub, node, 0)
        for change in LIES:
            met[change.__name__] = await refusal(stub, change, honest(head, arrays))
            if change in BREAKS_A_RULE:
                head = await next_instruction(stub, node, len(met) - len(ARRIVED_BADLY))
        await submit(stub, *honest(head, arrays))
    await asyncio.wait_for(node.ended.wait(), PATIENCE_S)
    await node.stop()
    return met


async def refusal(stub: Any, change: Callable[..., Upload], true: Upload) -> str:
    """Return the code that an upload meets; gRPC's client may lose it, then it is asked again."""
    lie = change(*true)
    while True:
        try:
            await submit(stub, *lie)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL:
                return code_of(error)
        else:
            return ""


async def next_instruction(stub: Any, node: Node, number: int) -> fleet.InstructionHead:
    """Return the head of the n-th message that the server has for this node."""
    async with asyncio.timeout(PATIENCE_S):
        while len(node.received) <= number:  # noqa: ASYNC110 - polled, as everywhere here
            await asyncio.sleep(TICK_S)
    message_id = node.received[number]
    head, _ = await fetch(stub, message_id.partition(".")[0], message_id)
    return head


def test_a_node_that_lies_about_its_upload_is_refused(tmp_path: Path) -> None:
    """Size, order, digest, schema, NaN: each lie has its code; the honest upload still counts."""
    with federation(tmp_path / "f", start=False) as played:
        settings = played.home / "server.toml"
        settings.write_text(settings.read_text().replace('journal = "kill"', POWER))
        played.start_server()
        membership = enrol(parse_token(played.token("liar")), played.root / "liar")
        node = Node(membership, played.address, silent=True)
        attempts = 1 + len(BREAKS_A_RULE)
        spec = with_clients(quick_spec(), 1, rounds=1, max_attempts=attempts)
        run_id = played.submit(spec, initial_file(played.root))
        arrays = {name: array + np.float32(1) for name, array in initial_arrays().items()}
        met = asyncio.run(tell_lies(node, arrays))
        assert met == {change.__name__: code for change, code in LIES.items()}
        model = played.finish(run_id)
        for name, array in arrays.items():
            np.testing.assert_array_equal(model[name], array)
        failed = [fields for kind, fields in played.events(run_id) if kind == "reply_failed"]
        assert [each["code"] for each in failed] == list(BREAKS_A_RULE.values())
        assert not (played.home / "runs" / run_id / "spool").exists()
