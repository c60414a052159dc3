"""Process trees are measured whole, and ended whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.measure import Sampler, Trace, facts_of, memory_of, processes, tree_of
from benchmarks.processes import BenchmarkError, Crew, free_ports

if TYPE_CHECKING:
    from pathlib import Path

# A parent whose child leaves its session, as flwr's daemons start theirs.
PARENT = """
import subprocess, sys, time
code = "import time; data = bytearray(50_000_000); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
child.wait()
"""


def wait_until(condition: object, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        os.sched_yield()


def runs(pid: int) -> bool:
    facts = facts_of(pid)
    return facts is not None and facts.state != "Z"


def test_own_process_is_found() -> None:
    """This very process is in the table, with its parent and some CPU time."""
    facts = facts_of(os.getpid())
    assert facts is not None
    assert facts.parent == os.getppid()
    assert facts.cpu_s > 0
    assert os.getpid() in processes()


def test_memory_mark_is_no_lower_than_memory() -> None:
    """The high-water mark of a process bounds what it holds now, and both are in bytes."""
    resident, peak = memory_of(os.getpid())
    assert 1_000_000 < resident <= peak


def test_a_process_that_has_gone_measures_nothing() -> None:
    """A pid that no process has gives no facts and no memory, and no error."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert facts_of(child.pid) is None
    assert memory_of(child.pid) == (0, 0)


def test_cpu_between_samples_is_interpolated() -> None:
    """CPU at a moment between two looks lies on the line between them; outside it stays flat."""
    trace = Trace(times=[10.0, 11.0, 12.0], cpu_s=[1.0, 2.0, 4.0])
    assert trace.cpu_between(10.5, 11.5) == pytest.approx(1.5)
    assert trace.cpu_between(9.0, 13.0) == pytest.approx(3.0)


def test_peak_counts_the_look_around_a_short_span() -> None:
    """A span that falls between two looks takes the larger of both."""
    trace = Trace(times=[1.0, 2.0, 3.0], cpu_s=[0.0] * 3, peak_bytes=[5, 9, 7])
    assert trace.peak_between(2.2, 2.4) == 9


def test_unused_trace_measures_nothing() -> None:
    """A trace without a look gives zeros."""
    assert Trace().cpu_between(0.0, 1.0) == 0.0
    assert Trace().peak_between(0.0, 1.0) == 0


@pytest.mark.slow
def test_detached_descendants_are_measured_and_ended(tmp_path: Path) -> None:
    """A grandchild in a session of its own counts as part of the tree and ends with the crew."""
    with Crew(tmp_path) as crew:
        pid = crew.start("parent", [sys.executable, "-c", PARENT], environ=dict(os.environ))
        with Sampler(crew.pids) as sampler:
            wait_until(lambda: "up" in crew.tail("parent"))
            wait_until(lambda: max(sampler.traces["parent"].resident_bytes, default=0) > 50_000_000)
        tree = {facts.pid for facts in tree_of(pid, processes())}
        assert len(tree) == 2
    assert not {each for each in tree if runs(each)}


@pytest.mark.slow
def test_crew_ends_on_an_error(tmp_path: Path) -> None:
    """An exception in the block leaves no process behind."""
    crew = Crew(tmp_path)

    def start_and_fail() -> None:
        with crew:
            crew.start("sleeper", command, environ=dict(os.environ))
            pids.update(crew.pids)
            raise RuntimeError("off")

    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    pids: dict[str, int] = {}
    with pytest.raises(RuntimeError, match="off"):
        start_and_fail()
    assert facts_of(pids["sleeper"]) is None


@pytest.mark.slow
def test_crew_tells_who_ended_and_what_it_wrote(tmp_path: Path) -> None:
    """A process that ends too early is named, with its status and its last lines."""
    with Crew(tmp_path) as crew:
        code = "import sys; print('no room'); sys.exit(3)"
        crew.start("server", [sys.executable, "-c", code], environ=dict(os.environ))

        def ended() -> bool:
            try:
                crew.check()
            except BenchmarkError as error:
                return "server ended with 3" in str(error) and "no room" in str(error)
            return False

        wait_until(ended)


def test_free_ports_differ() -> None:
    """Ports that are asked for together are all different."""
    assert len(set(free_ports(6))) == 6
