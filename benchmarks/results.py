"""What a measurement says, and how it is read off a report and the traces."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from benchmarks.noop_app import TOLERANCE
from benchmarks.processes import BenchmarkError, Crew

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.measure import Trace

MEGABYTE = 1e6
SERVER = "server"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One engine at one size.

    Attributes:
        engine: ``floor``, ``flower``, or ``tacit`` with its journal.
        parameters: float32 numbers in the model.
        rounds: timed rounds, the warm-up not among them.
        seconds: median time of a round; for the floor the best.
        fastest, slowest: of the timed rounds.
        cpu_s: CPU seconds per round, all processes together.
        server_mb, client_mb: high-water mark of the server's tree and of the largest client's.
        started_s: from the first process to the first round.
    """

    engine: str
    parameters: int
    rounds: int
    seconds: float
    fastest: float
    slowest: float
    cpu_s: float | None = None
    server_mb: float | None = None
    client_mb: float | None = None
    started_s: float | None = None

    def plain(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return asdict(self)


def read_report(path: Path) -> list[dict[str, float]]:
    """Return the lines of a report that are complete so far."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_rounds(
    read: Callable[[], list[dict[str, float]]],
    rounds: int,
    crew: Crew,
    *,
    timeout_s: float,
    progress: Callable[[str], None],
    failed: Callable[[], str] = str,
) -> list[dict[str, float]]:
    """Wait until all rounds are there; raise when a process ends or time is up.

    ``read`` returns the rounds that are over, with their times; ``failed`` returns why the run
    cannot end any more, or an empty string.
    """
    deadline, shown = time.monotonic() + timeout_s, 0
    while time.monotonic() < deadline:
        lines = read()
        for line in lines[shown:]:
            progress(f"round {line['round']:.0f}/{rounds}: {line['ended'] - line['started']:.3f} s")
        shown = len(lines)
        if len(lines) >= rounds:
            return lines
        crew.check()
        if reason := failed():
            raise BenchmarkError(reason)
        time.sleep(0.1)
    raise BenchmarkError(f"{shown} of {rounds} rounds in {timeout_s:.0f} s")


def verify_rounds(
    lines: list[dict[str, float]], *, clients: int, tolerance: float = TOLERANCE
) -> None:
    """Raise unless every round folded one different reply of every client, and folded it right."""
    for line in lines:
        number = f"round {line['round']:.0f}"
        if line["replies"] != clients or line["distinct"] != clients:
            raise BenchmarkError(
                f"{number}: expected {clients} different replies, got {line['replies']:.0f}"
                f" ({line['distinct']:.0f} different)"
            )
        if not line["error"] <= tolerance:
            raise BenchmarkError(
                f"{number}: the aggregate is off by {line['error']:.2g}, allowed {tolerance}"
            )


def result_of(
    engine: str,
    parameters: int,
    lines: list[dict[str, float]],
    *,
    traces: Mapping[str, Trace],
    began: float,
) -> Result:
    """Turn the timed rounds (all but the first) and what the processes used into one result."""
    timed = lines[1:] or lines
    seconds = [line["ended"] - line["started"] for line in timed]
    span = (timed[0]["started"], timed[-1]["ended"])
    peaks = {
        name: trace.peak_between(lines[0]["started"], span[1]) for name, trace in traces.items()
    }
    return Result(
        engine=engine,
        parameters=parameters,
        rounds=len(timed),
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        cpu_s=sum(trace.cpu_between(*span) for trace in traces.values()) / len(timed),
        server_mb=peaks[SERVER] / MEGABYTE,
        client_mb=max(peak for name, peak in peaks.items() if name != SERVER) / MEGABYTE,
        started_s=lines[0]["started"] - began,
    )
