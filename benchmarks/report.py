"""The table that ``make bench`` prints: plain text, one line per engine and size."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Result

HEADINGS = (
    "parameters",
    "engine",
    "s/round",
    "min",
    "max",
    "CPU s",
    "server MB",
    "client MB",
    "x floor",
    "faster than Flower",
)


def render(results: Sequence[Result]) -> str:
    """Return the table, with each engine's ratio to the floor and to Flower at the same size."""
    return aligned([HEADINGS, *(_row(result, results) for result in results)], left=(1,))


def aligned(rows: Sequence[tuple[str, ...]], *, left: tuple[int, ...] = ()) -> str:
    """Return rows as a table, the first as its head; all columns to the right but some."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _row(result: Result, results: Sequence[Result]) -> tuple[str, ...]:
    floor = _seconds_of("floor", result.parameters, results)
    flower = _seconds_of("flower", result.parameters, results)
    ours = result.engine.startswith("tacit")
    return (
        f"{result.parameters / 1e6:g} M",
        result.engine,
        f"{result.seconds:.4f}" if result.seconds < 0.1 else f"{result.seconds:.3f}",
        f"{result.fastest:.3f}",
        f"{result.slowest:.3f}",
        "-" if result.cpu_s is None else f"{result.cpu_s:.2f}",
        "-" if result.server_mb is None else f"{result.server_mb:.0f}",
        "-" if result.client_mb is None else f"{result.client_mb:.0f}",
        "-" if floor is None else f"{result.seconds / floor:.1f}",
        "-" if flower is None or not ours else f"{flower / result.seconds:.1f} x",
    )


def _seconds_of(engine: str, parameters: int, results: Sequence[Result]) -> float | None:
    for result in results:
        if result.engine == engine and result.parameters == parameters:
            return result.seconds
    return None


def machine() -> dict[str, str]:
    """Return what a reader needs to judge the figures: processor, memory, versions, load."""
    return {
        "processor": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "flwr": version("flwr"),
        "grpcio": version("grpcio"),
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _first_value(path: str, key: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"
