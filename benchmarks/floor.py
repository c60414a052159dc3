"""The loopback floor: the same bytes over plain TCP sockets, and nothing else.

One process plays the server and four play the clients. In a round the server sends the model to
all four at once, each client returns as many bytes after it has received all, and the round ends
when the server has everything. No encryption, no framing, no journal, no copy beyond the sockets'
own, buffers allocated and touched beforehand: no engine that moves these bytes can be faster.

``python -m benchmarks.floor PORT BYTES ROUNDS`` is one client.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import BenchmarkError, Crew
from benchmarks.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPT_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).resolve().parent.parent


def measure_floor(
    *, parameters: int, clients: int, rounds: int, folder: Path, progress: Callable[[str], None]
) -> Result:
    """Return the best of some rounds, after one warm-up."""
    size = 4 * parameters
    model = os.urandom(min(size, 1 << 20)) * (size // (1 << 20) + 1)
    view = memoryview(model)[:size]
    buffers = [bytearray(size) for _ in range(clients)]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with Crew(folder) as crew, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(ACCEPT_TIMEOUT_S)
        port = listener.getsockname()[1]
        arguments = [str(port), str(size), str(rounds + 1)]
        for index in range(clients):
            command = [sys.executable, "-m", "benchmarks.floor", *arguments]
            crew.start(f"client{index}", command, environ=environ)
        peers = [listener.accept()[0] for _ in range(clients)]
        try:
            for peer in peers:
                peer.settimeout(TRANSFER_TIMEOUT_S)
            seconds = [_round(peers, view, buffers) for _ in range(rounds + 1)][1:]
        finally:
            for peer in peers:
                peer.close()
    if any(buffer != view for buffer in buffers):
        raise BenchmarkError("the floor returned other bytes than it was sent")
    progress(f"best of {rounds}: {min(seconds):.4f} s")
    return Result(
        engine="floor",
        parameters=parameters,
        rounds=rounds,
        seconds=min(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
    )


def _round(peers: list[socket.socket], model: memoryview, buffers: list[bytearray]) -> float:
    failures: list[OSError] = []

    def exchange(peer: socket.socket, buffer: bytearray) -> None:
        try:
            peer.sendall(model)
            receive_into(peer, memoryview(buffer))
        except OSError as error:
            failures.append(error)

    threads = [
        threading.Thread(target=exchange, args=pair) for pair in zip(peers, buffers, strict=True)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise BenchmarkError(f"the floor lost a client: {failures[0]}")
    return seconds


def receive_into(peer: socket.socket, view: memoryview) -> None:
    """Fill a buffer from a socket."""
    done = 0
    while done < len(view):
        count = peer.recv_into(view[done:])
        if count == 0:
            raise ConnectionError("the other end closed early")
        done += count


def client(port: int, size: int, rounds: int) -> None:
    """Receive the model and return it, round after round."""
    buffer = memoryview(bytearray(size))
    with socket.create_connection(("127.0.0.1", port), timeout=TRANSFER_TIMEOUT_S) as peer:
        for _ in range(rounds):
            receive_into(peer, buffer)
            peer.sendall(buffer)


if __name__ == "__main__":
    client(*(int(argument) for argument in sys.argv[1:4]))
