"""``python -m benchmarks.secure``: what secure aggregation costs, beside plain rounds and Flower's.

Time and bytes of a round over real daemons, a large cohort in one process, and seconds per step at
several delays; everything on loopback. benchmarks/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.flower_engine import FlowerRun, measure_flower
from benchmarks.processes import BenchmarkError, adopt_orphans
from benchmarks.report import aligned, machine
from benchmarks.run import progress_of
from benchmarks.secure_cohort import CohortResult, measure_cohort
from benchmarks.secure_rounds import (
    LatencyResult,
    SecureResult,
    measure_latency,
    measure_rounds,
    round_trips,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Result

PARTS = ("rounds", "flower", "cohort", "latency")
FLOWER_LIMIT_S = 900.0  # per round: it starts a process per client and step

Load = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line asks for.

    Attributes:
        parts: of PARTS.
        parameters: float32 numbers in the model.
        rounds: timed rounds of ours.
        clients: numbers of clients over real daemons.
        cohort: members in one process.
        delays_s: round trips that are added.
        json: where to write the results too, or None.
    """

    parts: tuple[str, ...]
    parameters: int
    rounds: int
    clients: tuple[int, ...]
    cohort: int
    delays_s: tuple[float, ...]
    json: Path | None


@dataclass
class Results:
    """What was measured so far, and the load before each part."""

    rounds: list[SecureResult] = field(default_factory=list)
    cohorts: list[CohortResult] = field(default_factory=list)
    latencies: list[LatencyResult] = field(default_factory=list)
    loads: dict[str, Load] = field(default_factory=dict)


