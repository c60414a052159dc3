"""One running run: its worker is started, answered, and started again when it dies.

A worker that dies goes on from the last checkpoint, at most ``MAX_RESTARTS`` times between two
checkpoints; then the run has failed. A full disk makes a run wait instead. While the daemon drains,
whatever would open new messages is held back until the worker is ended.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.core.errors import UnavailableError
from tacit.core.events import EventKind
from tacit.server.catalogue import RunStatus
from tacit.server.run_worker import RunWorker, WorkerEnd, WorkerTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.core.artifacts import RunFolder
    from tacit.core.specification import RunSpec
    from tacit.protos import pipe_pb2
    from tacit.server.catalogue import NodeVerdict, RunRecord
    from tacit.server.grid_desk import GridDesk
    from tacit.server.journal import RunJournal
    from tacit.server.reply_desk import ReplyDesk

log = logging.getLogger("tacit.server.driver")

MAX_RESTARTS = 3
_PAUSE_S = 5.0  # before asking a full disk again
_PAUSES = ("E-DISK-FULL", "E-STORE")


@dataclass
class ActiveRun:
    """A run that has not ended."""

    record: RunRecord
    specification: RunSpec
    folder: RunFolder
    journal: RunJournal
    replies: ReplyDesk
    grid: GridDesk
    decisions: dict[int, NodeVerdict]
    commitments: dict[int, str]
    status: RunStatus
    reason: str = ""
    started_at_s: float = 0.0
    task: asyncio.Task[None] | None = None


def ending_of(
    run: ActiveRun, status: RunStatus, reason: str, now: float, fields: Mapping[str, Any]
) -> tuple[EventKind, dict[str, Any]]:
    """Return the event that a run ends with."""
    if status is RunStatus.FINISHED:
        seconds = round(now - run.started_at_s, 3)
        return EventKind.RUN_FINISHED, {"rounds": run.record.rounds, "seconds": seconds}
    if status is RunStatus.STOPPED:
        return EventKind.RUN_STOPPED, {"reason": reason, **fields}
    return EventKind.RUN_FAILED, {"reason": reason, **fields}


class RunDriver:
    """Keeps a worker running until its run is over."""

    def __init__(
        self, run: ActiveRun, *, draining: asyncio.Event, log_form: str, command: Sequence[str]
    ) -> None:
        self._run = run
        self._draining = draining
        self._log_form = log_form
        self._command = command
        self._restarts = 0
        self._restarted_at_round = -1

    async def drive(self) -> WorkerEnd:
        """Return how the run ended; cancelling ends the worker, and the run can go on later."""
        while True:
            end = await self._work()
            if end.done and end.code not in _PAUSES:
                return end
            self._count_restart()
            if self._restarts > MAX_RESTARTS:
                failure = end.failure if end.done else "the run's worker died again and again"
                return WorkerEnd(done=True, failure=failure, code=end.code or "E-RUN-WORKER-DIED")
            if end.done:
                await asyncio.sleep(_PAUSE_S)
            point = self._run.journal.checkpointed
            self._run.journal.note(EventKind.REPLAYED, {"round": point.round, "messages": 0})

    async def _work(self) -> WorkerEnd:
        """Run one worker process to its end."""
        run = self._run
        run.journal.worker_starts()
        task = WorkerTask(
            run_id=run.record.run_id,
            folder=run.folder.path,
            spool=run.journal.spool.folder,
            checkpoint=run.journal.checkpointed.name,
            durable=run.journal.around.durable,
            log_form=self._log_form,
        )
        try:
            return await RunWorker(task, self._answer, command=self._command).run()
        except OSError as error:
            return WorkerEnd(done=False, failure=str(error))

    def _count_restart(self) -> None:
        point = self._run.journal.checkpointed
        if point.round > self._restarted_at_round:
            self._restarts = 0
        self._restarts += 1
        self._restarted_at_round = point.round
        fields = {"run": self._run.record.run_id, "restarts": self._restarts}
        log.warning("run worker died", extra={"fields": fields})

    async def _answer(self, request: pipe_pb2.GridRequest) -> pipe_pb2.GridReply:
        if self._draining.is_set() and self._run.grid.opens_messages(request):
            await asyncio.Event().wait()  # until the worker is ended: nothing new begins here
        while True:
            try:
                return await self._run.grid.answer(request)
            except UnavailableError as error:
                if error.code not in _PAUSES:
                    raise
                self._run.reason = error.code
                fields = {"run": self._run.record.run_id, "code": error.code}
                log.warning("run waits", extra={"fields": fields})
                await asyncio.sleep(_PAUSE_S)
