"""A server that is away, a port that is taken, a disk that is full: said clearly, nothing lost."""

from __future__ import annotations

import contextlib
import resource
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import save_arrays
from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import ROUNDS, quick_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

MODEL_BYTES = 8 << 20
FULL_AT_BYTES = 4 << 20  # no file may grow beyond: the databases fit, a payload does not


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("away"), "ada", "bea") as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server with an owner whose daemon does not run."""
    with federation(tmp_path_factory.mktemp("alone")) as made:
        made.join("ada")
        yield made


@pytest.fixture(scope="module")
def large(played: Federation) -> Path:
    """Weights of which one copy does not fit on the full disk."""
    path = played.root / "large.safetensors"
    save_arrays(path, {"weight": np.ones(MODEL_BYTES // 4, dtype=np.float32)})
    return path


@contextlib.contextmanager
def full_disk(process: int) -> Iterator[None]:
    """Let a running process find that no file can grow any more, as on a full disk."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (FULL_AT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


def test_a_server_that_is_away_is_named(alone: Federation) -> None:
    """Commands end with 6 and say where to look; what needs no daemon works without one."""
    token = alone.token("late")
    alone.daemons["server"].kill()
    for verb in (("run", "list"), ("run", "watch", "r-1"), ("run", "pull")):
        assert "server status" in alone.tacit(*verb).refuses(6, "E-SERVER-UNREACHABLE")
    home = alone.root / "late"
    alone.tacit("client", "join", token, "--home", home).refuses(6, "E-SERVER-UNREACHABLE")
    check = alone.tacit("client", "check", "--home", alone.root / "ada")
    assert (check.code, "E-SERVER-UNREACHABLE" in check.out) == (3, True)
    drain = alone.tacit("server", "drain", "--home", alone.home)
    drain.refuses(6, "E-SERVER-STOPPED")
    members = alone.tacit("server", "members", "--home", alone.home, "--json")
    assert {"ada", "late"} <= {member["name"] for member in members.json}
    alone.start_server()
    assert alone.tacit("client", "join", token, "--home", home).code == 0


def test_a_port_that_is_taken_is_named(alone: Federation) -> None:
    """The daemon does not start beside another one, and starts once the port is free."""
    second = alone.tacit("server", "start", "--home", alone.home)
    second.refuses(6, "E-STATE-LOCKED")
    alone.daemons["server"].kill()
    for port in alone.ports:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            taken = alone.tacit("server", "start", "--home", alone.home)
            assert str(port) in taken.refuses(6, "E-PORT-TAKEN")
    alone.start_server()


@pytest.mark.usefixtures("large")
def test_a_run_that_does_not_fit_on_the_server_s_disk_is_refused_whole(
    played: Federation,
) -> None:
    """The operator hears of it with exit code 6; no part of the run stays; later it is taken."""
    (played.root / "run.toml").write_text(RUN_TOML)
    before = sorted((played.home / "runs").iterdir())
    with full_disk(played.daemons["server"].process.pid):
        submit = played.tacit("run", "submit", played.root / "run.toml")
        submit.refuses(6, "E-DISK-FULL")
        assert sorted((played.home / "runs").iterdir()) == before
    submitted = played.tacit("run", "submit", played.root / "run.toml", "--json")
    assert len(played.finish(submitted.json["run_id"])["weight"]) == MODEL_BYTES // 4


@pytest.mark.parametrize("who", ["server", "ada"])
def test_a_reply_that_does_not_fit_waits_until_there_is_room(
    played: Federation, large: Path, who: str
) -> None:
    """Neither a full disk at the server nor one at the owner fails the round or the reply."""
    gates = played.hold(2, "ada", "bea")
    run_id = played.submit(quick_spec(), large)
    for name in ("ada", "bea"):
        played.wait_until_held(name, 2, run_id)
    with full_disk(played.daemons[who].process.pid):
        for gate in gates:
            gate.unlink()
        ada = played.daemons["ada"]
        eventually("the reply to be delayed", lambda: delayed(ada.text, run_id))
    played.finish(run_id)
    assert [kind for kind, _ in played.events(run_id)].count("reply_failed") == 0
    for name in ("ada", "bea"):
        log = [line.outcome for line in played.decisions(name, run_id) if line.message_id]
        assert log == ["released"] * ROUNDS


def delayed(log: str, run_id: str) -> bool:
    lines = [line for line in log.splitlines() if "message delayed" in line and run_id in line]
    return any("E-DISK-FULL" in line for line in lines)


RUN_TOML = """\
name = "large"
initial = "large.safetensors"

[app]
client = "quick_app:app"

[privacy]
mode = "none"

[participation]
rounds = 1

[results.train.metrics.num-examples]
range = [0, 10]
"""
