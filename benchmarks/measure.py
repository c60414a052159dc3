"""CPU seconds and memory of whole process trees, from /proc alone.

A worker belongs to the daemon that started it, so what is measured is a tree: the given root and
every descendant. CPU counts live processes with the children they have already waited for, so a
process that lived for one message is not forgotten. Memory is the sum over the tree of VmHWM, each
process's own high-water mark of resident memory: it misses no peak between two looks, and it is an
upper bound, since not all processes peak at once and shared pages count in each of them.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """One process at one moment."""

    pid: int
    parent: int
    state: str
    start_ticks: int
    cpu_s: float


@dataclass
class Trace:
    """What one tree used over time.

    Attributes:
        times: of CLOCK_MONOTONIC, ascending.
        cpu_s: CPU seconds used until then by the whole tree.
        resident_bytes: at each time, the sum of VmRSS.
        peak_bytes: at each time, the sum of VmHWM of the processes that live.
    """

    times: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def cpu_between(self, start: float, end: float) -> float:
        """Return the CPU seconds used between two moments, between samples by interpolation."""
        return self._cpu_at(end) - self._cpu_at(start)

    def peak_between(self, start: float, end: float) -> int:
        """Return the largest sum of VmHWM seen between two moments."""
        return self._largest(self.peak_bytes, start, end)

    def resident_between(self, start: float, end: float) -> int:
        """Return the largest sum of VmRSS seen between two moments."""
        return self._largest(self.resident_bytes, start, end)

    def _largest(self, values: list[int], start: float, end: float) -> int:
        first = max(bisect.bisect_left(self.times, start) - 1, 0)
        last = bisect.bisect_right(self.times, end) + 1
        return max(values[first:last], default=0)

    def _cpu_at(self, moment: float) -> float:
        if not self.times:
            return 0.0
        after = bisect.bisect_left(self.times, moment)
        if after == 0:
            return self.cpu_s[0]
        if after == len(self.times):
            return self.cpu_s[-1]
        span = self.times[after] - self.times[after - 1]
        share = (moment - self.times[after - 1]) / span if span > 0 else 1.0
        return self.cpu_s[after - 1] + share * (self.cpu_s[after] - self.cpu_s[after - 1])


class Sampler:
    """Looks at the trees of some processes ten times a second, in a thread of its own.

    Attributes:
        traces: one per name.
        seen: every process that was ever part of a tree, as (pid, start time).
    """

    def __init__(self, roots: dict[str, int]) -> None:
        self.traces = {name: Trace() for name in roots}
        self.seen: set[tuple[int, int]] = set()
        self._roots = roots
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._look()
            self._ended.wait(INTERVAL_S)

    def _look(self) -> None:
        table = processes()
        for name, root in self._roots.items():
            tree = tree_of(root, table)
            self.seen.update((facts.pid, facts.start_ticks) for facts in tree)
            trace = self.traces[name]
            memory = [memory_of(facts.pid) for facts in tree]
            used = sum(facts.cpu_s for facts in tree)
            trace.times.append(time.monotonic())
            # A child's time moves to its parent when it is waited for; never let a sum fall.
            trace.cpu_s.append(max(used, trace.cpu_s[-1] if trace.cpu_s else 0.0))
            trace.resident_bytes.append(sum(resident for resident, _ in memory))
            trace.peak_bytes.append(sum(peak for _, peak in memory))


def processes() -> dict[int, ProcessFacts]:
    """Return every process of the machine that can be read."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            facts = facts_of(int(entry.name))
            if facts is not None:
                found[facts.pid] = facts
    return found


def facts_of(pid: int) -> ProcessFacts | None:
    """Return what /proc/PID/stat says, or None where the process has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
    ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))  # own and waited-for children
    return ProcessFacts(
        pid=pid,
        parent=int(fields[1]),
        state=fields[0],
        start_ticks=int(fields[19]),
        cpu_s=ticks / TICKS_PER_S,
    )


def memory_of(pid: int) -> tuple[int, int]:
    """Return (VmRSS, VmHWM) of a process in bytes; zeros where it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, 0
    values = {"VmRSS": 0, "VmHWM": 0}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key in values:
            values[key] = int(rest.split()[0]) * 1024
    return values["VmRSS"], values["VmHWM"]


def tree_of(root: int, table: dict[int, ProcessFacts]) -> list[ProcessFacts]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for facts in table.values():
        children.setdefault(facts.parent, []).append(facts.pid)
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid in table:
            found.append(table[pid])
            waiting.extend(children.get(pid, []))
    return found
