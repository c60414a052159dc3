"""Flower messages from our heads, and what an app's answer may say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tacit.protos.codec import decode_records, encode_records
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead
from tacit.protos.flower import (
    SERVER_NODE_ID,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    array_record,
    empty_run,
    flower_run_id,
    make_instruction,
    make_reply,
    new_context,
    reply_parts,
    set_task_identity,
)
from tacit.protos.records_pb2 import AppFailure

HEAD = InstructionHead(
    run_id="r-7f3a9c20",
    message_id="r-7f3a9c20.000004",
    group_id="2",
    message_type="train",
    ttl_s=600.0,
    created_at_s=1.5e9,
)


def instruction(node_id: int = 42) -> Message:
    return make_instruction(HEAD, RecordDict({"c": ConfigRecord({"x": 1})}), node_id=node_id)


def test_instructions_carry_the_head() -> None:
    """Every field of the head stands in Flower's metadata, and the server is the source."""
    metadata = instruction().metadata
    assert metadata.run_id == 0x7F3A9C20 == flower_run_id(HEAD.run_id)
    assert (metadata.src_node_id, metadata.dst_node_id) == (SERVER_NODE_ID, 42)
    assert (HEAD.message_id, "2", "train") == (
        metadata.message_id,
        metadata.group_id,
        metadata.message_type,
    )
    assert (metadata.ttl, metadata.created_at) == (600.0, 1.5e9)


def test_apps_answer_instructions() -> None:
    """An app replies with the public constructor, and its content comes back."""
    content = RecordDict({"m": MetricRecord({"num-examples": 3})})
    assert content == reply_parts(Message(content, reply_to=instruction()))


def test_replies_come_from_the_node() -> None:
    """A strategy sees who answered what."""
    head = ReplyHead(message_id=HEAD.message_id, ttl_s=5.0, created_at_s=1.6e9)
    asked = instruction()
    reply = make_reply(head, RecordDict(), node_id=42, instruction=asked)
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (42, SERVER_NODE_ID)
    assert asked.metadata.message_id == reply.metadata.reply_to_message_id
    assert reply.has_content()


def test_failures_are_error_replies() -> None:
    """A reply without content has the failure's code and reason."""
    head = ReplyHead(failure=AppFailure(code=2, reason="E-APP-RAISED"))
    reply = make_reply(head, None, node_id=42, instruction=instruction())
    assert (reply.error.code, reply.error.reason) == (2, "E-APP-RAISED")


@pytest.mark.parametrize(
    ("reason", "passed"),
    [
        ("E-DATA-MISSING", "E-DATA-MISSING"),
        ("ValueError: patient 4711", "E-APP-FAILED"),
        ("E-X patient 4711", "E-APP-FAILED"),
        ("E-X\npatient", "E-APP-FAILED"),
        (None, "E-APP-FAILED"),
    ],
    ids=["code", "traceback", "tail", "line", "none"],
)
def test_error_texts_of_apps_stay_at_the_owner(reason: str | None, passed: str) -> None:
    """Only a stable code leaves; a traceback may quote a record."""
    reply = Message(Error(2, reason), reply_to=instruction())
    assert AppFailure(code=2, reason=passed) == reply_parts(reply)


def test_servers_make_messages_once_identified() -> None:
    """A ServerApp can make instructions itself after the identity is set."""
    set_task_identity(run_id=7, node_id=SERVER_NODE_ID)
    message = Message(RecordDict(), 42, "evaluate")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, SERVER_NODE_ID)


def test_contexts_and_runs() -> None:
    """A fresh context has an empty state of its own, and a run its id."""
    contexts = [
        new_context(run_id=7, node_id=42, node_config={"a": 1}, run_config={"b": "x"})
        for _ in range(2)
    ]
    contexts[0].state["c"] = ConfigRecord({"n": 1})
    assert (
        contexts[1].run_id,
        contexts[1].node_config,
        contexts[1].run_config,
    ) == (7, {"a": 1}, {"b": "x"})
    assert not contexts[1].state
    assert empty_run(7).run_id == 7


def test_records_over_own_arrays() -> None:
    """array_record equals flwr's own record, and its arrays are handed out as copies."""
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(3)}
    record = array_record(arrays)
    for name, array in arrays.items():
        copy = record[name].numpy()
        np.testing.assert_array_equal(array, copy, strict=True)
        assert not np.shares_memory(array, copy)
    encoded = encode_records(RecordDict({"a": record}))
    plain = encode_records(RecordDict({"a": ArrayRecord({k: record[k] for k in record})}))
    assert encoded.manifest == plain.manifest
    assert decode_records(encoded.manifest, memoryview(encoded.payload()))["a"] == record


FORBIDDEN = {
    "tacit.protos.flower": {"torch", "opacus"},
    "tacit.protos.codec": {"torch", "opacus"},
    "tacit.protos.manifest": {"torch", "opacus", "flwr", "grpc"},
    "tacit.protos.payload": {"torch", "opacus", "flwr", "grpc"},
    "tacit.protos.pipe": {"torch", "opacus", "flwr", "grpc"},
    "tacit.protos.frames": {"torch", "opacus", "flwr"},
    "tacit.protos.channel": {"torch", "opacus", "flwr"},
}


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_imports_stay_light(module: str) -> None:
    """What daemons import loads no flwr, and nothing here loads torch."""
    code = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not FORBIDDEN[module] & set(out.stdout.split())
