"""A daemon's state directory: private, locked by one process, with the Unix socket of its verbs.

Whoever can open the directory is the daemon's administrator, so it must belong to the user that
runs the process, with mode 0700; anything wider is refused, not repaired, because somebody may have
looked inside already. The lock belongs to the process: it falls when the process dies, however it
dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.files import make_private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Who = Literal["server", "client", "operator"]

_MAX_SOCKET_BYTES = 107  # sockaddr_un.sun_path on Linux, less the closing zero
_LOCK_FILE = "lock"
_LOCK_ATTEMPTS = 5  # a verb that asks who holds the lock touches it for an instant
_LOCK_PAUSE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class StateDirectory:
    """One opened state directory.

    Attributes:
        path: absolute path of the directory.
    """

    path: Path

    @property
    def socket(self) -> Path:
        """Where the daemon's Unix socket stands.

        Raises:
            ConfigError: the path is longer than the operating system allows for a socket.
        """
        socket = self.path / "control.sock"
        length = len(os.fsencode(socket))
        if length > _MAX_SOCKET_BYTES:
            raise ConfigError(
                "E-STATE-PATH-LONG",
                f"expected a socket path of <= {_MAX_SOCKET_BYTES} bytes, got {length}: {socket}",
                hint="Choose a state directory with a shorter path (--home).",
            )
        return socket

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process alone.

        Raises:
            UnavailableError: E-STATE-LOCKED, naming the process that holds it.
        """
        descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_lock(descriptor):
                holder = _pid_in(descriptor)
                raise UnavailableError(
                    "E-STATE-LOCKED",
                    f"expected {self.path} to be free, got a lock of process {holder or 'unknown'}",
                    hint="Another tacit process uses this directory: stop it, or choose --home.",
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """Return the process id that holds the lock, or None when nobody does (0: not known)."""
        try:
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)


def open_state(path: Path, *, create: bool) -> StateDirectory:
    """Open a state directory after checking who can look into it.

    Args:
        path: the directory; ``~`` is expanded.
        create: make it, with mode 0700, when it does not exist.

    Raises:
        UnavailableError: it does not exist (E-STATE-MISSING) or cannot be made.
        TrustError: it belongs to somebody else, or others can open it.
    """
    absolute = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - keeps symbolic links
    if create:
        make_private_folder(absolute)
    try:
        status = absolute.stat()
    except OSError as error:
        raise UnavailableError(
            "E-STATE-MISSING",
            f"expected a state directory at {absolute}: {error.strerror}",
            hint="Name the right one with --home, or make it: a data owner with `tacit client join "
            "TOKEN`, who runs a server with `tacit server init`.",
        ) from error
    _verify_private(absolute, status)
    return StateDirectory(path=absolute)


def default_home(who: Who, *, environ: Mapping[str, str] | None = None) -> Path:
    """Return where a state directory stands unless ``--home`` says otherwise.

    ``TACIT_SERVER_HOME``, ``TACIT_CLIENT_HOME`` or ``TACIT_OPERATOR_HOME`` if set, else
    ``tacit/<who>`` below ``XDG_STATE_HOME`` (default ``~/.local/state``).
    """
    environment = os.environ if environ is None else environ
    if named := environment.get(f"TACIT_{who.upper()}_HOME"):
        return Path(named).expanduser()
    base = environment.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "tacit" / who


def home_option(who: Who, home: Path | None) -> str:
    """Return `` --home PATH`` for a command that is told to a person; empty for the usual place."""
    if home is None or home.absolute() == default_home(who).absolute():
        return ""
    return f" --home {shlex.quote(str(home))}"


def _verify_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise UnavailableError("E-STATE-MISSING", f"expected a directory at {path}, got a file")
    if status.st_uid != os.geteuid():
        raise TrustError(
            "E-STATE-OWNER",
            f"expected {path} to belong to user {os.geteuid()}, got user {status.st_uid}",
            hint="Run this as the user that owns the directory, or choose --home.",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise TrustError(
            "E-STATE-MODE",
            f"expected {path} to have mode 0700, got {mode:04o}: others can look inside",
            hint=f"If nobody could have used that, run: chmod 700 {path}",
        )


def _try_lock(descriptor: int) -> bool:
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def _pid_in(descriptor: int) -> int:
    text = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
    return int(text) if text.isdecimal() else 0
