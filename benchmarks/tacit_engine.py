"""Our engine on loopback: the real daemons, driven by the commands that people use.

A server is initialised, four clients are invited and join, and a run of the no-op app is submitted:
mutual TLS on everything but enrolment, the journal on, every app in its own confined worker. The
app is installed by a folder on PYTHONPATH, and each owner's policy names it; nothing is switched
off, and nothing is patched.

The server's side is one of two. ``strategy``: FedAvg by name, as runs usually have it; a round then
lasts from its first event to its last, with the weights written, the manifest brought up to date
and the checkpoint taken. ``app``: the very ServerApp that Flower's engine runs, which times itself;
a foreign ServerApp has no checkpoints, so all its replies stay in the journal until the run ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord

from benchmarks import noop_app
from benchmarks.measure import Sampler
from benchmarks.processes import BenchmarkError, Crew, free_ports, wait_for_port
from benchmarks.results import (
    SERVER,
    Result,
    read_report,
    result_of,
    verify_rounds,
    wait_for_rounds,
)
from tacit.core.artifacts import RunFolder, load_arrays, save_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_TIMEOUT_S = 60.0
VERB_TIMEOUT_S = 60.0

SERVER_TOML = """\
names = ["127.0.0.1"]
listen = "{listen}"
enrolment_listen = "{enrolment}"
journal = "{journal}"
"""

CLIENT_TOML = """\
journal = "{journal}"

[policy]
modes = ["none"]
min_clients = {clients}
approve = "rule"

[policy.apps."noop_app:client_app"]
"""

SERVER_APP = """\
server = "noop_app:server_app"

[app.config]
parameters = {parameters}
rounds = {rounds}
clients = {clients}
report = "{report}"
"""

RUN_TOML = """\
name = "no-op"
{initial}
[app]
client = "noop_app:client_app"
{server_app}

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
class TacitRun:
    """One measurement of our engine.

    Attributes:
        journal: ``kill`` or ``power``: what a receipt survives, at the server and at the clients.
        side: ``strategy`` or ``app``, see the module's docstring.
    """

    parameters: int
    rounds: int
    clients: int
    journal: str
    timeout_s: float
    side: str = "strategy"

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"tacit {self.journal}" + (", ServerApp" if self.side == "app" else "")


def measure_tacit(run: TacitRun, *, folder: Path, progress: Callable[[str], None]) -> Result:
    """Build a federation, submit the app, wait for its rounds, and end every process."""
    report = folder / "report.jsonl"
    apps = folder / "apps"
    apps.mkdir()
    shutil.copy(noop_app.__file__, apps / "noop_app.py")
    base = environment(folder, apps)
    began = time.monotonic()
    with Crew(folder) as crew:
        _start_server(run, crew, base)
        for index in range(run.clients):
            _start_client(run, crew, base, index=index)
        progress("the server and all clients are up")
        with Sampler(crew.pids) as sampler:
            run_id = _submit(run, folder, base, report)
            watch = RunWatch(run_id, crew, base)
            lines = wait_for_rounds(
                watch.rounds if run.side == "strategy" else lambda: read_report(report),
                run.rounds + 1,
                crew,
                timeout_s=run.timeout_s,
                progress=progress,
                failed=watch.failed,
            )
        if run.side == "strategy":
            watch.wait_for_end(timeout_s=run.timeout_s)
            lines = judged(lines, RunFolder(folder / "server" / "runs" / run_id))
    verify_rounds(lines, clients=run.clients)
    return result_of(run.name, run.parameters, lines, traces=sampler.traces, began=began)


