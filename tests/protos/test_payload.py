"""Payload files: written in one go, mapped, and sealed against change."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import ProtocolError
from tacit.protos.memory import keep_large_buffers
from tacit.protos.payload import map_payload, unnamed_payload, verify_sealed, write_segments

if TYPE_CHECKING:
    from pathlib import Path


def test_many_segments_are_written_in_order(tmp_path: Path) -> None:
    """More segments than one system call takes, empty ones among them, end up one after another."""
    segments: list[bytes | memoryview] = [str(i).encode() for i in range(2000)]
    segments[3:3] = [b"", memoryview(b"view")]
    path = tmp_path / "payload"
    with path.open("wb") as file:
        assert sum(map(len, segments)) == write_segments(file.fileno(), segments)
    assert b"".join(segments) == path.read_bytes()


def test_writing_goes_on_after_a_short_write() -> None:
    """A pipe takes what fits; the rest follows."""
    reader, writer = os.pipe()
    data = os.urandom(300_000)
    received = bytearray()

    def write() -> None:
        write_segments(writer, [data[:5], data[5:]])
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    while chunk := os.read(reader, 70_000):
        received += chunk
    os.close(reader)
    thread.join()
    assert data == received


def test_an_empty_payload_is_an_empty_view(tmp_path: Path) -> None:
    """A file without bytes cannot be mapped, and need not be."""
    (tmp_path / "payload").touch()
    assert len(map_payload(tmp_path / "payload")) == 0


def test_unnamed_payloads_are_sealed() -> None:
    """Nobody can change or cut a sealed file, so that mapping it is safe."""
    descriptor = unnamed_payload([b"abc", b"def"])
    try:
        verify_sealed(descriptor)
        assert bytes(map_payload(descriptor)) == b"abcdef"
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 1)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_unsealed_files_are_refused(tmp_path: Path) -> None:
    """A named file, or an unnamed one that can still change, is not to be mapped."""
    unsealed = os.memfd_create("x")
    with (tmp_path / "named").open("wb") as named:
        for descriptor in (unsealed, named.fileno()):
            with pytest.raises(ProtocolError) as caught:
                verify_sealed(descriptor)
            assert caught.value.code == "E-PAYLOAD-UNSEALED"
    os.close(unsealed)


def test_the_mapping_outlives_descriptor_and_name(tmp_path: Path) -> None:
    """A view stays good when its file has been closed and deleted."""
    path = tmp_path / "payload"
    path.write_bytes(b"abc")
    view = map_payload(path)
    path.unlink()
    assert bytes(view) == b"abc"
    assert view.readonly


def test_malloc_takes_the_thresholds() -> None:
    """glibc accepts both values; elsewhere nothing happens."""
    assert keep_large_buffers() is True
