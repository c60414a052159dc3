"""The bar that shows how far something is, where somebody looks: on a terminal, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.progress import Progress, ProgressColumn, TaskID


class TerminalBar:
    """One bar, or nothing at all: off a terminal and where quiet is asked for, every call is idle.

    Args:
        stream: where it is shown.
        columns: makes its columns; called only where it is shown, for loading them takes 50 ms.
        task: what it says at first.
        total: where it ends.
        quiet: show nothing.
    """

    def __init__(
        self,
        stream: TextIO,
        columns: Callable[[], Sequence[ProgressColumn]],
        *,
        task: str,
        total: float,
        quiet: bool,
    ) -> None:
        self._stream, self._columns = stream, columns
        self._first, self._total, self._quiet = task, total, quiet
        self._shown: tuple[Progress, TaskID] | None = None

    def __bool__(self) -> bool:
        return self._shown is not None

    def start(self) -> None:
        """Show it, where there is a terminal."""
        if self._quiet or not self._stream.isatty():
            return
        from rich.console import Console  # noqa: PLC0415 - 50 ms, only where somebody looks
        from rich.progress import Progress  # noqa: PLC0415

        progress = Progress(*self._columns(), console=Console(file=self._stream))
        self._shown = progress, progress.add_task(self._first, total=self._total)
        progress.start()

    def stop(self) -> None:
        """Leave it as it stands."""
        if self._shown is not None:
            self._shown[0].stop()

    def update(
        self, *, task: str | None = None, done: float | None = None, at_once: bool = False
    ) -> None:
        """Change what it says, or how far it is."""
        if self._shown is not None:
            progress, number = self._shown
            progress.update(number, description=task, completed=done, refresh=at_once)

    def say(self, text: str) -> None:
        """Print a line above it."""
        if self._shown is not None:
            self._shown[0].console.print(text, markup=False, highlight=False)
