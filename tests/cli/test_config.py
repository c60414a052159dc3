from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tacit.cli.config import Kind, recognise
from tacit.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

SERVER = 'names = ["localhost"]\nlisten = "0.0.0.0:7443"\n[limits]\nmax_clients = 7\n'
CLIENT = '[data_sets.heart]\npath = "heart.csv"\nrecords = 300\n'
RUN = """
name = "heart"
app = {client = "pkg.mod:client"}
privacy = {mode = "none"}
participation = {rounds = 1}
results.train = {metrics = {"loss.mean" = {range = [0, 1]}}}
"""


@pytest.mark.parametrize(
    ("text", "kind"), [(SERVER, Kind.SERVER), (CLIENT, Kind.CLIENT), (RUN, Kind.RUN)]
)
def test_a_file_is_recognised_by_its_keys(text: str, kind: Kind) -> None:
    """Whatever the file is called, its keys tell what it is."""
    assert recognise(text, "my.toml") is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("run.toml", Kind.RUN), ("my-client.toml", Kind.CLIENT), ("x.toml", Kind.SERVER)],
)
def test_a_file_without_keys_is_recognised_by_its_name(name: str, kind: Kind) -> None:
    """An empty or broken file is taken for what it is called."""
    assert recognise("", name) is kind
    assert recognise("= broken", name) is kind


@pytest.mark.parametrize("text", [SERVER, CLIENT, RUN])
def test_a_good_file_is_said_to_be_good(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`config check` answers in one sentence, or in JSON."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert run(["config", "check", str(path)]) == 0
    assert "is a valid" in capsys.readouterr().out
    assert run(["config", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(path)


def test_a_bad_file_lists_all_its_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`config check` ends with exit code 3 and one line per problem."""
    path = tmp_path / "server.toml"
    path.write_text('lisen = "x"\n[limits]\nmax_clients = "many"\n')
    assert run(["config", "check", str(path)]) == 3
    text = capsys.readouterr().err
    assert "server.toml:1: lisen: unknown key (did you mean listen?)" in text
    assert "server.toml:3: limits.max_clients: expected a whole number" in text


def test_show_names_the_source_of_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults, the file and the environment are told apart, for people and for scripts."""
    monkeypatch.setenv("TACIT_SERVER_LIMITS_MAX_SPOOL_BYTES", "5000")
    path = tmp_path / "server.toml"
    path.write_text(SERVER)
    assert run(["config", "show", str(path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["limits.max_clients"].split() == ["limits.max_clients", "7", "server.toml:4"]
    assert lines["chunk_bytes"].endswith("default")
    assert lines["limits.max_spool_bytes"].endswith(
        "environment TACIT_SERVER_LIMITS_MAX_SPOOL_BYTES"
    )
    assert run(["config", "show", str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert values["names"] == {"value": ["localhost"], "source": "server.toml:1"}


def test_show_reads_keys_that_need_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key with a dot in it is one key."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    assert run(["config", "show", str(path)]) == 0
    assert 'results.train.metrics."loss.mean".range' in capsys.readouterr().out


def test_a_password_in_an_address_is_masked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `config show` prints may be pasted into a ticket."""
    path = tmp_path / "server.toml"
    path.write_text('database = "postgresql+psycopg://tacit:hunter2@db/tacit"\n')
    for more in ([], ["--json"]):
        assert run(["config", "show", str(path), *more]) == 0
        text = capsys.readouterr().out
        assert "hunter2" not in text
        assert "tacit:***@db/tacit" in text
