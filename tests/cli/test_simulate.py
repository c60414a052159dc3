"""`tacit simulate`: one command from a file and some data to a run folder and a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tacit.cli.main import run
from tests.simulation.test_federation import SPECIFICATION, write_data

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_simulate_deals_data_out_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run.toml and one file give a federation of N owners and the table, as JSON for scripts."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data = write_data(tmp_path / "data.csv")
    out = tmp_path / "out"
    arguments = ["simulate", str(tmp_path / "run.toml"), "--clients", "3", "--data", str(data)]
    assert run([*arguments, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == str(out)
    assert [row["kind"] for row in result["comparison"]["rows"]].count("alone") == 3
    assert (out / "comparison.png").exists()
    assert (out / "run.toml").read_text() == SPECIFICATION
    assert run([*arguments, "--out", str(out)]) == 2
    assert "E-RUN-FOLDER" in capsys.readouterr().err


def test_simulate_names_what_is_wrong_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that break the contract are refused with column and row, before any round."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data = write_data(tmp_path / "data.csv")
    data.write_text(data.read_text().replace("yes", "maybe"))
    arguments = ["simulate", str(tmp_path / "run.toml"), "--clients", "2", "--data", str(data)]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 4
    text = capsys.readouterr().err
    assert "owner-1 does not approve" in text
    assert "maybe" not in text
