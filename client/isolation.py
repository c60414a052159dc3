"""Confinement of a worker process: what it may read and write, and that it may talk to nobody.

Applied by the worker to itself before anything of an app is imported, and inherited by all that it
starts; none of it can be undone. On Linux:

- files: Landlock rules; reading below the given paths, writing below the scratch folder, no more
- signals and abstract sockets: Landlock scopes, where the kernel has them (ABI 6)
- network: a network namespace of its own, with nothing in it, where the kernel lets us
- system calls: seccomp refuses sockets (a socket in the file system could reach a daemon), ptrace,
  mounts, namespaces, keys, io_uring, signals to processes outside the worker's group and leaving
  that group, modes, owners, times and attributes of files, and memory shared by number
- capabilities: none, also none inside the namespace; resource limits on memory and file size

Files and system calls are what :func:`probe` calls available; the rest is added where it can be.
``kernel.py`` makes the calls.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tacit.client import kernel

_PROBE_TIMEOUT_S = 20.0
_OPEN_FILES = 1024
_SYSTEM_READABLE = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
_TACIT_PACKAGES = ("attacks", "client", "core", "learning", "privacy", "protos")


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What a worker is confined to.

    Attributes:
        readable: files and folders that it may read, beside Python and the installed packages.
        writable: folders that it may write.
        memory_bytes: largest private memory.
        file_bytes: largest file that it may write.
    """

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    memory_bytes: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What this machine can do to confine a worker.

    Attributes:
        available: whether files and system calls can both be confined.
        what: the means that work here.
        missing: those that do not, each with the reason.
    """

    available: bool
    what: tuple[str, ...]
    missing: tuple[str, ...]


def isolate(confinement: Confinement) -> Isolation:
    """Confine this process, which must have one thread, as far as the machine allows.

    What cannot be applied is reported, not raised: whether that is enough is the caller's to say.
    """
    done: list[str] = []
    missing: list[str] = []
    _limit(confinement)
    steps = (
        ("network namespace", kernel.enter_empty_network),
        ("Landlock file rules", lambda: _restrict_files(confinement)),
        ("no capabilities", kernel.drop_capabilities),
        ("seccomp filter", kernel.filter_system_calls),
    )
    for name, step in steps:
        try:
            note = step()
        except OSError as error:
            missing.append(f"{name}: {error.strerror or error}")
        else:
            done.append(f"{name}{f' ({note})' if note else ''}")
    return _isolation(done, missing)


def probe() -> Isolation:
    """Find out in a process of its own what :func:`isolate` can do on this machine."""
    if sys.platform != "linux":
        return _isolation([], ["Linux: workers can only be confined there"])
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", "tacit.client.isolation"],
            capture_output=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _isolation([], [f"probe: {error}"])
    lines = result.stdout.splitlines()
    done = [line.removeprefix("+ ") for line in lines if line.startswith("+ ")]
    missing = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    if result.returncode != 0 or not (done or missing):
        missing.append(f"probe: it ended with status {result.returncode}")
        done = []
    return _isolation(done, missing)


def python_paths() -> tuple[Path, ...]:
    """Return the folders of this Python, of its packages, and of the libraries that they load."""
    paths = {Path(path) for path in sys.path if path and Path(path).exists()}
    for key in ("stdlib", "platstdlib", "purelib", "platlib"):
        paths.add(Path(sysconfig.get_path(key)))
    for executable in (sys.executable, os.path.realpath(sys.executable)):
        paths.add(Path(executable).parent)
    library = sysconfig.get_config_var("LIBDIR")
    if library:
        paths.add(Path(library))
    return tuple(sorted(path for path in paths if path.exists()))


def package_paths() -> tuple[Path, ...]:
    """Return Tacit's own packages that a worker needs; in a checkout, not the checkout."""
    root = Path(__file__).resolve().parent.parent
    return tuple(root / name for name in _TACIT_PACKAGES if (root / name).is_dir())


def readable_places() -> tuple[Path, ...]:
    """Return what every confined worker may read: the system's libraries, Python and packages."""
    return (*map(Path, _SYSTEM_READABLE), *python_paths(), *package_paths())


def _isolation(done: list[str], missing: list[str]) -> Isolation:
    required = ("Landlock file rules", "seccomp filter")
    available = all(any(name.startswith(each) for name in done) for each in required)
    return Isolation(available=available, what=tuple(done), missing=tuple(missing))


def _limit(confinement: Confinement) -> None:
    limits = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, confinement.file_bytes),
        (resource.RLIMIT_DATA, confinement.memory_bytes),
    )
    for which, wanted in limits:
        _, hard = resource.getrlimit(which)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))


def _restrict_files(confinement: Confinement) -> str:
    abi = kernel.restrict_files(
        readable=(*readable_places(), *confinement.readable),
        writable=(*confinement.writable, Path("/dev/null")),
    )
    return f"ABI {abi}"


def _main() -> None:
    """Confine this process to nothing, and print what worked."""
    nothing = Confinement(readable=(), writable=(), memory_bytes=1 << 34, file_bytes=1 << 20)
    isolation = isolate(nothing)
    for line in (
        *(f"+ {done}" for done in isolation.what),
        *(f"- {no}" for no in isolation.missing),
    ):
        print(line)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    _main()
