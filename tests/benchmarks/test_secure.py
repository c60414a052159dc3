"""The correctness of the benchmark of secure aggregation; times are printed and never asserted."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import BenchmarkError
from benchmarks.relay import Relay
from benchmarks.secure_cohort import measure_cohort
from benchmarks.secure_rounds import LatencyResult, round_trips, verify_equal
from tests.simulation.test_federation import tiny
from tests.simulation.test_secure import secured

ROOT = Path(__file__).resolve().parents[2]


def test_a_cohort_counts_what_each_member_sends() -> None:
    """A vector is 4 bytes a number, whatever is masked; what comes on top is counted with it, and
    a lost member costs the server the masks that nobody cancels any more."""
    whole = measure_cohort(clients=6, parameters=100_000, dropped=0)
    assert 4.0 < whole.up < 4.1
    assert 0.0 < whole.down < 0.5
    assert measure_cohort(clients=6, parameters=100_000, dropped=1).server_cpu_s > 0


def test_round_trips_are_the_slope() -> None:
    """Six seconds more for each second of delay are six round trips."""
    results = [
        LatencyResult(round_trip_s=delay, plain=0.3, secure=0.5 + 6 * delay, further=0.1 + delay)
        for delay in (0.0, 0.02, 0.1)
    ]
    assert round_trips(results, "secure") == pytest.approx(6)
    assert round_trips(results, "plain") == pytest.approx(0)


def test_models_that_differ_by_more_than_rounding_fail_the_benchmark() -> None:
    """Nor does a model that has not moved count as equal."""
    run = secured(tiny(), 4, max_weight=1)
    initial = {"weight": np.zeros(3, dtype=np.float32)}
    moved = {"weight": np.ones(3, dtype=np.float32)}
    verify_equal(moved, {"weight": moved["weight"] + np.float32(1e-7)}, initial=initial, run=run)
    with pytest.raises(BenchmarkError, match="off by"):
        verify_equal(moved, {"weight": moved["weight"] * 1.01}, initial=initial, run=run)
    with pytest.raises(BenchmarkError, match="nothing was compared"):
        verify_equal(initial, initial, initial=initial, run=run)


@pytest.mark.slow
def test_a_relay_delays_and_counts() -> None:
    """An answer through it comes a round trip later, and each direction's bytes are counted."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Relay(server.getsockname()[1], round_trip_s=0.2) as relay,
        socket.create_connection(("127.0.0.1", relay.port)) as near,
    ):
        began = time.monotonic()
        near.sendall(b"ping!")
        far, _ = server.accept()
        with far:
            assert far.recv(5) == b"ping!"
            far.sendall(b"pong")
            assert near.recv(4) == b"pong"
        taken = time.monotonic() - began
        assert relay.up.between(began, time.monotonic()) == 5
        assert relay.down.between(began, time.monotonic()) == 4
    assert taken >= 0.2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "expected"),
    [("rounds", {"plain", "secure"}), ("flower", {"flower"}), ("latency", set())],
)
def test_short_benchmark(part: str, expected: set[str], tmp_path: Path) -> None:
    """Each part ends with right models, and with figures for what it measured."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.secure", "--short", "--only", part]
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    assert {each["kind"] for each in results["rounds"]} == expected
    assert len(results["latencies"]) == (2 if part == "latency" else 0)
    for each in results["rounds"]:
        assert each["seconds"] > 0
        assert each["up"] is None or 4.0 < each["up"] < 5.5
