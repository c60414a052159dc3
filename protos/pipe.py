"""Protobuf messages and open files over a socketpair, between a daemon and its worker.

Each message is a header (length, number of descriptors) and the protobuf bytes; descriptors travel
beside the header. The receiver trusts the other end for nothing: length and number are limits that
it sets, every descriptor is close-on-exec, and a broken stream closes what came with it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from tacit.core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DESCRIPTORS = 4
MAX_MESSAGE_BYTES = 8 << 20  # an instruction head, and all that a small run configuration holds

_HEADER = struct.Struct("!IB")
_Rights = tuple[int, int, "array.array[int]"]
_MessageT = TypeVar("_MessageT", bound=Message)


class PipeClosed(Exception):  # noqa: N818 - an event of the protocol, not an error
    """The other end has closed the pipe, or died."""


class Pipe:
    """One end of a socketpair. Many threads may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0.0)  # waiting is done with poll, which knows the deadline
        self._socket = connection
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(
        self,
        message: Message,
        descriptors: Sequence[int] = (),
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Send a message; the descriptors stay open here, and are the caller's to close.

        Raises:
            PipeClosed: there is nobody to read it.
            TimeoutError: it was not taken in time; the pipe is of no use any more.
        """
        data = message.SerializeToString()
        pending = memoryview(_HEADER.pack(len(data), len(descriptors)) + data)
        deadline = _deadline(timeout_s)
        with self._sending:
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                pending = pending[self._send_some(pending, rights, deadline) :]
            while len(pending):
                pending = pending[self._send_some(pending, [], deadline) :]

    def receive(
        self,
        kind: type[_MessageT],
        *,
        max_bytes: int = MAX_MESSAGE_BYTES,
        timeout_s: float | None = None,
    ) -> tuple[_MessageT, list[int]]:
        """Wait for the next message; its descriptors are the caller's to close.

        Raises:
            PipeClosed: the other end is gone.
            ProtocolError: the message is too long, malformed, or has other descriptors than said.
            TimeoutError: it did not come whole in time; the pipe is of no use any more.
        """
        deadline = _deadline(timeout_s)
        descriptors: list[int] = []
        try:
            length, count = _HEADER.unpack(self._read_header(descriptors, deadline))
            if length > max_bytes:
                raise ProtocolError(  # noqa: TRY301 - the descriptors are closed below
                    "E-PIPE-TOO-LONG", f"expected at most {max_bytes} bytes, got {length}"
                )
            if count != len(descriptors):
                raise ProtocolError(  # noqa: TRY301
                    "E-PIPE-DESCRIPTORS", f"expected {count} descriptors, got {len(descriptors)}"
                )
            return kind.FromString(self._read_body(length, deadline)), descriptors
        except DecodeError as error:
            _close_all(descriptors)
            raise ProtocolError("E-PIPE-MALFORMED", f"expected a {kind.__name__}") from error
        except BaseException:
            _close_all(descriptors)
            raise

    def has_more(self) -> bool:
        """Tell whether the other end has said something that was not received yet."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return any(
            event & select.POLLIN and not event & select.POLLHUP for _, event in poll.poll(0)
        )

    def close(self) -> None:
        """Close this end; the other end, and a thread that waits here, find out at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_some(self, data: memoryview, rights: list[_Rights], deadline: float | None) -> int:
        while True:
            self._wait(select.POLLOUT, deadline)
            try:
                return self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PipeClosed from error

    def _read_header(self, descriptors: list[int], deadline: float | None) -> bytes:
        header = b""
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        while len(header) < _HEADER.size:
            self._wait(select.POLLIN, deadline)
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _HEADER.size - len(header), room, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError as error:
                raise PipeClosed from error
            for level, kind, rights in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                    descriptors.extend(received)
            if flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
                raise ProtocolError(
                    "E-PIPE-DESCRIPTORS", f"expected at most {MAX_DESCRIPTORS} descriptors"
                )
            if not data:
                raise PipeClosed
            header += data
        return header

    def _read_body(self, length: int, deadline: float | None) -> bytes:
        """Read the message; descriptors that hide beside it are dropped by the kernel."""
        body = bytearray(length)
        view = memoryview(body)
        while view:
            self._wait(select.POLLIN, deadline)
            try:
                count = self._socket.recv_into(view)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PipeClosed from error
            if not count:
                raise PipeClosed
            view = view[count:]
        return bytes(body)

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait until the socket may be used, or the deadline has passed."""
        poll = select.poll()
        try:
            poll.register(self._socket, event)
        except ValueError as error:  # closed at this end meanwhile
            raise PipeClosed from error
        left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left_ms):
            raise TimeoutError("expected the other end of the pipe to answer in time")


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
