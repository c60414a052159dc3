"""Confinement: what is required of it, and that it is real where the machine allows it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tacit.client import kernel
from tacit.client.isolation import _isolation, probe
from tacit.client.worker import WorkerOrder

CONFINED = """
import os, socket, sys
from pathlib import Path
from tacit.client.isolation import Confinement, isolate
scratch = Path(sys.argv[1])
isolation = isolate(Confinement(
    readable=(), writable=(scratch,), memory_bytes=1 << 32, file_bytes=1000))
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
print(
    refused(lambda: os.listdir("/root")),
    refused(lambda: socket.socketpair()[0].sendto(b"", "/x")),
    refused(lambda: socket.socket()),
    refused(lambda: (scratch / "big").write_bytes(bytes(2000))),
    refused(lambda: os.kill(1, 0)),
    refused(lambda: (scratch / "small").write_bytes(b"x")),
    refused(lambda: os.kill(os.getpid(), 0)),
)
"""


def test_files_and_system_calls_are_both_required() -> None:
    """Half a confinement is none; the rest is a bonus."""
    files, calls = "Landlock file rules (ABI 7)", "seccomp filter"
    assert _isolation([files, calls], ["network namespace: no"]).available
    assert not _isolation([files], []).available
    assert not _isolation([calls, "network namespace"], []).available


def test_filter_jumps_stay_inside_the_program() -> None:
    """Every jump of the filter lands on an instruction, on both processors; others are refused."""
    for machine in ("x86_64", "aarch64"):
        program = kernel._program(machine, 1234)
        steps = [struct.unpack("=HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
        assert len(steps) < 4096  # the kernel's limit
        for at, (code, if_true, if_false, _) in enumerate(steps):
            if code & 0x07 == 0x05:
                assert at + 1 + max(if_true, if_false) < len(steps)
    with pytest.raises(OSError, match="table"):
        kernel._program("pdp11", 1)


def test_a_checkout_is_not_readable_as_a_whole() -> None:
    """Only Tacit's packages and Python's own folders, never their parents."""
    code = "from tacit.client.isolation import python_paths, package_paths\n"
    code += "for path in python_paths() + package_paths(): print(path)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, check=True, text=True
    )
    root = Path(kernel.__file__).resolve().parent.parent
    assert not set(result.stdout.splitlines()) & {"/", str(Path.home()), str(root)}


def test_order_survives_the_command_line() -> None:
    """What the daemon orders is what the worker reads."""
    order = WorkerOrder(
        readable=("/a b",), writable=("/c",), memory_bytes=1, file_bytes=2, required=True
    )
    assert WorkerOrder.parse(order.encode()) == order


@pytest.mark.slow
def test_probe_finds_something_to_say() -> None:
    """The probe names each means once, as working or as missing with a reason."""
    isolation = probe()
    assert len(isolation.what) + len(isolation.missing) == 4
    assert all(": " in missing for missing in isolation.missing)


@pytest.mark.slow
def test_confined_process_is_confined(tmp_path: Path) -> None:
    """Files, sockets, signals and sizes are refused; the process' own scratch is not."""
    isolation = probe()
    if not isolation.available:
        pytest.skip(f"this machine cannot confine a process: {'; '.join(isolation.missing)}")
    result = subprocess.run(
        [sys.executable, "-P", "-c", CONFINED, str(tmp_path)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.stdout.split() == ["True"] * 5 + ["False"] * 2, result.stderr
