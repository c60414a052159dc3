"""A ledger that was changed, cut, put back or copied is found by the real daemons, by entry.

Nothing leaves under it; the owner reads why, and what to do, in each of the three places where one
looks: `tacit client status`, `tacit client check` and `tacit ledger verify`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tacit.core.keys import MemberKeys
from tacit.privacy.ledger import Ledger
from tests.end_to_end.evidence import entries_of
from tests.end_to_end.federation import Federation, federation
from tests.end_to_end.runs import DATA_SET, initial_file, private_spec, with_clients
from tests.privacy.ledgers import tampering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.end_to_end.federation import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 3


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation after one run; ada's daemon is stopped, and a copy was made before the run."""
    with federation(tmp_path_factory.mktemp("damage"), start=False) as made:
        made.start_server()
        home = made.join("ada", data=DATA_SET)
        (home / "data.csv").write_text("age,sick\n1,0\n")
        made.start_client("ada")
        stop(made.daemons["ada"])
        shutil.copytree(home, made.root / "early", ignore=shutil.ignore_patterns("*.sock*"))
        made.start_client("ada")
        made.finish(submit(made, 1))
        stop(made.daemons["ada"])
        yield made


@pytest.fixture
def home(played: Federation) -> Iterator[Path]:
    """Ada's state directory, whole again afterwards."""
    home, kept = played.root / "ada", played.root / "kept"
    shutil.copytree(home, kept, symlinks=True)
    yield home
    daemon = played.daemons["ada"]
    if daemon.process.poll() is None:
        stop(daemon)
    shutil.rmtree(home)
    kept.rename(home)


@pytest.fixture
def living(played: Federation) -> Iterator[Path]:
    """Ada's state directory with her daemon running; it stays as it is afterwards."""
    played.start_client("ada")
    yield played.root / "ada"
    stop(played.daemons["ada"])


def submit(played: Federation, clients: int) -> str:
    run = with_clients(private_spec(), clients, rounds=ROUNDS)
    return played.submit(run, initial_file(played.root))


def stop(daemon: Daemon) -> None:
    daemon.process.terminate()
    assert daemon.ends() == 0


def put_back(source: Path, home: Path) -> None:
    """Replace the ledger's file, as a person would who has a copy."""
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (home / name).unlink(missing_ok=True)
    shutil.copy2(source, home / "ledger.sqlite")


def assert_refused(played: Federation, code: str, *words: str) -> None:
    """The daemon does not start, and each verb that looks names the entry and what to do."""
    start = played.start("ada", "client", "start", "--home", played.root / "ada")
    assert start.ends() == 5
    verify = played.tacit("ledger", "verify", "--home", played.root / "ada").refuses(5, code)
    status = played.tacit("client", "status", "--home", played.root / "ada")
    check = played.tacit("client", "check", "--home", played.root / "ada")
    export = played.root / "refused.jsonl"
    played.tacit("ledger", "export", "--home", played.root / "ada", "--out", export).refuses(
        5, code
    )
    assert not export.exists()
    assert (status.code, check.code) == (5, 3)
    for text in (start.text, verify, status.out, check.out):
        shown = " ".join(text.split())
        assert f"[{code}]" in shown
        assert all(word in shown for word in words), shown
    assert "tacit client restore" in status.out or "stop one for good" in status.out  # what to do


def test_a_flipped_byte(played: Federation, home: Path) -> None:
    """One bit of one entry: the daemon refuses to start, and names it."""
    with tampering(home / "ledger.sqlite") as connection:
        query = "SELECT content FROM entries WHERE sequence = 4"
        content = bytearray(connection.execute(query).fetchone()[0])
        content[10] ^= 1
        connection.execute("UPDATE entries SET content = ? WHERE sequence = 4", (bytes(content),))
    assert_refused(played, "E-LEDGER-CORRUPT", "entry 4")


def test_a_truncated_file(played: Federation, home: Path) -> None:
    """Its last page is gone: the first lost entry is named, and the one that the store knows."""
    path, entries = home / "ledger.sqlite", entries_of(home)
    with tampering(path) as connection:
        connection.execute("VACUUM")
    os.truncate(path, path.stat().st_size - 4096)
    assert_refused(played, "E-LEDGER-CORRUPT", "damage at entry", f"entry {entries} must exist")


