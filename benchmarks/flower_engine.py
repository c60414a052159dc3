"""Flower's own engine on loopback: a SuperLink, four SuperNodes, the app installed as flwr wants.

The app is a folder with a pyproject.toml; ``flwr run`` builds a bundle from it and hands it to the
SuperLink, which starts the ServerApp in a process, as each SuperNode does with the ClientApp for
each message. Everything runs with flwr's defaults, but for two settings that only favour Flower:
no TLS (``--insecure``), and no installation of dependencies at run time, for they are here already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT_S = 60.0
SUBMIT_TIMEOUT_S = 60.0

PYPROJECT = """\
[project]
name = "noop"
version = "1.0.0"
description = "A Flower app that trains nothing"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["flwr==1.41.0"]

[tool.flwr.app]
publisher = "tacit"

[tool.flwr.app.components]
serverapp = "{app}:server_app"
clientapp = "{app}:client_app"

[tool.flwr.app.config]
parameters = {parameters}
rounds = {rounds}
clients = {clients}
report = "{report}"
"""

CONNECTION = """\
[superlink]
default = "bench"

[superlink.bench]
address = "127.0.0.1:{port}"
insecure = true
"""


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """One measurement of Flower's engine.

    Attributes:
        secure: whether its rounds use SecAgg+ (benchmarks/secagg_app.py).
        tolerance: how far the aggregate may be off.
    """

    parameters: int
    rounds: int
    clients: int
    timeout_s: float
    secure: bool = False
    tolerance: float = noop_app.TOLERANCE


def measure_flower(run: FlowerRun, *, folder: Path, progress: Callable[[str], None]) -> Result:
    """Start the engine, submit the app, wait for its rounds, and end every process."""
    report = folder / "report.jsonl"
    link_port, *node_ports = free_ports(1 + run.clients)
    environ = _environment(folder / "flwr-home", link_port)
    _write_app(folder / "app", run, report)
    began = time.monotonic()
    with Crew(folder) as crew:
        crew.start(SERVER, _superlink(link_port), environ=environ)
        wait_for_port(link_port, crew, timeout_s=START_TIMEOUT_S)
        for index, port in enumerate(node_ports):
            crew.start(f"client{index}", _supernode(link_port, port), environ=environ)
        for port in node_ports:
            wait_for_port(port, crew, timeout_s=START_TIMEOUT_S)
        progress("SuperLink and SuperNodes are up")
        with Sampler(crew.pids) as sampler:
            _submit(folder / "app", environ)
            lines = wait_for_rounds(
                lambda: read_report(report),
                run.rounds + 1,
                crew,
                timeout_s=run.timeout_s,
                progress=progress,
            )
    verify_rounds(lines, clients=run.clients, tolerance=run.tolerance)
    return result_of("flower", run.parameters, lines, traces=sampler.traces, began=began)


def _environment(home: Path, port: int) -> dict[str, str]:
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{programs}:{os.environ.get('PATH', '')}",  # the engine starts its own programs
    }


def _write_app(folder: Path, run: FlowerRun, report: Path) -> None:
    folder.mkdir()
    shutil.copy(noop_app.__file__, folder / "noop_app.py")
    if run.secure:
        shutil.copy(Path(__file__).with_name("secagg_app.py"), folder / "secagg_app.py")
    text = PYPROJECT.format(
        app="secagg_app" if run.secure else "noop_app",
        parameters=run.parameters,
        rounds=run.rounds + 1,
        clients=run.clients,
        report=report,
    )
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def _superlink(port: int) -> list[str]:
    return [
        _program("flower-superlink"),
        "--insecure",
        "--disable-runtime-dependency-installation",
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _supernode(link_port: int, port: int) -> list[str]:
    return [
        _program("flower-supernode"),
        "--insecure",
        *("--superlink", f"127.0.0.1:{link_port}"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _program(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise BenchmarkError(f"{name} is not installed beside {sys.executable}")
    return str(path)


def _submit(app: Path, environ: dict[str, str]) -> None:
    command = [_program("flwr"), "run", str(app), "bench"]
    done = subprocess.run(
        command,
        env=environ,
        cwd=app.parent,
        capture_output=True,
        text=True,
        timeout=SUBMIT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"flwr run ended with {done.returncode}: {done.stdout}{done.stderr}")
