"""Start the processes of a benchmark, and end every one of them on every way out.

Each is started in a session of its own, and with all its descendants it is ended by process id,
after a look at its start time, so that a reused id harms nobody. This process adopts orphans
(PR_SET_CHILD_SUBREAPER), so that what a daemon leaves behind is still found as a descendant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

from benchmarks.measure import facts_of, processes, tree_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
TERM_PATIENCE_S = 5.0


class BenchmarkError(RuntimeError):
    """A part of the benchmark failed; the message says where to look."""


class Crew:
    """The processes of one measurement; leaving the ``with`` block ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._may_end: set[str] = set()
        self._before: set[tuple[int, int]] = set()
        self._before = self._descendants()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @property
    def pids(self) -> dict[str, int]:
        """Return the started processes by name."""
        return {name: process.pid for name, process in self._started.items()}

    def start(
        self, name: str, command: list[str], *, environ: dict[str, str], may_end: bool = False
    ) -> int:
        """Start a process that writes to NAME.log in the folder; return its id.

        ``may_end``: its end with status 0 is no failure.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started[name] = process
        if may_end:
            self._may_end.add(name)
        return process.pid

    def check(self) -> None:
        """Raise when a process has ended that should be running."""
        for name, process in self._started.items():
            status = process.poll()
            if status is not None and (status != 0 or name not in self._may_end):
                raise BenchmarkError(f"{name} ended with {process.returncode}:\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 30) -> str:
        """Return the last lines that a process wrote."""
        path = self.folder / f"{name}.log"
        if not path.exists():
            return ""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """End every process and all its descendants: asked first, then killed."""
        mine = self._descendants()
        for process in reversed(self._started.values()):
            process.terminate()
        _wait_for_end(mine, TERM_PATIENCE_S)
        left = mine | self._descendants()
        for pid in _living(left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_for_end(left, TERM_PATIENCE_S)
        for process in self._started.values():
            process.wait()
        self._started.clear()

    def _descendants(self) -> set[tuple[int, int]]:
        """Return (pid, start time) of all that came to be below this process since the start."""
        table = processes()
        below = {(facts.pid, facts.start_ticks) for facts in tree_of(os.getpid(), table)}
        return below - self._before


def _wait_for_end(found: set[tuple[int, int]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and _living(found):
        time.sleep(0.05)


def _living(found: set[tuple[int, int]]) -> set[int]:
    """Return the ids of those that still run; those that ended are collected."""
    living = set()
    for pid, start_ticks in found:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        facts = facts_of(pid)
        if facts is not None and facts.start_ticks == start_ticks and facts.state != "Z":
            living.add(pid)
    return living


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it; SIGTERM leaves through ``finally``."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now, all different."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    return ports


def wait_for_port(port: int, crew: Crew, *, timeout_s: float) -> None:
    """Wait until something listens on a port of loopback."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        crew.check()
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise BenchmarkError(f"nothing listens on port {port} after {timeout_s:.0f} s")
