"""A node's life over backups, restores and attempts that come to nothing, with real daemons."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from tacit.client.restored import read_mark
from tests.end_to_end.evidence import entries_of
from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import DATA_SET, initial_file, private_spec, with_clients

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.end_to_end.federation import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 3


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Federation]:
    """A server, and ada, whose data set has an account."""
    with federation(tmp_path, start=False) as made:
        made.start_server()
        give_records(made.join("ada", data=DATA_SET))
        made.start_client("ada")
        yield made


def give_records(home: Path) -> None:
    (home / "data.csv").write_text("age,sick\n1,0\n")


def submit(played: Federation, **participation: Any) -> str:
    run = with_clients(private_spec(), 1, rounds=ROUNDS, **participation)
    return played.submit(run, initial_file(played.root))


def stop(daemon: Daemon) -> None:
    daemon.process.terminate()
    assert daemon.ends() == 0


def release(gates: list[Path]) -> None:
    for gate in gates:
        gate.unlink()


def backed_up(played: Federation, name: str) -> Path:
    file = played.root / name
    said = played.tacit("client", "backup", file, "--home", played.root / "ada", "--json")
    assert said.code == 0, said
    return file


def restored(played: Federation, file: Path, name: str) -> Path:
    home = played.root / name
    said = played.tacit("client", "restore", file, "--home", home)
    assert said.code == 0, said
    give_records(home)
    return home


def shown(played: Federation, home: Path) -> dict[str, Any]:
    value: dict[str, Any] = played.tacit("ledger", "show", "--home", home, "--json").json
    return value


def test_an_old_copy_stays_out_and_a_whole_one_works_on(played: Federation) -> None:
    """Backups are made while the node works; only the one that has all of the ledger may go on."""
    gates = played.hold(2, "ada")
    run_id = submit(played)
    played.wait_until_held("ada", 2, run_id)
    early = backed_up(played, "early.backup")  # after round 1
    release(gates)
    played.finish(run_id)
    late = backed_up(played, "late.backup")
    stop(played.daemons["ada"])
    entries = entries_of(played.root / "ada")
    assert entries == 2 + ROUNDS
    old = restored(played, early, "old")
    assert_stays_out(played, old)
    new = restored(played, late, "new")
    check = played.tacit("client", "check", "--home", new)
    assert "nothing leaves until the server has said" in check.out
    played.start_client("new")
    played.finish(submit(played))
    assert read_mark(new) is None
    kinds = [entry["kind"] for entry in shown(played, new)["entries"]]
    assert kinds == ["begin", "open", *["reserve"] * ROUNDS, "restore", *["reserve"] * ROUNDS]
    table = played.tacit("ledger", "show", "--home", new).out
    assert f"it holds all {entries} entries that the server had seen" in " ".join(table.split())
    assert played.tacit("ledger", "verify", "--home", new).code == 0


def assert_stays_out(played: Federation, home: Path) -> None:
    """The node names the first entry that is missing, and a run gets nothing of it."""
    node = played.start("old", "client", "start", "--home", home)
    node.says("E-LEDGER-ROLLBACK")
    status = " ".join(played.tacit("client", "status", "--home", home).out.split())
    assert "is too old" in status
    assert "entry 4 and later ones are gone" in status
    assert "Restore a newer backup" in status
    run_id = submit(played)
    assert played.wait_for_event(run_id, "run_waiting")["approved"] == 0
    with played.operator() as operator:
        operator.stop(run_id, "no node")
    stop(node)
    assert entries_of(home) == 3
    assert read_mark(home) is not None


def test_what_a_stopped_run_never_got_is_shown_as_aborted(played: Federation) -> None:
    """Charged and delivered, or charged and not used: the owner sees which, and pays for both."""
    home = played.root / "ada"
    gates = played.hold(2, "ada")
    run_id = submit(played)
    played.wait_until_held("ada", 2, run_id)
    played.daemons["server"].send(signal.SIGSTOP)
    release(gates)
    eventually("round 2 to be charged and stored", lambda: waiting(played))
    spent = shown(played, home)["accounts"][0]
    assert (spent["charges"], spent["aborted"]) == (2, 0)
    stop(played.daemons["ada"])
    played.daemons["server"].send(signal.SIGCONT)
    with played.operator() as operator:
        operator.stop(run_id, "enough")
    played.start_client("ada")
    account = eventually("an abort", lambda: aborted(played, home))
    assert account == spent | {"aborted": 1}
    table = " ".join(played.tacit("ledger", "show", "--home", home).out.split())
    assert "entry 4 stays charged: no receipt" in table
    played.finish(submit(played))
    assert shown(played, home)["accounts"][0]["aborted"] == 1


def test_an_app_that_is_too_late_for_its_round_costs_nothing(played: Federation) -> None:
    """The round is tried again and charged once: what expired was dropped before its charge."""
    gates = played.hold(1, "ada")
    run_id = submit(played, round_deadline_s=8.0)
    played.wait_for_event(run_id, "reply_failed", code="E-MESSAGE-EXPIRED")
    release(gates)
    played.finish(run_id)
    account = shown(played, played.root / "ada")["accounts"][0]
    assert (account["charges"], account["aborted"]) == (ROUNDS, 0)


def waiting(played: Federation) -> bool:
    return any(entry.received_at_s is None for entry in played.outbox("ada"))


def aborted(played: Federation, home: Path) -> dict[str, Any] | None:
    account: dict[str, Any] = shown(played, home)["accounts"][0]
    return account if account["aborted"] else None
