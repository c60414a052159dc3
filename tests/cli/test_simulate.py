"""`tacit simulate`: one command from a file and some data to a run folder and a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tacit.cli.main import run
from tacit.core.artifacts import save_arrays
from tests.simulation.test_federation import SPECIFICATION, write_data


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


def test_simulate_says_what_makes_the_gradients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is replaced in a private model, and who makes its gradients, as `run check` says it."""
    private = 'mode = "record-local"\nclip = 1.0\nepsilon = 9.0\ndelta = 1e-4'
    file, data = tmp_path / "run.toml", write_data(tmp_path / "data.csv")
    text = SPECIFICATION.replace('mode = "none"', private)
    file.write_text(text.replace("every = 3", "every = 3\nepsilon = 9.0"))
    arguments = ["simulate", str(file), "--clients", "2", "--data", str(data)]
    note = "per-example gradients by book-keeping: 1 Linear"
    assert run([*arguments, "--out", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]
    assert run([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert f"note: {note}\n" in capsys.readouterr().err


@pytest.mark.parametrize("dealt", [True, False], ids=["one file for all", "a file each"])
def test_owners_without_rules_have_room_for_canaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, dealt: bool
) -> None:
    """They allow all that the run asks for, and each declares the room beside the records."""
    private = 'mode = "record-local"\nclip = 1.0\nepsilon = 9.0\ndelta = 1e-4'
    text = SPECIFICATION.replace('mode = "none"', private).replace("every = 3", "every = 0")
    (tmp_path / "run.toml").write_text(text + "\n[canaries]\ndirections = 30\nmislabelled = 20\n")
    folder = tmp_path / "data"
    folder.mkdir()
    files = [write_data(folder / f"{name}.csv") for name in ("north", "south")]
    given = [str(files[0]), "--clients", "2"] if dealt else [str(folder)]
    out = tmp_path / "out"
    arguments = ["simulate", str(tmp_path / "run.toml"), "--data", *given, "--out", str(out)]
    assert run(arguments) == 0, capsys.readouterr().err
    report = json.loads((out / "canaries.json").read_bytes())
    assert [len(owner["kinds"]) for owner in report["owners"]] == [2, 2]
    assert [owner["left"]["bits"] for owner in report["owners"]] == [50, 50]


def test_without_matplotlib_there_is_a_table_and_no_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing extra costs the picture, not the trial that was made."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data, out = write_data(tmp_path / "data.csv"), tmp_path / "out"
    arguments = ["--clients", "2", "--data", str(data), "--out", str(out)]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) == 0
    said = capsys.readouterr()
    assert "all data pooled" in said.out
    assert "No plot: expected matplotlib" in said.err
    assert (out / "comparison.json").exists()
    assert not (out / "comparison.png").exists()


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--data FOLDER"),
        (["--clients", "1", "--data", "data/d.csv"], "participation.min_clients"),
    ],
)
def test_a_trial_that_cannot_begin_names_what_to_give(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    """No data beside run.toml, or too few clients: the option or the key stands in the hint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data" / "d.csv")
    assert run(["simulate", "run.toml", *options]) != 0
    assert words in capsys.readouterr().err


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


@pytest.mark.parametrize("form", [".csv", ".parquet"])
def test_simulate_names_the_rows_of_the_file_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Rows are those of the one file, not of the shares that it would have been dealt into."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    data = write_data(tmp_path / "data.csv")
    lines = data.read_text().splitlines()
    for row in (7, 31, 60):
        lines[row] = lines[row].replace("yes", "maybe").replace("no", "maybe")
    data.write_text("\n".join(lines) + "\n")
    if form == ".parquet":
        pd.read_csv(data).to_parquet(data.with_suffix(form))
        data = data.with_suffix(form)
    arguments = ["--clients", "4", "--data", str(data), "--out", str(tmp_path / "out")]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) == 3
    text = capsys.readouterr().err
    where = (
        "(lines 8, 32, 61 of data.csv)"
        if form == ".csv"
        else "(rows 7, 31, 60 of data.parquet; the first is row 1)"
    )
    assert f"y: unknown label: 3 records {where}" in text
    assert "maybe" not in text
    assert not (tmp_path / "out").exists()


def test_simulate_names_the_owner_whose_own_file_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder of files the node refuses whose file it is, with column and row."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data" / "ada.csv", seed=1)
    bad = write_data(tmp_path / "data" / "bob.csv", seed=2)
    bad.write_text(bad.read_text().replace("yes", "maybe"))
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) == 4
    text = capsys.readouterr().err
    assert "bob does not approve" in text
    assert "maybe" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("a,b,y\n", "has none, only the columns a, b, y"), ("", "data.csv is empty")],
)
def test_simulate_says_when_a_file_has_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    """A header alone is named as one; it is not "one record that fits one client"."""
    (tmp_path / "run.toml").write_text(SPECIFICATION)
    (tmp_path / "data.csv").write_text(content)
    arguments = ["--clients", "2", "--data", str(tmp_path / "data.csv")]
    assert run(["simulate", str(tmp_path / "run.toml"), *arguments]) == 3
    text = capsys.readouterr().err
    assert "E-DATA-EMPTY" in text
    assert words in text


LOUD_APP = """
import os
import subprocess
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

print("loud: imported")
app = ClientApp()


@app.train()
def train(message, context):
    print("loud: trains")
    os.write(1, b"loud: past Python\\n")
    subprocess.run(["echo", "loud: from a child"], check=True)
    metrics = MetricRecord({"num-examples": 1})
    content = {"arrays": message.content["arrays"], "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)
"""

LOUD_RUN = """
name = "loud"
initial = "initial.safetensors"
[app]
client = "loud_app:app"
[results.train]
metrics = { num-examples = { range = [1, 1] } }
[privacy]
mode = "none"
[participation]
rounds = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_an_app_prints_never_lands_in_the_result(tmp_path: Path, workers: str) -> None:
    """Standard output is one JSON document, however an app writes to it, in whatever process."""
    (tmp_path / "loud_app.py").write_text(LOUD_APP)
    (tmp_path / "run.toml").write_text(LOUD_RUN)
    save_arrays(tmp_path / "initial.safetensors", {"w": np.ones(3, dtype=np.float32)})
    tacit = Path(sys.executable).with_name("tacit")
    options = ["--clients", "2", "--workers", workers, "--json"]
    done = subprocess.run(
        [tacit, "simulate", "run.toml", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["rounds"] == 1
    for line in ("imported", "trains", "past Python", "from a child"):
        assert f"loud: {line}" in done.stderr


@pytest.mark.slow
def test_a_trial_without_a_table_says_why(tmp_path: Path) -> None:
    """An app of one's own has nothing built in to be compared with: one line, not silence."""
    (tmp_path / "loud_app.py").write_text(LOUD_APP)
    (tmp_path / "run.toml").write_text(LOUD_RUN)
    save_arrays(tmp_path / "initial.safetensors", {"w": np.ones(3, dtype=np.float32)})
    done = subprocess.run(
        [Path(sys.executable).with_name("tacit"), "simulate", "run.toml", "--clients", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No table: the run trains with an app of its own" in done.stderr
    assert "Run folder:" in done.stdout