def environment(folder: Path, apps: Path) -> dict[str, str]:
    """Return the environment of every command: the app installed, homes in the folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TACIT_")}
    return {
        **kept,
        "PYTHONPATH": str(apps),
        "XDG_STATE_HOME": str(folder / "state"),
        "TACIT_SERVER_HOME": str(folder / "server"),
        "TACIT_OPERATOR_HOME": str(folder / "operator"),
    }


def _start_server(run: TacitRun, crew: Crew, environ: dict[str, str]) -> None:
    ports = free_ports(2)
    listen, enrolment = (f"127.0.0.1:{port}" for port in ports)
    addresses = ["--listen", listen, "--enrolment-listen", enrolment]
    run_verb(["server", "init", "--name", "127.0.0.1", *addresses], environ)
    text = SERVER_TOML.format(listen=listen, enrolment=enrolment, journal=run.journal)
    (crew.folder / "server" / "server.toml").write_text(text, encoding="utf-8")
    crew.start(SERVER, [program(), "server", "start"], environ=environ)
    for port in ports:
        wait_for_port(port, crew, timeout_s=START_TIMEOUT_S)


def _start_client(run: TacitRun, crew: Crew, environ: dict[str, str], *, index: int) -> None:
    name, home = f"client{index}", crew.folder / f"client{index}"
    invited = run_verb(["server", "invite", name, "--role", "client", "--json"], environ)
    token = str(json.loads(invited)["token"])
    own = {**environ, "TACIT_CLIENT_HOME": str(home)}
    run_verb(["client", "join", token], own)
    text = CLIENT_TOML.format(journal=run.journal, clients=run.clients)
    (home / "client.toml").write_text(text, encoding="utf-8")
    crew.start(name, [program(), "client", "start"], environ=own)


def _submit(run: TacitRun, folder: Path, environ: dict[str, str], report: Path) -> str:
    rounds, initial, server_app = run.rounds + 1, "", ""
    if run.side == "app":
        server_app = SERVER_APP.format(
            parameters=run.parameters, rounds=rounds, clients=run.clients, report=report
        )
    else:
        arrays = noop_app.initial_arrays(run.parameters)
        plain = {name: array.numpy() for name, array in arrays.items()}
        save_arrays(folder / "initial.safetensors", plain)
        initial = 'initial = "initial.safetensors"\n'
    text = RUN_TOML.format(
        initial=initial, server_app=server_app, rounds=rounds, clients=run.clients
    )
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    answer = run_verb(["run", "submit", str(path), "--json"], environ)
    return str(json.loads(answer)["run_id"])


def program() -> str:
    """Return the path of the ``tacit`` command."""
    return str(shutil.which("tacit", path=os.path.dirname(sys.executable)) or "tacit")  # noqa: PTH120


def run_verb(arguments: list[str], environ: dict[str, str]) -> str:
    """Run a ``tacit`` command and return what it printed."""
    done = subprocess.run(
        [program(), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=VERB_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        shown = " ".join(arguments[:2])
        raise BenchmarkError(f"tacit {shown} ended with {done.returncode}: {done.stderr}")
    return done.stdout


class RunWatch:
    """What ``tacit run watch --json`` has told so far."""

    def __init__(self, run_id: str, crew: Crew, environ: dict[str, str]) -> None:
        self._crew = crew
        name = f"watch-{run_id}"
        self._path = crew.folder / f"{name}.log"
        self._offset_s = time.time() - time.monotonic()
        command = [program(), "run", "watch", run_id, "--json"]
        crew.start(name, command, environ=environ, may_end=True)

    def rounds(self) -> list[dict[str, float]]:
        """Return the rounds that have ended, with times of CLOCK_MONOTONIC."""
        started: dict[int, float] = {}
        lines = []
        for event in self._events():
            number, moment = event["fields"].get("round"), event["at_s"] - self._offset_s
            if event["kind"] == "round_started":
                started.setdefault(number, moment)
            elif event["kind"] == "round_finished":
                lines.append({"round": number, "started": started[number], "ended": moment})
        return lines

    def failed(self) -> str:
        """Return why the run cannot end well any more, or an empty string."""
        for event in self._events():
            if event["kind"] in ("run_failed", "run_stopped"):
                return f"{event['kind']}: {event['fields']}"
        return ""

    def wait_for_end(self, *, timeout_s: float) -> None:
        """Wait until the run has written its last file."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if any(event["kind"] == "run_finished" for event in self._events()):
                return
            self._crew.check()
            time.sleep(0.1)
        raise BenchmarkError(f"the run did not end in {timeout_s:.0f} s")

    def _events(self) -> list[dict[str, Any]]:
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]


def judged(lines: list[dict[str, float]], folder: RunFolder) -> list[dict[str, float]]:
    """Add to each round how many replies it folded, and how far its model is from the right one.

    What is right follows from the cohorts: each node adds its own constant in each round. The
    weights are those of the last round, so an error of any round shows in all.
    """
    manifest = json.loads(folder.manifest.read_bytes())
    expected = _sample_of(folder.initial)
    for entry in manifest["rounds"]:
        expected = expected + _mean_delta(entry)
    error = float(np.abs(_sample_of(folder.model) - expected).max())
    by_round = {entry["round"]: entry for entry in manifest["rounds"]}
    result = []
    for line in lines:
        entry = by_round[line["round"]]
        answered = set(entry["cohort"]) - {int(node) for node in entry["failed"]}
        off = abs(entry["metrics"]["delta"] - _mean_delta(entry))
        facts = {"replies": len(answered), "distinct": len(answered), "error": max(error, off)}
        result.append({**line, **facts})
    return result


def _mean_delta(entry: dict[str, Any]) -> float:
    nodes = set(entry["cohort"]) - {int(node) for node in entry["failed"]}
    return float(np.mean([noop_app.delta_of(node, entry["round"]) for node in nodes]))


def _sample_of(path: Path) -> np.ndarray:
    record = ArrayRecord({name: Array(array) for name, array in load_arrays(path).items()})
    return noop_app.sample_of(record)
