"""An operator's or auditor's side of the Control service: submit, list, watch and pull runs.

Blocking calls over mutual TLS with a profile's certificate, or over the Unix socket of a daemon on
this machine. The server is trusted with runs, not with this machine: file names and digests that it
gives are checked before anything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from tacit.core.errors import ProtocolError, UnavailableError, UsageError
from tacit.core.events import Event, EventKind
from tacit.core.files import make_private_folder, write_atomic
from tacit.protos import control_pb2
from tacit.protos.channel import control_channel, local_channel
from tacit.protos.control_pb2_grpc import ControlStub
from tacit.protos.failures import error_from_rpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.core.profiles import Profile

CALL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
FRAME_BYTES = 1 << 20

_FILE_PATH = re.compile(r"(rounds/)?[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
_ENDED = ("finished", "failed", "stopped")
_MANIFEST = "manifest.json"
_CLAIM = ".pulling"  # holds the run's id until a manifest that names it has come


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run to be submitted.

    Attributes:
        canonical: the resolved specification as canonical JSON.
        source_toml: the file as its author wrote it.
        initial: the safetensors file with the initial weights.
    """

    canonical: bytes
    source_toml: bytes
    initial: Path


class ControlClient:
    """Calls on runs; every failure is an error of our own tree."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub: Any = ControlStub(channel)

    def status(self, *, timeout_s: float = CALL_TIMEOUT_S) -> control_pb2.StatusReply:
        """Describe the daemon."""
        with _errors():
            request = control_pb2.StatusRequest()
            reply: control_pb2.StatusReply = self._stub.Status(request, timeout=timeout_s)
            return reply

    def invite(self, name: str, role: str) -> str:
        """Return a one-time token for a new member."""
        with _errors():
            request = control_pb2.InviteRequest(name=name, role=role)
            return str(self._stub.Invite(request, timeout=CALL_TIMEOUT_S).token)

    def submit(self, submission: Submission) -> str:
        """Send a run and its initial weights; return the run's id."""
        with _errors():
            return str(self._stub.SubmitRun(_frames(submission)).run_id)

    def list_runs(self) -> list[control_pb2.Run]:
        """Return all runs, in the order of submission."""
        with _errors():
            request = control_pb2.ListRunsRequest()
            return list(self._stub.ListRuns(request, timeout=CALL_TIMEOUT_S).runs)

    def find_run(self, wanted: str) -> control_pb2.Run:
        """Return the run with this id, or with a unique beginning of it; ``""`` is the latest.

        Raises:
            UsageError: there is none, or several.
        """
        runs = self.list_runs()
        if not wanted and runs:
            return runs[-1]
        found = [run for run in runs if run.run_id.startswith(wanted)] if wanted else []
        if len(found) != 1:
            count = f"{len(found)} runs" if found else "no run"
            raise UsageError(
                "E-RUN-UNKNOWN",
                f"expected one run beginning with {wanted!r}, got {count}",
                hint="`tacit run list` shows the runs.",
            )
        return found[0]

    def show(self, run_id: str) -> control_pb2.ShowRunReply:
        """Return one run with its owners' decisions, specification and manifest."""
        with _errors():
            request = control_pb2.ShowRunRequest(run_id=run_id)
            reply: control_pb2.ShowRunReply = self._stub.ShowRun(request, timeout=CALL_TIMEOUT_S)
            return reply

    def watch(self, run_id: str, *, after: int = 0) -> Iterator[Event]:
        """Yield a run's events, past ones first, until it has ended.

        Kinds of a later version are passed over.
        """
        request = control_pb2.WatchRunRequest(run_id=run_id, after_sequence=after)
        kinds = {kind.value: kind for kind in EventKind}
        with _errors():
            stream = self._stub.WatchRun(request)
            try:
                for item in stream:
                    kind = kinds.get(item.kind)
                    if kind is not None:
                        yield Event(
                            sequence=item.sequence,
                            at_s=item.at_s,
                            kind=kind,
                            fields=json.loads(item.fields_json),
                        )
            finally:
                stream.cancel()

    def stop(self, run_id: str, reason: str) -> None:
        """Stop a run for good."""
        with _errors():
            request = control_pb2.StopRunRequest(run_id=run_id, reason=reason)
            self._stub.StopRun(request, timeout=CALL_TIMEOUT_S)

    def list_files(self, run_id: str) -> list[control_pb2.File]:
        """Return the files of a run's folder."""
        with _errors():
            request = control_pb2.ListFilesRequest(run_id=run_id)
            return list(self._stub.ListFiles(request, timeout=CALL_TIMEOUT_S).files)

    def pull_run(self, run_id: str, folder: Path) -> list[control_pb2.File]:
        """Fetch a run's whole folder into ``folder``: a new or empty one, or this run's own.

        Raises:
            UsageError: the folder holds something else (E-RUN-FOLDER); nothing has changed there.
            ProtocolError: see :meth:`pull`.
        """
        files = self.list_files(run_id)
        _claim(folder, run_id)
        for file in files:
            self.pull(run_id, file, folder)
        if _run_of_manifest(folder) == run_id:
            (folder / _CLAIM).unlink(missing_ok=True)
        return files

    def pull(self, run_id: str, file: control_pb2.File, folder: Path) -> Path:
        """Fetch one file into ``folder``; one that is there already with the same digest stays.

        Raises:
            ProtocolError: the server names a path outside the folder, or sends other bytes.
        """
        if not _FILE_PATH.fullmatch(file.path):
            raise ProtocolError("E-FILE-PATH", f"expected a file of a run, got {file.path[:80]!r}")
        target = folder / file.path
        make_private_folder(target.parent)
        if target.is_file() and _sha256(target) == file.sha256:
            return target
        part = target.with_name(target.name + ".part")
        offset = part.stat().st_size if part.is_file() else 0
        if offset >= file.bytes:  # a rest that cannot be the beginning of this file
            offset = 0
        with part.open("r+b" if offset else "wb") as out, _errors():
            out.seek(offset)
            request = control_pb2.PullFileRequest(run_id=run_id, path=file.path, offset=offset)
            for chunk in self._stub.PullFile(request):
                out.write(chunk.data)
            out.truncate()
        if _sha256(part) != file.sha256:
            part.unlink()
            raise ProtocolError(
                "E-FILE-DIGEST",
                f"expected the announced SHA-256 of {file.path}, got another",
                hint="Pull again; a running run replaces its manifest after each round.",
            )
        part.replace(target)
        return target


