"""`tacit client backup` and `restore`, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tacit.cli.main import run
from tests.client.test_backup import answering, home

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

__all__ = ["home"]  # the fixture


def test_both_verbs_say_what_they_did(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON for scripts; as text with the warning of private keys and what is not verified."""
    answering(home, 1)
    one, two = home.parent / "1.backup", home.parent / "2.backup"
    assert run(["client", "backup", str(one), "--home", str(home), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["ledger_entries"], said["private_keys"]) == (3, True)
    assert said["bytes"] == one.stat().st_size
    assert run(["client", "backup", str(two), "--home", str(home)]) == 0
    assert "private keys" in capsys.readouterr().out
    again, third = home.parent / "again", home.parent / "third"
    assert run(["client", "restore", str(one), "--home", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["home"] == str(again)
    assert run(["client", "restore", str(two), "--home", str(third)]) == 0
    text = capsys.readouterr().out
    assert "Not verified yet" in text
    assert f"tacit client start --home {third}" in text
    assert run(["client", "status", "--home", str(third)]) == 0
    assert "nothing leaves until the server has said" in capsys.readouterr().out
    assert run(["client", "restore", str(two), "--home", str(third)]) == 2
    assert "E-RESTORE-HOME" in capsys.readouterr().err
    assert run(["client", "backup", str(two), "--home", str(home)]) == 2
    assert "E-BACKUP-EXISTS" in capsys.readouterr().err
