"""Our engine on loopback: the real daemons, driven by the commands that people use.

A server is initialised, four clients are invited and join, and a run of the no-op app is submitted:
mutual TLS on everything but enrolment, the journal on, every app in its own confined worker. The
app is installed by a folder on PYTHONPATH, and each owner's policy names it; nothing is switched
off, and nothing is patched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import noop_app
from benchmarks.measure import Sampler
from benchmarks.processes import BenchmarkError, Crew, free_ports, wait_for_port
from benchmarks.results import SERVER, Result, result_of, verify_rounds, wait_for_rounds

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

RUN_TOML = """\
name = "no-op"

[app]
client = "noop_app:client_app"
server = "noop_app:server_app"

[app.config]
parameters = {parameters}
rounds = {rounds}
clients = {clients}
report = "{report}"

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
    """

    parameters: int
    rounds: int
    clients: int
    journal: str
    timeout_s: float


def measure_tacit(run: TacitRun, *, folder: Path, progress: Callable[[str], None]) -> Result:
    """Build a federation, submit the app, wait for its rounds, and end every process."""
    report = folder / "report.jsonl"
    apps = folder / "apps"
    apps.mkdir()
    shutil.copy(noop_app.__file__, apps / "noop_app.py")
    base = _environment(folder, apps)
    listen, enrolment = free_ports(2)
    began = time.monotonic()
    with Crew(folder) as crew:
        _start_server(run, crew, base, ports=(listen, enrolment))
        for index in range(run.clients):
            _start_client(run, crew, base, index=index)
        progress("the server and all clients are up")
        with Sampler(crew.pids) as sampler:
            run_id = _submit(run, folder, base, report)
            lines = wait_for_rounds(
                report,
                run.rounds + 1,
                crew,
                timeout_s=run.timeout_s,
                progress=progress,
                failed=_failure_watch(run_id, base),
            )
    verify_rounds(lines, clients=run.clients)
    name = f"tacit {run.journal}"
    return result_of(name, run.parameters, lines, traces=sampler.traces, began=began)


def _environment(folder: Path, apps: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TACIT_")}
    return {
        **kept,
        "PYTHONPATH": str(apps),
        "XDG_STATE_HOME": str(folder / "state"),
        "TACIT_SERVER_HOME": str(folder / "server"),
        "TACIT_OPERATOR_HOME": str(folder / "operator"),
    }


def _start_server(
    run: TacitRun, crew: Crew, environ: dict[str, str], *, ports: tuple[int, int]
) -> None:
    listen, enrolment = (f"127.0.0.1:{port}" for port in ports)
    addresses = ["--listen", listen, "--enrolment-listen", enrolment]
    _verb(["server", "init", "--name", "127.0.0.1", *addresses], environ)
    text = SERVER_TOML.format(listen=listen, enrolment=enrolment, journal=run.journal)
    (crew.folder / "server" / "server.toml").write_text(text, encoding="utf-8")
    crew.start(SERVER, [_program(), "server", "start"], environ=environ)
    for port in ports:
        wait_for_port(port, crew, timeout_s=START_TIMEOUT_S)


def _start_client(run: TacitRun, crew: Crew, environ: dict[str, str], *, index: int) -> None:
    name, home = f"client{index}", crew.folder / f"client{index}"
    invited = _verb(["server", "invite", name, "--role", "client", "--json"], environ)
    token = str(json.loads(invited)["token"])
    own = {**environ, "TACIT_CLIENT_HOME": str(home)}
    _verb(["client", "join", token], own)
    text = CLIENT_TOML.format(journal=run.journal, clients=run.clients)
    (home / "client.toml").write_text(text, encoding="utf-8")
    crew.start(name, [_program(), "client", "start"], environ=own)


def _submit(run: TacitRun, folder: Path, environ: dict[str, str], report: Path) -> str:
    path = folder / "run.toml"
    text = RUN_TOML.format(
        parameters=run.parameters, rounds=run.rounds + 1, clients=run.clients, report=report
    )
    path.write_text(text, encoding="utf-8")
    answer = _verb(["run", "submit", str(path), "--json"], environ)
    return str(json.loads(answer)["run_id"])


def _failure_watch(run_id: str, environ: dict[str, str]) -> Callable[[], str]:
    """Return a function that asks now and then whether the run has failed, and why."""
    asked = time.monotonic()

    def failed() -> str:
        nonlocal asked
        if time.monotonic() - asked < 5:
            return ""
        asked = time.monotonic()
        shown = json.loads(_verb(["run", "show", run_id, "--json"], environ))
        if shown["status"] in ("failed", "stopped"):
            return f"the run ended as {shown['status']}: {shown.get('reason', '')}"
        return ""

    return failed


def _program() -> str:
    return str(shutil.which("tacit", path=os.path.dirname(sys.executable)) or "tacit")  # noqa: PTH120


def _verb(arguments: list[str], environ: dict[str, str]) -> str:
    """Run a ``tacit`` command and return what it printed."""
    done = subprocess.run(
        [_program(), *arguments],
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
