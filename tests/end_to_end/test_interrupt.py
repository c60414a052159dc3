"""Ctrl-C anywhere: the exit code is 0 or 130, no process stays, and everything goes on later."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import (
    Daemon,
    Federation,
    environment_of,
    eventually,
    federation,
    processes,
)
from tests.end_to_end.runs import initial_file, quick_spec
from tests.end_to_end.test_unavailable import RUN_TOML

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

INTERRUPTED = 130


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("int"), "ada", "bea") as made:
        yield made


@pytest.fixture
def held_run(played: Federation) -> Iterator[str]:
    """A run in the middle of round 2; both apps are at work."""
    gates = played.hold(2, "ada", "bea")
    run_id = played.submit(quick_spec(), initial_file(played.root))
    for name in ("ada", "bea"):
        played.wait_until_held(name, 2, run_id)
    yield run_id
    for gate in gates:
        gate.unlink(missing_ok=True)


def go_on(played: Federation) -> None:
    for gate in played.gates.glob("hold-*"):
        gate.unlink()


def test_the_server_stops_in_the_middle_of_a_round_and_goes_on_later(
    played: Federation, held_run: str
) -> None:
    """It drains, ends with 0 with its run worker, and the run ends after the next start."""
    server = played.daemons["server"]
    assert played.processes("tacit.server.worker")
    server.send(signal.SIGINT)
    assert server.ends() == 0, server.text
    assert not played.processes("tacit.server.worker")
    assert "Traceback" not in server.text
    played.start_server()
    go_on(played)
    played.finish(held_run)


def test_a_client_stops_in_the_middle_of_training_and_goes_on_later(
    played: Federation, held_run: str
) -> None:
    """It ends with 0 with its worker; what was under way is asked for again."""
    client = played.daemons["ada"]
    scratch = f"{played.root}/ada/scratch"
    assert processes(scratch)
    client.send(signal.SIGINT)
    assert client.ends() == 0, client.text
    assert not processes(scratch)
    assert "Traceback" not in client.text
    played.start_client("ada")
    go_on(played)
    played.finish(held_run)


def test_watching_stops_and_the_run_goes_on(played: Federation, held_run: str) -> None:
    """The watcher ends with 130; the run does not notice."""
    watch = played.start("watch", "run", "watch", held_run)
    watch.says("round 1/")
    watch.send(signal.SIGINT)
    assert watch.ends() == INTERRUPTED, watch.text
    assert "Traceback" not in watch.text
    go_on(played)
    played.finish(held_run)


def test_submitting_stops_before_or_after_the_run_is_queued(played: Federation) -> None:
    """With --watch, the run is queued once its id was shown; before that, there is none."""
    (played.root / "run.toml").write_text(RUN_TOML.replace("large.saf", "initial.saf"))
    initial_file(played.root)
    before = len(played.tacit("run", "list", "--json").json)
    early = played.start("early", "run", "submit", played.root / "run.toml")
    eventually("it to load Flower", lambda: maps(early, "grpc/_cython"))
    early.send(signal.SIGINT)
    assert early.ends() in (0, INTERRUPTED), early.text
    assert "Traceback" not in early.text
    late = played.start("late", "run", "submit", played.root / "run.toml", "--watch")
    late.says("r-")
    late.send(signal.SIGINT)
    assert late.ends() in (0, INTERRUPTED), late.text
    found = re.search(r"r-[0-9a-f]{8}", late.text)
    assert found
    played.finish(found.group())
    after = len(played.tacit("run", "list", "--json").json)
    assert after - before == 1 + (early.process.returncode == 0)


@pytest.mark.parametrize("moment", ["loading", "training"])
def test_a_simulation_stops_with_all_its_processes(tmp_path: Path, moment: str) -> None:
    """While it loads and while it trains; a second one beside it is not disturbed by the rest."""
    made = Federation(tmp_path, (0, 0), environment_of(tmp_path))
    text = (heart_folder() / "run.toml").read_text().replace("rounds = 20", "rounds = 2000")
    (tmp_path / "run.toml").write_text(text)
    arguments = ("--data", heart_folder(), "--out", tmp_path / "out")
    try:
        simulation = made.start("sim", "simulate", tmp_path / "run.toml", *arguments)
        if moment == "loading":
            eventually("it to load torch", lambda: maps(simulation, "libtorch"))
        else:
            simulation.says("round 2/2000")
        simulation.send(signal.SIGINT)
        assert simulation.ends() == INTERRUPTED, simulation.text
        assert "Traceback" not in simulation.text
        assert not processes(str(tmp_path))
    finally:
        made.close()


def maps(daemon: Daemon, library: str) -> bool:
    """Tell whether a process has loaded a library."""
    assert daemon.process.poll() is None, daemon.text
    with open(f"/proc/{daemon.process.pid}/maps") as file:  # noqa: PTH123 - gone is an error
        return library in file.read()