def parse_arguments(arguments: list[str]) -> Plan:
    """Read the command line; wrong values end the program with status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secure", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    parser.add_argument("--clients", default="", help="over real daemons (default 4,20)")
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--short", action="store_true", help="is it correct, not is it fast")
    given = parser.parse_args(arguments)
    short = given.short
    try:
        clients = tuple(int(count) for count in given.clients.split(",") if count)
    except ValueError:
        parser.error(f"--clients: expected numbers such as 4,20, got {given.clients!r}")
    if any(not 3 <= count <= 50 for count in clients):
        parser.error("--clients: expected 3 to 50")
    if given.rounds and not 1 <= given.rounds <= 100:
        parser.error("--rounds: expected 1 to 100")
    return Plan(
        parts=tuple(given.only or PARTS),
        parameters=20_000 if short else 1_000_000,
        rounds=given.rounds or (1 if short else 5),
        clients=clients or ((4,) if short else (4, 20)),
        cohort=20 if short else 100,
        delays_s=(0.0, 0.01) if short else (0.0, 0.02, 0.1),
        json=given.json,
    )


def measure_all(plan: Plan, root: Path, results: Results) -> None:
    """Make the measurements one after the other; what is done is in ``results`` after an error."""
    for count in plan.clients:
        if "rounds" in plan.parts:
            results.loads[f"daemons, {count}"] = os.getloadavg()
            results.rounds += measure_rounds(
                clients=count,
                parameters=plan.parameters,
                rounds=plan.rounds,
                folder=_folder(root, f"rounds-{count}"),
                progress=progress_of("tacit"),
            )
        if "flower" in plan.parts:
            results.loads[f"flower, {count}"] = os.getloadavg()
            results.rounds.append(_flower(plan, count, _folder(root, f"flower-{count}")))
    if "cohort" in plan.parts:
        results.loads["cohort"] = os.getloadavg()
        for dropped in (0, plan.cohort // 20):
            progress_of("cohort")(f"{plan.cohort} members, {dropped} dropped")
            results.cohorts.append(
                measure_cohort(clients=plan.cohort, parameters=plan.parameters, dropped=dropped)
            )
    if "latency" in plan.parts:
        results.loads["latency"] = os.getloadavg()
        results.latencies += measure_latency(
            delays_s=plan.delays_s,
            rounds=plan.rounds,
            folder=_folder(root, "latency"),
            progress=progress_of("latency"),
        )


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    return folder


def _flower(plan: Plan, clients: int, folder: Path) -> SecureResult:
    run = FlowerRun(
        parameters=plan.parameters,
        rounds=0,  # none but the first: each message starts a process, so that none is warmer
        clients=clients,
        timeout_s=FLOWER_LIMIT_S,
        secure=True,
    )
    done: Result = measure_flower(run, folder=folder, progress=progress_of("flower"))
    return SecureResult(
        kind="flower",
        clients=clients,
        parameters=plan.parameters,
        seconds=done.seconds,
        fastest=done.fastest,
        slowest=done.slowest,
        cpu_s=None if done.cpu_s is None else (done.cpu_s, float("nan"), float("nan")),
    )


def rounds_table(results: Sequence[SecureResult]) -> str:
    """Return the table of rounds over real processes."""
    headings = ("clients", "round", "s/round", "min", "max", "CPU s", "server", "node")
    rows = [(*headings, "B/param up", "down", "x plain", "faster than Flower")]
    for one in results:
        others = {each.kind: each.seconds for each in results if each.clients == one.clients}
        cpu = one.cpu_s or (float("nan"),) * 3
        ratio = one.seconds / others.get("plain", float("nan"))
        faster = others.get("flower", float("nan")) / one.seconds
        rows.append(
            (
                str(one.clients),
                one.kind,
                f"{one.seconds:.3f}",
                f"{one.fastest:.3f}",
                f"{one.slowest:.3f}",
                *(_shown(value, 2) for value in cpu),
                _shown(one.up, 4),
                _shown(one.down, 4),
                _shown(ratio, 2),
                "-" if one.kind != "secure" else _shown(faster, 1),
            )
        )
    return aligned(rows, left=(1,))


def cohort_table(results: Sequence[CohortResult]) -> str:
    """Return the table of sessions in one process."""
    rows = [("members", "dropped", "client CPU s", "server CPU s", "B/param up", "down")]
    rows += [
        (
            str(one.clients),
            str(one.dropped),
            f"{one.client_cpu_s:.3f}",
            f"{one.server_cpu_s:.3f}",
            f"{one.up:.4f}",
            f"{one.down:.4f}",
        )
        for one in results
    ]
    return aligned(rows)


def latency_table(results: Sequence[LatencyResult]) -> str:
    """Return the table of delays; its last line is the slope."""
    rows = [("round trip", "plain s/round", "secure s/round", "s/further step")]
    rows += [
        (
            f"{1000 * one.round_trip_s:.0f} ms",
            f"{one.plain:.3f}",
            f"{one.secure:.3f}",
            f"{one.further:.3f}",
        )
        for one in results
    ]
    slopes = (round_trips(results, kind) for kind in ("plain", "secure", "further"))
    rows.append(("round trips", *(_shown(slope, 1) for slope in slopes)))
    return aligned(rows)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"  # noqa: PLR0124 - NaN


def render(plan: Plan, results: Results) -> str:
    """Return everything that was measured, as text."""
    parts = ["; ".join(f"{key} {value}" for key, value in machine().items())]
    parts += [
        "load before each part: "
        + "; ".join(f"{key} {load[0]:.1f}" for key, load in results.loads.items())
    ]
    if results.rounds:
        parts += [f"Rounds, {plan.parameters / 1e6:g} M parameters:", rounds_table(results.rounds)]
    if results.cohorts:
        parts += ["One session in one process:", cohort_table(results.cohorts)]
    if results.latencies:
        parts += ["4 hospitals, small model, delayed:", latency_table(results.latencies)]
    return "\n\n".join(parts)


def main() -> int:
    """Measure, print the tables, write the JSON; after an error, what was measured until then."""
    plan, results, status = parse_arguments(sys.argv[1:]), Results(), 0
    adopt_orphans()
    facts = machine()
    try:
        with tempfile.TemporaryDirectory(prefix="tacit-secure-") as scratch:
            measure_all(plan, Path(scratch), results)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped; every process has been ended", file=sys.stderr)
        status = 130
    print(render(plan, results))
    if plan.json is not None:
        content = {"machine": facts, **asdict(results)}
        plan.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
