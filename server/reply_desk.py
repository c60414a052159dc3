"""The desk of a run's journal where nodes fetch instructions and hand in replies.

A node is who its certificate says; what it sends is checked on its head before any byte is taken,
and on its bytes before it counts. A reply that breaks a rule of content fails its message, since
the node has no other reply to give; one that only arrived badly may be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, TrustError
from tacit.core.events import EventKind
from tacit.core.results import result_schema
from tacit.core.specification import PrivacyMode
from tacit.protos import fleet_pb2
from tacit.protos.payload import map_payload
from tacit.protos.records_pb2 import AppFailure
from tacit.protos.secure import has_vector
from tacit.server.claims import plain_epsilon, verify_claim
from tacit.server.grid_messages import head_for_node, receipt_of
from tacit.server.journal import Changes, RunJournal
from tacit.server.replies import (
    stable_code,
    verify_finite,
    verify_reply,
    verify_secure_reply,
)
from tacit.server.rounds import Entry, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.core.specification import RunSpec
    from tacit.server.spool import Staged


class ReplyDesk:
    """Instructions out, replies in, for one run."""

    def __init__(self, journal: RunJournal, specification: RunSpec) -> None:
        self._journal = journal
        self._claimed = specification.privacy.mode is not PrivacyMode.NONE
        if specification.audit is not None:
            self._claimed = specification.audit.is_noised
        self._opens = specification.canaries is not None
        self._spool = journal.spool
        self._schema = result_schema(specification)

    def fetch(self, node_id: int, wire_id: str) -> tuple[fleet_pb2.InstructionHead, Path | None]:
        """Return an instruction's head and where its payload stands.

        Raises:
            ProtocolError: it is closed, or not this node's (E-MESSAGE-CLOSED).
        """
        entry = self._journal.exchange.find(wire_id, node_id)
        if entry is None or entry.outcome is not Outcome.OPEN:
            raise _closed(wire_id)
        row = self._journal.rows[entry.instruction.message_id]
        path = self._spool.path(row.payload_name) if row.payload_name else None
        return head_for_node(entry, row), path

    def submit_status(self, node_id: int, wire_id: str) -> fleet_pb2.SubmitStatusReply:
        """Say whether a reply is wanted, and from which byte on."""
        entry = self._journal.exchange.find(wire_id, node_id)
        if entry is None:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        receipt = self._receipt(entry)
        if receipt is not None:
            return fleet_pb2.SubmitStatusReply(
                state=fleet_pb2.SubmitStatusReply.RECEIVED, receipt=receipt
            )
        if entry.outcome is not Outcome.OPEN:
            return fleet_pb2.SubmitStatusReply(state=fleet_pb2.SubmitStatusReply.CLOSED)
        return fleet_pb2.SubmitStatusReply(
            state=fleet_pb2.SubmitStatusReply.WANTED, offset=self._spool.staged_bytes(wire_id)
        )

    def begin_reply(self, node_id: int, head: fleet_pb2.ReplyHead) -> Staged | fleet_pb2.Receipt:
        """Look at a reply's head before any of its bytes: where to stage them, or the receipt.

        Raises:
            ProtocolError: the message is closed; or the reply breaks a rule, and the message has
                then failed, since this node has no other reply to give.
            UnavailableError: there is no room at present.
        """
        entry = self._journal.exchange.find(head.message_id, node_id)
        if entry is None:
            raise _closed(head.message_id)
        receipt = self._receipt(entry)
        if receipt is not None:
            return receipt
        if entry.outcome is not Outcome.OPEN:
            raise _closed(head.message_id)
        if head.WhichOneof("outcome") == "failure":
            return self._accept_failure(entry, head)
        instruction = self._journal.rows[entry.instruction.message_id].head
        with self._failing(entry):
            limits = self._journal.around.limits
            if instruction.HasField("secure"):
                verify_secure_reply(head.manifest, instruction=instruction, limits=limits)
            else:
                verify_reply(
                    head.manifest,
                    instruction=instruction.manifest,
                    message_type=instruction.message_type,
                    schema=self._schema,
                    limits=limits,
                )
            self._verify_claim(node_id, head, instruction)
        size, sha256 = head.manifest.payload_bytes, head.manifest.payload_sha256
        return self._spool.stage(entry.wire_id, size=size, sha256=sha256)

    async def commit_reply(
        self, node_id: int, head: fleet_pb2.ReplyHead, staged: Staged
    ) -> fleet_pb2.Receipt:
        """Check a whole reply, store it, and return its receipt.

        Raises:
            ProtocolError: bytes are missing (they may follow), the digest is wrong (all are sent
                again), numbers are not finite (the message has failed), or it was closed meanwhile.
        """
        try:
            staged.verify_complete()
        except ProtocolError as error:
            if error.code == "E-UPLOAD-DIGEST":
                self._spool.discard(head.message_id)
            raise
        entry = self._open_entry(head.message_id, node_id)
        with self._failing(entry):
            await asyncio.to_thread(self._inspect, head, staged)
        entry = self._open_entry(head.message_id, node_id)
        name = f"reply-{entry.wire_id}.bin"
        self._spool.finish(entry.wire_id, staged, name)
        self._accept(entry, head, name)
        receipt = self._receipt(entry, repeated=False)
        if receipt is None:
            raise _closed(head.message_id)
        return receipt

    def _inspect(self, head: fleet_pb2.ReplyHead, staged: Staged) -> None:
        staged.close(durable=self._spool.durable)
        try:
            payload = map_payload(staged.path)
        except FileNotFoundError as error:  # closed while it was being looked at
            raise _closed(head.message_id) from error
        verify_finite(head.manifest, payload[: staged.expected_bytes])

    def _verify_claim(
        self, node_id: int, head: fleet_pb2.ReplyHead, instruction: fleet_pb2.InstructionHead
    ) -> None:
        """Take no reply whose cost the owner's own ledger does not stand for.

        The opening of canaries, the one query of such a run, costs nothing; nor do the steps of
        secure aggregation, but for a masked vector.
        """
        if head.HasField("claim"):
            verify_claim(head.claim)
            self._journal.around.keep_head(node_id, head.claim.ledger)
            return
        free = self._opens and instruction.message_type == "query"
        if instruction.HasField("secure"):
            free = not has_vector(head.manifest)
        if self._claimed and not free:
            raise ProtocolError("E-CLAIM-MISSING", "expected a reply with its charge, got none")

    def _accept_failure(self, entry: Entry, head: fleet_pb2.ReplyHead) -> fleet_pb2.Receipt:
        clean = fleet_pb2.ReplyHead(run_id=self._journal.run_id, message_id=head.message_id)
        code = stable_code(head.failure.reason)
        clean.failure.CopyFrom(AppFailure(code=head.failure.code, reason=code))
        row = self._journal.rows[entry.instruction.message_id]
        row.reply = clean
        self._fail(entry, code)
        return fleet_pb2.Receipt(message_id=head.message_id)

    def _accept(self, entry: Entry, head: fleet_pb2.ReplyHead, name: str) -> None:
        row = self._journal.rows[entry.instruction.message_id]
        row.reply, row.reply_name = head, name
        fields = {
            **self._journal.message_fields(entry),
            "bytes": head.manifest.payload_bytes,
        }
        if head.HasField("claim"):
            fields |= {"epsilon": plain_epsilon(head.claim), "delta": head.claim.delta}
        effects = self._journal.exchange.accept_reply(
            entry.wire_id, entry.instruction.node_id, now=self._journal.around.clock()
        )
        # What a member's daemon says by itself in a secure session is nothing to watch.
        told = not row.head.HasField("secure") or has_vector(head.manifest)
        logged = [(EventKind.REPLY_RECEIVED, fields)] if told else []
        self._journal.apply(effects, Changes(logged=logged, replied=entry))

    def _fail(self, entry: Entry, code: str) -> None:
        effects = self._journal.exchange.fail(
            entry.wire_id, entry.instruction.node_id, code, now=self._journal.around.clock()
        )
        self._journal.apply(effects)

    @contextlib.contextmanager
    def _failing(self, entry: Entry) -> Iterator[None]:
        """Fail a message when its reply breaks a rule of content: the node has no other."""
        try:
            yield
        except (ProtocolError, TrustError) as error:
            self._spool.discard(entry.wire_id)
            current = self._journal.exchange.find(entry.wire_id, entry.instruction.node_id)
            if current is not None and current.outcome is Outcome.OPEN:
                self._fail(entry, error.code)
            raise

    def _open_entry(self, wire_id: str, node_id: int) -> Entry:
        entry = self._journal.exchange.find(wire_id, node_id)
        if entry is None or entry.outcome is not Outcome.OPEN:
            self._spool.discard(wire_id)
            raise _closed(wire_id)
        return entry

    def _receipt(self, entry: Entry, *, repeated: bool = True) -> fleet_pb2.Receipt | None:
        row = self._journal.rows.get(entry.instruction.message_id)
        return None if row is None else receipt_of(entry, row, repeated=repeated)


def _closed(wire_id: str) -> ProtocolError:
    return ProtocolError("E-MESSAGE-CLOSED", f"{wire_id[:80]!r} is not open for this node")
