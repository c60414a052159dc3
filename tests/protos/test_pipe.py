"""The pipe between daemon and worker, with a hostile worker at the other end."""

from __future__ import annotations

import array
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import ProtocolError
from tacit.protos.fleet_pb2 import FetchRequest
from tacit.protos.pipe import MAX_DESCRIPTORS, Pipe, PipeClosed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def raw_pair() -> Iterator[tuple[socket.socket, Pipe]]:
    worker, daemon = socket.socketpair()
    pipe = Pipe(daemon)
    yield worker, pipe
    pipe.close()
    worker.close()


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    ends = tuple(map(Pipe, socket.socketpair()))
    yield ends  # type: ignore[misc]
    for end in ends:
        end.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not walked


def test_messages_and_files_arrive_together(pipes: tuple[Pipe, Pipe]) -> None:
    """Descriptors arrive beside their own message, in order, closed for children."""
    sender, receiver = pipes
    files = [os.memfd_create(name) for name in ("a", "b")]
    for number, file in enumerate(files):
        os.write(file, str(number).encode())
    sender.send(FetchRequest(run_id="plain"))
    sender.send(FetchRequest(run_id="files"), files)
    plain, none = receiver.receive(FetchRequest, timeout_s=5)
    message, received = receiver.receive(FetchRequest, timeout_s=5)
    assert ([plain.run_id, message.run_id], none) == (["plain", "files"], [])
    assert [os.pread(file, 1, 0) for file in received] == [b"0", b"1"]
    assert not any(os.get_inheritable(file) for file in received)
    for file in files + received:
        os.close(file)


def test_what_was_said_and_not_heard_shows(pipes: tuple[Pipe, Pipe]) -> None:
    """A message that waits is more; none, one that was read, and an end that is gone are not."""
    sender, receiver = pipes
    assert not receiver.has_more()
    sender.send(FetchRequest(run_id="one"))
    assert receiver.has_more()
    receiver.receive(FetchRequest, timeout_s=5)
    assert not receiver.has_more()
    sender.close()
    assert not receiver.has_more()


def test_long_messages_pass_a_small_buffer(pipes: tuple[Pipe, Pipe]) -> None:
    """A message longer than the socket's buffer is sent and read in parts."""
    sender, receiver = pipes
    message = FetchRequest(run_id="x" * 3_000_000)
    thread = threading.Thread(target=sender.send, args=(message,))
    thread.start()
    received, _ = receiver.receive(FetchRequest, timeout_s=20)
    thread.join()
    assert message == received


def test_the_end_is_an_event(pipes: tuple[Pipe, Pipe]) -> None:
    """Both directions say that the other end is gone, without a signal."""
    sender, receiver = pipes
    sender.close()
    with pytest.raises(PipeClosed):
        receiver.receive(FetchRequest, timeout_s=5)
    with pytest.raises(PipeClosed):
        receiver.send(FetchRequest())


def test_closing_wakes_a_waiting_thread(pipes: tuple[Pipe, Pipe]) -> None:
    """A thread that waits for a message ends when its own end is closed."""
    _, receiver = pipes
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            receiver.receive(FetchRequest, timeout_s=20)
        except PipeClosed as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    receiver.close()
    thread.join(timeout=10)
    assert len(outcome) == 1


def test_a_silent_worker_is_left(raw_pair: tuple[socket.socket, Pipe]) -> None:
    """Half a message does not hold the daemon for longer than the deadline."""
    worker, pipe = raw_pair
    worker.sendall(b"\x00\x00\x00\x05\x00ab")
    with pytest.raises(TimeoutError):
        pipe.receive(FetchRequest, timeout_s=0.05)


def test_a_worker_that_does_not_read_is_left(raw_pair: tuple[socket.socket, Pipe]) -> None:
    """Sending has a deadline too."""
    _, pipe = raw_pair
    with pytest.raises(TimeoutError):
        pipe.send(FetchRequest(run_id="x" * 5_000_000), timeout_s=0.05)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff\xff\xff\xff\x00", "E-PIPE-TOO-LONG"),
        (b"\x00\x00\x00\x02\x00\xff\xff", "E-PIPE-MALFORMED"),
        (b"\x00\x00\x00\x00\x01", "E-PIPE-DESCRIPTORS"),
    ],
    ids=["4 GiB", "no protobuf", "missing descriptor"],
)
def test_lies_are_refused(raw_pair: tuple[socket.socket, Pipe], sent: bytes, code: str) -> None:
    """Lengths, content and descriptors are checked before they are used."""
    worker, pipe = raw_pair
    worker.sendall(sent)
    with pytest.raises(ProtocolError) as caught:
        pipe.receive(FetchRequest, timeout_s=5)
    assert code == caught.value.code


@pytest.mark.parametrize("count", [1, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1, 200])
def test_undeclared_descriptors_are_closed(
    raw_pair: tuple[socket.socket, Pipe], count: int
) -> None:
    """A worker cannot fill the daemon's table of open files."""
    worker, pipe = raw_pair
    files = array.array("i", [worker.fileno()] * count)
    before = open_descriptors()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
    worker.sendmsg([b"\x00\x00\x00\x00\x00"], rights)
    with pytest.raises(ProtocolError):
        pipe.receive(FetchRequest, timeout_s=5)
    assert before == open_descriptors()


def test_descriptors_beside_the_body_are_dropped(raw_pair: tuple[socket.socket, Pipe]) -> None:
    """Only the header may carry descriptors; others never reach the process."""
    worker, pipe = raw_pair
    body = FetchRequest(run_id="r").SerializeToString()
    before = open_descriptors()
    worker.sendall(len(body).to_bytes(4, "big") + b"\x00")
    worker.sendmsg(
        [body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [worker.fileno()]))]
    )
    message, received = pipe.receive(FetchRequest, timeout_s=5)
    assert ("r", [], before) == (message.run_id, received, open_descriptors())
