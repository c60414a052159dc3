"""Payload bytes between processes: written with few calls, read through a mapping, never copied.

A payload is a file: a spool file by name, or an unnamed one (memfd) by descriptor. It is read by
mapping it; an array taken from the mapping may be written, which touches memory of this process
alone (copy-on-write), never the file.

A mapped file that somebody truncates kills the reader, so map only files that no untrusted process
can still change: your own spool and outbox, or an unnamed file that :func:`verify_sealed` accepts.
A file that is mapped by its path is held (``core/spares.py``): it is not written again before the
last view of it has gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.core.spares import open_held

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_SEGMENTS = 512  # of one writev; the kernel takes 1024 (IOV_MAX)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class PayloadMap(mmap.mmap):
    """A read-only mapping of a payload, with a copy-on-write twin of the same bytes.

    Attributes:
        twin: writable; writing changes neither the file nor this mapping.
    """

    twin: memoryview

    @classmethod
    def of(cls, descriptor: int, size: int) -> PayloadMap:
        """Map the first ``size`` bytes of an open file; ``size`` is at least 1."""
        mapping = cls(descriptor, size, access=mmap.ACCESS_READ)
        mapping.twin = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))
        return mapping


def map_payload(source: int | Path) -> memoryview:
    """Map a whole payload file, given by path or open descriptor, for reading.

    The view keeps the mapping alive; the descriptor may be closed at once.

    Raises:
        OSError: there is no such file (any more), or it is being written again.
    """
    if not isinstance(source, int):
        descriptor = open_held(source)
        try:
            return map_payload(descriptor)
        finally:
            os.close(descriptor)
    size = os.fstat(source).st_size
    return memoryview(PayloadMap.of(source, size)) if size else memoryview(b"")


def write_segments(descriptor: int, segments: Sequence[bytes | memoryview]) -> int:
    """Write all segments one after the other; return how many bytes that was."""
    pending = [view for view in map(_as_bytes, segments) if len(view)]
    total = sum(map(len, pending))
    first = 0
    while first < len(pending):
        written = os.writev(descriptor, pending[first : first + _MAX_SEGMENTS])
        while first < len(pending) and written >= len(pending[first]):
            written -= len(pending[first])
            first += 1
        if written:
            pending[first] = pending[first][written:]
    return total


def unnamed_payload(segments: Sequence[bytes | memoryview]) -> int:
    """Return the descriptor of a sealed, unnamed file that holds the segments; the caller closes.

    Nobody can change or truncate it any more, whoever gets the descriptor.
    """
    descriptor = os.memfd_create("tacit-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        write_segments(descriptor, segments)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def verify_sealed(descriptor: int) -> None:
    """Check that a file from another process can no longer change: required before mapping it.

    Raises:
        ProtocolError: it is no unnamed file, or not sealed (E-PAYLOAD-UNSEALED).
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise _unsealed() from error
    if seals & _SEALS != _SEALS:
        raise _unsealed()


def _unsealed() -> ProtocolError:
    return ProtocolError("E-PAYLOAD-UNSEALED", "expected a sealed unnamed file as payload")


def _as_bytes(segment: bytes | memoryview) -> memoryview:
    view = memoryview(segment)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
