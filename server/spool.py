"""Payloads on disk: replies on their way in, instructions on their way out.

A reply is staged chunk by chunk in a file that only this module names, checked against the size and
SHA-256 that its manifest announced, and then renamed to its final name: a half-received payload is
never visible. A stream that breaks leaves its bytes, and the next one goes on where it ended.

Space is reserved before the first byte is accepted, against the spool's limit and the disk's free
space, so that a full disk refuses an upload and harms nothing that is stored.

It trusts no announced size or digest, and no file name that it did not make or check.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.core.files import make_private_folder, sha256_file, sync_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Space:
    """How much the spools of all runs may hold together.

    Attributes:
        limit_bytes: the most that payloads may take.
        keep_free_bytes: what the disk keeps for the journal, so that it never fails in mid-write.
        used_bytes: what is stored or promised.
    """

    limit_bytes: int
    keep_free_bytes: int
    used_bytes: int = 0

    def reserve(self, size: int, folder: Path) -> None:
        """Promise space for a payload.

        Raises:
            UnavailableError: E-SPOOL-FULL beyond the limit, E-DISK-FULL when the disk has no room.
        """
        if self.used_bytes + size > self.limit_bytes:
            raise UnavailableError(
                "E-SPOOL-FULL",
                f"expected room for {size} bytes, got {self.limit_bytes - self.used_bytes} "
                "before max_spool_bytes",
                hint="Wait for runs to end, or raise [limits] max_spool_bytes in server.toml.",
            )
        if shutil.disk_usage(folder).free - size < self.keep_free_bytes:
            raise _disk_full(folder)
        self.used_bytes += size

    def release(self, size: int) -> None:
        """Give space back."""
        self.used_bytes = max(0, self.used_bytes - size)


def _disk_full(folder: Path) -> UnavailableError:
    return UnavailableError(
        "E-DISK-FULL",
        f"expected free space for a payload in {folder}, got a full disk",
        hint="Free space on that disk; what was stored before is unharmed, and nodes try again.",
    )


@dataclass
class Staged:
    """One payload on its way in.

    Attributes:
        path: the file being written.
        expected_bytes: the announced size.
        expected_sha256: the announced digest.
        offset: how much is here.
    """

    path: Path
    expected_bytes: int
    expected_sha256: bytes
    offset: int = 0
    _file: BinaryIO | None = field(default=None, repr=False)
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)
    _writer: int = 0

    def begin(self) -> int:
        """Open the file for one stream and return its number; an older stream can no longer write.

        Bytes that a killed daemon left are read again, so that the digest covers them.
        """
        self._writer += 1
        if self._file is None:
            self._digest = hashlib.sha256()
            self.offset = 0
            self._file = self.path.open("a+b", buffering=0)
            self._file.seek(0)
            while chunk := self._file.read(1 << 20):
                self._digest.update(chunk)
                self.offset += len(chunk)
        return self._writer

    def write(self, writer: int, offset: int, data: memoryview) -> None:
        """Append one chunk.

        Raises:
            ProtocolError: the chunk is out of place or beyond the announced size, or another
                stream has taken over.
            UnavailableError: the disk is full; the bytes before this chunk stay.
        """
        if writer != self._writer or self._file is None:
            raise ProtocolError("E-UPLOAD-SUPERSEDED", "another stream sends this payload now")
        if offset != self.offset or offset + len(data) > self.expected_bytes:
            raise ProtocolError(
                "E-UPLOAD-SIZE",
                f"expected bytes from {self.offset} up to {self.expected_bytes}, "
                f"got {offset} to {offset + len(data)}",
            )
        try:
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self.offset)
            if error.errno in _DISK_FULL:
                raise _disk_full(self.path.parent) from error
            raise
        self._digest.update(data)
        self.offset += len(data)

    def verify_complete(self) -> None:
        """Check size and digest.

        Raises:
            ProtocolError: the stream ended early (what is here stays), or the digest differs.
        """
        if self.offset != self.expected_bytes:
            raise ProtocolError(
                "E-UPLOAD-SHORT", f"expected {self.expected_bytes} bytes, got {self.offset}"
            )
        if self._digest.digest() != self.expected_sha256:
            raise ProtocolError("E-UPLOAD-DIGEST", "expected the announced SHA-256, got another")

    def close(self, *, durable: bool = False) -> None:
        """Close the file; with ``durable`` its bytes survive a power cut."""
        if self._file is not None:
            if durable:
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class Spool:
    """The payload files of one run.

    Attributes:
        folder: where they stand, mode 0700.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        make_private_folder(folder)
        self.folder = folder
        self._space = space
        self._staged: dict[str, Staged] = {}
        self._sizes: dict[str, int] = {}
        for entry in folder.iterdir():
            self._account(entry.name, entry.stat().st_size)

    def path(self, name: str) -> Path:
        """Return the path of a payload.

        Raises:
            ProtocolError: the name could lead out of the folder.
        """
        if not _NAME.fullmatch(name):
            raise ProtocolError("E-SPOOL-NAME", f"expected a plain file name, got {name!r}")
        return self.folder / name

    def stage(self, key: str, *, size: int, sha256: bytes) -> Staged:
        """Return the staging place of one payload, with what an earlier stream left there.

        Another payload under the same key takes the place of the earlier one.

        Raises:
            UnavailableError: there is no room.
        """
        name = _part_name(key, sha256)
        staged = self._staged.get(key)
        if staged is not None and (staged.path.name, staged.expected_bytes) == (name, size):
            return staged
        self.discard(key, keep=name)
        path = self.path(name)
        if path.exists() and path.stat().st_size > size:
            self.remove(name)
        self._space.release(self._sizes.pop(name, 0))
        self._space.reserve(size, self.folder)
        self._sizes[name] = size
        staged = self._staged[key] = Staged(path, size, sha256)
        return staged

    def staged_bytes(self, key: str) -> int:
        """Return how much of a payload is here, from this process or from one before it."""
        staged = self._staged.get(key)
        if staged is not None:
            return staged.offset
        return max((path.stat().st_size for path in self._parts(key)), default=0)

    def discard(self, key: str, *, keep: str = "") -> None:
        """Drop what was staged under a key, except the file named ``keep``."""
        staged = self._staged.pop(key, None)
        if staged is not None:
            staged.close()
            if staged.path.name != keep:
                self.remove(staged.path.name)
        for path in list(self._parts(key)):
            if path.name != keep:
                self.remove(path.name)

    def finish(self, key: str, staged: Staged, name: str, *, durable: bool) -> None:
        """Give a complete, verified payload its final name.

        Raises:
            ProtocolError: another payload has taken its place meanwhile (E-UPLOAD-SUPERSEDED).
        """
        if self._staged.get(key) is not staged:
            raise ProtocolError("E-UPLOAD-SUPERSEDED", "another payload was sent meanwhile")
        del self._staged[key]
        staged.close(durable=durable)
        staged.path.replace(self.path(name))
        if durable:
            sync_path(self.folder)
        self._sizes[name] = self._sizes.pop(staged.path.name)

    def adopt(self, source: str, name: str) -> None:
        """Take over a file that the run's worker wrote, under a name that it will not write to."""
        path = self.path(source)
        try:
            size = path.stat().st_size
            path.replace(self.path(name))
        except FileNotFoundError as error:
            raise ProtocolError("E-SPOOL-MISSING", f"expected a payload file {source}") from error
        self._account(name, size)

    def exists(self, name: str) -> bool:
        """Tell whether a payload is here."""
        return self.path(name).is_file()

    def is_whole(self, name: str, *, size: int, sha256: bytes) -> bool:
        """Tell whether a payload is here with this size and digest."""
        path = self.path(name)
        return path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256

    def remove(self, name: str) -> None:
        """Remove a payload, if it is there."""
        self.path(name).unlink(missing_ok=True)
        self._space.release(self._sizes.pop(name, 0))

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove every file but these payloads and what is still being staged."""
        wanted = set(names)
        for entry in list(self.folder.iterdir()):
            if entry.name not in wanted and not entry.name.endswith(".part"):
                self.remove(entry.name)

    def close(self) -> None:
        """Close the files that are being staged; what they hold stays."""
        for staged in self._staged.values():
            staged.close()

    def clear(self) -> None:
        """Remove everything: the run has ended."""
        self.close()
        self._staged.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._space.release(sum(self._sizes.values()))
        self._sizes.clear()

    def _account(self, name: str, size: int) -> None:
        self._space.release(self._sizes.pop(name, 0))
        self._sizes[name] = size
        self._space.used_bytes += size

    def _parts(self, key: str) -> Iterator[Path]:
        return self.folder.glob(f"in-{key}-*.part")


def _part_name(key: str, sha256: bytes) -> str:
    return f"in-{key}-{sha256[:12].hex()}.part"