def test_a_truncated_tail(played: Federation, home: Path) -> None:
    """What is left is sound; the node's own memory knows that there was more."""
    with tampering(home / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM entries WHERE sequence > 3")
    assert_refused(played, "E-LEDGER-ROLLBACK", "entry 4")


def test_a_restored_copy_of_the_ledger(played: Federation, home: Path) -> None:
    """A file from before the run, sound in itself, is an old one."""
    put_back(played.root / "early" / "ledger.sqlite", home)
    assert_refused(played, "E-LEDGER-ROLLBACK", "entry 2")


def test_a_ledger_that_is_gone(played: Federation, home: Path) -> None:
    """A node that has charged its ledger never begins another."""
    entries = entries_of(home)
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    assert_refused(played, "E-LEDGER-ROLLBACK", f"entry {entries}")
    assert not (home / "ledger.sqlite").exists()


def test_a_restored_copy_of_the_whole_directory(played: Federation, home: Path) -> None:
    """Ledger and store agree with one another: the server knows better, and the node stays out."""
    shutil.rmtree(home)
    shutil.copytree(played.root / "early", home)
    node = played.start("ada", "client", "start", "--home", home)
    node.says("E-LEDGER-ROLLBACK")
    status = played.tacit("client", "status", "--home", home).out
    assert "connecting" in status
    assert "entry 2 and later ones are gone [E-LEDGER-ROLLBACK]" in status
    assert "newest copy" in status
    check = played.tacit("client", "check", "--home", home)
    assert check.code == 3
    assert "entry 2 and later ones are gone [E-LEDGER-ROLLBACK]" in check.out
    assert "E-LEDGER-ROLLBACK" in played.daemons["server"].text
    run_id = submit(played, 1)
    waiting = played.wait_for_event(run_id, "run_waiting")
    assert waiting["approved"] == 0
    assert entries_of(home) == 1
    with played.operator() as operator:
        operator.stop(run_id, "no node")


def test_a_second_node_on_a_copied_directory(played: Federation, living: Path) -> None:
    """The copy that is behind may not join, and the run sees who and why; the first goes on."""
    entries = entries_of(living)
    twin_home = copy_of(living, "twin")
    run_id = submit(played, 1)
    gates = played.hold(2, "ada")
    played.wait_until_held("ada", 2, run_id)
    twin = played.start("twin", "client", "start", "--home", twin_home)
    twin.says("E-LEDGER-ROLLBACK")
    refused = played.wait_for_event(run_id, "node_refused", code="E-LEDGER-ROLLBACK")
    assert refused["member"] == "ada"
    for gate in gates:
        gate.unlink()
    played.finish(run_id)
    assert entries_of(living) == entries + ROUNDS
    assert entries_of(twin_home) == entries
    stop(twin)


def test_two_nodes_on_equal_copies(played: Federation, living: Path) -> None:
    """They take one another's place at the server: both owners and the operator are told."""
    twin_home = copy_of(living, "equal")
    twin = played.start("equal", "client", "start", "--home", twin_home)
    for daemon, home in ((twin, twin_home), (played.daemons["ada"], living)):
        daemon.says("E-NODE-TWICE")
        status = " ".join(played.tacit("client", "status", "--home", home).out.split())
        assert "another node has connected with this node's keys" in status
        assert "stop one for good" in status
    played.daemons["server"].says("the same node is connected twice")
    stop(twin)


def test_two_nodes_that_went_on_from_one_copy(played: Federation, living: Path) -> None:
    """The longer fork finds out by itself and stays out, and spoils nothing for the true one."""
    fork_home = copy_of(living, "fork")
    played.finish(submit(played, 1))
    known = entries_of(living)
    lengthen(fork_home, by=ROUNDS + 2)
    assert entries_of(fork_home) > known
    fork = played.start("fork", "client", "start", "--home", fork_home)
    fork.says("E-LEDGER-FORK")
    status = " ".join(played.tacit("client", "status", "--home", fork_home).out.split())
    assert f"whose entry {known} has hash" in status
    assert "[E-LEDGER-FORK] Two nodes work on copies" in status
    stop(fork)
    played.finish(submit(played, 1))
    assert entries_of(living) == known + ROUNDS


def copy_of(home: Path, name: str) -> Path:
    """Copy a whole state directory, as a person would to move a node to another machine."""
    copied = home.with_name(name)
    shutil.copytree(home, copied, ignore=shutil.ignore_patterns("*.sock*"))
    return copied


def lengthen(folder: Path, *, by: int) -> None:
    """Charge a ledger further by itself, as a node on the copy would have."""
    keys = MemberKeys.load(folder / "identity")
    path = folder / "ledger.sqlite"
    with Ledger.open(path, signer=keys.enrolment.sign, clock=time.time) as ledger:
        charge = ledger.account("default").charges[0].charge
        for number in range(by):
            ledger.reserve(dataclasses.replace(charge, run=f"r-f{number:07d}"))
