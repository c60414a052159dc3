"""`tacit simulate`: one command from a file and some data to a run folder and a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tacit.cli.main import run
from tests.simulation.test_federation import SPECIFICATION, write_data

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.parametrize(
    "change",
    [
        ("rounds = 3", "round = 3"),
        ('kind = "logistic"', 'kind = "cnn"'),
        ('mode = "none"', 'mode = "central"\nclip = 1.0\nepsilon = 1.0\ndelta = 1e-3'),
        ("[participation]", '[strategy]\nname = "FedAgv"\n[participation]'),
    ],
)
def test_simulate_says_what_run_check_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]
) -> None:
    """A run that could never be submitted is refused in the same words, and writes nothing."""
    assert change[0] in SPECIFICATION
    file = tmp_path / "run.toml"
    file.write_text(SPECIFICATION.replace(*change))
    data = write_data(tmp_path / "data.csv")
    code = run(["run", "check", str(file)])
    said = capsys.readouterr().err
    out = ["--out", str(tmp_path / "new" / "run")]
    assert code == run(["simulate", str(file), "--clients", "2", "--data", str(data), *out])
    assert code in (3, 4)
    assert said == capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options", [["--clients", "1"], ["--clients", "99"], ["--data", "nowhere"]]
)
def test_a_trial_that_cannot_begin_leaves_no_folder(tmp_path: Path, options: list[str]) -> None:
    """Too few owners, too many, no data: the folder, and those above it, are as before."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data = write_data(tmp_path / "data.csv")
    arguments = ["--data", str(data), "--out", str(tmp_path / "new" / "run"), *options]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) != 0
    assert not (tmp_path / "new").exists()


def test_a_trial_never_touches_a_folder_with_something_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies in --out already is neither mixed with a run nor removed."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data = write_data(tmp_path / "data.csv")
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("keep me")
    arguments = ["--clients", "2", "--data", str(data), "--out", str(out)]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) == 2
    assert "E-RUN-FOLDER" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


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
