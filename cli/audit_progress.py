"""How an audit goes on: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self, TextIO

from tacit.cli.bar import TerminalBar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import ProgressColumn

    from tacit.attacks.runner import Progress

_EVERY_S = 10.0  # between plain lines of one stage
_LEAST_SHARE = 0.02  # below, a guess at the time left would be worth nothing


class AuditProgress:
    """Shows an audit's progress on standard error; use it as a context manager.

    Args:
        quiet: show nothing: scripts read the result.
        stream: where it is shown.
        clock: seconds, for the time left.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet, self._clock = quiet, clock
        self._bar = TerminalBar(
            self._stream, _columns, task="reading the files", total=1.0, quiet=quiet
        )
        self._stage, self._said_at = "", 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        left = self.left_s(progress.share)
        text = progress.stage if left is None else f"{progress.stage}, {_time(left)} left"
        if self._bar:
            self._bar.update(task=text, done=progress.share)
            return
        now = self._clock()
        if progress.stage != self._stage or now - self._said_at >= _EVERY_S:
            self._stage, self._said_at = progress.stage, now
            print(f"{100 * progress.share:3.0f} % {text}", file=self._stream, flush=True)

    def left_s(self, share: float) -> float | None:
        """Return a guess at the seconds left; None while there is nothing to guess from."""
        if share < _LEAST_SHARE:
            return None
        return (self._clock() - self._began) * (1.0 - share) / share


def _time(seconds: float) -> str:
    minutes = seconds / 60.0
    return f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {seconds:.0f} s"


def _columns() -> list[ProgressColumn]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn  # noqa: PLC0415 - 50 ms

    return [
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
    ]
