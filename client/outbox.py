"""Replies on their way out: copied and persisted before the first byte leaves, never made twice.

A worker's payload is first copied into a file of the daemon's own, hashed as it is copied; what is
checked and what is sent is that copy. The entry in the store names it. A reply is sent again, never
trained again, until the server says that the round is committed. A file that no entry names is the
rest of a crash, and is removed at the start.

With ``journal = "kill"`` the file of a committed reply is written again for the next one
(``core/spares.py``). A power cut may then leave old bytes under a new name, so what an earlier
process stored is compared with its digest before it is sent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, RefusedError, UnavailableError
from tacit.core.files import make_private_folder
from tacit.core.spares import SMALLEST_BYTES, Spares
from tacit.protos.payload import map_payload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.client.payload import Payload


@dataclass(frozen=True, kw_only=True)
class StoredPayload:
    """The daemon's own copy of a payload.

    Attributes:
        name: its file in the outbox folder.
        size: in bytes.
        sha256: of its bytes.
    """

    name: str
    size: int
    sha256: bytes


class Outbox:
    """The folder of payload files.

    Attributes:
        folder: where they stand.
        durable: whether each file is flushed to the disk (``journal = "power"``).
    """

    def __init__(self, folder: Path, *, durable: bool, spares: int = 0) -> None:
        make_private_folder(folder)
        self.folder = folder
        self.durable = durable
        self._spares = Spares(folder, most=0 if durable else spares)
        self._own: set[str] = set()  # what this process has stored

    def store(self, payload: Payload, name: str, *, max_bytes: int) -> StoredPayload:
        """Copy an untrusted payload into a file of our own.

        Raises:
            RefusedError: it is larger than the owner allows.
            ProtocolError: it shrank while it was read, or is no file.
            UnavailableError: the disk is full.
        """
        path = self.folder / name
        if payload.size > max_bytes:
            raise RefusedError(
                "E-POLICY-SIZE", f"expected at most {max_bytes} bytes, got {payload.size}"
            )
        try:
            with self._file_for(path, payload.size) as descriptor:
                size, digest = _copy(payload, descriptor)
                os.ftruncate(descriptor, size)
                if self.durable:
                    os.fsync(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UnavailableError(
                    "E-DISK-FULL",
                    f"expected room for {payload.size} bytes in {self.folder}",
                    hint="Free some disk; the update is then made again.",
                ) from error
            raise UnavailableError(
                "E-OUTBOX", f"expected to write {path}: {error.strerror}"
            ) from error
        self._own.add(name)
        return StoredPayload(name=name, size=size, sha256=digest)

    def open_view(self, name: str) -> memoryview:
        """Map a stored payload for reading.

        Raises:
            UnavailableError: it is gone.
        """
        try:
            return map_payload(self.folder / name)
        except OSError as error:
            raise UnavailableError("E-OUTBOX", f"expected the stored reply {name}") from error

    def verify(self, name: str, view: memoryview, sha256: bytes) -> None:
        """Check the bytes of a payload that an earlier process has stored.

        Raises:
            ProtocolError: a power cut has damaged them (E-OUTBOX-DAMAGED).
        """
        if name not in self._own and hashlib.sha256(view).digest() != sha256:
            raise ProtocolError("E-OUTBOX-DAMAGED", f"expected the stored reply {name} to be whole")

    def remove(self, name: str) -> None:
        """Delete a payload file, if there is one; it may serve again."""
        self._own.discard(name)
        if name and self._spares.put(self.folder / name) is None:
            (self.folder / name).unlink(missing_ok=True)

    def sweep(self, keep: set[str]) -> None:
        """Delete every file that is not among ``keep``."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _file_for(self, path: Path, size: int) -> Iterator[int]:
        """Open a file for writing in place of any older one; on failure nothing stays behind."""
        taken = self._spares.take() if size >= SMALLEST_BYTES else None
        if taken is None:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        else:
            spare, descriptor = taken
            spare.replace(path)
        try:
            yield descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _copy(payload: Payload, descriptor: int) -> tuple[int, bytes]:
    digest, size = hashlib.sha256(), 0
    for piece in payload.pieces():
        digest.update(piece)
        written = 0
        while written < piece.nbytes:
            written += os.write(descriptor, piece[written:])
        size += piece.nbytes
    return size, digest.digest()
