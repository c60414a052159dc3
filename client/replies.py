"""From what an app answered to what is stored to leave: copied, rebuilt, checked, recorded.

The head of a reply is made here: of the app's own words only arrays and metrics that passed the
envelope are kept. A refusal or a failure leaves as a stable code; an app of somebody's own chooses
among a few, so that a code cannot carry anything.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.charges import head_of
from tacit.client.configuration import ClientConfig, Journal
from tacit.client.envelope import Release, verify_release
from tacit.client.outbox import Outbox, StoredPayload
from tacit.client.payload import BufferPayload
from tacit.client.store import Decision, OutboxEntry, RunRecord, Store
from tacit.client.update import CONCEALED, Noising, noise_reply
from tacit.core.errors import AppError, ProtocolError, RefusedError, TacitError
from tacit.privacy.ledger_entries import ChargeKey
from tacit.protos import fleet_pb2, records_pb2
from tacit.protos.manifest import check_manifest
from tacit.protos.secure import MASKED, secure_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tacit.client.charges import Charges
    from tacit.client.runner import AppAnswer
    from tacit.client.secure import Part

logger = logging.getLogger("tacit.client.replies")

_SPARES = 2  # a run has one reply at a time, and few run at once
_RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
_CODE = re.compile(r"E-[A-Z0-9-]{1,60}")
_FOREIGN_CODES = frozenset(
    (
        "E-APP-EMPTY",
        "E-APP-IMPORT",
        "E-APP-RAISED",
        "E-RECORD-ARRAY",
        "E-RECORD-KEY",
        "E-RECORD-TOO-LONG",
        "E-RECORD-VALUE",
    )
)


@dataclass(frozen=True, kw_only=True)
class _Charged:
    """What may leave, and what it cost; and the app's state, which stays."""

    manifest: records_pb2.Manifest
    claim: fleet_pb2.Claim | None
    state: tuple[bytes, str] | None


