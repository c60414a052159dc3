"""Which runs run: the queue, the owners' decisions, and the places to run.

A run is offered to every connected client as soon as it is submitted. It starts, in the order of
submission, when enough owners have approved and are connected and a place is free. What drives a
running run is ``server/driver.py``. After a restart of the daemon, what was running goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tacit.core.artifacts import RunFolder
from tacit.core.configuration import from_plain
from tacit.core.errors import ProtocolError, RefusedError, TacitError, UnavailableError, UsageError
from tacit.core.events import EventKind, event_line
from tacit.core.files import write_atomic
from tacit.core.specification import RunSpec
from tacit.protos import fleet_pb2
from tacit.server.catalogue import (
    NodeVerdict,
    RunRecord,
    RunStatus,
    Verdict,
    add_run,
    change_run,
    clear_exchange,
    commitments_of,
    decide,
    decisions_of,
    events_after,
    find_run,
    list_runs,
    plain_decisions,
    waiting_reason,
)
from tacit.server.commitments import drop_code, verdict_line, with_commitment
from tacit.server.driver import ActiveRun, RunDriver, ending_of
from tacit.server.fleet_tasks import run_ended, run_offer
from tacit.server.grid_desk import GridDesk
from tacit.server.journal import JournalSurroundings, RunJournal
from tacit.server.manifest import RunManifest, write_commitments, write_decisions, write_members
from tacit.server.reply_desk import ReplyDesk
from tacit.server.run_worker import WORKER_COMMAND
from tacit.server.spool import Space, Spool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tacit.server.configuration import ServerConfig
    from tacit.server.sessions import Sessions

log = logging.getLogger("tacit.server.scheduler")

_RECENT_RUNS = 50  # ended runs that a node hears of when it comes back


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A new run whose files stand in a folder of their own already."""

    specification: RunSpec
    canonical: bytes
    sha256: bytes
    submitted_by: str
    staged: Path


