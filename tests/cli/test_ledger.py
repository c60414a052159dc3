"""`tacit ledger` for an owner, an auditor with an export, and a damaged file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tacit.cli.main import run
from tacit.client.ledger_view import read_ledger
from tacit.client.store import STORE_NAME, open_store
from tacit.core.canary_spec import CanarySpec
from tacit.core.keys import MemberKeys
from tacit.core.specification import canonical_json
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_head import signed_head_from, verify_head
from tests.client.fake_fleet import Domain
from tests.client.fakes import make_spec
from tests.client.test_store import run_record
from tests.privacy.ledgers import TERMS, charge, tampering

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node whose ledger holds four entries."""
    folder = tmp_path / "owner"
    folder.mkdir(mode=0o700)
    Domain.create().member(folder / "identity", 1)
    keys = MemberKeys.load(folder / "identity")
    path = folder / LEDGER_NAME
    with Ledger.open(path, signer=keys.enrolment.sign, clock=lambda: 1.7e9) as ledger:
        ledger.open_data_set(TERMS)
        ledger.reserve(charge(1))
        ledger.reserve(charge(2))
    return folder


def told(home: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a verb that succeeds, and return what it printed."""
    assert run(["ledger", *map(str, words), "--home", str(home)]) == 0
    return capsys.readouterr().out


def test_show_tells_what_was_spent_and_for_what(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People see a table; scripts see the account and every field of every entry."""
    text = told(home, capsys, "show")
    assert "heart" in text
    assert "z 10, 1 step " in text
    value: dict[str, Any] = json.loads(told(home, capsys, "show", "--json", "--data-set", "heart"))
    (account,) = value["accounts"]
    assert (account["budget"], account["delta"], account["charges"]) == (8.0, 1e-5, 2)
    assert account["left"] == account["budget"] - account["held"]
    assert value["entries"][-1]["body"]["charge"]["noise_source"] == "AES-256-CTR"
    assert value["problem"] is None


def test_show_marks_what_a_twin_has_cost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The entries of a run whose model was discarded say whose twin it was."""
    value = json.loads(told(home, capsys, "show", "--json"))
    assert value["twins"] == {}
    (run_id,) = {e["body"]["charge"]["run"] for e in value["entries"] if e["kind"] == "reserve"}
    twin = dataclasses.replace(make_spec(), canaries=CanarySpec(directions=20, run="r-0000000b"))
    with contextlib.closing(open_store(home / STORE_NAME)) as store:
        for known in (run_id, "r-0000000c"):
            record = dataclasses.replace(run_record(), run_id=known)
            store.save_run(dataclasses.replace(record, specification=canonical_json(twin)))
    value = json.loads(told(home, capsys, "show", "--json"))
    assert value["twins"] == {run_id: "r-0000000b"}
    assert f"{run_id} is a twin of r-0000000b" in told(home, capsys, "show")


def declare(home: Path, **changes: object) -> None:
    """Write a client.toml with the data set of the ledger, some keys changed."""
    values = {"path": '"heart.csv"', "records": 1000, "budget": 8.0, "delta": 1e-5} | changes
    lines = [f"{key} = {value}" for key, value in values.items()]
    (home / "client.toml").write_text("\n".join(["[data_sets.heart]", *lines]) + "\n")


def test_show_has_the_budget_of_client_toml(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that was changed is shown at once, with when it is in force; nothing if equal."""
    declare(home)
    (account,) = json.loads(told(home, capsys, "show", "--json"))["accounts"]
    assert (account["budget"], account["note"]) == (8.0, "")
    before = (home / LEDGER_NAME).read_bytes()
    declare(home, budget=3.5)
    (account,) = json.loads(told(home, capsys, "show", "--json"))["accounts"]
    assert account["budget"] == 3.5
    assert account["left"] == pytest.approx(3.5 - account["held"])
    text = told(home, capsys, "show")
    assert "heart: budget 3.5 by client.toml, in force from the next charge" in text
    assert "the ledger's last entry has 8" in text
    assert (home / LEDGER_NAME).read_bytes() == before
    (status,) = read_ledger(home).data_sets
    assert (status.budget, status.note) == (3.5, account["note"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"records": 2000, "delta": 1e-5}, "the next charge is refused: expected records of heart"),
        ({"delta": 1e-6}, "the next charge is refused: expected delta 1e-05"),
        ({"delta": 0}, ""),
        ({"budget": '"much"'}, "client.toml cannot be read"),
    ],
)
def test_terms_for_life_that_differ_are_said(
    home: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    """What the next charge would be refused for stands beside the account as it is."""
    declare(home, **changes)
    (account,) = json.loads(told(home, capsys, "show", "--json"))["accounts"]
    assert (account["records"], account["budget"]) == (1000, 8.0)
    assert said in account["note"]
    assert bool(said) == bool(account["note"])


def test_an_unknown_data_set_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that nobody opened is no empty account: usage, with the names that there are."""
    assert run(["ledger", "show", "--home", str(home), "--data-set", "liver"]) == 2
    said = capsys.readouterr().err
    assert "expected the name of a data set with an account (heart), got 'liver'" in said


def test_verify_names_the_entry_that_was_changed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed entry ends in exit code 5, and what comes before it can still be read."""
    assert "count: 4" in told(home, capsys, "verify")
    with tampering(home / LEDGER_NAME) as connection:
        connection.execute("UPDATE entries SET content = x'00' WHERE sequence = 4")
    assert run(["ledger", "verify", "--home", str(home)]) == 5
    assert "entry 4" in capsys.readouterr().err
    assert run(["ledger", "export", "--home", str(home), "--out", str(home / "x")]) == 5
    assert not (home / "x").exists()
    capsys.readouterr()
    assert run(["ledger", "show", "--home", str(home)]) == 5
    shown = capsys.readouterr().out
    assert shown.startswith("WRONG: expected an unbroken ledger, got damage at entry 4")
    assert "tacit client restore" in shown
    assert "z 10, 1 step " in shown
    assert run(["ledger", "show", "--home", str(home), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["code"] == "E-LEDGER-CORRUPT"


def noted(home: Path, entries: int) -> None:
    """Have the node's own store know of so many entries, as after a release."""
    with opened(home) as ledger:
        head = ledger.head().head
    store = open_store(home / STORE_NAME)
    store.keep_head(dataclasses.replace(head, count=entries))
    store.close()


def opened(home: Path) -> Ledger:
    keys = MemberKeys.load(home / "identity")
    return Ledger.open(home / LEDGER_NAME, signer=keys.enrolment.sign, clock=lambda: 1.7e9)


def test_an_older_ledger_is_shown_as_such_and_not_exported(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node's store knows of more entries: each verb says which are gone, and ends with 5."""
    noted(home, 7)
    at, out = ["--home", str(home)], home / "x"
    for verb in (["show"], ["show", "--data-set", "liver"], ["export", "--out", str(out)]):
        assert run(["ledger", *verb, *at]) == 5
        text = "".join(capsys.readouterr())
        assert "expected at least 7 entries, got 4: entry 5 and later ones are gone" in text
        assert "E-LEDGER-ROLLBACK" in text
        assert "tacit client restore" in text
    assert not out.exists()
    assert run(["client", "status", *at]) == 5
    assert "WRONG: expected at least 7 entries" in capsys.readouterr().out
    assert run(["client", "status", "--json", *at]) == 5
    assert "E-LEDGER-ROLLBACK" in json.loads(capsys.readouterr().out)["ledger"]["problem"]


@pytest.mark.parametrize("left", [0, 100, 4096, 6000])
def test_a_truncated_file_names_what_must_be_there(
    home: Path, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    """However much of the file is gone, the entry is named that the node's store knows."""
    noted(home, 4)
    with sqlite3.connect(home / LEDGER_NAME) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    os.truncate(home / LEDGER_NAME, left)
    for verb in ("verify", "show"):
        assert run(["ledger", verb, "--home", str(home)]) == 5
        text = "".join(capsys.readouterr())
        assert "entry 4" in text
        assert left in (0, 100) or "damage at entry 1:" in text
        assert "tacit client restore" in text


def test_an_export_can_be_checked_without_the_node(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines hash to the head at its end, which the node's key signed."""
    out = home / "export.jsonl"
    told(home, capsys, "export", "--out", out)
    *lines, last = [json.loads(line) for line in out.read_text().splitlines()]
    previous = bytes(32)
    for number, line in enumerate(lines, start=1):
        content = json.dumps(
            line["content"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        place = number.to_bytes(8, "big")
        previous = hashlib.sha256(b"tacit ledger entry v1\0" + place + previous + content).digest()
        assert previous.hex() == line["hash"]
    keys = MemberKeys.load(home / "identity")
    head = verify_head(signed_head_from(last["signed_head"]), keys.enrolment_public_key)
    assert (head.count, head.hash) == (4, previous.hex())


def test_a_kept_export_finds_a_cut(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head in an export that was kept elsewhere must be a part of the ledger."""
    out = home / "export.jsonl"
    told(home, capsys, "export", "--out", out, "--json")
    assert json.loads(told(home, capsys, "verify", "--against", out, "--json"))["ok"] is True
    with tampering(home / LEDGER_NAME) as connection:
        connection.execute("DELETE FROM entries WHERE sequence = 4")
    told(home, capsys, "verify")
    assert run(["ledger", "verify", "--home", str(home), "--against", str(out)]) == 5
    assert "E-LEDGER-ROLLBACK" in capsys.readouterr().err
    for wrong in ("{}\n", "", "\0\xff", '{"signed_head": {"head": 1}, "public_key": ""}', "[]"):
        out.write_text(wrong)
        assert run(["ledger", "verify", "--home", str(home), "--against", str(out)]) == 2
        assert "expected the export of a ledger in" in capsys.readouterr().err
    missing = str(home / "none")
    assert run(["ledger", "verify", "--home", str(home), "--against", missing]) == 6


def test_an_auditor_verifies_an_export_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No node is needed; the node's number and its key's fingerprint are there to compare."""
    out = home.parent / "export.jsonl"
    told(home, capsys, "export", "--out", out)
    assert run(["ledger", "verify", "--file", str(out), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    keys = MemberKeys.load(home / "identity")
    assert value["node_id"] == keys.node_id
    assert value["key_sha256"] == hashlib.sha256(keys.enrolment_public_key).hexdigest()
    assert value["head"]["count"] == 4
    assert run(["ledger", "verify", "--file", str(out), "--home", str(home)]) == 2


def test_an_edited_export_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, and when a ledger is held against it: the first entry that does not hold."""
    out = home / "export.jsonl"
    told(home, capsys, "export", "--out", out)
    whole = out.read_text()
    first, second, *rest = whole.splitlines(keepends=True)
    *middle, third, _fourth, last = whole.splitlines(keepends=True)
    edited = {
        whole.replace('"noise_multiplier":10.0', '"noise_multiplier":90.0', 1): "entry 3",
        whole.replace('"budget":8.0', '"budget":80.0'): "entry 2",
        "".join([first, *rest]): "entry 2",
        "".join([second, first, *rest]): "entry 1",
        "".join([*middle, third, last]): "expected 4 entries, as signed, got 3",
        "".join([first, "{}\n", *rest]): "entry 2",
        whole.replace('"count":4', '"count":3'): "signature",
    }
    for text, words in edited.items():
        out.write_text(text)
        for verb in (["--file", str(out)], ["--home", str(home), "--against", str(out)]):
            assert run(["ledger", "verify", *verb]) == 5
            assert words in capsys.readouterr().err


def test_an_export_of_another_node_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that holds, but is not this node's: both numbers are said."""
    out = home / "export.jsonl"
    told(home, capsys, "export", "--out", out)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    Domain.create().member(other / "identity", 1)
    opened(other).close()
    assert run(["ledger", "verify", "--home", str(other), "--against", str(out)]) == 5
    said = capsys.readouterr().err
    for folder in (home, other):
        assert str(MemberKeys.load(folder / "identity").node_id) in said


def test_an_export_overwrites_nothing_unless_told_to(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older export may be what finds a cut."""
    out = home / "export.jsonl"
    out.write_text("kept")
    for option in (["--out", str(out)], ["--out", str(home / "x"), "--plot", str(out)]):
        assert run(["ledger", "export", "--home", str(home), *option]) == 2
        assert "E-EXPORT-EXISTS" in capsys.readouterr().err
    assert out.read_text() == "kept"
    told(home, capsys, "export", "--out", out, "--force")
    assert run(["ledger", "verify", "--file", str(out)]) == 0


def test_a_plot_is_a_picture_or_a_named_lack(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the export says which extra to install."""
    out, picture = home / "x.jsonl", home / "x.png"
    told(home, capsys, "export", "--out", out, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    out.unlink()
    picture.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["ledger", "export", "--home", str(home), "--out", str(out), "--plot", str(picture)]
    assert run(command) == 6
    assert "tacit[audit]" in capsys.readouterr().err


def test_a_node_without_a_ledger_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looking never makes one."""
    tmp_path.chmod(0o700)
    assert run(["ledger", "show", "--home", str(tmp_path)]) == 6
    assert "E-LEDGER-MISSING" in capsys.readouterr().err
    assert not (tmp_path / LEDGER_NAME).exists()