class Replies:
    """The outbox with its decisions; the caller serialises calls for one run."""

    def __init__(
        self,
        folder: Path,
        *,
        config: ClientConfig,
        store: Store,
        clock: Callable[[], float],
        charges: Charges,
    ) -> None:
        self._charges = charges
        durable = config.journal is Journal.POWER
        self.outbox = Outbox(folder / "outbox", durable=durable, spares=_SPARES)
        self._states = Outbox(folder / "states", durable=durable)
        self._logs = folder.absolute() / "logs"
        self._config = config
        self._store = store
        self._clock = clock
        self.outbox.sweep({entry.payload_file for entry in store.list_replies()})
        self._states.sweep({run.state_file for run in store.list_runs() if not run.ended})

    def find(self, head: fleet_pb2.InstructionHead) -> OutboxEntry | None:
        """Return the stored answer to this attempt of an instruction, if there is one."""
        entry = self._store.load_reply(head.message_id)
        if entry is None or entry.attempt != head.attempt:
            return None
        return entry if entry.instruction_sha256 == head.manifest.payload_sha256 else None

    def open(self, entry: OutboxEntry) -> memoryview:
        """Map a stored answer for sending.

        Raises:
            UnavailableError: it is gone.
            ProtocolError: it is damaged.
        """
        if not entry.payload_file:
            return memoryview(b"")
        view = self.outbox.open_view(entry.payload_file)
        head = fleet_pb2.ReplyHead.FromString(entry.head)
        self.outbox.verify(entry.payload_file, view, head.manifest.payload_sha256)
        return view

    def store_answer(
        self,
        release: Release,
        answer: AppAnswer,
        run: RunRecord,
        *,
        noising: Noising | None = None,
    ) -> OutboxEntry:
        """Copy an app's answer, check the copy, noise it if asked, charge it, store it to leave.

        Raises:
            RefusedError: the envelope or the ledger said no; nothing of the answer is kept.
            AppError: the app answered with a failure.
            ProtocolError: the answer's bytes or manifest are malformed.
            UnavailableError: the disk is full.
        """
        stored, manifest = self._copied(release, answer, noising)
        try:
            state = self._stored_state(release.instruction, answer, run)
            claim = self._charges.charge(release)
        except TacitError:
            self.outbox.remove(stored.name)
            raise
        charged = _Charged(manifest=manifest, claim=claim, state=state)
        return self._store_released(release.instruction, charged, stored, run=run)

    def hold_answer(
        self,
        release: Release,
        answer: AppAnswer,
        run: RunRecord,
        *,
        noising: Noising | None = None,
    ) -> tuple[records_pb2.Manifest, memoryview, tuple[bytes, str] | None]:
        """Copy, check and noise an app's answer as :meth:`store_answer` does, and let none leave.

        Returns:
            What is held, manifest and bytes; and the app's state, if it has changed.

        Raises:
            As :meth:`store_answer`, but for the charge.
        """
        stored, manifest = self._copied(release, answer, noising)
        try:
            held = memoryview(bytes(self.outbox.open_view(stored.name)))
            state = self._stored_state(release.instruction, answer, run)
        finally:
            self.outbox.remove(stored.name)
        return manifest, held, state

    def store_step(
        self,
        head: fleet_pb2.InstructionHead,
        part: Part,
        *,
        run: RunRecord,
        state: tuple[bytes, str] | None = None,
    ) -> OutboxEntry:
        """Store a step of secure aggregation to leave; a vector is charged first.

        Raises:
            RefusedError: the ledger has no place for it.
            UnavailableError: the disk is full.
        """
        manifest = secure_manifest(part.body, part.vector)
        pieces = (memoryview(part.body), *(() if part.vector is None else (part.vector.data,)))
        stored = self.outbox.store(
            BufferPayload(pieces),
            f"{head.message_id}.{head.attempt}.step",
            max_bytes=self._config.policy.max_update_bytes,
        )
        manifest.payload_sha256 = stored.sha256
        try:
            claim = None
            if part.release is not None:
                claim = self._charges.charge(part.release, survivors=part.survivors)
        except TacitError:
            self.outbox.remove(stored.name)
            raise
        charged = _Charged(manifest=manifest, claim=claim, state=state)
        outcome = "step" if part.release is None else "released"
        return self._store_released(head, charged, stored, run=run, outcome=outcome)

    def _copied(
        self, release: Release, answer: AppAnswer, noising: Noising | None
    ) -> tuple[StoredPayload, records_pb2.Manifest]:
        """Return the daemon's own copy of an answer, checked, and noised if asked."""
        head = release.instruction
        if answer.reply.WhichOneof("outcome") != "manifest" or answer.payload is None:
            code = _code_of(
                answer.reply.failure.reason, foreign=release.specification.app is not None
            )
            raise AppError(code, "the app failed")
        stored = self.outbox.store(
            answer.payload,
            f"{head.message_id}.{head.attempt}.{head.manifest.payload_sha256.hex()[:8]}",
            max_bytes=self._config.policy.max_update_bytes,
        )
        try:
            manifest = self._verified(release, answer.reply.manifest, stored)
            if noising is not None:
                stored = self._noised(manifest, stored, noising)
        except TacitError:
            self.outbox.remove(stored.name)
            raise
        return stored, manifest

    def _noised(
        self,
        manifest: records_pb2.Manifest,
        stored: StoredPayload,
        noising: Noising,
    ) -> StoredPayload:
        """Put the clipped and noised update in the place of the app's own."""
        noised = noise_reply(manifest, self.outbox.open_view(stored.name), noising)
        stored = self.outbox.store(
            noised, stored.name, max_bytes=self._config.policy.max_update_bytes
        )
        manifest.payload_sha256 = stored.sha256
        return stored

    def _verified(
        self, release: Release, unverified: records_pb2.Manifest, stored: StoredPayload
    ) -> records_pb2.Manifest:
        """Return the manifest that may leave: every field known, the digest our own."""
        manifest = records_pb2.Manifest()
        manifest.CopyFrom(unverified)
        manifest.DiscardUnknownFields()
        proposed = dataclasses.replace(
            release, manifest=manifest, payload_bytes=stored.size, payload_sha256=stored.sha256
        )
        verify_release(proposed, self.outbox.open_view(stored.name))
        manifest.payload_sha256 = stored.sha256
        check_manifest(manifest, max_bytes=self._config.policy.max_update_bytes)
        return manifest

    def _store_released(
        self,
        head: fleet_pb2.InstructionHead,
        charged: _Charged,
        stored: StoredPayload,
        *,
        run: RunRecord,
        outcome: str = "released",
    ) -> OutboxEntry:
        now = self._clock()
        reply = fleet_pb2.ReplyHead(
            run_id=head.run_id,
            message_id=head.message_id,
            manifest=charged.manifest,
            ttl_s=head.ttl_s,
            created_at_s=now,
            claim=charged.claim,
        )
        self._keep_head()
        entry = _entry(head, reply, stored, at_s=now)
        decision = _decision(head, outcome, at_s=now, stored=stored)
        if not stored.size:  # metrics alone travel in the manifest
            size = charged.manifest.ByteSize()
            decision = dataclasses.replace(decision, payload_bytes=size)
        old = self._store.load_reply(head.message_id)
        state = charged.state
        self._store.save_reply(
            entry, decision, state_manifest=state and state[0], state_file=state[1] if state else ""
        )
        if old is not None and old.payload_file != entry.payload_file:
            self.outbox.remove(old.payload_file)
        self._abort_replaced(old, entry)
        if state is not None and run.state_file != state[1]:
            self._states.remove(run.state_file)
        return entry

    def _stored_state(
        self, head: fleet_pb2.InstructionHead, answer: AppAnswer, run: RunRecord
    ) -> tuple[bytes, str] | None:
        """Copy the app's state, if it has one, or had one; return its manifest and file."""
        if answer.state is None or not (answer.state.records or run.state_manifest):
            return None
        manifest = answer.state.SerializeToString()
        if answer.state_payload is None or answer.state_payload.size == 0:
            return manifest, ""
        name = f"{head.message_id}.{head.attempt}.state"
        self._states.store(
            answer.state_payload, name, max_bytes=self._config.policy.max_update_bytes
        )
        return manifest, name

    def store_error(self, head: fleet_pb2.InstructionHead, error: TacitError) -> OutboxEntry:
        """Store, as the answer to an instruction, that nothing may leave."""
        outcome = "refused" if isinstance(error, RefusedError) else "failed"
        reason = error.message
        if isinstance(error, AppError):
            reason = self._with_log(head, reason)
        return self.store_failure(head, outcome, error.code, reason)

    def store_concealed(self, release: Release, error: TacitError) -> OutboxEntry:
        """Store that nothing may leave but one code, and charge it like an update.

        Raises:
            RefusedError: the ledger has no place for it.
            UnavailableError: the disk is full.
        """
        self._charges.charge(release)
        self._keep_head()
        head = release.instruction
        outcome = "refused" if isinstance(error, RefusedError) else "failed"
        reason = f"{error.message}; the server was told {CONCEALED}, at the price of an update"
        decision = _decision(
            head, outcome, at_s=self._clock(), code=error.code, reason=self._with_log(head, reason)
        )
        return self._store_failure(head, decision, CONCEALED, charged=True)

    def _keep_head(self) -> None:
        """Note how far the ledger has come, also after what it entered without a claim."""
        self._store.keep_head(head_of(self._charges.head()).head)

    def _with_log(self, head: fleet_pb2.InstructionHead, reason: str) -> str:
        """Add to a reason, which stays here, where the app's log is; a simulated app has none."""
        log = self._logs / f"{head.run_id}.log"
        return f"{reason}: see {log}" if log.exists() else reason

    def store_failure(
        self, head: fleet_pb2.InstructionHead, outcome: str, code: str, reason: str
    ) -> OutboxEntry:
        """Store a failure: the code leaves, the reason stays in the decision log.

        Raises:
            ProtocolError: the run is over, or was never offered here.
        """
        decision = _decision(head, outcome, at_s=self._clock(), code=code, reason=reason)
        return self._store_failure(head, decision, code, charged=False)

    def _store_failure(
        self, head: fleet_pb2.InstructionHead, decision: Decision, code: str, *, charged: bool
    ) -> OutboxEntry:
        """Store a decision that nothing leaves but a code."""
        fields = {"message": head.message_id, "code": decision.code, "reason": decision.reason}
        logger.warning("nothing left", extra={"fields": fields})
        run = self._store.load_run(head.run_id)
        if run is None or run.ended:
            self._store.log_decision(decision, keep=self._config.keep_decisions)
            raise ProtocolError("E-RUN-UNKNOWN", f"run {head.run_id} is over, or was never offered")
        reply = fleet_pb2.ReplyHead(
            run_id=head.run_id,
            message_id=head.message_id,
            failure=records_pb2.AppFailure(code=_RAISED, reason=code),
            ttl_s=head.ttl_s,
            created_at_s=decision.at_s,
        )
        old = self._store.load_reply(head.message_id)
        nothing = StoredPayload(name="", size=0, sha256=b"")
        entry = _entry(head, reply, nothing, at_s=decision.at_s)
        self._store.save_reply(entry, decision, charged=charged)
        if old is not None:
            self.outbox.remove(old.payload_file)
        self._abort_replaced(old, entry)
        return entry

    def _abort_replaced(self, old: OutboxEntry | None, new: OutboxEntry) -> None:
        """Note that a charged attempt came to nothing, if another one has taken its place."""
        if old is not None and old.attempt != new.attempt and _is_undelivered(old):
            self._charges.abort([_key(old)], "another attempt took its place without a receipt")

    def forget(self, message_id: str, *, unused: str = "") -> None:
        """Drop a reply that is committed or no longer wanted, and its noise key.

        Args:
            message_id: whose.
            unused: why nothing came of it; empty if the server has committed it.
        """
        unanswered = self._store.list_unanswered(message_id)
        entry = self._store.forget_message(message_id)
        if entry is not None:
            self.outbox.remove(entry.payload_file)
        if unused:  # only now: nothing can leave under these charges any more
            self._abort(unanswered, [] if entry is None else [entry], unused)

    def _abort(
        self, unanswered: Iterable[tuple[str, int]], entries: Iterable[OutboxEntry], reason: str
    ) -> None:
        keys = [_key(entry) for entry in entries if _is_undelivered(entry)]
        keys += [ChargeKey(_run_of(message), message, attempt) for message, attempt in unanswered]
        self._charges.abort(keys, reason)

    def forget_run(self, run_id: str, status: str, reason: str) -> None:
        """Drop every reply, key and state of a run that is over."""
        run = self._store.load_run(run_id)
        unanswered = self._store.list_unanswered(f"{run_id}.%")
        entries = self._store.end_run(run_id, status, reason)
        for entry in entries:
            self.outbox.remove(entry.payload_file)
        self._abort(unanswered, entries, f"no receipt had come when the run ended ({status})")
        if run is not None:
            self._states.remove(run.state_file)


