"""The daemon's side of one run's worker process: started, answered, watched, ended.

The worker gets the run's folder, the spool and one end of a socketpair: no key, no address, and an
environment without Tacit's own settings. It is trusted with the run, not with the daemon: requests
are bounded, and a worker that stops in the middle of one is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, TacitError
from tacit.protos import pipe_pb2
from tacit.protos.pipe import Pipe, PipeClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

log = logging.getLogger("tacit.server.run_worker")

WORKER_COMMAND = (sys.executable, "-m", "tacit.server.worker")

_MAX_REQUEST_BYTES = 64 << 20  # a push to a whole cohort, manifests included
_PIPE_TIMEOUT_S = 10.0
_EXIT_TIMEOUT_S = 10.0
_MALLOC = {  # large buffers go back and forth: fewer page faults (measured: -45 % of a round)
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What a worker is started for."""

    run_id: str
    folder: Path
    spool: Path
    checkpoint: str
    durable: bool
    log_form: str


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a worker ended.

    Attributes:
        done: whether it said that the run is over; otherwise it died.
        failure: why the run failed; empty if it did not.
        code: the failure's stable code.
        hint: what to do about it; may be empty.
    """

    done: bool
    failure: str = ""
    code: str = ""
    hint: str = ""


class RunWorker:
    """One worker process and its pipe."""

    def __init__(
        self,
        task: WorkerTask,
        answer: Callable[[pipe_pb2.GridRequest], Awaitable[pipe_pb2.GridReply]],
        *,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._task = task
        self._answer = answer
        self._command = command
        self._calls: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[WorkerEnd] = asyncio.get_running_loop().create_future()

    async def run(self) -> WorkerEnd:
        """Start the process and serve it until it is done or dead; cancelling ends it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await self._start(theirs)
        pipe = Pipe(ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), self._read, pipe)
        try:
            return await self._end
        finally:
            loop.remove_reader(pipe.fileno())
            for call in self._calls:
                call.cancel()
            said_done = self._end.done() and not self._end.cancelled() and self._end.result().done
            if not said_done:
                pipe.close()
            await asyncio.shield(_reap(process, patiently=said_done))
            pipe.close()

    async def _start(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        arguments = [
            *("--pipe", str(theirs.fileno())),
            *("--run", self._task.run_id),
            *("--folder", str(self._task.folder)),
            *("--spool", str(self._task.spool)),
            *("--checkpoint", self._task.checkpoint),
            *(["--durable"] if self._task.durable else []),
            *("--log-form", self._task.log_form),
        ]
        return await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            env=worker_environment(),
            start_new_session=True,  # Ctrl-C at a terminal is for the daemon to act on
        )

    def _read(self, pipe: Pipe) -> None:
        try:
            request, descriptors = pipe.receive(
                pipe_pb2.GridRequest, max_bytes=_MAX_REQUEST_BYTES, timeout_s=_PIPE_TIMEOUT_S
            )
        except (PipeClosed, ProtocolError, TimeoutError) as error:
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            self._finish(WorkerEnd(done=False, failure=type(error).__name__))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        call = asyncio.get_running_loop().create_task(self._serve(pipe, request))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _serve(self, pipe: Pipe, request: pipe_pb2.GridRequest) -> None:
        reply = pipe_pb2.GridReply(call_id=request.call_id)
        try:
            if request.WhichOneof("request") != "done":
                reply = await self._answer(request)
        except TacitError as error:
            log.warning(
                "call of the run worker refused",
                extra={"fields": {"run": self._task.run_id, "code": error.code}},
            )
            reply.error_code = error.code
        except Exception:
            log.exception("call of the run worker failed")
            reply.error_code = "E-INTERNAL"
        with contextlib.suppress(PipeClosed):  # the reader notices, too
            try:
                pipe.send(reply, timeout_s=_PIPE_TIMEOUT_S)
            except TimeoutError:
                self._finish(WorkerEnd(done=False, failure="the worker reads nothing"))
        if request.WhichOneof("request") == "done":
            done = request.done
            end = WorkerEnd(done=True, failure=done.failure, code=done.code, hint=done.hint)
            self._finish(end)

    def _finish(self, end: WorkerEnd) -> None:
        if not self._end.done():
            self._end.set_result(end)


def worker_environment() -> dict[str, str]:
    """Return the worker's environment: this one without Tacit's settings, telemetry off."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TACIT_")}
    return kept | _MALLOC | {"FLWR_TELEMETRY_ENABLED": "0"}


async def _reap(process: asyncio.subprocess.Process, *, patiently: bool) -> None:
    """Wait for the process, and end it and its children where it does not end by itself."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is None and not patiently:
            continue
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _EXIT_TIMEOUT_S)
            break
