"""Whatever is killed comes back, and the run ends with the weights of an uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import (
    ROUNDS,
    Arrays,
    assert_same_bits,
    initial_file,
    quick_spec,
    with_clients,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.client.store import Decision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWNERS = ("ada", "bea", "cy")
HELD = 2  # the round in the middle of which something is killed


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("recovery"), *OWNERS) as made:
        yield made


@pytest.fixture(scope="module")
def uninterrupted(played: Federation) -> Arrays:
    """The weights of a run in which nothing was killed."""
    return played.finish(submit(played))


def submit(played: Federation) -> str:
    return played.submit(with_clients(quick_spec(), len(OWNERS)), initial_file(played.root))


def released(played: Federation, name: str, run_id: str) -> list[Decision]:
    """What an owner released, the latest first; and nothing may have failed."""
    decisions = [line for line in played.decisions(name, run_id) if line.message_id]
    assert {line.outcome for line in decisions} == {"released"}
    return decisions


def assert_whole(played: Federation, run_id: str, uninterrupted: Arrays) -> None:
    """The run has ended as if nothing had happened, with one release per owner and message."""
    assert_same_bits(uninterrupted, played.finish(run_id))
    folder = played.pull(run_id)
    manifest = json.loads(folder.manifest.read_bytes())
    assert manifest["status"] == "finished"
    assert [entry["attempt"] for entry in manifest["rounds"]] == [1] * ROUNDS
    assert [entry["failed"] for entry in manifest["rounds"]] == [{}] * ROUNDS
    for name in OWNERS:
        messages = [line.message_id for line in released(played, name, run_id)]
        assert len(messages) == len(set(messages)) == ROUNDS


@contextlib.contextmanager
def held(played: Federation, *names: str) -> Iterator[str]:
    """Submit a run and give its id once these owners' apps wait in the middle of it."""
    gates = played.hold(HELD, *names)
    try:
        run_id = submit(played)
        for name in names:
            played.wait_until_held(name, HELD, run_id)
        yield run_id
    finally:
        for gate in gates:
            gate.unlink(missing_ok=True)


def release(played: Federation) -> None:
    for gate in played.gates.glob("hold-*"):
        gate.unlink()


def test_a_client_killed_in_the_middle_of_training(
    played: Federation, uninterrupted: Arrays
) -> None:
    """Its worker had the message, nothing was stored: it is fetched again, and the run is equal."""
    with held(played, "ada") as run_id:
        played.daemons["ada"].kill()
        eventually("its worker to end", lambda: not played.processes("tacit.client.worker ada"))
        assert played.outbox("ada") == []
        played.wait_for_event(run_id, "node_left", member="ada", code="")
        assert [each["member"] for each in shown(played, run_id)["missing"]] == ["ada"]
        release(played)
        played.start_client("ada")
        assert_whole(played, run_id, uninterrupted)
    assert shown(played, run_id)["missing"] == []
    watched = played.tacit("run", "watch", run_id).out.splitlines()
    lost, back = watched.index("ada: its connection is lost"), watched.index("ada: connected again")
    assert lost < back
    pulled = played.pull(run_id).events.read_text()
    assert pulled.index('"node_left"') < pulled.index('"node_joined"')


def shown(played: Federation, run_id: str) -> dict[str, Any]:
    """What `tacit run show` says to scripts."""
    value: dict[str, Any] = played.tacit("run", "show", run_id, "--json").json
    return value


def test_a_client_killed_between_storing_and_sending(
    played: Federation, uninterrupted: Arrays
) -> None:
    """The reply is in the outbox and no byte of it has left: the stored one is sent."""
    with held(played, "ada") as run_id:
        server = played.daemons["server"]
        server.send(signal.SIGSTOP)
        release(played)
        stored = eventually("a stored reply", lambda: played.outbox("ada"))
        assert [entry.received_at_s for entry in stored] == [None]
        before = released(played, "ada", run_id)
        played.daemons["ada"].kill()
        server.send(signal.SIGCONT)
        played.start_client("ada")
        assert_whole(played, run_id, uninterrupted)
        assert released(played, "ada", run_id)[-len(before) :] == before


def test_a_server_killed_in_the_middle_of_a_round(
    played: Federation, uninterrupted: Arrays
) -> None:
    """Two of three replies are in the journal: they are not asked for again; watching goes on."""
    with held(played, "cy") as run_id:
        for name in ("ada", "bea"):
            played.wait_for_event(run_id, "reply_received", member=name, round=HELD)
        watch = played.start("watch", "run", "watch", run_id, "--json")
        watch.says('"round_started"', times=HELD)
        played.daemons["server"].kill()
        watch.says("waiting for the server")
        played.start_server()
        release(played)
        assert watch.ends() == 0
        assert_whole(played, run_id, uninterrupted)
        kinds = [json.loads(line)["kind"] for line in watch.text.splitlines() if line[0] == "{"]
        assert kinds.count("round_finished") == ROUNDS
        assert kinds[-1] == "run_finished"


def test_a_run_worker_killed_in_the_middle_of_a_round(
    played: Federation, uninterrupted: Arrays
) -> None:
    """It starts again from its last checkpoint and is answered by the journal."""
    with held(played, "cy") as run_id:
        played.wait_for_event(run_id, "reply_received", member="ada", round=HELD)
        (worker,) = played.processes("tacit.server.worker --pipe")
        os.kill(worker, signal.SIGKILL)
        played.wait_for_event(run_id, "replayed", round=HELD - 1)
        release(played)
        assert_whole(played, run_id, uninterrupted)


def test_everything_killed_at_once(played: Federation, uninterrupted: Arrays) -> None:
    """Server, run worker and owners die together, as in a power cut, and come back in any order."""
    with held(played, "cy") as run_id:
        played.wait_for_event(run_id, "reply_received", member="ada", round=HELD)
        for name in ("server", *OWNERS):
            played.daemons[name].kill()
        eventually("every process to end", lambda: not played.processes())
        release(played)
        for name in OWNERS:
            played.start(name, "client", "start", "--home", played.root / name)
        played.start_server()
        assert_whole(played, run_id, uninterrupted)
