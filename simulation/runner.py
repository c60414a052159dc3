"""Runs ClientApps in this process, where the daemon would start a confined worker for each run.

Nothing is isolated here: the simulator runs what its user could run anyway. The node around it is
the real one, with its approvals, envelope and outbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.client.apphost import AppHost
from tacit.client.payload import BufferPayload, Payload
from tacit.client.runner import AppAnswer, AppSetup
from tacit.protos.payload import map_payload

if TYPE_CHECKING:
    from tacit.protos import pipe_pb2
    from tacit.protos.codec import Encoded


class InProcessRunner:
    """``AppRunner`` that calls apps directly; one per node."""

    def __init__(self) -> None:
        self._hosts: dict[str, AppHost] = {}

    def begin(self, setup: AppSetup) -> None:
        """Import the app and make its context."""
        if setup.begin.run_id not in self._hosts:
            state = memoryview(b"") if setup.state_file is None else map_payload(setup.state_file)
            self._hosts[setup.begin.run_id] = AppHost(setup.begin, state)

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


def _payload(encoded: Encoded) -> BufferPayload:
    return BufferPayload(tuple(memoryview(segment) for segment in encoded.segments))
