"""A relay on loopback that delays bytes both ways and counts them; TLS passes through untouched.

It stands between a node and its server, knows nothing of what it carries, and needs no privilege.
Each piece is handed on half a round trip after it came, in order; reading goes on meanwhile, so
that a delay takes nothing from the throughput. The counts are bytes of TCP payload: messages with
all their framing, HTTP/2 and TLS included, but not the headers of packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from benchmarks.processes import BenchmarkError

PIECE_BYTES = 1 << 18
START_TIMEOUT_S = 10.0


@dataclass
class Count:
    """Bytes so far in one direction, with the moments (CLOCK_MONOTONIC) at which they came."""

    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, size: int) -> None:
        """Note a piece."""
        self.times.append(time.monotonic())
        self.sizes.append(size)

    def between(self, start: float, end: float) -> int:
        """Return the bytes that came between two moments."""
        pairs = zip(list(self.times), list(self.sizes), strict=False)
        return sum(size for moment, size in pairs if start <= moment <= end)


class Relay:
    """Forwards each connection to one port; runs in a thread of its own until the block is left.

    Attributes:
        port: where it listens; 0 before the block is entered.
        round_trip_s: how much later an answer comes than without it; may be changed at any time.
        up: what came from the nodes.
        down: what came from the server.
    """

    def __init__(self, target: int, *, round_trip_s: float = 0.0) -> None:
        self.port = 0
        self.round_trip_s = round_trip_s
        self.up, self.down = Count(), Count()
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(START_TIMEOUT_S):
            raise BenchmarkError(f"the relay did not start in {START_TIMEOUT_S:.0f} s")
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = listener.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        listener.close()
        self._loop.run_until_complete(_all_cancelled())
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is not there: nor are we
            writer.close()
            return
        try:
            await asyncio.gather(
                self._forward(reader, far_writer, self.up),
                self._forward(far_reader, writer, self.down),
            )
        except asyncio.CancelledError:  # the block is left: nobody waits for the rest
            pass
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Count
    ) -> None:
        """Hand on what comes, each piece at its time, until one side closes."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        giving = asyncio.ensure_future(_hand_on(queue, writer))
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                count.add(len(piece))
                queue.put_nowait((time.monotonic() + self.round_trip_s / 2, piece))
        queue.put_nowait((0.0, b""))
        await giving


async def _hand_on(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, piece = await queue.get()
            if not piece:
                break
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _all_cancelled() -> None:
    """Let every other task of this loop end, and its connections with it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # transports close in the next turn of the loop
