"""The Linux calls that confine a process and that Python 3.11 has no name for.

Every function acts on the calling process, cannot be undone, and raises OSError where the kernel,
or the sandbox around it, says no. Numbers and layouts are those of the kernel's user interface:
linux/landlock.h, linux/seccomp.h, linux/filter.h, linux/sched.h, linux/capability.h and the system
call tables of x86_64 and of the generic table (aarch64).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
import sys
import threading
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_VERSION = 1
_RULE_PATH_BENEATH = 1
_O_PATH = 0o10000000
_READ_FILE, _READ_FOLDER, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
_WRITE_FILE, _TRUNCATE, _IOCTL_DEVICE = 1 << 1, 1 << 14, 1 << 15
_FILE_RIGHTS = _READ_FILE | _EXECUTE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
_MAKE_DEVICES = (1 << 6) | (1 << 11)  # character and block devices
_MAKE_SOCKET = 1 << 9
_NET_BIND_AND_CONNECT = 0b11
_SCOPE_ABSTRACT_SOCKET_AND_SIGNAL = 0b11
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_RIGHTS_LATEST = (1 << 16) - 1  # ABI 5 added ioctl on devices

_CAPABILITY_VERSION_3 = 0x20080522

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_KILL = 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16

_X32_BIT = 0x40000000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Refused with EPERM whatever the arguments, as (x86_64, aarch64); None where a table has no such
# call. What Landlock leaves open is here too: modes, owners, times and attributes of any file.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    # a session or group of its own would outlive the worker, whose group is killed as one
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # every file of this user, the node's own included
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    # memory and queues that the worker of another run could find
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
}
# Refused unless the first argument names this process, or, as 0, its own group or itself.
_KILL_CALL, _KILL_THREAD, _LIMITS_OF = (62, 129), (234, 131), (302, 261)  # kill, tgkill, prlimit64
_CLONE = (56, 220)
# Refused, because glibc falls back to what the filter can see into.
_UNKNOWN = {"clone3": (435, 435)}


def enter_empty_network() -> str:
    """Move into a network namespace with no interface that is up.

    Raises:
        OSError: namespaces are not allowed here, or the process has several threads.
    """
    _verify_linux()
    if threading.active_count() != 1:
        raise OSError(errno.EINVAL, "a process with several threads cannot enter a namespace")
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
    with contextlib.suppress(OSError):  # unmapped, the process is nobody: it works as well
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return ""


def restrict_files(*, readable: tuple[Path, ...], writable: tuple[Path, ...]) -> int:
    """Allow reading below ``readable`` and everything but devices and sockets below ``writable``.

    Paths that do not exist are left out. Returns the Landlock ABI.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    _verify_linux()
    abi = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))
    rights = _RIGHTS_BY_ABI.get(abi, _RIGHTS_LATEST)
    attributes = struct.pack("=Q", rights)
    if abi >= 4:
        attributes += struct.pack("=Q", _NET_BIND_AND_CONNECT)
    if abi >= 6:
        attributes += struct.pack("=Q", _SCOPE_ABSTRACT_SOCKET_AND_SIGNAL)
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0))
    try:
        for path in readable:
            _allow(ruleset, path, rights & (_READ_FILE | _READ_FOLDER | _EXECUTE))
        for path in writable:
            _allow(ruleset, path, rights & ~(_MAKE_DEVICES | _MAKE_SOCKET))
        _no_new_privileges()
        _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return abi


def drop_capabilities() -> str:
    """Give up every capability, those inside a namespace of our own included.

    Raises:
        OSError: the kernel refuses.
    """
    _verify_linux()
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)))
    return ""


def filter_system_calls() -> str:
    """Refuse the system calls that reach other processes, the network or the machine.

    Raises:
        OSError: seccomp is not allowed here, or the processor's table is not known.
    """
    _verify_linux()
    program = _program(platform.machine(), os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _no_new_privileges()
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))
    return ""


def _program(machine: str, process: int) -> bytes:
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}")
    column = 0 if machine == "x86_64" else 1
    refuse = _statement(_RETURN, _ERRNO | errno.EPERM)
    allow = _statement(_RETURN, _ALLOW)
    parts = [
        _statement(_LOAD, _ARCHITECTURE_OFFSET),
        _jump(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _NUMBER_OFFSET),
    ]
    if machine == "x86_64":  # a second table of the same calls under other numbers
        parts += [_jump(_JUMP_AT_LEAST, _X32_BIT, 0, 1), refuse]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            parts += [_jump(_JUMP_EQUAL, number, 0, 1), refuse]
    for numbers in _UNKNOWN.values():
        parts += [
            _jump(_JUMP_EQUAL, numbers[column], 0, 1),
            _statement(_RETURN, _ERRNO | errno.ENOSYS),
        ]
    for numbers, own in ((_KILL_CALL, 0), (_KILL_THREAD, process), (_LIMITS_OF, 0)):
        parts += [
            _jump(_JUMP_EQUAL, numbers[column], 0, 5),
            _statement(_LOAD, _FIRST_ARGUMENT_OFFSET),
            _jump(_JUMP_EQUAL, own, 2, 0),
            _jump(_JUMP_EQUAL, process, 1, 0),
            refuse,
            allow,
        ]
    parts += [
        _jump(_JUMP_EQUAL, _CLONE[column], 0, 4),
        _statement(_LOAD, _FIRST_ARGUMENT_OFFSET),
        _jump(_JUMP_IF_SET, _CLONE_NEWUSER, 0, 1),
        refuse,
        allow,
    ]
    return b"".join([*parts, allow])


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, _O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, descriptor)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _no_new_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _verify_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "Linux only")


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
