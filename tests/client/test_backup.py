"""A node in one file: what is in it, what is not, and what a restore refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import stat
import zipfile
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tacit.client.backup import make_backup, restore_backup
from tacit.client.daemon import assembled
from tacit.client.ledger_view import read_ledger
from tacit.client.restored import Mark, confirm, explained, read_mark, write_mark
from tacit.client.secure_guard import GUARD_NAME, open_guard
from tacit.core.errors import TacitError, TrustError
from tacit.core.members import format_members
from tacit.core.state import open_state
from tacit.privacy.ledger import LEDGER_NAME
from tacit.privacy.ledger_entries import Restore
from tacit.privacy.secagg.guard import Attempt
from tacit.protos import fleet_pb2
from tests.client.fake_fleet import Domain
from tests.client.fakes import RUN, instruction, make_node, make_spec, offer, open_ledger
from tests.client.test_charges import account_of, config_of
from tests.privacy.ledgers import tampering

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.privacy.ledger_head import Head

MESSAGE = f"{RUN}.000001"
MADE_S, RESTORED_S = 1_000_000.0, 2_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The state directory of a node that is enrolled and has never been started."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    Domain.create().member(folder / "identity", 1)
    (folder / "client.toml").write_text("# policy\n")
    (folder / "members.toml").write_text(format_members({"bo": bytes(32)}))
    (folder / "split-key").write_bytes(bytes(32))
    return folder


def answering(home: Path, *numbers: int) -> Node:
    """A node that has answered these messages and has its replies still."""
    node, _ = make_node(home, config_of(home))
    offer(node, make_spec())
    for number in numbers:
        node.answer(*instruction(make_spec(), number))
    return node


def backed_up(home: Path, name: str = "node.backup") -> Path:
    out = home.parent / name
    make_backup(open_state(home, create=False), out, at_s=MADE_S)
    return out


def restored(source: Path, name: str = "again") -> Path:
    again = source.parent / name
    restore_backup(source, again, at_s=RESTORED_S)
    return again


def head_of(home: Path) -> Head:
    return open_ledger(home).head().head


def mark_of(home: Path) -> Mark:
    mark = read_mark(home)
    assert mark is not None
    return mark


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(TacitError) as caught:
        call()
    return caught.value.code


def test_a_node_comes_back_with_all_that_it_knew(home: Path) -> None:
    """Keys, policy, runs, decisions, ledger and split key are what they were; files are private."""
    node = answering(home, 1, 2)
    (home / "runs" / RUN / "split.json").write_text("{}")
    (home / "runs" / RUN / "received.safetensors").write_bytes(b"a model")
    source = backed_up(home)
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    again = restored(source)
    names = {str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()}
    assert names == {
        "client.toml",
        "members.toml",
        "client.sqlite",
        "ledger.sqlite",
        "split-key",
        "restored.json",
        f"runs/{RUN}/split.json",
        *(f"identity/{path.name}" for path in (home / "identity").iterdir()),
    }
    assert {stat.S_IMODE((again / name).stat().st_mode) for name in names} == {0o600}
    assert stat.S_IMODE(again.stat().st_mode) == 0o700
    for name in names - {"client.sqlite", "ledger.sqlite", "restored.json"}:
        assert (again / name).read_bytes() == (home / name).read_bytes(), name
    other, _ = make_node(again, config_of(again))
    assert other.store.list_runs() == node.store.list_runs()
    assert other.store.list_decisions(limit=9) == node.store.list_decisions(limit=9)
    assert head_of(again) == head_of(home)
    assert mark_of(again) == Mark(made_at_s=MADE_S, restored_at_s=RESTORED_S, entries=4)


def test_no_noise_key_and_no_answer_is_in_a_backup(home: Path) -> None:
    """Not as a row, and not as bytes that a deleted row leaves behind; the node keeps its own."""
    node = answering(home, 1)
    key = node.store.noise_key(MESSAGE, 0, fresh=bytes)
    payload = bytes(node.open_reply(node.store.list_replies()[0]))
    source = backed_up(home)
    data = source.read_bytes()
    assert key not in data
    assert payload not in data
    with sqlite3.connect(restored(source) / "client.sqlite") as connection:
        for table in ("noise_keys", "outbox"):
            query = f"SELECT count(*) FROM {table}"  # noqa: S608 - names from above
            assert connection.execute(query).fetchone() == (0,)
    assert node.store.noise_key(MESSAGE, 0, fresh=bytes) == key


def test_a_restored_node_asks_for_each_run_again(home: Path) -> None:
    """An approval of later runs may have been withdrawn since the backup: it does not come back."""
    node, _ = make_node(home, config_of(home))
    offer(node, make_spec())
    node.approve(RUN, repeat=True)
    again, _ = make_node(restored(backed_up(home)), config_of(home))
    assert [len(each.store.list_repeats()) for each in (node, again)] == [1, 0]


def test_a_restored_node_begins_no_secure_sum_in_a_run_that_it_knew(home: Path) -> None:
    """Not an attempt of before the copy, of after it, or of none; in a run that is new it does.

    Nothing of the guard is in the copy, and the node that was copied goes on as it was.
    """
    answering(home)
    first = Attempt(run=RUN, round=1, attempt=1)
    later = replace(first, attempt=2)
    with contextlib.closing(open_guard(home, known_runs=())) as guard:
        guard.begin(first, terms=bytes(32))
        source = backed_up(home)
        guard.begin(later, terms=bytes(32))
    again = restored(source)
    assert not (again / GUARD_NAME).exists()
    with assembled(open_state(again, create=False)):
        pass  # the first start makes the guard
    with contextlib.closing(open_guard(again, known_runs=())) as guard:
        for attempt in (first, later, replace(first, round=2)):
            asked = partial(guard.begin, attempt, terms=bytes(32))
            assert code_of(asked) == "E-SECAGG-RUN-OVER"
        guard.begin(replace(first, run="r-00000002"), terms=bytes(32))


def test_an_attempt_that_was_charged_before_the_backup_is_not_made_again(home: Path) -> None:
    """Its noise may have left: the restored node refuses, charges nothing, calls no app."""
    answering(home, 1)
    again = restored(backed_up(home))
    node, runner = make_node(again, config_of(again))
    entry = node.answer(*instruction(make_spec()))
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-RELEASE-REPEATED"
    assert runner.calls == []
    assert len(account_of(again).charges) == 1


def test_an_attempt_that_had_only_a_key_gets_another_one(home: Path) -> None:
    """The old node may have released under its key after the backup: two noises, two charges."""
    old = answering(home, 1)
    second, _ = instruction(make_spec(), 2)
    old.store.noise_key(second.message_id, 0, fresh=lambda: b"k" * 32)
    again = restored(backed_up(home))
    node, runner = make_node(again, config_of(again), fresh_key=lambda: b"f" * 32)
    node.answer(*instruction(make_spec(), 2))
    old.answer(*instruction(make_spec(), 2))
    assert [call.noise_key for call in runner.calls] == [b"f" * 32]
    assert len(account_of(again).charges) == 2


def test_an_app_keeps_its_state_and_a_missing_one_is_said(home: Path) -> None:
    """The state that the store names is in the backup, or there is no backup."""
    node = answering(home)
    run = node.store.load_run(RUN)
    assert run is not None
    with sqlite3.connect(home / "client.sqlite") as connection:
        connection.execute("UPDATE runs SET state_file = 'now.state'")
    assert code_of(lambda: backed_up(home)) == "E-BACKUP-BUSY"
    assert not (home.parent / "node.backup").exists()
    (home / "states" / "now.state").write_bytes(b"state")
    (home / "states" / "old.state").write_bytes(b"old")
    again = restored(backed_up(home))
    assert [path.name for path in (again / "states").iterdir()] == ["now.state"]
    assert (again / "states" / "now.state").read_bytes() == b"state"


def test_a_backup_holds_while_the_node_works(home: Path) -> None:
    """A store and a ledger that are open elsewhere are copied with what is still in their logs."""
    node = answering(home, 1)
    with open_ledger(home) as ledger:
        assert (home / "ledger.sqlite-wal").exists()
        source = backed_up(home)
        node.answer(*instruction(make_spec(), 2))
        assert len(ledger.entries()) == 4
    assert len(account_of(restored(source)).charges) == 1


def test_a_node_that_was_never_started_has_a_backup_too(home: Path) -> None:
    """Keys and policy; there is no ledger yet."""
    again = restored(backed_up(home))
    assert mark_of(again).entries == 0
    assert read_ledger(again).entries == 0


def test_a_damaged_ledger_is_not_backed_up(home: Path) -> None:
    """The owner hears of it while an older backup may still help."""
    answering(home, 1)
    with tampering(home / LEDGER_NAME) as connection:
        connection.execute("DELETE FROM entries WHERE sequence = 2")
    with pytest.raises(TrustError, match=r"entry 2.*E-LEDGER-CORRUPT"):
        backed_up(home)


def test_nothing_is_written_over(home: Path) -> None:
    """Not a backup by a backup, and not a node by a restore; an empty folder may be filled."""
    source = backed_up(home)
    assert code_of(lambda: backed_up(home)) == "E-BACKUP-EXISTS"
    assert code_of(lambda: restored(source, "home")) == "E-RESTORE-HOME"
    assert code_of(lambda: restored(source, source.name)) == "E-RESTORE-HOME"
    (home.parent / "empty").mkdir()
    assert mark_of(restored(source, "empty")).restored_at_s == RESTORED_S


def rewritten(source: Path, change: Callable[[dict[str, bytes]], None], **how: Any) -> Path:
    """Return a backup with other members; its manifest is as before unless it is changed."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    target = source.with_name("changed.backup")
    with zipfile.ZipFile(target, "w", **how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def with_member(name: str) -> Callable[[dict[str, bytes]], None]:
    """Add a member that the manifest names with its right hash."""

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["files"][name] = manifest["files"]["client.toml"]
        members[name] = members["client.toml"]
        members["manifest.json"] = json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "states/../../evil", "identity/..", "control.sock", "states/.hidden",
     "client.toml/x", "restored.json", "lock", "runs/a/../../split.json", "states\\..\\evil"],
)  # fmt: skip
def test_a_member_with_another_name_is_refused(home: Path, name: str) -> None:
    """Only names of a known form are written, so that nothing lands outside the home."""
    source = rewritten(backed_up(home), with_member(name))
    before = sorted(home.parent.rglob("*"))
    assert code_of(lambda: restored(source)) == "E-BACKUP-FORMAT"
    assert sorted(home.parent.rglob("*")) == before


