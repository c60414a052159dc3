"""Confinement: what is required of it, and that it is real where the machine allows it."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tacit.client import kernel
from tacit.client.isolation import _isolation, probe
from tacit.client.payload import InstructionFiles, reader_of
from tacit.client.worker import WorkerOrder

CONFINED = """
import ctypes, fcntl, json, os, signal, socket, sys, time
from pathlib import Path
from tacit.client.isolation import Confinement, isolate
scratch, outside = Path(sys.argv[1]), Path(sys.argv[2])
isolation = isolate(Confinement(
    readable=(), writable=(scratch,), memory_bytes=1 << 32, file_bytes=1000))
libc = ctypes.CDLL(None, use_errno=True)
def called(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
def in_child(action):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"refused" if refused(action) else b"done")
        os._exit(0)
    return os.read(read, 10) == b"refused"
(scratch / "mine").write_bytes(b"x")
shared = {"x86_64": (29, 68, 64), "aarch64": (194, 186, 190)}[os.uname().machine]
print(json.dumps({
    "lists a folder": refused(lambda: os.listdir(outside.parent)),
    "reads a file": refused(outside.read_bytes),
    "sends to a path": refused(lambda: socket.socketpair()[0].sendto(b"", "/x")),
    "opens a socket": refused(lambda: socket.socket()),
    "writes a large file": refused(lambda: (scratch / "big").write_bytes(bytes(2000))),
    "asks after another process": refused(lambda: os.kill(1, 0)),
    "asks after all processes": refused(lambda: os.kill(-1, 0)),
    "changes a mode": refused(lambda: outside.chmod(0o666)),
    "changes a mode of its own file": refused(lambda: (scratch / "mine").chmod(0o666)),
    "changes times": refused(lambda: os.utime(outside, (1, 1))),
    "changes an owner": refused(lambda: os.chown(outside, os.getuid(), os.getgid())),
    "adds an attribute": refused(lambda: os.setxattr(outside, "user.row", b"1")),
    "shares memory": refused(lambda: called(shared[0], 77, 4096, 0o1600)),
    "shares a queue": refused(lambda: called(shared[1], 77, 0o1600)),
    "shares a semaphore": refused(lambda: called(shared[2], 77, 1, 0o1600)),
    "a child leaves the session": in_child(os.setsid),
    "a child leaves the group": in_child(os.setpgrp),
    "opens an instruction for writing": refused(
        lambda: os.open(f"/proc/self/fd/{sys.argv[3]}", os.O_RDWR)),
    "makes an instruction writable": refused(lambda: os.fchmod(int(sys.argv[3]), 0o600)),
    "reads an instruction": refused(lambda: os.pread(int(sys.argv[3]), 3, 0)),
    "writes scratch": refused(lambda: (scratch / "small").write_bytes(b"x")),
    "asks after itself": refused(lambda: os.kill(os.getpid(), 0)),
    "starts a child": in_child(lambda: None),
}))
"""
ALLOWED = {"reads an instruction", "writes scratch", "asks after itself", "starts a child"}


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
    """All that reaches beyond the process is refused; its own scratch and children are not."""
    isolation = probe()
    if not isolation.available:
        pytest.skip(f"this machine cannot confine a process: {'; '.join(isolation.missing)}")
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    (tmp_path / "scratch").mkdir()
    with contextlib.closing(InstructionFiles()) as files:
        descriptor = files.take("r-1")
        os.write(descriptor, b"abc")
        reader = reader_of(descriptor)
        result = subprocess.run(
            [sys.executable, "-P", "-c", CONFINED, tmp_path / "scratch", outside, str(reader)],
            capture_output=True,
            check=False,
            text=True,
            pass_fds=[reader],
        )
        os.close(reader)
        files.give_back("r-1", descriptor)
    found = json.loads(result.stdout or "{}")
    assert {name for name, refused in found.items() if not refused} == ALLOWED, result.stderr
    assert outside.stat().st_mode & 0o777 != 0o666
