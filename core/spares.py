"""Files that are written again instead of anew.

Pages that a process has never touched are the largest single cost of a round: 40 MB into a new file
take 9 to 150 ms, into an old one 3 ms (measured, ext4, virtual machine). So a payload file that
nobody wants any more is kept under a name that stands for nothing, and the next payload takes it.

The rules:

1. A spare's name says nothing of its content; after a restart every spare is removed unread.
2. A spare is given away only when nobody has it open. Who opens a payload takes a shared lock, and
   then looks whether the file still has its name (:func:`open_held`); the kernel keeps the lock as
   long as a mapping lives, in whatever process. A spare that is still held is removed instead, and
   its holder keeps what it sees.
3. Who takes a spare sees to it that its old bytes count for nothing before it gets a new name.

Locks on files tell of readers on Linux; elsewhere no file is ever reused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SMALLEST_BYTES = 1 << 20  # a smaller file costs less than it takes to keep it


class Spares:
    """The spares of one folder; safe to use from several threads.

    Args:
        folder: where they stand.
        most: how many are kept; 0 keeps none.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        self._folder = folder
        self._most = most if sys.platform == "linux" else 0
        self._paths: list[Path] = []
        self._count = 0

    def put(self, path: Path) -> Path | None:
        """Keep a file that nobody wants any more; return its new path.

        Returns None, and leaves the file alone, when it is missing, too small, or one too many.
        """
        try:
            if len(self._paths) >= self._most or path.stat().st_size < SMALLEST_BYTES:
                return None
            self._count += 1
            spare = self._folder / f"spare-{self._count}.bin"
            path.replace(spare)
        except FileNotFoundError:
            return None
        self._paths.append(spare)
        return spare

    def take(self) -> tuple[Path, int] | None:
        """Give a spare away: its path and a descriptor for writing; the caller closes and renames.

        Spares that somebody still reads are removed on the way.
        """
        while self._paths:
            spare = self._paths.pop()
            descriptor = claim(spare)
            if descriptor is not None:
                return spare, descriptor
        return None

    def drop(self) -> list[Path]:
        """Remove every spare; return what their paths were."""
        dropped, self._paths = self._paths, []
        for spare in dropped:
            spare.unlink(missing_ok=True)
        return dropped

    @property
    def names(self) -> set[str]:
        """The file names of the spares."""
        return {path.name for path in self._paths}


def open_held(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file that is not written again until the descriptor, and every mapping, is gone.

    Raises:
        OSError: there is no such file (any more), or it is about to be written again.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        hold(descriptor)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(  # noqa: TRY301 - the descriptor is closed below
                errno.ENOENT, "the file has made way for another"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hold(descriptor: int) -> None:
    """Mark a file as being read, until the descriptor and every mapping made from it are gone.

    Where locks do not work nothing happens: no file is written again there either.

    Raises:
        BlockingIOError: it is about to be written again.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def is_held(descriptor: int) -> bool:
    """Tell whether anybody else holds an open file; its own hold is given up."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or locks do not work here: the same for whoever wants to write
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def claim(path: Path) -> int | None:
    """Open a file to write it again; None, and no file any more, when that must not be."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    if is_held(descriptor):
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return descriptor
