"""Payloads on disk: replies on their way in, instructions on their way out.

A reply is staged chunk by chunk in a file that only this module names, checked against the size
that its manifest announced, and then renamed to its final name: a half-received payload is never
visible. Its SHA-256 is checked as well where the disk had a part in it: always with ``journal =
power``; with ``kill`` when an earlier process left bytes. For what this process received TLS
vouches, and a later process that finds it compares it with the digest (docs/adr/0005).

A stream that breaks leaves its bytes, and the next one goes on where it ended: how much is here is
recorded behind the payload's place in the file, never taken from the file's size, since the file
may be one that is written again (``core/spares.py``) and full of old bytes.

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
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.core.files import make_private_folder, sha256_file, sync_path
from tacit.core.spares import SMALLEST_BYTES, Spares, open_held

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RECORD = struct.Struct("<8sQ")  # behind the payload while it is staged: a mark, and how much came
_MARK = b"tacit-in"
_MOST_SPARES = 4  # as many uploads as are admitted at once; each is one model on the disk
_SPARE = "spare-"
_SENT = "send-"  # see grid_messages.spool_name_of
SEND_SPARE = "spare-send.bin"  # where a run's worker finds a file for its next payload


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
        durable: whether the digest is checked in any case.
        offset: how much is here.
    """

    path: Path
    expected_bytes: int
    expected_sha256: bytes
    durable: bool = True
    offset: int = 0
    _file: BinaryIO | None = field(default=None, repr=False)
    _digest: hashlib._Hash | None = field(default=None, repr=False)
    _writer: int = 0

    def begin(self) -> int:
        """Open the file for one stream and return its number; an older stream can no longer write.

        Bytes that a killed daemon left are read again, so that the digest covers them.

        Raises:
            UnavailableError: the disk is full.
        """
        self._writer += 1
        if self._file is None:
            self.offset = 0
            descriptor = open_held(self.path, os.O_RDWR | os.O_CREAT)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            recorded = _recorded(descriptor, self.expected_bytes)
            self._digest = hashlib.sha256() if self.durable or recorded else None
            if recorded:
                self._read_again(self._file, recorded)
            else:
                with self._naming_full_disk():
                    _record(descriptor, 0, self.expected_bytes)
        return self._writer

    def _read_again(self, file: BinaryIO, recorded: int) -> None:
        while self.offset < recorded:
            chunk = file.read(min(1 << 20, recorded - self.offset))
            if self._digest is not None:
                self._digest.update(chunk)
            self.offset += len(chunk)

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
        descriptor, rest = self._file.fileno(), data
        with self._naming_full_disk():
            while rest:
                rest = rest[os.pwrite(descriptor, rest, offset + len(data) - len(rest)) :]
            _record(descriptor, offset + len(data), self.expected_bytes)
        if self._digest is not None:
            self._digest.update(data)
        self.offset += len(data)

    def verify_complete(self) -> None:
        """Check the size, and the digest where it does not follow from the stream.

        Raises:
            ProtocolError: the stream ended early (what is here stays), or the digest differs.
        """
        if self.offset != self.expected_bytes:
            raise ProtocolError(
                "E-UPLOAD-SHORT", f"expected {self.expected_bytes} bytes, got {self.offset}"
            )
        if self._digest is not None and self._digest.digest() != self.expected_sha256:
            raise ProtocolError("E-UPLOAD-DIGEST", "expected the announced SHA-256, got another")

    def close(self, *, durable: bool = False) -> None:
        """Close the file; with ``durable`` its bytes survive a power cut."""
        if self._file is not None:
            if durable:
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _naming_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise _disk_full(self.path.parent) from error
            raise


