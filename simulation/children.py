"""Processes that the demo starts, and that never outlive it.

Each child is a real `tacit` command in a session of its own, with its log in a file. It is told to
end by SIGTERM when the demo ends, on every path; should the demo itself be killed, the kernel tells
the child (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tacit.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType, TracebackType

PATIENCE_S = 10.0  # after SIGTERM; then SIGKILL
LOG_TAIL_LINES = 12

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_COMMAND = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(signal.SIGTERM))
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the demo is gone already")
from tacit.cli.main import main
main()
"""


@dataclass(frozen=True)
class Child:
    """One process.

    Attributes:
        name: what it is, for messages.
        process: its handle.
        log: where its output goes.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Interruption:
    """Whether somebody asked the demo to end.

    The handler raises, and remembers: an exception that a signal handler raises is lost when it
    strikes inside a callback of some library.
    """

    def __init__(self) -> None:
        self._asked = False

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Act as the handler of a signal."""
        self._asked = True
        raise KeyboardInterrupt

    def verify_none(self) -> None:
        """Check that nobody asked.

        Raises:
            KeyboardInterrupt: somebody did, and it was lost.
        """
        if self._asked:
            raise KeyboardInterrupt


class Children:
    """All processes of one demo; leaving the context ends them."""

    def __init__(self, environment: Mapping[str, str], interruption: Interruption) -> None:
        self._environment = dict(environment)
        self._interruption = interruption
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)  # impatience comes later
        try:
            self.end()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, name: str, arguments: Sequence[str], log: Path) -> Child:
        """Start `tacit ARGUMENTS`."""
        with log.open("ab") as output:
            process = subprocess.Popen(  # ended by end(), on every path
                [sys.executable, "-c", _COMMAND, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C is for the demo to act on
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def verify_alive(self) -> None:
        """Check that every child is still there, and that nobody asked the demo to end.

        Raises:
            UnavailableError: one has ended; the message holds the end of its log.
            KeyboardInterrupt: somebody did.
        """
        self._interruption.verify_none()
        for child in self._children:
            if child.process.poll() is not None:
                tail = child.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                raise UnavailableError(
                    "E-DEMO-CHILD",
                    f"{child.name} ended with status {child.process.returncode}: "
                    + " | ".join(line.strip() for line in tail),
                    hint=f"its whole log is {child.log}",
                )

    def wait_until(self, what: str, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait for something that the children do.

        Raises:
            UnavailableError: a child has ended, or it took too long.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.verify_alive()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "E-DEMO-SLOW",
                    f"expected {what} within {timeout_s:g} s",
                    hint="this machine may be very busy: try again",
                )
            time.sleep(0.05)

    def end(self) -> None:
        """End all children: the last started first, all at once, then without mercy."""
        for child in reversed(self._children):
            _signal(child.process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            if child.process.poll() is None:
                _signal(child.process, signal.SIGKILL)
                child.process.wait()
        self._children.clear()


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt meanwhile, so that clean-up runs."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.handle) for number in _ENDINGS}
    try:
        yield interruption
        interruption.verify_none()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            process.send_signal(number)