def _code_of(reason: str, *, foreign: bool) -> str:
    allowed = reason in _FOREIGN_CODES or (not foreign and _CODE.fullmatch(reason) is not None)
    return reason if allowed else "E-APP-FAILED"


def _is_undelivered(entry: OutboxEntry) -> bool:
    """Whether an answer was released, and the server has given no receipt for it.

    A failure that was charged is not meant: the server closes a message as it takes a failure, so
    that nobody can tell here whether it was heard.
    """
    return bool(entry.payload_file) and entry.received_at_s is None


def _key(entry: OutboxEntry) -> ChargeKey:
    return ChargeKey(entry.run_id, entry.message_id, entry.attempt)


def _run_of(message_id: str) -> str:
    return message_id.partition(".")[0]


def _entry(
    head: fleet_pb2.InstructionHead,
    reply: fleet_pb2.ReplyHead,
    stored: StoredPayload,
    *,
    at_s: float,
) -> OutboxEntry:
    return OutboxEntry(
        message_id=head.message_id,
        run_id=head.run_id,
        attempt=head.attempt,
        instruction_sha256=head.manifest.payload_sha256,
        head=reply.SerializeToString(),
        payload_file=stored.name,
        payload_bytes=stored.size,
        stored_at_s=at_s,
    )


def _decision(
    head: fleet_pb2.InstructionHead,
    outcome: str,
    *,
    at_s: float,
    code: str = "",
    reason: str = "",
    stored: StoredPayload | None = None,
) -> Decision:
    return Decision(
        at_s=at_s,
        run_id=head.run_id,
        message_id=head.message_id,
        # A masked vector is the answer to training, and counts as one.
        message_type="train" if head.message_type == MASKED else head.message_type[:80],
        outcome=outcome,
        code=code,
        reason=reason,
        payload_bytes=stored.size if stored else 0,
        payload_sha256=stored.sha256 if stored else b"",
    )
