from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.state import StateDirectory, default_home, open_state


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    """A state directory is made with mode 0700, parents included where they are missing."""
    state = open_state(tmp_path / "a" / "server", create=True)
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert open_state(state.path, create=False) == state


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_an_open_directory_is_refused(tmp_path: Path, mode: int) -> None:
    """Whatever others could have looked into is refused, and not quietly repaired."""
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(mode)
    for create in (True, False):
        with pytest.raises(TrustError, match="E-STATE-MODE") as caught:
            open_state(path, create=create)
        assert str(path) in caught.value.hint
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_somebody_elses_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory must belong to the user that runs the process."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(TrustError, match="E-STATE-OWNER"):
        open_state(path, create=False)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing directory, or a file in its place, says where it was expected."""
    with pytest.raises(UnavailableError, match="E-STATE-MISSING"):
        open_state(tmp_path / "none", create=False)
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="got a file"):
        open_state(tmp_path / "file", create=False)
    with pytest.raises(UnavailableError):
        open_state(tmp_path / "file", create=True)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second lock fails and names the holder; afterwards the directory is free again."""
    state = open_state(tmp_path / "state", create=True)
    assert state.holder() is None
    with state.lock():
        assert state.holder() == os.getpid()
        with pytest.raises(UnavailableError, match=f"process {os.getpid()}"), state.lock():
            pass
    assert state.holder() is None
    with state.lock():
        pass


HOLD = """
import sys
from pathlib import Path
from tacit.core.state import open_state
with open_state(Path(sys.argv[1]), create=True).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_lock_falls_with_the_process(tmp_path: Path) -> None:
    """A killed daemon leaves no lock behind."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "state")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        state = open_state(tmp_path / "state", create=False)
        assert state.holder() == child.pid
        child.kill()
        child.wait()
    with state.lock():
        assert state.holder() == os.getpid()


def test_a_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    """The operating system's limit for socket paths becomes a clear error."""
    assert StateDirectory(path=Path("/s")).socket == Path("/s/control.sock")
    long = open_state(tmp_path / ("x" * 100), create=True)
    with pytest.raises(ConfigError, match="E-STATE-PATH-LONG"):
        _ = long.socket


def test_where_state_stands() -> None:
    """The environment names it, else the XDG directory, else the home directory."""
    assert default_home("server", environ={"TACIT_SERVER_HOME": "/s"}) == Path("/s")
    assert default_home("client", environ={"XDG_STATE_HOME": "/x"}) == Path("/x/tacit/client")
    fallback = Path.home() / ".local/state/tacit/operator"
    assert default_home("operator", environ={}) == fallback
    assert default_home("operator", environ={"XDG_STATE_HOME": "relative"}) == fallback
