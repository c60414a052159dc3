"""The daemon's side of the workers: one process per run, started early, killed when it hangs.

A worker gets a scrubbed environment, one end of a socketpair, no other descriptor, and a log that
is read through a pipe and capped. A call that takes longer than the owner allows is answered by
killing the worker, with all that it started; the next call starts a fresh one from the last stored
state. Nothing here trusts what a worker says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tacit.client.approvals import BUILT_IN_APP
from tacit.client.payload import DescriptorPayload, Payload, anonymous_file
from tacit.client.runner import AppAnswer, AppSetup
from tacit.client.worker import WorkerOrder
from tacit.core.errors import AppError, ProtocolError, UnavailableError
from tacit.core.files import make_private_folder, write_atomic
from tacit.protos import pipe_pb2
from tacit.protos.payload import write_segments
from tacit.protos.pipe import Pipe, PipeClosed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.client.configuration import Policy

logger = logging.getLogger("tacit.client.workers")

_START_TIMEOUT_S = 300.0  # an app may load a large library from a cold disk
_STOP_TIMEOUT_S = 5.0
_LOG_BYTES = 4 << 20  # per worker process: enough for a traceback per round
_KEPT_ENVIRONMENT = ("PYTHONPATH", "LD_LIBRARY_PATH", "TZ")


class Worker:
    """One worker process and our end of its pipe."""

    def __init__(self, setup: AppSetup, *, policy: Policy, log: Path) -> None:
        self.last_used_s = time.monotonic()
        self.busy = False
        self._ready = False
        self._setup = setup
        ours, theirs = socket.socketpair()
        order = _order(setup, policy)
        write_atomic(log, b"", durable=False)  # the log begins anew
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-s", "-B", "-m", "tacit.client.worker"),
                    *(str(theirs.fileno()), order.encode()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=setup.begin.scratch_path,
                env=scrubbed_environment(setup.begin.scratch_path),
                start_new_session=True,
            )
        self._pipe = Pipe(ours)
        self._log = threading.Thread(
            target=_copy_log, args=(self._process.stdout, log), name="worker-log", daemon=True
        )
        self._log.start()
        with contextlib.suppress(PipeClosed):  # its end is noticed when it is called
            self._send_begin()

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until the app is loaded.

        Raises:
            AppError: it could not be.
        """
        if self._ready:
            return
        message = self._receive(_START_TIMEOUT_S)[0]
        ready = message.ready
        if message.WhichOneof("reply") != "ready" or ready.failure:
            code = ready.failure.partition(":")[0]
            logger.warning(
                "the app did not start",
                extra={"fields": {"run": self._setup.begin.run_id, "reason": ready.failure[:500]}},
            )
            raise AppError(
                code if code in ("E-APP-IMPORT", "E-POLICY-ISOLATION") else "E-APP-IMPORT",
                f"the app did not start: {ready.failure[:500]}",
            )
        fields = {"run": self._setup.begin.run_id, "isolation": ready.isolation[:300] or "none"}
        logger.info("worker ready", extra={"fields": fields})
        self._ready = True

    def call(self, call: pipe_pb2.WorkerCall, payload: Payload, *, timeout_s: float) -> AppAnswer:
        """Hand over one instruction and wait for the answer.

        Raises:
            AppError: the app hung or its process died.
            ProtocolError: it spoke out of turn.
        """
        self.wait_ready()
        if self._pipe.has_more():
            raise ProtocolError(
                "E-WORKER-REPLY", "expected one answer to each instruction, got another one"
            )
        with _descriptor_of(payload, self._setup) as descriptor:
            try:
                self._pipe.send(pipe_pb2.WorkerTask(call=call), [descriptor])
            except PipeClosed as error:
                raise self._died() from error
        message, descriptors = self._receive(timeout_s)
        return _answer_of(message, descriptors)

    def stop(self) -> None:
        """Kill the process and everything in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        self._log.join(_STOP_TIMEOUT_S)
        self._pipe.close()

    def _send_begin(self) -> None:
        task = pipe_pb2.WorkerTask(begin=self._setup.begin)
        if self._setup.state_file is None:
            self._pipe.send(task)
            return
        with self._setup.state_file.open("rb") as state:
            self._pipe.send(task, [state.fileno()])

    def _receive(self, timeout_s: float) -> tuple[pipe_pb2.WorkerReply, list[int]]:
        try:
            return self._pipe.receive(pipe_pb2.WorkerReply, timeout_s=timeout_s)
        except TimeoutError as error:
            raise AppError(
                "E-APP-HUNG",
                f"expected an answer within {timeout_s:g} s, got none: the app was killed",
                hint="See the worker's log; message_timeout_s under [policy] sets the limit.",
            ) from error
        except (PipeClosed, OSError) as error:
            raise self._died() from error

    def _died(self) -> AppError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        status = self._process.returncode
        return AppError(
            "E-APP-DIED",
            f"the app's process ended with status {status}",
            hint="See the worker's log; -9 may mean that memory ran out.",
        )


class Workers:
    """An AppRunner with one confined process per run; safe to use from several threads."""

    def __init__(self, folder: Path, *, policy: Policy) -> None:
        make_private_folder(folder)
        self._folder = folder
        self._policy = policy
        self._workers: dict[str, Worker] = {}
        self._guard = threading.Lock()
        self._closing = False

    def begin(self, setup: AppSetup) -> None:
        """Start a run's worker, unless as many as the owner allows are there already."""
        with self._guard:
            if setup.begin.run_id in self._workers:
                return
            if len(self._workers) < self._policy.max_workers:
                self._start(setup)

    def call(self, setup: AppSetup, call: pipe_pb2.WorkerCall, payload: Payload) -> AppAnswer:
        """Hand one instruction to a run's worker; start one if there is none."""
        run_id = setup.begin.run_id
        with self._guard:
            worker = self._workers.get(run_id)
            if worker is None or not worker.is_alive:
                worker = self._start(setup)
            worker.busy = True
        try:
            return worker.call(call, payload, timeout_s=setup.timeout_s)
        except (AppError, ProtocolError) as error:
            self._discard(run_id, worker)
            if self._closing:
                raise UnavailableError("E-NODE-STOPPING", "this node is about to stop") from error
            raise
        finally:
            worker.busy = False
            worker.last_used_s = time.monotonic()

    def end(self, run_id: str) -> None:
        """Kill a run's worker, if there is one."""
        with self._guard:
            worker = self._workers.get(run_id)
        if worker is not None:
            self._discard(run_id, worker)

    def close(self) -> None:
        """Kill every worker; a call that is under way is nobody's failure."""
        self._closing = True
        for run_id in list(self._workers):
            self.end(run_id)

    def _start(self, setup: AppSetup) -> Worker:
        idle = sorted(
            (name for name, worker in self._workers.items() if not worker.busy),
            key=lambda name: self._workers[name].last_used_s,
        )
        dead = self._workers.pop(setup.begin.run_id, None)
        if dead is not None:
            dead.stop()
        while idle and len(self._workers) >= self._policy.max_workers:
            name = idle.pop(0)
            if name in self._workers:
                self._workers.pop(name).stop()
        log = self._folder / f"{setup.begin.run_id}.log"
        worker = Worker(setup, policy=self._policy, log=log)
        self._workers[setup.begin.run_id] = worker
        return worker

    def _discard(self, run_id: str, worker: Worker) -> None:
        with self._guard:
            if self._workers.get(run_id) is worker:
                del self._workers[run_id]
        worker.stop()


