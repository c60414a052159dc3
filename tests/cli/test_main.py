from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tacit.cli.main import NOUNS, root_command, run

TACIT = Path(sys.executable).with_name("tacit")


def commands_below(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found += commands_below(inner, (*path, name))
    return found


def test_help_lists_every_noun_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Help teaches what each noun is for."""
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for noun in NOUNS:
        assert f"  {noun.name} " in text
        assert noun.teaches in text


HELP = """
import sys
from tacit.cli.main import run
assert run(["--help"]) == 0
heavy = {"grpc", "google", "flwr", "torch", "opacus", "numpy", "sqlalchemy", "rich", "cryptography"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_help_is_quick() -> None:
    """`tacit --help` loads nothing heavy and takes about a fifth of a second."""
    command = [sys.executable, "-c", HELP]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < 0.3


@pytest.mark.parametrize("noun", [noun.name for noun in NOUNS])
def test_every_command_explains_itself(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every noun and verb answers --help with a sentence, and each option says what it does."""
    command = root_command().get_command(click.Context(root_command()), noun)
    assert command is not None
    for path in commands_below(command, (noun,)):
        assert run([*path, "--help"]) == 0, path
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: tacit {' '.join(path)}"), path
        assert "\\[" not in text
    for path, inner in leaves(command, (noun,)):
        assert inner.help, path
        for option in inner.params:
            assert getattr(option, "help", None), (path, option.name)


def leaves(
    command: click.Command, path: tuple[str, ...]
) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    return [
        leaf for name, inner in command.commands.items() for leaf in leaves(inner, (*path, name))
    ]


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["conf"], "Did you mean 'config'?"),
        (["config", "checks"], "Did you mean 'check'?"),
        (["config", "check", "--knd", "run"], "Did you mean '--kind'?"),
        (["zzz"], "There are: demo, login, server"),
    ],
)
def test_a_mistyped_word_names_the_nearest(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error is exit code 2 and says what was surely meant, once."""
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count(nearest) == 1
    assert "hint: tacit" in streams.err
    assert "--help" in streams.err


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_nothing_to_do_shows_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A noun without a verb shows what it could be asked, with the exit code of misuse."""
    assert run(arguments) == 2
    assert "Usage: tacit" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the installed package."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tacit 0.")


def test_an_error_of_ours_has_the_exit_code_of_its_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing configuration file is exit code 3, with code and hint on standard error."""
    assert run(["config", "check", str(tmp_path / "none.toml")]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "[E-CONFIG-MISSING]" in streams.err
    assert "\nhint: " in streams.err


def test_no_telemetry_is_inherited() -> None:
    """Whatever is started from the command line finds Flower's telemetry switched off."""
    run(["--version"])
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.slow
def test_the_installed_command_answers(tmp_path: Path) -> None:
    """The entry point works in a process of its own, and survives a closed pipe."""
    (tmp_path / "server.toml").write_text('listen = "0.0.0.0:1"\n')
    command = [TACIT, "config", "show", str(tmp_path / "server.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["values"]["listen"]["source"] == "server.toml:1"
    pipeline = f"'{TACIT}' config show '{tmp_path}/server.toml' | head -1"
    piped = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=True)
    assert "Traceback" not in piped.stderr