def test_damage_is_found_and_leaves_nothing(home: Path) -> None:
    """Changed, missing, additional and compressed members, other files, and a cut file."""
    answering(home, 1)
    source = backed_up(home)

    def code(change: Callable[[dict[str, bytes]], None], **how: Any) -> str:
        return code_of(lambda: restored(rewritten(source, change, **how)))

    assert code(lambda m: m.update({"split-key": b"x" * 32})) == "E-BACKUP-CORRUPT"
    assert code(lambda m: m.pop("split-key") and None) == "E-BACKUP-FORMAT"
    assert code(lambda m: m.update({"states/more": b""})) == "E-BACKUP-FORMAT"
    assert code(lambda m: m.update({"manifest.json": b"[1]"})) == "E-BACKUP-FORMAT"
    assert code(lambda m: m.update({"manifest.json": b"{"})) == "E-BACKUP-FORMAT"
    bomb = {"states/zeros": bytes(1 << 22)}
    assert code(lambda m: m.update(bomb), compression=zipfile.ZIP_DEFLATED) == "E-BACKUP-FORMAT"
    cut = source.with_name("cut.backup")
    cut.write_bytes(source.read_bytes()[:-100])
    assert code_of(lambda: restored(cut)) == "E-BACKUP-FORMAT"
    flipped = bytearray(source.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    cut.write_bytes(flipped)
    assert code_of(lambda: restored(cut)) == "E-BACKUP-CORRUPT"
    assert code_of(lambda: restored(source.with_name("none"))) == "E-FILE-UNREADABLE"
    assert not [path for path in home.parent.iterdir() if "again" in path.name]


def test_a_ledger_that_does_not_hold_is_not_restored(home: Path) -> None:
    """The hashes of the file may be right: the chain is walked all the same."""
    answering(home, 1)
    with sqlite3.connect(home / LEDGER_NAME) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    source = backed_up(home)
    tampered = home.parent / "tampered.sqlite"
    with zipfile.ZipFile(source) as archive:
        tampered.write_bytes(archive.read(LEDGER_NAME))
    with tampering(tampered) as connection:
        connection.execute("DELETE FROM entries WHERE sequence = 2")

    def change(members: dict[str, bytes]) -> None:
        data = members[LEDGER_NAME] = tampered.read_bytes()
        manifest = json.loads(members["manifest.json"])
        part = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][LEDGER_NAME] = part
        members["manifest.json"] = json.dumps(manifest).encode()

    assert code_of(lambda: restored(rewritten(source, change))) == "E-LEDGER-CORRUPT"