def _order(setup: AppSetup, policy: Policy) -> WorkerOrder:
    begin = setup.begin
    readable = [str(path) for path in setup.readable]
    if begin.prepared_path:
        readable.append(begin.prepared_path)
    return WorkerOrder(
        readable=tuple(readable),
        writable=(begin.scratch_path,),
        memory_bytes=policy.worker_memory_bytes,
        file_bytes=policy.scratch_bytes,
        required=begin.app != BUILT_IN_APP and not policy.allow_unisolated_apps,
    )


def scrubbed_environment(scratch: str) -> dict[str, str]:
    """Return all that a worker finds in its environment: nothing of ours but where packages are."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {
        "PATH": "/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "XDG_CACHE_HOME": scratch,
        "USER": "tacit",
        "LOGNAME": "tacit",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),  # fresh pages are the largest cost of a round
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }


@contextlib.contextmanager
def _descriptor_of(payload: Payload, setup: AppSetup) -> Iterator[int]:
    """Give a descriptor of the payload, made for the occasion if it lies in memory."""
    if isinstance(payload, DescriptorPayload):
        yield payload.descriptor
        return
    descriptor = anonymous_file("tacit-instruction", folder=Path(setup.begin.scratch_path))
    try:
        write_segments(descriptor, list(payload.pieces()))
        yield descriptor
    finally:
        os.close(descriptor)


def _answer_of(message: pipe_pb2.WorkerReply, descriptors: list[int]) -> AppAnswer:
    """Pair the parts of a result with the descriptors beside it."""
    result = message.result
    has_content = result.reply.WhichOneof("outcome") == "manifest"
    has_state = result.state.payload_bytes > 0
    if message.WhichOneof("reply") != "result" or len(descriptors) != has_content + has_state:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ProtocolError("E-WORKER-REPLY", "expected a result with its payloads")
    payloads = iter([DescriptorPayload(descriptor) for descriptor in descriptors])
    return AppAnswer(
        reply=result.reply,
        payload=next(payloads) if has_content else None,
        state=result.state,
        state_payload=next(payloads) if has_state else None,
    )


def _copy_log(stream: IO[bytes] | None, path: Path) -> None:
    """Copy what a worker prints into its log, up to the cap; read on, so that it never blocks."""
    if stream is None:
        return
    room = _LOG_BYTES
    with stream, path.open("ab") as log:
        while piece := os.read(stream.fileno(), 1 << 16):
            if room > 0:
                log.write(piece[:room])
                log.flush()
            room -= len(piece)
