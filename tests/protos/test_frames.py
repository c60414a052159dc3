"""Frames by hand are protobuf, and a stream of them cannot lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError
from tacit.protos.fleet_pb2 import Frame, InstructionHead, ReplyHead
from tacit.protos.frames import (
    ChunkSequence,
    decode_frame,
    encode_chunk,
    encode_chunks,
    encode_head,
)
from tacit.protos.records_pb2 import Manifest

OFFSETS = st.integers(0, 2**64 - 1)


@given(OFFSETS, st.binary(max_size=300))
def test_chunks_are_plain_protobuf(offset: int, data: bytes) -> None:
    """Our bytes are exactly those of the protobuf library."""
    expected = Frame(offset=offset, data=data).SerializeToString()
    assert expected == encode_chunk(offset, memoryview(data))


@given(OFFSETS, st.binary(max_size=300), st.sampled_from(["", "instruction", "reply"]))
def test_any_frame_is_read(offset: int, data: bytes, head: str) -> None:
    """What the protobuf library writes, we read."""
    frame = Frame(offset=offset, data=data)
    if head:
        getattr(frame, head).run_id = "r-1"
    decoded = decode_frame(frame.SerializeToString())
    assert (offset, data) == (decoded.offset, bytes(decoded.data))
    assert (frame.instruction if head == "instruction" else None) == decoded.instruction
    assert (frame.reply if head == "reply" else None) == decoded.reply


@given(st.binary(max_size=100))
def test_garbage_is_refused_by_name(message: bytes) -> None:
    """Any bytes are a frame or E-FRAME-MALFORMED, never another exception."""
    code = "E-FRAME-MALFORMED"
    try:
        decode_frame(message)
    except ProtocolError as error:
        code = error.code
    assert code == "E-FRAME-MALFORMED"


@pytest.mark.parametrize(
    "message",
    [b"\x22\x05abcd", b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a", b"\x18", b"\x0a\x01\xff"],
    ids=["long data", "data of 2^64", "no offset", "broken head"],
)
def test_lying_lengths_are_refused(message: bytes) -> None:
    """A length beyond the message is not believed."""
    with pytest.raises(ProtocolError):
        decode_frame(message)


def test_heads_open_a_stream() -> None:
    """An instruction or a reply goes into its own field."""
    manifest = Manifest(payload_bytes=3)
    instruction = InstructionHead(run_id="r-1", manifest=manifest)
    reply = ReplyHead(run_id="r-1", manifest=manifest)
    assert instruction == decode_frame(encode_head(instruction)).instruction
    assert reply == decode_frame(encode_head(reply)).reply


def test_decoding_copies_no_data() -> None:
    """The data is a view of the received message."""
    message = encode_chunk(7, b"payload")
    assert decode_frame(message).data.obj is message


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(1, 50))
def test_streams_arrive_whole_from_any_offset(payload: bytes, start: int, chunk: int) -> None:
    """Chunks of any size rebuild the rest of the payload from the offset on."""
    start = min(start, len(payload))
    sequence = ChunkSequence(len(payload), start=start)
    frames = encode_chunks(memoryview(payload), start=start, chunk_bytes=chunk)
    received = b"".join(bytes(sequence.accept(decode_frame(frame))) for frame in frames)
    sequence.finish()
    assert payload[start:] == received


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode_chunk(4, b"x"), "E-FRAME-OFFSET"),
        (encode_chunk(2**64 - 1, b"x"), "E-FRAME-OFFSET"),
        (encode_chunk(0, b"x" * 11), "E-FRAME-OVERRUN"),
        (encode_chunk(0, b""), "E-FRAME-EMPTY"),
        (encode_head(ReplyHead(run_id="r")), "E-FRAME-ORDER"),
    ],
    ids=["gap", "overflow", "too much", "nothing", "second head"],
)
def test_a_lying_stream_is_refused(frame: bytes, code: str) -> None:
    """Gaps, overruns, empty frames and second heads are named, and count for nothing."""
    sequence = ChunkSequence(10)
    with pytest.raises(ProtocolError) as caught:
        sequence.accept(decode_frame(frame))
    assert (code, 0) == (caught.value.code, sequence.received)


def test_a_short_stream_is_refused() -> None:
    """A stream that ends early is not taken for whole."""
    sequence = ChunkSequence(10)
    sequence.accept(decode_frame(encode_chunk(0, b"x" * 9)))
    assert not sequence.complete
    with pytest.raises(ProtocolError) as caught:
        sequence.finish()
    assert caught.value.code == "E-FRAME-SHORT"
