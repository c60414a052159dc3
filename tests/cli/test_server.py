"""`tacit server` and `tacit login` as people type them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tacit.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Iterator

TACIT = Path(sys.executable).with_name("tacit")


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TACIT_SERVER_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("TACIT_OPERATOR_HOME", str(tmp_path / "o"))
    return tmp_path


def init(*options: str) -> int:
    first, second = free_ports()
    listen = ["--listen", f"127.0.0.1:{first}", "--enrolment-listen", f"127.0.0.1:{second}"]
    return run(["server", "init", "--name", "127.0.0.1", "--name", "localhost", *listen, *options])


def free_ports() -> tuple[int, int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        return first.getsockname()[1], second.getsockname()[1]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@contextmanager
def started() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([TACIT, "server", "start"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "serving" in line:
                break
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()


def test_init_makes_a_federation_once(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Private folders, a config that checks, a profile; a second init changes nothing."""
    assert init() == 0
    assert (homes / "s").stat().st_mode & 0o777 == 0o700
    assert run(["config", "check", str(homes / "s" / "server.toml")]) == 0
    before = (homes / "s" / "server.toml").read_text()
    assert init() == 2
    assert "E-SERVER-INITIALISED" in capsys.readouterr().err
    assert (homes / "s" / "server.toml").read_text() == before


def test_what_comes_next_names_the_home_that_was_given(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that is copied reaches the same directory; the usual place needs no option."""
    assert init() == 0
    assert "Next: tacit server start, then" in capsys.readouterr().out
    other = homes / "my server"
    assert init("--home", str(other), "--profile", "other") == 0
    said = capsys.readouterr().out
    assert f"tacit server start --home '{other}'" in said
    assert f"--role client --home '{other}'" in said


def test_a_taken_profile_is_named_with_the_way_out(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second federation is told where the first one's profile is, and what to do."""
    assert init() == 0
    assert init("--home", str(homes / "second")) == 2
    said = capsys.readouterr().err
    assert "E-PROFILE-EXISTS" in said
    assert str(homes / "o" / "profiles" / "default") in said
    assert "tacit server init ... --profile NAME" in said


def test_init_refuses_names_that_no_certificate_can_carry(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name with a port is refused before anything is left behind."""
    assert run(["server", "init", "--name", "host:7443"]) == 3
    assert "E-SERVER-NAME" in capsys.readouterr().err
    assert run(["server", "init", "--name", "localhost"]) == 0
    assert homes.exists()


def test_verbs_of_a_stopped_server_work_on_its_database(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status, members, invite and revoke need no daemon."""
    init()
    assert answer(capsys, "server", "status")["state"] == "stopped"
    invited = answer(capsys, "server", "invite", "clinic")
    assert invited["token"].startswith("tacit1_")
    listed = answer(capsys, "server", "members")
    assert [(m["name"], m["state"]) for m in listed] == [
        ("clinic", "invited"),
        ("operator", "enrolled"),
    ]
    assert answer(capsys, "server", "revoke", "clinic")["certificates"] == 0
    assert run(["server", "revoke", "nobody"]) == 2
    assert "E-MEMBER-UNKNOWN" in capsys.readouterr().err
    assert homes.exists()


@pytest.mark.parametrize("hours", ["0.01", "2161", "-1", "nan"])
def test_a_tokens_time_out_of_range_is_refused_with_the_range(
    homes: Path, capsys: pytest.CaptureFixture[str], hours: str
) -> None:
    """Checked before anybody is called: even where no server is, the range is what is said."""
    assert run(["server", "invite", "clinic", "--ttl-hours", hours]) == 2
    said = capsys.readouterr().err
    assert "E-INVITATION-TTL" in said
    assert "60 s to 90 days" in said
    assert not (homes / "s").exists()


@pytest.mark.parametrize("verb", ["drain", "stop"])
def test_verbs_that_need_the_daemon_say_so(
    homes: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Exit code 6 and what to do."""
    init()
    assert run(["server", verb]) == 6
    assert "tacit server start" in capsys.readouterr().err
    assert homes.exists()


def test_without_init_every_verb_says_what_to_do(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, no empty answer."""
    for verb in ("status", "start", "members"):
        assert run(["server", verb]) == 6
        assert "tacit server init" in capsys.readouterr().err
    assert not (homes / "s").exists()


def test_login_refuses_what_is_no_token_and_a_clients_token(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both before any connection is made."""
    init()
    token = answer(capsys, "server", "invite", "clinic")["token"]
    assert run(["login", "tacit1_nonsense"]) == 5
    assert "E-TOKEN-MALFORMED" in capsys.readouterr().err
    assert run(["login", token]) == 2
    assert "tacit client join" in capsys.readouterr().err
    assert homes.exists()


def test_login_says_when_the_server_is_away(
    homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 6, both addresses named."""
    init()
    token = answer(capsys, "server", "invite", "ann", "--role", "auditor")["token"]
    assert run(["login", token, "--profile", "ann"]) == 6
    assert "E-SERVER-UNREACHABLE" in capsys.readouterr().err
    assert homes.exists()


@pytest.mark.slow
def test_a_day_in_the_life(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Start, invite, log in, look, revoke, drain and stop, all through the command line."""
    init()
    with started() as process:
        assert answer(capsys, "server", "status")["state"] == "running"
        token = answer(capsys, "server", "invite", "ann", "--role", "auditor")["token"]
        assert answer(capsys, "login", token, "--profile", "ann")["role"] == "auditor"
        assert run(["login", token, "--profile", "other"]) == 5
        assert "E-TOKEN-USED" in capsys.readouterr().err
        assert run(["server", "invite", "ann"]) == 2
        assert "E-MEMBER-EXISTS" in capsys.readouterr().err
        assert answer(capsys, "server", "revoke", "ann")["certificates"] == 1
        assert answer(capsys, "server", "drain")["state"] == "draining"
        assert answer(capsys, "server", "status")["state"] == "draining"
        assert answer(capsys, "server", "stop")["state"] == "stopped"
        assert process.wait(10) == 0
    assert answer(capsys, "server", "status")["state"] == "stopped"
    assert homes.exists()


@pytest.mark.slow
def test_a_taken_port_ends_with_code_6(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the address and the key to change."""
    init()
    text = (homes / "s" / "server.toml").read_text()
    address = next(line for line in text.splitlines() if line.startswith("listen")).split('"')[1]
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        done = subprocess.run(
            [TACIT, "server", "start"], capture_output=True, text=True, check=False
        )
    assert done.returncode == 6
    assert address in done.stderr
    assert "server.toml" in done.stderr
    capsys.readouterr()
