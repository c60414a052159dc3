"""The grid's port inside a run worker: the daemon behind a socketpair, payloads in the spool.

It trusts the daemon. Every request has a number and waits for its answer: one at a time, since an
app asks one thing at a time. Payload files are written here, before the daemon is told of them, and
replies are mapped: a strategy may write into an array, which never touches the spool's file.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.core.spares import claim
from tacit.protos import pipe_pb2
from tacit.protos.payload import map_payload, write_segments
from tacit.server.grid import Outgoing, Result
from tacit.server.spool import SEND_SPARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tacit.protos.pipe import Pipe

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # manifests of a whole cohort's replies


class PipePort:
    """``GridPort`` over the pipe to the daemon (pipe.proto, ``GridRequest`` and ``GridReply``)."""

    def __init__(self, pipe: Pipe, spool: Path) -> None:
        self._pipe = pipe
        self._spool = spool
        self._calls = 0

    def nodes(self, sequence: int) -> list[int]:
        """Ask which nodes are approved and connected."""
        request = pipe_pb2.GridRequest(nodes=pipe_pb2.GridNodes(sequence=sequence))
        return list(self._call(request).node_ids)

    def store(self, name: str, segments: Sequence[bytes | memoryview]) -> None:
        """Write a payload file.

        Raises:
            UnavailableError: the disk is full; nothing is left behind.
        """
        path = self._spool / name
        try:
            with open(self._file_for(path), "wb", closefd=True) as file:  # noqa: PTH123 - a descriptor
                os.ftruncate(file.fileno(), write_segments(file.fileno(), segments))
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UnavailableError(
                    "E-DISK-FULL",
                    f"no space for the payload {name} in {self._spool}",
                    hint="free space on that disk; the run goes on from its last checkpoint",
                ) from error
            raise

    def _file_for(self, path: Path) -> int:
        """Open a payload file: one that the daemon left to be written again, or a new one."""
        with contextlib.suppress(FileNotFoundError):
            (self._spool / SEND_SPARE).rename(path)
            descriptor = claim(path)
            if descriptor is not None:
                return descriptor
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def push(self, messages: Sequence[Outgoing]) -> None:
        """Hand over instructions."""
        request = pipe_pb2.GridRequest(
            push=pipe_pb2.GridPush(
                messages=[
                    pipe_pb2.GridMessage(
                        instruction=item.head, node_id=item.node_id, payload_name=item.payload_name
                    )
                    for item in messages
                ]
            )
        )
        self._call(request)

    def pull(self, message_ids: Sequence[str], *, timeout_s: float, wait: bool) -> list[Result]:
        """Ask for replies; the daemon answers when all are here, or after the timeout."""
        request = pipe_pb2.GridRequest(
            pull=pipe_pb2.GridPull(message_ids=message_ids, timeout_s=timeout_s, wait=wait)
        )
        return [
            Result(
                message_id=item.message_id,
                node_id=item.node_id,
                head=item.reply,
                payload=self._map(item.payload_name),
            )
            for item in self._call(request).results
        ]

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Tell whoever watches the run."""
        text = json.dumps(dict(fields), allow_nan=False).encode()
        self._call(pipe_pb2.GridRequest(event=pipe_pb2.GridEvent(kind=kind, fields_json=text)))

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:
        """Make the checkpoint file the place from which the run resumes.

        The replies before it are forgotten with it; flwr's messages refer to themselves, and would
        go on holding files that the daemon wants to write again.
        """
        gc.collect()
        checkpoint = pipe_pb2.GridCheckpoint(
            round=round_number, next_sequence=next_sequence, name=name
        )
        self._call(pipe_pb2.GridRequest(checkpoint=checkpoint))

    def done(self, *, failure: str = "", code: str = "", hint: str = "") -> None:
        """Say that the app is through, or why it failed and what to do."""
        done = pipe_pb2.GridDone(failure=failure, code=code, hint=hint)
        self._call(pipe_pb2.GridRequest(done=done))

    def _call(self, request: pipe_pb2.GridRequest) -> pipe_pb2.GridReply:
        self._calls += 1
        request.call_id = self._calls
        self._pipe.send(request)
        reply, descriptors = self._pipe.receive(pipe_pb2.GridReply, max_bytes=MAX_ANSWER_BYTES)
        for descriptor in descriptors:
            os.close(descriptor)
        if reply.call_id != self._calls:
            raise ProtocolError(
                "E-PIPE-ORDER", f"expected the answer to call {self._calls}, got {reply.call_id}"
            )
        if reply.error_code:
            raise UnavailableError(reply.error_code, "the daemon refused a request of this run")
        return reply

    def _map(self, name: str) -> memoryview:
        """Map a spool file; only this run's files have names here."""
        return map_payload(self._spool / name) if name else memoryview(b"")