def _claim(folder: Path, run_id: str) -> None:
    """Take a folder for one run, so that a broken pull finds it again and no other run does."""
    claim = folder / _CLAIM
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken:
        claimed_by = claim.read_text().strip() if claim.is_file() else _run_of_manifest(folder)
        if claimed_by != run_id:
            holds = f"the run {claimed_by[:40]}" if claimed_by else "other files"
            raise UsageError(
                "E-RUN-FOLDER",
                f"expected a new or empty folder, or that of run {run_id}, got {folder} "
                f"with {holds}",
                hint="Name another folder with --out.",
            )
        return
    make_private_folder(folder)
    write_atomic(claim, run_id.encode() + b"\n")


def _run_of_manifest(folder: Path) -> str:
    """Return the id of the run whose manifest lies in a folder; empty if none can be read."""
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(content.get("run_id", "")) if isinstance(content, dict) else ""


def has_ended(status: str) -> bool:
    """Return whether a run in this status is over."""
    return status in _ENDED


@contextlib.contextmanager
def open_local(socket: Path) -> Iterator[ControlClient]:
    """Connect to the daemon of this machine, over the socket in its state directory."""
    with local_channel(socket) as channel:
        yield ControlClient(channel)


@contextlib.contextmanager
def open_profile(profile: Profile) -> Iterator[ControlClient]:
    """Connect with a profile's certificate to the first of its addresses that answers.

    Raises:
        UnavailableError: none answers.
        TrustError: the profile's certificate or the server's is not accepted.
    """
    membership = profile.membership
    failure: Exception | None = None
    for address in profile.addresses:
        channel = control_channel(
            address,
            authority_pem=membership.authority_pem,
            certificate_pem=membership.certificate_pem,
            key_pem=membership.key_pem,
        )
        with channel:
            client = ControlClient(channel)
            try:
                client.status(timeout_s=CONNECT_TIMEOUT_S)
            except UnavailableError as error:
                failure = error
                continue
            yield client
            return
    if failure is not None:
        raise failure
    raise UnavailableError(
        "E-NOT-ENROLLED", f"expected the server's address in profile {profile.name!r}"
    )


def _frames(submission: Submission) -> Iterator[control_pb2.SubmitRunFrame]:
    with submission.initial.open("rb") as file:
        head = control_pb2.SubmitRunHead(
            specification=submission.canonical,
            source_toml=submission.source_toml,
            initial_bytes=os.fstat(file.fileno()).st_size,
            initial_sha256=_sha256(submission.initial),
        )
        yield control_pb2.SubmitRunFrame(head=head)
        while data := file.read(FRAME_BYTES):
            yield control_pb2.SubmitRunFrame(data=data)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as failure:
        raise error_from_rpc(failure) from failure
