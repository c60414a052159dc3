"""What the README shows is what the software does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALK = re.compile(r"<!-- walk: (\w+)(?: (\w+))? -->\n```bash\n(.*?)```", re.DOTALL)
READY = {"server": "serving", "cleveland": "connected", "va": "connected"}


def test_every_path_that_the_readme_names_exists() -> None:
    """A promise in the README points at a file and a test that are there."""
    named = set(re.findall(r"`((?:\w+/)+(?:[\w.-]+)?)`", README)) | {
        target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target
    }
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


class Terminals:
    """Runs the walk's blocks: foreground ones to their end, daemons in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TACIT_SOURCE": str(ROOT),
            "TACIT_OPERATOR_HOME": str(folder / "operator"),
        }

    def run(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, name: str, script: str) -> None:
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            self.daemons.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {script.strip()}"],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            )
        deadline = time.monotonic() + 60
        while READY[name] not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert self.daemons[-1].poll() is None, log.read_text()
            time.sleep(0.1)

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=60)


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on: the README's own may be taken on this machine."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_walk_through_works_as_written(
    terminals: Terminals, free_ports: tuple[int, int]
) -> None:
    """Every command of the ten minutes by hand runs, and ends in a model."""
    blocks = WALK.findall(README)
    assert sum(who == "daemon" for who, _, _ in blocks) == 3
    ports = f" --listen 127.0.0.1:{free_ports[0]} --enrolment-listen 127.0.0.1:{free_ports[1]}"
    for who, name, script in blocks:
        if who == "daemon":
            terminals.start(name, script)
        else:
            terminals.run(
                script.replace("/server\n", f"/server{ports}\n", 1)
                if "server init" in script
                else script
            )
    assert (terminals.folder / "result" / "model.safetensors").is_file()
    manifest = json.loads((terminals.folder / "result" / "manifest.json").read_bytes())
    assert set(manifest["members"].values()) == {"cleveland", "va"}
