"""Runs ClientApps for simulated nodes: in this process, or in a pool of processes.

Nothing is isolated here: the simulator runs what its user could run anyway. The node around it is
the real one, with its approvals, envelope and outbox.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING

from tacit.client.apphost import AppHost
from tacit.client.payload import BufferPayload, Payload
from tacit.client.runner import AppAnswer, AppSetup
from tacit.core.errors import AppError
from tacit.protos import fleet_pb2, pipe_pb2, records_pb2
from tacit.protos.payload import map_payload

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tacit.client.apphost import HostedAnswer
    from tacit.protos.codec import Encoded


class InProcessRunner:
    """``AppRunner`` that calls apps directly; one per node."""

    def __init__(self) -> None:
        self._hosts: dict[str, AppHost] = {}

    def begin(self, setup: AppSetup) -> None:
        """Import the app and make its context."""
        if setup.begin.run_id not in self._hosts:
            self._hosts[setup.begin.run_id] = AppHost(setup.begin, _state(setup))

    def call(self, setup: AppSetup, call: pipe_pb2.WorkerCall, payload: Payload) -> AppAnswer:
        """Hand one instruction to the app; what it raises becomes a failure with a code."""
        self.begin(setup)
        data = b"".join(payload.pieces())
        answer = self._hosts[setup.begin.run_id].call(call, memoryview(data))
        return AppAnswer(
            reply=answer.reply,
            payload=None if answer.content is None else _payload(answer.content),
            state=answer.state.manifest,
            state_payload=_payload(answer.state),
        )

    def end(self, run_id: str) -> None:
        """Forget the run's app and context."""
        self._hosts.pop(run_id, None)


class PooledRunner:
    """``AppRunner`` that calls apps in processes of a pool, which all nodes of a simulation share.

    A process serves any node: the app's context is made for each call, from its persisted state.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def begin(self, setup: AppSetup) -> None:
        """Do nothing yet: the pool's processes load apps when they are called."""

    def call(self, setup: AppSetup, call: pipe_pb2.WorkerCall, payload: Payload) -> AppAnswer:
        """Hand one instruction to the app in some process.

        Raises:
            AppError: the app cannot be loaded, or its process died.
        """
        data = b"".join(payload.pieces())
        order = (setup.begin.SerializeToString(), call.SerializeToString(), data)
        try:
            parts = self._pool.submit(_call_here, order, bytes(_state(setup))).result()
        except BrokenExecutor as error:
            raise AppError("E-WORKER-DIED", "a process of the simulation died") from error
        reply, content, state, state_payload = parts
        return AppAnswer(
            reply=fleet_pb2.ReplyHead.FromString(reply),
            payload=None if content is None else BufferPayload((memoryview(content),)),
            state=records_pb2.Manifest.FromString(state),
            state_payload=BufferPayload((memoryview(state_payload),)),
        )

    def end(self, run_id: str) -> None:
        """Forget nothing: there is nothing to forget."""


def _call_here(
    order: tuple[bytes, bytes, bytes], state: bytes
) -> tuple[bytes, bytes | None, bytes, bytes]:
    """Call an app in a process of the pool; everything crosses as bytes."""
    begin, call, data = order
    host = AppHost(pipe_pb2.WorkerBegin.FromString(begin), memoryview(state))
    answer: HostedAnswer = host.call(pipe_pb2.WorkerCall.FromString(call), memoryview(data))
    return (
        answer.reply.SerializeToString(),
        None if answer.content is None else answer.content.payload(),
        answer.state.manifest.SerializeToString(),
        answer.state.payload(),
    )


def _state(setup: AppSetup) -> memoryview:
    return memoryview(b"") if setup.state_file is None else map_payload(setup.state_file)


def _payload(encoded: Encoded) -> BufferPayload:
    return BufferPayload(tuple(memoryview(segment) for segment in encoded.segments))
