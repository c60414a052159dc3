"""The demo: it ends well, and whatever happens, nothing that it started stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tacit.core.artifacts import RunFolder, load_arrays
from tacit.core.errors import UnavailableError
from tacit.simulation.children import Children, Interruption

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = [sys.executable, "-c", "from tacit.cli.main import main; main()"]
LIMIT_S = 270.0  # a busy machine; alone it takes a quarter of a minute


def processes_of(folder: Path) -> list[int]:
    """Return the processes that were started with a path below this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in text:
                found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start_demo(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "demo", "--out", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def output_of(demo: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Return what the demo wrote until it ended; one that takes too long is told to end."""
    try:
        return demo.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        demo.send_signal(signal.SIGINT)
        demo.communicate()
        raise


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_ends_with_a_model_a_table_and_a_plot(tmp_path: Path) -> None:
    """Four hospitals train over mutual TLS in 20 sums that nobody saw in parts, better than the
    trivial guess; with nobody lost, their ledgers settle at what the plan says of that."""
    folder = tmp_path / "demo"
    demo = start_demo(folder)
    output, errors = output_of(demo)
    assert demo.returncode == 0, errors.decode()
    result = json.loads(output)
    run = RunFolder(Path(result["run_folder"]))
    assert run.round_numbers() == list(range(1, 6))
    manifest = json.loads(run.manifest.read_bytes())
    assert manifest["status"] == "finished"
    assert all(len(entry["cohort"]) == 4 and not entry["failed"] for entry in manifest["rounds"])
    assert all(len(entry["survivors"]) == 4 for entry in manifest["rounds"])
    sums = result["secure_aggregation"]
    assert (sums["threshold"], sums["colluders"], sums["survivors_least"]) == (3, 1, 4)
    assert sums["epsilon_reserved"] == pytest.approx(1.0, abs=1e-3)
    assert set(sums["epsilon_claimed"]) == {"cleveland", "hungarian", "switzerland", "va"}
    for claimed in sums["epsilon_claimed"].values():
        assert claimed == pytest.approx(sums["epsilon_settled"], rel=1e-9)
    assert sums["epsilon_settled"] < 0.8
    assert load_arrays(run.model).keys() == load_arrays(run.initial).keys()
    accuracy = {row["kind"]: row["overall"]["accuracy"] for row in result["comparison"]["rows"]}
    assert accuracy["federated"] > accuracy["trivial"] + 0.05
    assert Path(result["plot"]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (folder / "homes").exists()
    assert processes_of(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_an_interrupted_demo_leaves_nothing_running(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C, a polite end and a sudden death of the demo all end its daemons and workers."""
    folder = tmp_path / "demo"
    demo = start_demo(folder)
    wait_for(lambda: len(processes_of(folder / "homes")) >= 5 or demo.poll() is not None)
    assert demo.poll() is None
    demo.send_signal(number)
    output_of(demo)
    assert demo.returncode == code
    wait_for(lambda: processes_of(folder / "homes") == [], limit_s=30.0)


@pytest.mark.slow
def test_a_child_that_ends_early_is_named_with_its_words(tmp_path: Path) -> None:
    """A process that cannot start ends the demo with the end of its log."""
    with Children({}, Interruption()) as children:
        child = children.start(
            "the server",
            ["server", "start", "--home", str(tmp_path / "no")],
            tmp_path / "server.log",
        )
        child.process.wait(30)
        with pytest.raises(UnavailableError, match=r"the server ended.*E-STATE-MISSING"):
            children.verify_alive()
