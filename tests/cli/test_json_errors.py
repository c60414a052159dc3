"""Under `--json` every failure of every verb is one JSON object: the last line of stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest

from tacit.cli.main import NOUNS, root_command, run
from tacit.cli.output import render_failure
from tacit.simulation.owners import heart_folder

if TYPE_CHECKING:
    from pathlib import Path

HEART = str(heart_folder() / "run.toml")


def verbs_with_json() -> list[tuple[str, ...]]:
    root = root_command()
    found: list[tuple[str, ...]] = []
    for noun in NOUNS:
        command = root.get_command(click.Context(root), noun.name)
        assert command is not None
        leaves = (
            {(noun.name, name): inner for name, inner in command.commands.items()}
            if isinstance(command, click.Group)
            else {(noun.name,): command}
        )
        found += [
            path
            for path, leaf in leaves.items()
            if any("--json" in option.opts for option in leaf.params)
        ]
    return found


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], int]:
    code = run(arguments)
    streams = capsys.readouterr()
    assert streams.out == ""
    value = json.loads(streams.err.splitlines()[-1])
    assert list(value) == ["error"]
    assert set(value["error"]) == {"code", "message", "problems", "hint", "exit_code"}
    return value["error"], code


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, with files that are wrong, and no profile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TACIT_OPERATOR_HOME", str(tmp_path / "operator"))
    text = (heart_folder() / "run.toml").read_text()
    (tmp_path / "wrong.toml").write_text(text.replace("rounds = 20", "round = 20"))
    promised = text.replace('mode = "record-local"', 'mode = "central"')
    (tmp_path / "promises.toml").write_text(promised)


def test_every_verb_says_a_usage_error_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that could not be read asked for JSON all the same."""
    verbs = verbs_with_json()
    assert len(verbs) > 25
    for verb in verbs:
        error, code = failed([*verb, "--no-such-option", "--json"], capsys)
        assert (error["code"], error["exit_code"], code) == ("E-USAGE", 2, 2), verb
        assert "--no-such-option" in error["message"]
        assert error["hint"] == f"tacit {' '.join(verb)} --help"


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["rnu", "list"], "E-USAGE", 2),
        (["run", "lst"], "E-USAGE", 2),
        (["config", "check"], "E-USAGE", 2),
        (["config", "check", "none.toml"], "E-CONFIG-MISSING", 3),
        (["run", "check", "wrong.toml"], "E-CONFIG", 3),
        (["run", "check", "promises.toml"], "E-MODE-NOT-BUILT", 4),
        (["privacy", "plan"], "E-USAGE", 2),
        (["privacy", "lint", "none.py"], "E-CONFIG-MISSING", 3),
        (["simulate", HEART, "--data", HEART, "--clients", "2"], "E-DATA-FORMAT", 2),
        (["login", "nonsense"], "E-TOKEN-MALFORMED", 5),
        (["client", "join", "nonsense"], "E-TOKEN-MALFORMED", 5),
        (["client", "status", "--home", "none"], "E-STATE-MISSING", 6),
        (["ledger", "show", "--home", "none"], "E-STATE-MISSING", 6),
        (["server", "members", "--home", "none"], "E-STATE-MISSING", 6),
        (["run", "list", "--home", "none"], "E-STATE-MISSING", 6),
        (["run", "list", "--profile", "none"], "E-PROFILE-MISSING", 6),
        (["demo", "--out", "."], "E-DEMO-FOLDER", 2),
    ],
)
@pytest.mark.usefixtures("files")
def test_every_family_is_said_in_json(
    arguments: list[str], code: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code, message, problems, hint and exit code stand in one object, whatever the family."""
    error, got = failed([*arguments, "--json"], capsys)
    assert (error["code"], error["exit_code"], got) == (code, exit_code, exit_code), error
    assert error["message"]


def test_problems_stay_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script need not take text apart: each problem of a file is an item."""
    path = tmp_path / "run.toml"
    path.write_text("round = 1\nrecord = 2\n")
    error, _ = failed(["run", "check", str(path), "--json"], capsys)
    assert len(error["problems"]) >= 2
    assert all(isinstance(problem, str) for problem in error["problems"])
    assert error["hint"]


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (KeyError("patient 17 is 93 years old"), "E-BUG", 70),
        (KeyboardInterrupt(), "E-INTERRUPTED", 130),
    ],
)
def test_what_is_no_error_of_ours_is_json_too(
    error: BaseException, code: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug and an interruption have codes of their own; a bug's text is not shown here either."""
    assert render_failure(error, json=True) == exit_code
    said = capsys.readouterr().err
    assert json.loads(said)["error"]["code"] == code
    assert "patient" not in said
