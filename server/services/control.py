"""The Control service: what operators, auditors and the administrator may ask."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.core.artifacts import RunFolder, sha256_file
from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, ProtocolError, UnavailableError, UsageError
from tacit.core.events import fields_json
from tacit.core.files import make_private_folder, write_atomic, write_error
from tacit.core.identity import Role, encode_token
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tacit.protos import control_pb2, control_pb2_grpc
from tacit.protos.payload import map_payload
from tacit.server.audits import verify_audit, verify_may_stop, verify_may_submit, verify_twin
from tacit.server.authority import list_members
from tacit.server.catalogue import RunRecord, events_after, find_run, list_runs
from tacit.server.grid_messages import REVOKED
from tacit.server.manifest import verify_enrolled
from tacit.server.scheduler import Submission
from tacit.server.services.access import caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import grpc

    from tacit.server.authority import Membership
    from tacit.server.configuration import ServerConfig
    from tacit.server.scheduler import Scheduler
    from tacit.server.sessions import Sessions
    from tacit.server.store import Store

    Context = grpc.aio.ServicerContext[Any, Any]

_QUIET_S = 5.0  # a watched run is looked at this often even when nothing is announced
_CHUNK_BYTES = 1 << 20
_PULLED_FILES = (
    "run.toml",
    "specification.json",
    "initial.safetensors",
    "model.safetensors",
    "manifest.json",
    "events.jsonl",
    "report.html",
    "report.json",
    "canaries.json",
)


@dataclass(frozen=True, kw_only=True)
class DaemonFacts:
    """What the daemon knows about itself."""

    server_id: str
    software_version: str
    started_at_s: float
    addresses: tuple[str, ...]
    certificate_expires_at_s: float


class ControlService(control_pb2_grpc.ControlServicer):
    """Runs, members and the daemon itself."""

    def __init__(
        self,
        *,
        config: ServerConfig,
        facts: DaemonFacts,
        store: Store,
        membership: Membership,
        sessions: Sessions,
        scheduler: Scheduler,
        runs_folder: Path,
        stop: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._facts = facts
        self._store = store
        self._membership = membership
        self._sessions = sessions
        self._scheduler = scheduler
        self._runs_folder = runs_folder
        self._stop = stop
        self._now = now

    async def Status(  # noqa: N802
        self, _request: control_pb2.StatusRequest, _context: Context
    ) -> control_pb2.StatusReply:
        """Describe the daemon."""
        running, queued = self._scheduler.counts()
        members = list_members(self._store, now=self._now())
        return control_pb2.StatusReply(
            server_id=self._facts.server_id,
            software_version=self._facts.software_version,
            started_at_s=self._facts.started_at_s,
            addresses=self._facts.addresses,
            connected_clients=self._sessions.count(),
            enrolled_clients=sum(m.role == "client" and m.state == "enrolled" for m in members),
            running_runs=running,
            queued_runs=queued,
            draining=self._scheduler.draining.is_set(),
            journal=self._config.journal.value,
            spool_bytes=self._scheduler.space.used_bytes,
            certificate_expires_at_s=self._facts.certificate_expires_at_s,
        )

    async def ListMembers(  # noqa: N802
        self, _request: control_pb2.ListMembersRequest, _context: Context
    ) -> control_pb2.ListMembersReply:
        """List members and open invitations."""
        return members_reply(self._store, now=self._now(), connected=self._sessions.connected)

    async def Invite(  # noqa: N802
        self, request: control_pb2.InviteRequest, _context: Context
    ) -> control_pb2.InviteReply:
        """Make a token."""
        try:
            role = Role(request.role)
        except ValueError as error:
            raise UsageError("E-ROLE-UNKNOWN", "expected client, operator or auditor") from error
        ttl_s = request.ttl_s or self._config.times.invitation_s
        token = self._membership.invite(request.name, role, ttl_s=ttl_s)
        return control_pb2.InviteReply(
            token=encode_token(token), expires_at_s=token.expires_at.timestamp()
        )

    async def Revoke(  # noqa: N802
        self, request: control_pb2.RevokeRequest, _context: Context
    ) -> control_pb2.RevokeReply:
        """End a membership; an open stream is cut at once."""
        reason = request.reason or f"revoked by {caller().name}"
        count, node_ids = self._membership.revoke(request.name, reason)
        for node_id in node_ids:
            self._scheduler.drop_node(node_id, REVOKED)
            self._sessions.revoke(node_id)
        return control_pb2.RevokeReply(certificates=count)

    async def Drain(  # noqa: N802
        self, _request: control_pb2.DrainRequest, _context: Context
    ) -> control_pb2.DrainReply:
        """Begin nothing new."""
        self._scheduler.drain()
        running, _ = self._scheduler.counts()
        return control_pb2.DrainReply(running_runs=running)

    async def Stop(  # noqa: N802
        self, _request: control_pb2.StopRequest, _context: Context
    ) -> control_pb2.StopReply:
        """Stop the daemon, as SIGTERM does."""
        self._stop()
        return control_pb2.StopReply()

    async def SubmitRun(  # noqa: N802
        self, frames: AsyncIterator[control_pb2.SubmitRunFrame], _context: Context
    ) -> control_pb2.SubmitRunReply:
        """Receive a specification and the initial weights, and queue the run."""
        self._scheduler.verify_accepting()
        first = await anext(frames, None)
        if first is None or not first.HasField("head") or first.data:
            raise ProtocolError("E-FRAME-ORDER", "expected the head of a submission first")
        head = first.head
        specification = self._parse(head)
        verify_may_submit(caller(), specification)
        if specification.secure_aggregation is not None:
            enrolled = [client.name for client in self._membership.directory()]
            verify_enrolled(specification.secure_aggregation.members, enrolled)
        staged = self._runs_folder / f".incoming-{secrets.token_hex(8)}"
        folder = RunFolder(staged).create()
        try:
            await self._receive_initial(frames, head, folder)
            await self._verify_audit(specification, folder)
            write_atomic(folder.specification, head.specification)
            if head.source_toml:  # an audit or a twin was not written by anybody
                write_atomic(folder.run_toml, head.source_toml)
            submission = Submission(
                specification=specification,
                canonical=head.specification,
                sha256=specification_sha256(head.specification),
                submitted_by=caller().name,
                staged=staged,
            )
            return control_pb2.SubmitRunReply(run_id=self._scheduler.submit(submission))
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    async def ListRuns(  # noqa: N802
        self, _request: control_pb2.ListRunsRequest, _context: Context
    ) -> control_pb2.ListRunsReply:
        """List all runs, in the order of submission."""
        return control_pb2.ListRunsReply(runs=[run_message(r) for r in list_runs(self._store)])

    async def ShowRun(  # noqa: N802
        self, request: control_pb2.ShowRunRequest, _context: Context
    ) -> control_pb2.ShowRunReply:
        """Describe one run."""
        record = find_run(self._store, request.run_id)
        run = run_message(record)
        names = self._membership.names()
        seen = {m.node_id: m.last_seen_at_s for m in list_members(self._store, now=self._now())}
        for decision in self._scheduler.decisions(record.run_id).values():
            run.decisions.add(
                member=names.get(decision.node_id, ""),
                node_id=decision.node_id,
                verdict=decision.verdict.value,
                code=decision.code,
                connected=self._sessions.connected(decision.node_id),
                last_seen_at_s=seen.get(decision.node_id, 0.0),
            )
        manifest = self._scheduler.run_folder(record.run_id).manifest
        return control_pb2.ShowRunReply(
            run=run,
            specification=record.specification,
            manifest_json=manifest.read_bytes() if manifest.is_file() else b"",
        )

    async def WatchRun(  # noqa: N802
        self, request: control_pb2.WatchRunRequest, _context: Context
    ) -> AsyncIterator[control_pb2.RunEvent]:
        """Stream a run's events: past ones, then live ones, until it has ended."""
        sequence = request.after_sequence
        while True:
            ended = find_run(self._store, request.run_id).status.ended
            batch = events_after(self._store, request.run_id, sequence)
            for event in batch:
                sequence = event.sequence
                yield control_pb2.RunEvent(
                    sequence=event.sequence,
                    at_s=event.at_s,
                    kind=event.kind.value,
                    fields_json=fields_json(event.fields),
                )
            if ended and not batch:
                return
            if not batch:
                await self._scheduler.wait_for_event(request.run_id, _QUIET_S)

    async def StopRun(  # noqa: N802
        self, request: control_pb2.StopRunRequest, _context: Context
    ) -> control_pb2.StopRunReply:
        """Stop a run for good."""
        verify_may_stop(caller(), find_run(self._store, request.run_id))
        await self._scheduler.stop_run(
            request.run_id, reason=request.reason[:500], by=caller().name
        )
        return control_pb2.StopRunReply()

    async def ListFiles(  # noqa: N802
        self, request: control_pb2.ListFilesRequest, _context: Context
    ) -> control_pb2.ListFilesReply:
        """List what `tacit run pull` gives."""
        folder = self._scheduler.run_folder(request.run_id)
        return await asyncio.to_thread(_files_of, folder)

    async def PullFile(  # noqa: N802
        self, request: control_pb2.PullFileRequest, _context: Context
    ) -> AsyncIterator[control_pb2.FileChunk]:
        """Stream one file of a run's folder."""
        folder = self._scheduler.run_folder(request.run_id)
        paths = {path.relative_to(folder.path).as_posix(): path for path in _paths_of(folder)}
        path = paths.get(request.path)
        if path is None:
            raise UsageError("E-FILE-UNKNOWN", "expected a path from the list of files")
        view = map_payload(path)
        if request.offset > len(view):
            raise UsageError("E-FRAME-OFFSET", "expected an offset within the file")
        for offset in range(request.offset, len(view), _CHUNK_BYTES):
            data = bytes(view[offset : offset + _CHUNK_BYTES])
            yield control_pb2.FileChunk(offset=offset, data=data)

    async def _verify_audit(self, specification: RunSpec, folder: RunFolder) -> None:
        if specification.canaries is not None and specification.canaries.run:
            run = find_run(self._store, specification.canaries.run)
            tested = self._scheduler.run_folder(run.run_id)
            await asyncio.to_thread(verify_twin, specification, folder, run, tested)
        if specification.audit is None:
            return
        run = find_run(self._store, specification.audit.run)
        audited = self._scheduler.run_folder(run.run_id)
        await asyncio.to_thread(verify_audit, specification, folder, run, audited)

    def _parse(self, head: control_pb2.SubmitRunHead) -> RunSpec:
        limits = self._config.limits
        size = len(head.specification) + len(head.source_toml)
        if size > limits.max_metadata_bytes or head.initial_bytes > limits.max_update_bytes:
            raise ConfigError(
                "E-RUN-TOO-LARGE",
                f"expected at most {limits.max_metadata_bytes} bytes of specification and "
                f"{limits.max_update_bytes} of weights",
                hint="Raise the limits in server.toml.",
            )
        try:
            plain = json.loads(head.specification)
        except (ValueError, RecursionError) as error:
            raise ConfigError("E-SPECIFICATION", "expected the specification as JSON") from error
        specification = from_plain(plain, RunSpec)
        if canonical_json(specification) != head.specification:
            raise ConfigError(
                "E-SPECIFICATION-CANONICAL",
                "expected the canonical form of the resolved specification",
                hint="Run the same version of tacit at both sides.",
            )
        return specification

    async def _receive_initial(
        self,
        frames: AsyncIterator[control_pb2.SubmitRunFrame],
        head: control_pb2.SubmitRunHead,
        folder: RunFolder,
    ) -> None:
        self._scheduler.space.reserve(head.initial_bytes, folder.path)
        try:
            received = 0
            with folder.initial.open("xb") as file:
                async for frame in frames:
                    received += len(frame.data)
                    if received > head.initial_bytes:
                        raise ProtocolError("E-UPLOAD-SIZE", "expected as many bytes as announced")
                    file.write(frame.data)
        except OSError as error:
            raise write_error(folder.initial, error) from error
        finally:
            self._scheduler.space.release(head.initial_bytes)
        if received != head.initial_bytes:
            raise ProtocolError("E-UPLOAD-SHORT", f"expected {head.initial_bytes}, got {received}")
        if await asyncio.to_thread(sha256_file, folder.initial) != head.initial_sha256:
            raise ProtocolError("E-UPLOAD-DIGEST", "expected the announced SHA-256, got another")


