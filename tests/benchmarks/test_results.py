"""Results are read off reports without flattering anybody, and shown side by side."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from benchmarks.measure import Trace
from benchmarks.noop_app import delta_of, initial_arrays, sample_of
from benchmarks.processes import BenchmarkError
from benchmarks.report import render
from benchmarks.results import Result, read_report, result_of, verify_rounds
from benchmarks.run import parse_arguments

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = 4


def line(number: int, seconds: float, **changed: float) -> dict[str, float]:
    fields = {
        "round": number,
        "started": 10.0 * number,
        "ended": 10.0 * number + seconds,
        "replies": CLIENTS,
        "distinct": CLIENTS,
        "error": 1e-7,
    }
    return {**fields, **changed}


def result(engine: str, seconds: float) -> Result:
    return Result(
        engine=engine, parameters=10_000_000, rounds=3, seconds=seconds, fastest=1.0, slowest=1.0
    )


def test_the_first_round_is_warm_up() -> None:
    """The median is over the rounds after the first, however slow that one was."""
    lines = [line(1, 9.0), line(2, 1.0), line(3, 2.0), line(4, 6.0)]
    traces = {
        "server": Trace(times=[0.0, 50.0], cpu_s=[0.0, 50.0], peak_bytes=[10**6, 3 * 10**6]),
        "client0": Trace(times=[0.0, 50.0], cpu_s=[0.0, 25.0], peak_bytes=[10**6, 2 * 10**6]),
        "client1": Trace(times=[0.0, 50.0], cpu_s=[0.0, 25.0], peak_bytes=[10**6, 10**6]),
    }
    found = result_of("flower", 100, lines, traces=traces, began=4.0)
    assert (found.rounds, found.seconds, found.fastest, found.slowest) == (3, 2.0, 1.0, 6.0)
    assert found.cpu_s == pytest.approx(2.0 * 26.0 / 3)
    assert (found.server_mb, found.client_mb) == (3.0, 2.0)
    assert found.started_s == pytest.approx(6.0)


@pytest.mark.parametrize(
    "changed", [{"replies": 3}, {"distinct": 3}, {"error": 0.1}, {"error": float("nan")}]
)
def test_a_wrong_round_is_no_result(changed: dict[str, float]) -> None:
    """A lost reply, a repeated reply or a wrong sum makes the benchmark fail."""
    with pytest.raises(BenchmarkError):
        verify_rounds([line(1, 1.0), line(2, 1.0, **changed)], clients=CLIENTS)


def test_right_rounds_are_accepted() -> None:
    """Rounds with four different replies and the right sum pass."""
    verify_rounds([line(1, 1.0), line(2, 1.0)], clients=CLIENTS)


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    """A report that is being written is read up to its last whole line."""
    path = tmp_path / "report.jsonl"
    path.write_text(json.dumps(line(1, 1.0)) + '\n{"round": 2, "sta', encoding="utf-8")
    assert [each["round"] for each in read_report(path)] == [1]


def test_no_report_is_no_rounds(tmp_path: Path) -> None:
    """A report that is not there yet has no lines."""
    assert read_report(tmp_path / "none") == []


def test_table_compares_with_floor_and_flower() -> None:
    """Our line names how many times the floor we take, and how many times Flower's time we save."""
    text = render([result("floor", 0.05), result("tacit kill", 0.5), result("flower", 12.0)])
    ours = next(each for each in text.splitlines() if "tacit kill" in each)
    assert re.search(r"10\.0\s+24\.0 x$", ours)


def test_replies_differ_between_nodes_and_rounds() -> None:
    """No two of a federation's replies are equal: nothing can be answered from a cache."""
    nodes = (1, 2**40 + 7, 2**62, 2**63 - 1)
    deltas = {delta_of(node, number) for node in nodes for number in range(1, 6)}
    assert len(deltas) == 20


def test_the_sample_sees_every_array() -> None:
    """The values that are checked come from all arrays of the model."""
    arrays = initial_arrays(100_003)
    assert sum(array.numpy().size for array in arrays.values()) == 100_003
    assert sample_of(arrays).size == 100_003
    assert sample_of(initial_arrays(2_000_000)).size > 1_900


def test_short_is_short() -> None:
    """The version for continuous integration measures the smallest model in two rounds."""
    plan = parse_arguments(["--short"])
    assert (plan.sizes, plan.rounds) == ((100_000,), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sizes", "ten"],
        ["--sizes", "0"],
        ["--sizes", "1e9"],
        ["--rounds", "0.5"],
        ["--only", "x"],
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A size or engine that makes no sense ends the program with status 2 and a word why."""
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
