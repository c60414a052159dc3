"""The seam between the node and whatever runs its apps.

The daemon runs them in confined worker processes (``workers.py``); the simulator calls them in its
own process. Either way the answer is untrusted: the node copies it before it looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.payload import Payload
    from tacit.protos import fleet_pb2, pipe_pb2, records_pb2


@dataclass(frozen=True, kw_only=True)
class AppSetup:
    """All that a worker of one run needs; given at every call, used when one has to be started.

    Attributes:
        begin: what the worker is told, with the manifest of the app's state as last persisted.
        state_file: the payload of that state; None if it has none.
        readable: files and folders that the app may read.
        timeout_s: a call that takes longer is killed.
    """

    begin: pipe_pb2.WorkerBegin
    state_file: Path | None
    readable: tuple[Path, ...]
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class AppAnswer:
    """What an app answered; every part of it is untrusted.

    Attributes:
        reply: its head; only the outcome is ever used.
        payload: the bytes of its content; None for a failure.
        state: the manifest of the app's state after the call; None if there is none.
        state_payload: the bytes of that state.
    """

    reply: fleet_pb2.ReplyHead
    payload: Payload | None
    state: records_pb2.Manifest | None = None
    state_payload: Payload | None = None

    def close(self) -> None:
        """Give back what the answer holds."""
        for payload in (self.payload, self.state_payload):
            if payload is not None:
                payload.close()


class AppRunner(Protocol):
    """Runs the apps of approved runs."""

    def begin(self, setup: AppSetup) -> None:
        """Get a run's app ready, so that its first message need not wait."""

    def call(self, setup: AppSetup, call: pipe_pb2.WorkerCall, payload: Payload) -> AppAnswer:
        """Hand one instruction to a run's app and wait for its answer.

        Raises:
            AppError: the app could not be loaded, hung, or its process died.
        """

    def end(self, run_id: str) -> None:
        """Forget a run; its worker ends."""
