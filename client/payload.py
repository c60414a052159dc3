"""Bulk bytes on their way through a node: a file descriptor, or a buffer in memory.

A payload that a worker hands over is not trusted: its owner may still write to it, shorten it, or
have made it something else than a file. So it is only ever read in pieces into the daemon's own
copy; nothing is mapped or checked before that.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tacit.core.errors import ProtocolError
from tacit.core.spares import hold, is_held

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES = 1 << 20  # stays in the second-level cache while it is hashed and written


class Payload(Protocol):
    """Bytes of a known number that can be read once, in order."""

    @property
    def size(self) -> int: ...

    def pieces(self) -> Iterator[memoryview]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class BufferPayload:
    """Bytes that lie in this process' memory, as segments in order."""

    segments: tuple[memoryview, ...]

    @property
    def size(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    def pieces(self) -> Iterator[memoryview]:
        for segment in self.segments:
            flat = segment.cast("B")
            for start in range(0, flat.nbytes, PIECE_BYTES):
                yield flat[start : start + PIECE_BYTES]

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class DescriptorPayload:
    """Bytes behind a descriptor that this object owns."""

    descriptor: int

    @property
    def size(self) -> int:
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ProtocolError("E-PAYLOAD-KIND", "expected a payload in a regular file")
        return status.st_size

    def pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(PIECE_BYTES))
        offset, size = 0, self.size
        while offset < size:
            count = os.preadv(self.descriptor, [buffer[: min(PIECE_BYTES, size - offset)]], offset)
            if count == 0:
                raise ProtocolError("E-PAYLOAD-SHORT", "the payload shrank while it was read")
            yield buffer[:count]
            offset += count

    def close(self) -> None:
        os.close(self.descriptor)


def anonymous_file(name: str, *, folder: Path) -> int:
    """Open a nameless file for bulk: a memfd where the system has it, else one in ``folder``."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:  # a kernel, or a sandbox, without memfd: the folder serves as well
            pass
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.unlink(path)  # noqa: PTH108 - as mkstemp returned it
    return descriptor


class InstructionFiles:
    """Nameless files that instructions are received into, one kept per run for its next one.

    A file is used again only when the worker holds no mapping of the one before (``core/spares.py``
    says how that is known): an app that keeps an array keeps its bytes. Not for several threads.
    """

    def __init__(self) -> None:
        self._kept: dict[str, int] = {}

    def take(self, run_id: str) -> int:
        """Return a descriptor for writing; the caller gives it back or closes it."""
        kept = self._kept.pop(run_id, -1)
        if kept >= 0 and not is_held(kept):
            return kept
        if kept >= 0:
            os.close(kept)
        fresh = anonymous_file("tacit-instruction", folder=Path(tempfile.gettempdir()))
        os.fchmod(fresh, stat.S_IRUSR)  # whoever gets a reader cannot open it again for writing
        return fresh

    def give_back(self, run_id: str, descriptor: int) -> None:
        """Keep a file for the run's next instruction."""
        self.end(run_id)
        if sys.platform == "linux":
            self._kept[run_id] = descriptor
        else:
            os.close(descriptor)

    def end(self, run_id: str) -> None:
        """Forget a run."""
        if run_id in self._kept:
            os.close(self._kept.pop(run_id))

    def close(self) -> None:
        """Forget all."""
        for run_id in list(self._kept):
            self.end(run_id)


def reader_of(descriptor: int) -> int:
    """Open a file again, read-only, and held for as long as the new descriptor is open anywhere.

    Raises:
        OSError: this system does not let a file be opened by its descriptor.
    """
    reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        hold(reader)
    except BaseException:
        os.close(reader)
        raise
    return reader


def open_view(payload: Payload) -> memoryview:
    """Map a trusted payload, or join a buffered one, for reading and private changes."""
    if isinstance(payload, DescriptorPayload):
        if payload.size == 0:
            return memoryview(bytearray())
        return memoryview(mmap.mmap(payload.descriptor, 0, access=mmap.ACCESS_COPY))
    return memoryview(bytearray().join(payload.pieces()))
