"""Files that survive a crash: written whole or not at all, private by default.

Every file of Tacit's state goes through :func:`write_atomic` or :func:`replacing`: the new content
is written beside the old one, made durable and then renamed over it, so that a reader sees the old
content or the new, never half of it. A full disk is a named error that leaves the old file as it
was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

from tacit.core.errors import TacitError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: the process' own limit


def write_atomic(
    path: Path, data: bytes | bytearray | memoryview, *, mode: int = 0o600, durable: bool = True
) -> None:
    """Replace the content of a file in one step.

    Args:
        path: the file; its folder must exist.
        data: the whole new content.
        mode: permission bits of the new file.
        durable: also survive a power cut, not only a kill of the process.

    Raises:
        UnavailableError: the disk is full (E-DISK-FULL) or the file cannot be written.
    """
    with replacing(path, mode=mode, durable=durable) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o600, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on a clean exit it takes the place of ``path``.

    Raises:
        UnavailableError: the disk is full (E-DISK-FULL) or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # a confined process may not set it
            temporary.chmod(mode)
        if durable:
            sync_path(temporary)
        temporary.replace(path)
        if durable:
            sync_path(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> TacitError:
    """Return the error of our tree for a write that the operating system refused."""
    if error.errno in _DISK_FULL:
        return UnavailableError(
            "E-DISK-FULL",
            f"expected room for {path}, got a full disk",
            hint="Free some space on this disk; what was stored before is unharmed.",
        )
    return UnavailableError(
        "E-FILE-UNWRITABLE",
        f"expected to write {path}: {error.strerror or error}",
        hint="Check that the folder exists and belongs to the user that runs this.",
    )


def sync_path(path: Path) -> None:
    """Ask the operating system to make a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> bytes:
    """Return the SHA-256 of a file's content.

    Raises:
        UnavailableError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE",
            f"expected to read {path}: {error.strerror or error}",
            hint="Check the path and its permissions.",
        ) from error
    return digest.digest()


def make_private_folder(folder: Path) -> None:
    """Make a folder, and its parents, with mode 0700; one that exists keeps its mode.

    Raises:
        UnavailableError: the folder cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