def test_a_whole_copy_is_confirmed_once(home: Path) -> None:
    """The entry says what was verified; the mark is gone; a kill in between adds no second."""
    answering(home, 1)
    again = restored(backed_up(home))
    mark, known = mark_of(again), head_of(home)
    assert "nothing leaves until" in read_ledger(again).restored
    with open_ledger(again) as ledger:
        head = confirm(again, mark, ledger, known)
        assert read_mark(again) is None
        write_mark(again, mark)
        assert confirm(again, mark, ledger, known) == head
        bodies = [entry.body for entry in ledger.entries()]
    assert head.count == known.count + 1
    assert isinstance(bodies[-1], Restore)
    assert (bodies[-1].count, bodies[-1].hash) == (known.count, known.hash)
    assert "it holds all 3 entries that the server had seen" in bodies[-1].reason
    assert read_ledger(again).restored == ""


def test_an_old_copy_stays_out_and_names_the_entry(home: Path) -> None:
    """Nothing is entered, the mark stays, and the owner reads what they can do."""
    node = answering(home, 1)
    again = restored(backed_up(home))
    node.answer(*instruction(make_spec(), 2))
    with open_ledger(again) as ledger, pytest.raises(TrustError) as caught:
        confirm(again, mark_of(again), ledger, head_of(home))
    assert caught.value.code == "E-LEDGER-ROLLBACK"
    assert "entry 4 and later ones are gone" in caught.value.message
    assert "a copy of 1970-01-12 13:46:40 UTC is too old" in caught.value.message
    assert "Restore a newer backup" in caught.value.hint
    assert head_of(again).count == 3
    assert read_mark(again) is not None


def test_a_server_that_knows_no_head_confirms_no_charge(home: Path) -> None:
    """Without a charge the copy goes on; with one, nobody can tell what came after it."""
    answering(home)
    unused = restored(backed_up(home, "1.backup"), "unused")
    with open_ledger(unused) as ledger:
        confirm(unused, mark_of(unused), ledger, None)
        body = ledger.entries()[-1].body
    assert isinstance(body, Restore)
    assert "the server had seen no entry" in body.reason
    answering(home, 1)
    used = restored(backed_up(home, "2.backup"), "used")
    with open_ledger(used) as ledger:
        assert code_of(lambda: confirm(used, mark_of(used), ledger, None)) == "E-LEDGER-UNCONFIRMED"
        assert len(ledger.entries()) == 3


def test_other_problems_keep_their_own_words(home: Path) -> None:
    """A fork is no old copy; a mark that cannot be read lets nothing pass."""
    mark = Mark(made_at_s=MADE_S, restored_at_s=RESTORED_S, entries=1)
    fork = TrustError("E-LEDGER-FORK", "two histories")
    assert explained(fork, mark) is fork
    (home / "restored.json").write_text("{}")
    assert code_of(lambda: read_mark(home)) == "E-RESTORED-MARK"
