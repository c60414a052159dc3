"""`tacit ledger` for an owner, an auditor with an export, and a damaged file."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tacit.cli.main import run
from tacit.core.keys import MemberKeys
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_head import signed_head_from, verify_head
from tests.client.fake_fleet import Domain
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


def test_an_unknown_data_set_is_refused(home: Path) -> None:
    """A name that nobody opened is no empty account."""
    assert run(["ledger", "show", "--home", str(home), "--data-set", "liver"]) == 4


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
    assert "DAMAGED" in told(home, capsys, "show")


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
    out.write_text("{}\n")
    assert run(["ledger", "verify", "--home", str(home), "--against", str(out)]) == 2
    missing = str(home / "none")
    assert run(["ledger", "verify", "--home", str(home), "--against", missing]) == 6


def test_a_plot_is_a_picture_or_a_named_lack(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the export says which extra to install."""
    out, picture = home / "x.jsonl", home / "x.png"
    told(home, capsys, "export", "--out", out, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
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