def members_reply(
    store: Store, *, now: float, connected: Callable[[int], bool]
) -> control_pb2.ListMembersReply:
    """Return members and open invitations as they travel."""
    reply = control_pb2.ListMembersReply()
    for member in list_members(store, now=now):
        reply.members.add(
            name=member.name,
            role=member.role,
            node_id=member.node_id,
            state=member.state,
            connected=bool(member.node_id) and connected(member.node_id),
            enrolled_at_s=member.enrolled_at_s,
            last_seen_at_s=member.last_seen_at_s,
            expires_at_s=member.expires_at_s,
            enrolment_key_sha256=member.enrolment_key_sha256,
            software_version=member.software_version,
        )
    return reply


def run_message(record: RunRecord) -> control_pb2.Run:
    """Return a run as it travels."""
    return control_pb2.Run(
        run_id=record.run_id,
        name=record.name,
        status=record.status.value,
        round=record.round,
        rounds=record.rounds,
        submitted_at_s=record.submitted_at_s,
        started_at_s=record.started_at_s,
        ended_at_s=record.ended_at_s,
        submitted_by=record.submitted_by,
        reason=record.reason,
        specification_sha256=record.specification_sha256,
    )


def _paths_of(folder: RunFolder) -> Iterator[Path]:
    """Yield the files that may leave: never a payload of one owner, nor a checkpoint's key."""
    for name in _PULLED_FILES:
        path = folder.path / name
        if path.is_file() and not path.is_symlink():
            yield path
    for number in folder.round_numbers():
        yield folder.round(number)


def _files_of(folder: RunFolder) -> control_pb2.ListFilesReply:
    reply = control_pb2.ListFilesReply()
    for path in _paths_of(folder):
        try:
            size, sha256 = path.stat().st_size, sha256_file(path)
        except (OSError, UnavailableError):
            continue  # retention removed it meanwhile
        name = path.relative_to(folder.path).as_posix()
        reply.files.add(path=name, bytes=size, sha256=sha256)
    return reply


def make_runs_folder(home: Path) -> Path:
    """Return the folder of all runs, made if it is not there."""
    folder = home / "runs"
    make_private_folder(folder)
    return folder
