"""The process that runs one run's ClientApp: it confines itself, loads the app, answers messages.

Started by ``workers.py`` as ``python -m tacit.client.worker DESCRIPTOR CONFINEMENT``. It holds one
end of a socketpair and nothing else: no key, no ledger, no network, no file but those that the
confinement names. It confines itself before it reads anything. When the daemon goes, it ends.

Bulk comes and goes as descriptors beside the messages: nameless files, or files in the scratch
folder where the system has none. The file of a reply is written again for the next one: the daemon
asks again only after it has made its own copy.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tacit.client.isolation import Confinement, Isolation, isolate
from tacit.client.payload import anonymous_file
from tacit.client.sources import run_from_source
from tacit.core.errors import AppError
from tacit.core.logs import configure_logging
from tacit.protos import pipe_pb2
from tacit.protos.payload import map_payload, unnamed_payload, write_segments
from tacit.protos.pipe import Pipe, PipeClosed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.client.apphost import AppHost, HostedAnswer


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What the daemon tells a worker on its command line, before it trusts itself with more.

    Attributes:
        readable, writable, memory_bytes, file_bytes: see Confinement.
        required: end rather than run unconfined.
    """

    readable: tuple[str, ...]
    writable: tuple[str, ...]
    memory_bytes: int
    file_bytes: int
    required: bool

    def encode(self) -> str:
        """Return the order as one argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: str) -> WorkerOrder:
        """Read what :meth:`encode` wrote."""
        plain = json.loads(text)
        return cls(
            readable=tuple(plain["readable"]),
            writable=tuple(plain["writable"]),
            memory_bytes=int(plain["memory_bytes"]),
            file_bytes=int(plain["file_bytes"]),
            required=bool(plain["required"]),
        )

    @property
    def confinement(self) -> Confinement:
        """What to confine the process to."""
        return Confinement(
            readable=tuple(map(Path, self.readable)),
            writable=tuple(map(Path, self.writable)),
            memory_bytes=self.memory_bytes,
            file_bytes=self.file_bytes,
        )


def main(arguments: Sequence[str]) -> int:
    """Confine this process, then serve the daemon until it says stop or goes."""
    descriptor, order = int(arguments[0]), WorkerOrder.parse(arguments[1])
    connection = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only parameter
    isolation = isolate(order.confinement)
    configure_logging("worker")
    pipe = Pipe(connection)
    _end_with_daemon(descriptor)
    try:
        if order.required and not isolation.available:
            why = "; ".join(isolation.missing)
            _send_ready(pipe, isolation, failure=f"E-POLICY-ISOLATION: {why}")
            return 1
        _serve(pipe, isolation)
    except (PipeClosed, KeyboardInterrupt):
        return 0
    finally:
        _end_group()
    return 0


def _serve(pipe: Pipe, isolation: Isolation) -> None:
    task, descriptors = pipe.receive(pipe_pb2.WorkerTask)
    scratch = Path(task.begin.scratch_path)
    try:
        host = _load(task.begin, descriptors)
    except AppError as error:
        _send_ready(pipe, isolation, failure=f"{error.code}: {error.message}")
        return
    _send_ready(pipe, isolation)
    files = ReplyFiles(scratch)
    gc.freeze()  # what is loaded by now stays, and need not be looked at below
    while True:
        task, descriptors = pipe.receive(pipe_pb2.WorkerTask)
        if task.WhichOneof("task") != "call":
            return
        payload = map_payload(descriptors[0])
        os.close(descriptors[0])
        _send_result(pipe, host.call(task.call, payload), files)
        del payload, task
        gc.collect()  # flwr's messages refer to themselves, and would go on holding the payload


def _load(begin: pipe_pb2.WorkerBegin, descriptors: list[int]) -> AppHost:
    from tacit.client.apphost import AppHost  # noqa: PLC0415 - flwr loads after confinement only

    run_from_source(begin)
    state = memoryview(b"")
    for descriptor in descriptors:
        state = map_payload(descriptor)
        os.close(descriptor)
    return AppHost(begin, state)


def _send_ready(pipe: Pipe, isolation: Isolation, *, failure: str = "") -> None:
    ready = pipe_pb2.WorkerReady(
        isolated=isolation.available, isolation=", ".join(isolation.what), failure=failure
    )
    pipe.send(pipe_pb2.WorkerReply(ready=ready))


class ReplyFiles:
    """Makes the nameless files that carry answers; the one for contents is kept and used again."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._kept = -1

    def content(self, segments: Sequence[bytes | memoryview]) -> int:
        """Return a descriptor of a file that holds the segments until the next call."""
        if self._kept < 0:
            self._kept = anonymous_file("tacit-reply", folder=self._scratch)
        os.lseek(self._kept, 0, os.SEEK_SET)
        os.ftruncate(self._kept, write_segments(self._kept, segments))
        return os.dup(self._kept)

    def state(self, segments: Sequence[bytes | memoryview]) -> int:
        """Return a descriptor of a new file that holds the segments."""
        try:
            return unnamed_payload(segments)
        except (OSError, AttributeError):  # no memfd here
            descriptor = anonymous_file("tacit-state", folder=self._scratch)
            write_segments(descriptor, segments)
            return descriptor


def _send_result(pipe: Pipe, answer: HostedAnswer, files: ReplyFiles) -> None:
    descriptors: list[int] = []
    try:
        if answer.content is not None:
            descriptors.append(files.content(answer.content.segments))
        if answer.state.manifest.payload_bytes:
            descriptors.append(files.state(answer.state.segments))
        result = pipe_pb2.WorkerResult(reply=answer.reply, state=answer.state.manifest)
        pipe.send(pipe_pb2.WorkerReply(result=result), descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _end_with_daemon(descriptor: int) -> None:
    """End this process at once when the other end of the pipe is gone, whatever the app does."""

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # a hang-up is always reported
        poll.poll()
        _end_group()
        os._exit(0)

    threading.Thread(target=watch, name="end-with-daemon", daemon=True).start()


def _end_group() -> None:
    """End this process and all that it has started: nothing of it can leave the group."""
    if os.getpgrp() == os.getpid():
        os.kill(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
