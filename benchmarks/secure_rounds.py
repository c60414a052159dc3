"""Rounds of our daemons with and without secure aggregation, in one federation, at one moment.

``measure_rounds``: the no-op app of benchmarks/noop_app.py, mode ``none``; each node's update is
another, and the secure model must equal the plain one. ``measure_latency``: the heart-disease
records of ``tacit demo``, where a round may have several secure steps, at several delays.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import noop_app
from benchmarks.processes import BenchmarkError
from benchmarks.secure_federation import Played, SecureFederation
from tacit.core.artifacts import load_arrays
from tacit.core.configuration import load_config, parse_toml
from tacit.core.specification import (
    EvaluationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    SecureAggregationSpec,
)
from tacit.learning.models import initial_arrays
from tacit.privacy.secure_sum import forms_of, secure_plan, with_dimension
from tacit.simulation.demo import HOSPITALS
from tacit.simulation.owners import heart_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tacit.core.artifacts import Arrays

STEPS = 6  # secure sums in a round, where a further step is measured

RUN_TOML = """\
name = "no-op"

[app]
client = "noop_app:client_app"

[privacy]
mode = "none"

[participation]
rounds = {rounds}
min_clients = {clients}

[results.train]
arrays = "model"

[results.train.metrics]
num-examples = {{ range = [1, 1] }}
delta = {{ range = [0, 1] }}
"""


@dataclass(frozen=True, kw_only=True)
class SecureResult:
    """One kind of round at one number of clients.

    Attributes:
        kind: ``plain``, ``secure`` or ``flower``.
        clients: how many.
        parameters: float32 numbers in the model.
        seconds, fastest, slowest: of the timed rounds; the first is the median.
        cpu_s: CPU seconds per round: of all processes, of the server's, of the median node's; None
            where not measured.
        up, down: bytes per client, round and parameter; None where not measured.
    """

    kind: str
    clients: int
    parameters: int
    seconds: float
    fastest: float
    slowest: float
    cpu_s: tuple[float, float, float] | None = None
    up: float | None = None
    down: float | None = None

    def plain(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """What a round takes at one delay: seconds, the best of the timed rounds.

    The best and not the median: what else the machine does would hide the round trips.

    Attributes:
        round_trip_s: how much later every answer came.
        plain: a round in which updates travel as they are.
        secure: a round of one secure sum.
        further: each further step of a round under the same keys.
    """

    round_trip_s: float
    plain: float
    secure: float
    further: float


def measure_rounds(
    *, clients: int, parameters: int, rounds: int, folder: Path, progress: Callable[[str], None]
) -> list[SecureResult]:
    """Play a plain and a secure run of the no-op app; compare their models; return both."""
    names = tuple(f"client{number}" for number in range(clients))
    plain = parse_toml(
        RUN_TOML.format(rounds=rounds + 1, clients=clients), RunSpec, source="run.toml", environ={}
    ).value
    secure = dataclasses.replace(plain, secure_aggregation=SecureAggregationSpec(members=names))
    arrays = noop_app.initial_arrays(parameters)
    initial = {name: np.array(array.numpy()) for name, array in arrays.items()}
    results, models = [], []
    with SecureFederation(folder, names, progress=progress) as federation:
        for kind, run in (("plain", plain), ("secure", secure)):
            progress(f"{kind}, {clients} clients")
            played = federation.play(run, initial)
            verify_whole(played, clients=clients)
            models.append(load_arrays(played.folder.model))
            results.append(_result_of(kind, played, clients=clients, parameters=parameters))
    verify_equal(*models, initial=initial, run=secure)
    return results


def _result_of(kind: str, played: Played, *, clients: int, parameters: int) -> SecureResult:
    return SecureResult(
        kind=kind,
        clients=clients,
        parameters=parameters,
        seconds=statistics.median(played.seconds),
        fastest=min(played.seconds),
        slowest=max(played.seconds),
        cpu_s=played.cpu_s,
        up=played.up / parameters,
        down=played.down / parameters,
    )


def verify_whole(played: Played, *, clients: int) -> None:
    """Raise unless every round came to its end at the first attempt, with all clients."""
    for entry in json.loads(played.folder.manifest.read_bytes())["rounds"]:
        if entry["failed"] or entry["attempt"] != 1 or len(entry["cohort"]) != clients:
            raise BenchmarkError(f"expected all {clients} clients in each round, got {entry}")


def verify_equal(plain: Arrays, secure: Arrays, *, initial: Arrays, run: RunSpec) -> None:
    """Raise unless two models differ by rounding alone, and from the initial one by more.

    A round of secure sums may be off by half an integer of each member, divided by their number;
    and each side rounds to float32, members and aggregate alike.
    """
    scale = secure_plan(run, forms_of(initial)).scale
    largest = max(float(np.abs(array).max()) for array in plain.values())
    rounding = 4 * float(np.spacing(np.float32(largest)))
    allowed = run.participation.rounds * (0.5 / scale + rounding)
    error = _distance(plain, secure)
    if not error <= allowed:
        raise BenchmarkError(f"the secure model is off by {error:.2g}, allowed {allowed:.2g}")
    moved = _distance(plain, initial)
    if not moved > 10 * allowed:
        raise BenchmarkError(f"the model has moved by {moved:.2g} only: nothing was compared")


def _distance(one: Arrays, other: Arrays) -> float:
    if set(one) != set(other):
        raise BenchmarkError(f"expected arrays {sorted(one)}, got {sorted(other)}")
    return max(
        float(np.abs(one[name].astype(np.float64) - other[name]).max(initial=0.0)) for name in one
    )


def measure_latency(
    *,
    delays_s: Sequence[float],
    rounds: int,
    folder: Path,
    progress: Callable[[str], None],
) -> list[LatencyResult]:
    """Play runs of the four hospitals at several delays between every node and the server."""
    for owner in HOSPITALS:
        shutil.copy(heart_folder() / f"{owner}.csv", folder / f"{owner}.csv")

    def data(owner: str) -> str:
        path, records = folder / f"{owner}.csv", HOSPITALS[owner]
        return f'[data_sets.heart]\npath = "{path}"\nrecords = {records}\n'

    runs: dict[str, RunSpec] = {
        "plain": _hospitals(rounds),
        "secure": _hospitals(rounds, steps=1),
        "several": _hospitals(rounds, steps=STEPS),
    }
    results = []
    with SecureFederation(
        folder, tuple(HOSPITALS), progress=progress, delayed=True, data=data
    ) as federation:
        for delay_s in delays_s:
            federation.relay.round_trip_s = delay_s
            seconds = {}
            for kind, run in runs.items():
                progress(f"{kind}, {1000 * delay_s:.0f} ms")
                played = federation.play(run, initial_arrays(run))
                verify_whole(played, clients=len(HOSPITALS))
                verify_finite(load_arrays(played.folder.model))
                seconds[kind] = min(played.seconds)
            further = (seconds["several"] - seconds["secure"]) / (STEPS - 1)
            results.append(
                LatencyResult(
                    round_trip_s=delay_s,
                    plain=seconds["plain"],
                    secure=seconds["secure"],
                    further=further,
                )
            )
    return results


def _hospitals(rounds: int, *, steps: int = 0) -> RunSpec:
    """Return the demo's run; ``steps`` secure sums a round, or none and no noise."""
    run = load_config(heart_folder() / "run.toml", RunSpec).value
    people = dataclasses.replace(run.participation, rounds=rounds + 1, min_clients=4)
    privacy, secure = PrivacySpec(mode=PrivacyMode.NONE), None
    if steps:
        privacy = PrivacySpec(
            mode=PrivacyMode.RECORD_DISTRIBUTED,
            clip=0.5,
            epsilon=1.0,
            delta=0.001,
            normaliser=736.0,
        )
        secure = SecureAggregationSpec(members=tuple(HOSPITALS), steps_per_round=steps)
    made = dataclasses.replace(
        run,
        privacy=privacy,
        secure_aggregation=secure,
        participation=people,
        evaluation=EvaluationSpec(),
    )
    return with_dimension(made, initial_arrays(made))


def verify_finite(model: Arrays) -> None:
    """Raise unless all numbers of a model are finite."""
    for name, array in model.items():
        if not np.isfinite(array).all():
            raise BenchmarkError(f"expected finite weights, got others in {name}")


def round_trips(results: Sequence[LatencyResult], kind: str) -> float:
    """Return how many seconds a round takes more for each second of round trip: a straight line."""
    points: list[tuple[float, Any]] = [(one.round_trip_s, getattr(one, kind)) for one in results]
    delays, seconds = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    if len(set(delays)) < 2:
        return float("nan")
    return float(np.polyfit(delays, seconds, 1)[0])