@dataclass
class _Feed:
    """Wakes those who watch a run's events."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Scheduler:
    """All runs that have not ended; see the module."""

    def __init__(
        self,
        *,
        config: ServerConfig,
        runs_folder: Path,
        sessions: Sessions,
        surroundings: JournalSurroundings,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.draining = asyncio.Event()
        self.space = Space(
            limit_bytes=config.limits.max_spool_bytes,
            keep_free_bytes=config.limits.keep_free_bytes,
        )
        self._config = config
        self._folder = runs_folder
        self._sessions = sessions
        self._around = surroundings
        self._store = surroundings.store
        self._command = worker_command
        self._active: dict[str, ActiveRun] = {}
        self._feeds: dict[str, _Feed] = {}
        self._stopping = False
        sessions.listen(self._session_changed)

    def load(self) -> None:
        """Take up the runs that have not ended, and check their payloads."""
        for record in list_runs(self._store):
            if record.status.ended:
                continue
            run = self._activate(record)
            count = run.journal.load()
            void = run.journal.verify_payloads()
            if void:
                log.warning(
                    "receipts void", extra={"fields": {"run": record.run_id, "count": len(void)}}
                )
            if record.status is RunStatus.RUNNING:
                fields = {"round": run.journal.checkpointed.round, "messages": count}
                run.journal.note(EventKind.REPLAYED, fields)
        for entry in self._folder.glob(".incoming-*"):
            shutil.rmtree(entry, ignore_errors=True)

    def start(self) -> None:
        """Resume what was running, then start what may start."""
        for run in self._active.values():
            if run.status is RunStatus.RUNNING and run.task is None:
                self._launch(run)
        self.consider()

    async def stop(self) -> None:
        """End the workers; their runs go on at the next start of the daemon."""
        self._stopping = True
        tasks = [run.task for run in self._active.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in self._active.values():
            run.journal.spool.close()

    def drain(self) -> None:
        """Start nothing new: no run, and no message of a running one."""
        self.draining.set()
        self._sessions.drain()

    def submit(self, submission: Submission) -> str:
        """Store and queue a run; return its id.

        Raises:
            UnavailableError: the daemon is draining, or cannot store it.
            RefusedError: too many runs wait already.
        """
        self.verify_accepting()
        run_id = self._fresh_id()
        folder = RunFolder(self._folder / run_id)
        now = self._around.now()
        record = RunRecord(
            run_id=run_id,
            name=submission.specification.name,
            status=RunStatus.QUEUED,
            round=0,
            rounds=submission.specification.participation.rounds,
            submitted_at_s=now,
            started_at_s=0.0,
            ended_at_s=0.0,
            submitted_by=submission.submitted_by,
            reason="",
            specification=submission.canonical,
            specification_sha256=submission.sha256,
        )
        submission.staged.rename(folder.path)
        try:
            with self._store.transaction() as connection:
                add_run(connection, record)
        except TacitError:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        run = self._activate(record)
        fields = {"name": record.name, "submitted_by": record.submitted_by}
        run.journal.note(EventKind.RUN_QUEUED, fields)
        for node_id in self._sessions.node_ids():
            self._sessions.send(node_id, run_offer(record))
        self.consider()
        return run_id

    def verify_accepting(self) -> None:
        """Check that a run may be submitted now.

        Raises:
            UnavailableError: the daemon is draining (E-SERVER-DRAINING).
            RefusedError: too many runs wait already (E-RUNS-LIMIT).
        """
        if self.draining.is_set():
            raise UnavailableError("E-SERVER-DRAINING", "the server takes no new runs")
        waiting = sum(run.status is not RunStatus.RUNNING for run in self._active.values())
        if waiting >= self._config.limits.max_queued_runs:
            raise RefusedError(
                "E-RUNS-LIMIT", f"expected fewer than {self._config.limits.max_queued_runs} runs"
            )

    async def stop_run(self, run_id: str, *, reason: str, by: str) -> None:
        """Stop a run for good.

        Raises:
            UsageError: there is no such run (E-RUN-UNKNOWN), or it has ended (E-RUN-ENDED).
        """
        run = self._active.get(run_id)
        if run is None:
            record = find_run(self._store, run_id)
            raise UsageError("E-RUN-ENDED", f"expected a run that goes on, {record.status.value}")
        task, run.task = run.task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if run_id in self._active:
            self._end(run, RunStatus.STOPPED, reason=reason or f"stopped by {by}", by=by)

    def record(self, run_id: str) -> RunRecord:
        """Return what the database holds of a run."""
        return find_run(self._store, run_id)

    def counts(self) -> tuple[int, int]:
        """Return how many runs are running, and how many wait."""
        running = sum(run.status is RunStatus.RUNNING for run in self._active.values())
        return running, len(self._active) - running

    def run_folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run that exists."""
        return RunFolder(self._folder / find_run(self._store, run_id).run_id)

    async def wait_for_event(self, run_id: str, timeout_s: float) -> None:
        """Return when a run has a new event, or after the timeout."""
        feed = self._feeds.setdefault(run_id, _Feed())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(feed.changed.wait(), timeout_s)

    def notify(self, run_id: str) -> None:
        """Wake those who watch a run."""
        feed = self._feeds.pop(run_id, None)
        if feed is not None:
            feed.changed.set()

    def reply_desk(self, run_id: str) -> ReplyDesk:
        """Return where nodes hand in what a run that goes on asked of them.

        Raises:
            ProtocolError: there is none (E-MESSAGE-CLOSED): whatever is sent for it is not wanted.
        """
        run = self._active.get(run_id)
        if run is None:
            raise ProtocolError("E-MESSAGE-CLOSED", f"expected a run that goes on, {run_id[:20]!r}")
        return run.replies

    def greetings(self, node_id: int) -> list[fleet_pb2.Task]:
        """Return what a node has to hear when its Watch stream opens."""
        ended = [record for record in list_runs(self._store) if record.status.ended]
        tasks = [
            run_ended(record.run_id, record.status, record.reason)
            for record in ended[-_RECENT_RUNS:]
            if node_id in decisions_of(self._store, record.run_id)
        ]
        for run in self._active.values():
            tasks.append(run_offer(run.record))
            for message_id in run.journal.open_messages(node_id):
                ready = fleet_pb2.MessageReady(run_id=run.record.run_id, message_id=message_id)
                tasks.append(fleet_pb2.Task(ready=ready))
        if self.draining.is_set():
            tasks.append(fleet_pb2.Task(draining=fleet_pb2.Draining()))
        return tasks

    def decide(
        self,
        run_id: str,
        decision: NodeVerdict,
        *,
        specification_sha256: bytes,
        canary_commitment: bytes = b"",
    ) -> NodeVerdict:
        """Take note of an owner's decision; return it, or the no that a yes came to.

        Raises:
            UsageError: the run is unknown.
            ProtocolError: it is about another specification, or lacks a commitment.
        """
        run = self._active.get(run_id)
        if run is None:
            find_run(self._store, run_id)
            return decision
        if specification_sha256 != run.record.specification_sha256:
            raise ProtocolError("E-DECISION-HASH", "expected the hash of the offered run")
        decision = with_commitment(run, decision, canary_commitment)
        known = run.decisions.get(decision.node_id)
        if known != decision:
            with self._store.transaction() as connection:
                decide(connection, run_id, decision, self._around.now())
            run.decisions[decision.node_id] = decision
            fields = {
                "member": self._around.member(decision.node_id),
                "node_id": decision.node_id,
                "verdict": decision.verdict.value,
                "code": decision.code,
            }
            run.journal.note(EventKind.NODE_DECIDED, fields)
            if run.status is RunStatus.RUNNING:
                self._name_members(run)
        self._observe(run, decision.node_id)
        if decision.verdict is not Verdict.APPROVED and known is not None:
            run.journal.drop_node(decision.node_id, drop_code(decision))
        self.consider()
        return decision

    def drop_node(self, node_id: int, code: str) -> None:
        """Let a node go: it was revoked or has left."""
        for run in self._active.values():
            if node_id in run.decisions:
                del run.decisions[node_id]
                run.journal.drop_node(node_id, code)
        self.consider()

    def note_refused(self, node_id: int, code: str) -> None:
        """Tell those who watch its runs that a node was refused when it joined."""
        for run in self._active.values():
            if node_id in run.decisions:
                run.journal.note_refused(node_id, code)

    def decisions(self, run_id: str) -> dict[int, NodeVerdict]:
        """Return the decisions about a run, by node."""
        run = self._active.get(run_id)
        return decisions_of(self._store, run_id) if run is None else dict(run.decisions)

    def consider(self) -> None:
        """Start the runs that may start, in the order of submission."""
        if self._stopping:
            return
        for run in list(self._active.values()):
            if run.status is RunStatus.RUNNING or run.task is not None:
                continue
            needed = run.specification.participation.min_clients
            ready = run.journal.eligible()
            running, _ = self.counts()
            if self.draining.is_set():
                self._set_waiting(run, RunStatus.QUEUED, "the server is draining")
            elif len(ready) < needed or self._is_asking(run):
                said, member = run.decisions.values(), self._around.member
                reason = waiting_reason(said, ready=ready, needed=needed, member=member)
                self._set_waiting(run, RunStatus.WAITING, reason)
            elif running >= self._config.limits.max_concurrent_runs:
                self._set_waiting(run, RunStatus.QUEUED, f"{running} runs are running")
            else:
                self._begin(run)

    def _is_asking(self, run: ActiveRun) -> bool:
        """Whether a connected owner may still join what nobody can join once it has begun."""
        if run.specification.audit is None and run.specification.canaries is None:
            return False
        said = {n: each.verdict for n, each in run.decisions.items()}
        nodes = self._sessions.node_ids()
        return any(said.get(n, Verdict.PENDING) is Verdict.PENDING for n in nodes)

    def _begin(self, run: ActiveRun) -> None:
        self._name_members(run)
        cohort = [self._around.member(node_id) for node_id in run.journal.eligible()]
        self._set_status(run, RunStatus.RUNNING, started_at_s=self._around.now())
        fields = {"rounds": run.record.rounds, "cohort": cohort}
        run.journal.note(EventKind.RUN_STARTED, fields)
        self._launch(run)

    def _launch(self, run: ActiveRun) -> None:
        run.task = asyncio.get_running_loop().create_task(self._drive(run))

    async def _drive(self, run: ActiveRun) -> None:
        driver = RunDriver(
            run, draining=self.draining, log_form=self._config.log_form, command=self._command
        )
        end = await driver.drive()
        run.task = None
        if end.code:
            self._end(run, RunStatus.FAILED, reason=end.failure, code=end.code, hint=end.hint)
        else:
            self._end(run, RunStatus.FINISHED, reason=verdict_line(run.folder))

    def _end(self, run: ActiveRun, status: RunStatus, *, reason: str = "", **fields: Any) -> None:  # noqa: ANN401
        kind, details = ending_of(run, status, reason, self._around.now(), fields)
        if status is not RunStatus.FINISHED:  # its worker, which writes it otherwise, is gone
            self._end_manifest(run, status, code=fields.get("code", ""), reason=reason)
        run.journal.note(kind, details)
        run.journal.end()
        with self._store.transaction() as connection:
            clear_exchange(connection, run.record.run_id)
            change_run(
                connection,
                run.record.run_id,
                status=status.value,
                reason=reason,
                ended_at_s=self._around.now(),
            )
        del self._active[run.record.run_id]
        self._write_events(run)
        for node_id in run.decisions:
            self._sessions.send(node_id, run_ended(run.record.run_id, status, reason))
        self.notify(run.record.run_id)
        self.consider()

    def _name_members(self, run: ActiveRun) -> None:
        names = {node_id: self._around.member(node_id) for node_id in run.decisions}
        try:
            write_members(run.folder, names, self._around.directory())
            write_decisions(run.folder, plain_decisions(run.decisions, names))
            if run.specification.canaries is not None:
                write_commitments(run.folder, run.commitments)
        except TacitError as error:  # the manifest has node ids all the same
            log.warning("members not named", extra={"fields": {"why": error.code}})

    def _end_manifest(self, run: ActiveRun, status: RunStatus, *, code: str, reason: str) -> None:
        if run.specification.discards_model:
            run.folder.forget_weights()
        try:
            manifest = RunManifest.take_up(run.folder, run.record.run_id, run.specification)
            manifest.end(status.value, code=code, reason=reason)
        except (TacitError, OSError, ValueError) as error:  # the database has it all the same
            fields = {"run": run.record.run_id, "why": str(error)}
            log.warning("manifest not ended", extra={"fields": fields})

    def _write_events(self, run: ActiveRun) -> None:
        """Write the run folder's events, whole; the database stays their source."""
        lines: list[bytes] = []
        last = 0
        while batch := events_after(self._store, run.record.run_id, last):
            lines += [event_line(event) for event in batch]
            last = batch[-1].sequence
        try:
            write_atomic(run.folder.events, b"".join(lines))
        except TacitError as error:  # they can still be read with `tacit run watch`
            log.warning("events not written", extra={"fields": {"code": error.code}})

    def _activate(self, record: RunRecord) -> ActiveRun:
        specification = from_plain(json.loads(record.specification), RunSpec)
        folder = RunFolder(self._folder / record.run_id).create()
        journal = RunJournal(
            record.run_id,
            quorum=specification.participation.min_clients,
            spool=Spool(folder.path / "spool", self.space, durable=self._around.durable),
            surroundings=self._around,
        )
        run = ActiveRun(
            record=record,
            specification=specification,
            folder=folder,
            journal=journal,
            replies=ReplyDesk(journal, specification),
            grid=GridDesk(journal),
            decisions=decisions_of(self._store, record.run_id),
            commitments=commitments_of(self._store, record.run_id),
            status=record.status,
            started_at_s=record.started_at_s,
        )
        self._active[record.run_id] = run
        for node_id in run.decisions:
            self._observe(run, node_id)
        return run

    def _observe(self, run: ActiveRun, node_id: int) -> None:
        decision = run.decisions.get(node_id)
        approved = decision is not None and decision.verdict is Verdict.APPROVED
        connected = self._sessions.connected(node_id)
        run.journal.observe_node(node_id, approved=approved, connected=connected)

    def _session_changed(self, node_id: int, _connected: bool) -> None:  # noqa: FBT001 - a listener
        for run in self._active.values():
            if node_id in run.decisions:
                self._observe(run, node_id)
        self.consider()

    def _set_waiting(self, run: ActiveRun, status: RunStatus, reason: str) -> None:
        if (run.status, run.reason) == (status, reason):
            return
        self._set_status(run, status, reason=reason)
        approved, needed = len(run.journal.eligible()), run.specification.participation.min_clients
        fields = {"reason": reason, "approved": approved, "needed": needed}
        run.journal.note(EventKind.RUN_WAITING, fields)

    def _set_status(self, run: ActiveRun, status: RunStatus, **values: Any) -> None:  # noqa: ANN401
        values = {"reason": "", **values}
        with self._store.transaction() as connection:
            change_run(connection, run.record.run_id, status=status.value, **values)
        run.status, run.reason = status, values["reason"]
        run.started_at_s = values.get("started_at_s", run.started_at_s)

    def _fresh_id(self) -> str:
        while True:
            run_id = f"r-{secrets.token_hex(4)}"
            if run_id != "r-00000000" and not (self._folder / run_id).exists():
                return run_id
