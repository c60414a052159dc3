"""``python -m benchmarks.run``: our round, Flower's round and the loopback floor, side by side.

Four clients, training that does nothing, replies that all differ; everything on loopback, in real
processes, one measurement after the other. benchmarks/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.floor import measure_floor
from benchmarks.flower_engine import FlowerRun, measure_flower
from benchmarks.processes import BenchmarkError, adopt_orphans
from benchmarks.report import machine, render
from benchmarks.tacit_engine import TacitRun, measure_tacit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.results import Result

CLIENTS = 4
SIZES_M = (0.1, 1.0, 10.0, 50.0)
JOURNALS = ("kill", "power")
ENGINES = ("floor", "tacit", "tacit-app", "flower")
MAX_PARAMETERS = 500_000_000  # 2 GB a model, eight and more of them in memory and on disk
ROUND_LIMIT_S = 240.0  # per round, for all engines: a benchmark ends


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line asks for."""

    sizes: tuple[int, ...]
    rounds: int
    engines: tuple[str, ...]
    journals: tuple[str, ...]
    json: Path | None
    keep: Path | None


def parse_arguments(arguments: list[str]) -> Plan:
    """Read the command line; wrong values end the program with status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--sizes", default="", help="millions of float32 parameters (default 0.1,1,10,50)"
    )
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds (default 5)")
    parser.add_argument("--only", choices=ENGINES, action="append", help="may be repeated")
    parser.add_argument("--journal", choices=JOURNALS, action="append", help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and state in DIR")
    parser.add_argument(
        "--short", action="store_true", help="0.1 M, 2 rounds: is it correct, not is it fast"
    )
    given = parser.parse_args(arguments)
    try:
        sizes = [round(float(size) * 1e6) for size in given.sizes.split(",") if size]
    except ValueError:
        parser.error(f"--sizes: expected numbers such as 0.1,1,10, got {given.sizes!r}")
    if any(not 1_000 <= size <= MAX_PARAMETERS for size in sizes):
        parser.error("--sizes: expected 0.001 to 500 (millions)")
    if given.rounds and not 1 <= given.rounds <= 100:
        parser.error("--rounds: expected 1 to 100")
    default_sizes = SIZES_M[:1] if given.short else SIZES_M
    return Plan(
        sizes=tuple(sizes or (round(size * 1e6) for size in default_sizes)),
        rounds=given.rounds or (2 if given.short else 5),
        engines=tuple(given.only or ENGINES),
        journals=tuple(given.journal or JOURNALS),
        json=given.json,
        keep=given.keep,
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One engine at one size: its name, and the call that measures it in an empty folder."""

    name: str
    call: Callable[..., Result]

    def make(self, folder: Path) -> Result:
        """Measure."""
        return self.call(folder=folder, progress=progress_of(self.name))


def measurements(plan: Plan) -> Iterator[Measurement]:
    """Yield what to measure, size by size, so that the engines are compared close in time."""
    timeout_s = ROUND_LIMIT_S * (plan.rounds + 1)
    for size in plan.sizes:
        shown = f"{size / 1e6:g} M"
        common = {"parameters": size, "rounds": plan.rounds, "clients": CLIENTS}
        if "floor" in plan.engines:
            yield Measurement(name=f"floor {shown}", call=partial(measure_floor, **common))
        for side, journal in tacit_kinds(plan):
            run = TacitRun(**common, journal=journal, timeout_s=timeout_s, side=side)
            yield Measurement(name=f"{run.name} {shown}", call=partial(measure_tacit, run))
        if "flower" in plan.engines:
            flower = FlowerRun(**common, timeout_s=timeout_s)
            yield Measurement(name=f"flower {shown}", call=partial(measure_flower, flower))


def tacit_kinds(plan: Plan) -> list[tuple[str, str]]:
    """Return the (side, journal) pairs to measure; the ServerApp under the default journal only."""
    kinds = [("strategy", journal) for journal in plan.journals if "tacit" in plan.engines]
    if "tacit-app" in plan.engines:
        kinds.append(("app", plan.journals[0]))
    return kinds


def progress_of(name: str) -> Callable[[str], None]:
    """Return a function that writes lines beginning with a name to standard error."""
    began = time.monotonic()

    def show(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {name}: {text}", file=sys.stderr, flush=True)

    return show


def measure_all(plan: Plan, root: Path) -> Iterator[Result]:
    """Make the measurements one after the other; each leaves its folder before the next begins."""
    for index, measurement in enumerate(measurements(plan)):
        folder = root / f"{index:02d}-{measurement.name.replace(', ', '-').replace(' ', '-')}"
        folder.mkdir()
        yield measurement.make(folder)
        if plan.keep is None:
            shutil.rmtree(folder)  # the disk never holds two of them


def main() -> int:
    """Measure, print the table, write the JSON; after an error, what was measured until then."""
    plan = parse_arguments(sys.argv[1:])
    adopt_orphans()
    facts, results, status = machine(), [], 0
    try:
        with tempfile.TemporaryDirectory(prefix="tacit-bench-") as scratch:
            root = Path(scratch) if plan.keep is None else plan.keep.resolve()
            root.mkdir(parents=True, exist_ok=True)
            for result in measure_all(plan, root):
                results.append(result)  # noqa: PERF402 - kept one by one, for the case of an error
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped; every process has been ended", file=sys.stderr)
        status = 130
    print("; ".join(f"{key} {value}" for key, value in facts.items()))
    print(render(results))
    print(
        "4 clients, loopback; tacit: mutual TLS, journal on, through isolated workers;"
        " flower: no TLS, state in memory; s/round: median (floor: best)"
    )
    if plan.json is not None:
        content = {"machine": facts, "results": [result.plain() for result in results]}
        plan.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
