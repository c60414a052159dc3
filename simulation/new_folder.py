"""The folder of a trial: taken only when nothing is in it, and taken away again before training.

Trusts the caller to put nothing into the folder that is wanted although no round began.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Self

from tacit.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class NewFolder:
    """A context in which a run folder is filled; without :meth:`keep` nothing of it stays.

    Raises:
        UsageError: there is something in the folder already (E-RUN-FOLDER).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = False
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        if self._path.exists() and not (self._path.is_dir() and not any(self._path.iterdir())):
            raise UsageError(
                "E-RUN-FOLDER",
                f"expected a new or empty folder, got {self._path}",
                hint="Name another folder with --out.",
            )
        self._made = [each for each in (self._path, *self._path.parents) if not each.exists()]
        return self

    def keep(self) -> None:
        """Let the folder stay: training has begun, and how far it came is worth keeping."""
        self._kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kept or not self._path.is_dir():
            return
        for entry in self._path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