def _record_place(expected_bytes: int) -> int:
    """Return where the record stands: aligned, so that it never lies on two pages."""
    return -(-expected_bytes // _RECORD.size) * _RECORD.size


def _record(descriptor: int, received: int, expected_bytes: int) -> None:
    """Write down how much of a payload is here, after the bytes themselves."""
    os.pwrite(descriptor, _RECORD.pack(_MARK, received), _record_place(expected_bytes))


def _recorded(descriptor: int, expected_bytes: int | None = None) -> int:
    """Return how much of a payload is here; 0 where the file does not say it in our form."""
    end = os.fstat(descriptor).st_size
    if expected_bytes is not None and end != _record_place(expected_bytes) + _RECORD.size:
        return 0
    data = os.pread(descriptor, _RECORD.size, max(0, end - _RECORD.size))
    if len(data) != _RECORD.size:
        return 0
    mark, received = _RECORD.unpack(data)
    return int(received) if mark == _MARK and received <= end - _RECORD.size else 0


class Spool:
    """The payload files of one run.

    Attributes:
        folder: where they stand, mode 0700.
        durable: whether payloads survive a power cut; then no file is written again, because old
            bytes on the disk could be taken for new ones after it.
    """

    def __init__(self, folder: Path, space: Space, *, durable: bool) -> None:
        make_private_folder(folder)
        self.folder = folder
        self.durable = durable
        self._spares = Spares(folder, most=0 if durable else _MOST_SPARES)
        self._space = space
        self._staged: dict[str, Staged] = {}
        self._sizes: dict[str, int] = {}
        for entry in list(folder.iterdir()):
            if entry.name.startswith(_SPARE):
                entry.unlink()
            else:
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
        self._space.release(self._sizes.pop(name, 0))
        self._reserve(size)
        self._sizes[name] = size
        path = self.path(name)
        if size >= SMALLEST_BYTES and not path.exists():
            self._recycle(path, size)
        staged = self._staged[key] = Staged(path, size, sha256, durable=self.durable)
        return staged

    def _reserve(self, size: int) -> None:
        """Promise space; spares make way for what is wanted."""
        try:
            self._space.reserve(size, self.folder)
        except UnavailableError:
            self._spares.drop()
            self.path(SEND_SPARE).unlink(missing_ok=True)
            self._settle_spares()
            self._space.reserve(size, self.folder)

    def _recycle(self, path: Path, size: int) -> None:
        """Put a spare where a payload is going to be staged, marked as holding nothing of it."""
        taken = self._spares.take()
        if taken is not None:
            spare, descriptor = taken
            try:
                _record(descriptor, 0, size)
                os.ftruncate(descriptor, _record_place(size) + _RECORD.size)
                spare.replace(path)
            except OSError:  # a full disk: then there is no spare, and a new file will say so
                spare.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        self._settle_spares()

    def _settle_spares(self) -> None:
        """Give back the space of spares that were taken or dropped."""
        kept = self._spares.names
        for name in [name for name in self._sizes if name.startswith(_SPARE)]:
            if name not in kept and not (name == SEND_SPARE and self.exists(name)):
                self._space.release(self._sizes.pop(name))

    def staged_bytes(self, key: str) -> int:
        """Return how much of a payload is here, from this process or from one before it."""
        staged = self._staged.get(key)
        if staged is not None:
            return staged.offset
        return max((_recorded_in(path) for path in self._parts(key)), default=0)

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

    def finish(self, key: str, staged: Staged, name: str) -> None:
        """Give a complete, verified payload its final name.

        Raises:
            ProtocolError: another payload has taken its place meanwhile (E-UPLOAD-SUPERSEDED).
        """
        if self._staged.get(key) is not staged:
            raise ProtocolError("E-UPLOAD-SUPERSEDED", "another payload was sent meanwhile")
        del self._staged[key]
        staged.close(durable=self.durable)
        final = self.path(name)
        os.truncate(staged.path, staged.expected_bytes)  # whoever is killed here begins anew
        staged.path.replace(final)
        if self.durable:
            sync_path(final)
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
        self._settle_spares()

    def exists(self, name: str) -> bool:
        """Tell whether a payload is here."""
        return self.path(name).is_file()

    def is_whole(self, name: str, *, size: int, sha256: bytes) -> bool:
        """Tell whether a payload is here with this size and digest."""
        path = self.path(name)
        return path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256

    def remove(self, name: str) -> None:
        """Remove a payload, if it is there; its file may serve again."""
        path = self.path(name)
        size = self._sizes.pop(name, 0)
        spare = self._spare_of(path, size)
        if spare is None:
            path.unlink(missing_ok=True)
            self._space.release(size)
        else:
            self._space.release(self._sizes.pop(spare.name, 0))
            self._sizes[spare.name] = size

    def _spare_of(self, path: Path, size: int) -> Path | None:
        """Keep a file for reuse: a reply here, an instruction for the run's worker."""
        if not path.name.startswith(_SENT):
            return self._spares.put(path)
        if self.durable or size < SMALLEST_BYTES or not path.exists():
            return None
        return path.replace(self.path(SEND_SPARE))

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove every file but these payloads and what is still being staged."""
        wanted = {*names, *self._spares.names, SEND_SPARE}
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
        self._spares.drop()

    def _account(self, name: str, size: int) -> None:
        self._space.release(self._sizes.pop(name, 0))
        self._sizes[name] = size
        self._space.used_bytes += size

    def _parts(self, key: str) -> Iterator[Path]:
        return self.folder.glob(f"in-{key}-*.part")


def _recorded_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return _recorded(file.fileno())
    except FileNotFoundError:
        return 0


def _part_name(key: str, sha256: bytes) -> str:
    return f"in-{key}-{sha256[:12].hex()}.part"
