"""A data owner's node without its transport: offers in, verdicts out; instructions in, replies out.

The daemon and the simulator drive the same node. It trusts neither side: not the server, whose
offers and instructions are held against the policy and the approval, and not the app, whose reply
is copied, rebuilt and checked before it may leave. Whatever it decides is in the decision log
before anybody is told.

The rules:

1. A run that is offered again keeps a word that a person gave; all else is judged anew, also
   against what a person has approved for later runs.
2. An instruction is answered once per attempt: a stored answer is given again, never made again.
3. The checks that need no reply run before the app is called.
4. A reply is copied into the outbox before it is checked, and the copy is what is checked and sent.
5. Of what an app says, only arrays and metrics that passed the envelope leave; the head is ours.
   They leave after they were charged to the ledger, and noised here where the mode says so.
6. A refusal or failure leaves as a stable code, and its reason stays here. Where a mode protects
   the whole update of an app that is not ours, it leaves as one code, at the price of an update.
7. What the server has closed while it was answered is dropped before it is charged.
8. A full disk is nobody's failure: the instruction stays open.

Methods block, and may be called from several threads; the messages of one run go one at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import threading
from typing import TYPE_CHECKING

from tacit.client.approvals import WEIGHT, Judgement, Verdict, fingerprint_apps
from tacit.client.audits import keep_report
from tacit.client.canaries import CANARIES_NAME, verify_canaries, verify_may_ask
from tacit.client.charges import Charges
from tacit.client.envelope import Release, reply_schema, verify_permitted
from tacit.client.identifiers import verify_message_id, verify_run_id
from tacit.client.payload import open_view
from tacit.client.preparation import PREPARED_NAME
from tacit.client.received import is_last_model, keep_received
from tacit.client.replies import Replies
from tacit.client.runs import Runs, Surroundings, parse_specification
from tacit.client.secure import Held, Part, SecureSteps
from tacit.client.update import Noising, conceals_failures, verify_noisable
from tacit.core.errors import (
    AppError,
    ProtocolError,
    RefusedError,
    TacitError,
    UnavailableError,
)
from tacit.core.specification import PrivacyMode, specification_sha256
from tacit.privacy.plan import privacy_plan
from tacit.protos import fleet_pb2, pipe_pb2, records_pb2
from tacit.protos.manifest import check_manifest, verify_digest
from tacit.protos.secure import MASKED, check_secure, is_step, read_secure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.client.configuration import ClientConfig
    from tacit.client.payload import Payload
    from tacit.client.store import OutboxEntry, RunRecord, Store
    from tacit.core.specification import RunSpec

logger = logging.getLogger("tacit.client.node")

_DECIDED = ("E-APP-MISSING", "E-SECAGG-CLOSED", "E-SECAGG-THRESHOLD")  # no later try is better
_MOST_GROUP = 100  # characters; of a round's number 20 at most


class Node:
    """One owner's node; see the module's docstring for its rules.

    Attributes:
        node_id: the node's number, which Flower calls it by.
        config: the owner's client.toml.
        store: what the node remembers.
        charges: the node's side of its ledger.
    """

    def __init__(
        self, *, node_id: int, config: ClientConfig, store: Store, around: Surroundings
    ) -> None:
        self.node_id = node_id
        self.config = config
        self.store = store
        self._around = around
        charges = Charges(around.ledger, config=config, public_key=around.public_key)
        self.charges = charges
        self._runs = Runs(
            node_id=node_id, config=config, store=store, around=around, charges=charges
        )
        self._replies = Replies(
            around.folder, config=config, store=store, clock=around.clock, charges=charges
        )
        for head in store.list_heads():
            charges.verify_known(head)
        self._secure = SecureSteps(
            node_id=node_id,
            policy=config.policy.secure_aggregation,
            pinned=around.pinned,
            sign=around.sign,
            guard=around.guard,
        )
        self._answering: dict[str, bool] = {}  # by message: whether it was closed meanwhile
        self._locks: dict[str, threading.RLock] = {}
        self._locks_guard = threading.Lock()

    def offer(self, run_id: str, specification: bytes, sha256: bytes) -> Judgement:
        """Judge an offered run, and get an approved one ready.

        Raises:
            ProtocolError: the offer contradicts itself.
        """
        verify_run_id(run_id)
        if specification_sha256(specification) != sha256:
            raise ProtocolError("E-OFFER-HASH", "the offer's hash is not that of its specification")
        with self._run_lock(run_id):
            known = self.store.load_run(run_id)
            run = self._runs.judged(run_id, specification, known)
            self._verify_worker(run, known)
            if run.verdict is Verdict.APPROVED:
                run = self._runs.made_ready(run)
            self._runs.remember(run, known)
            return run.judgement

    def _verify_worker(self, run: RunRecord, known: RunRecord | None) -> None:
        """End a worker that has loaded other files than those that are judged now."""
        if known is not None and known.app_sha256 != run.app_sha256:
            self._around.runner.end(run.run_id)

    def approve(self, run_id: str, *, repeat: bool = False) -> Judgement:
        """Record that a person approves a run that the policy admits.

        Args:
            run_id: which.
            repeat: also later runs of this very specification and these app files, while the
                policy admits them.

        Raises:
            UsageError: no such run was offered, or it is over.
            RefusedError: the policy denies it, whoever asks, or the data do not fit.
        """
        with self._run_lock(run_id):
            known = self._runs.known(run_id)
            run = self._runs.approved_by_hand(known)
            self._verify_worker(run, known)
            if run.verdict is Verdict.APPROVED:
                run = self._runs.made_ready(run)
            self._runs.remember(run, known)
            if repeat and run.verdict is Verdict.APPROVED:
                self._runs.repeat(run)
        if run.verdict is not Verdict.APPROVED:
            raise RefusedError(run.code, run.reason)
        if not repeat:
            return run.judgement
        reason = f"{run.reason}, with later runs of this specification and these app files"
        return dataclasses.replace(run.judgement, reason=reason)

    def deny(self, run_id: str, reason: str = "") -> Judgement:
        """Record that a person denies a run; one that is under way stops here at once.

        Later runs of its specification wait for a person again, if they were approved with one; for
        that alone the run may also be over.

        Raises:
            UsageError: no such run was offered, or it is over and nothing is to be withdrawn.
        """
        withdrawn = self._runs.withdraw(run_id)
        if withdrawn is not None and withdrawn.ended:
            reason = "later runs of its specification wait for a person again"
            return Judgement(
                verdict=Verdict.DENIED, code="E-APPROVAL-DENIED", reason=reason, by="hand"
            )
        known = self._runs.known(run_id)
        run = dataclasses.replace(
            known,
            verdict=Verdict.DENIED,
            code="E-APPROVAL-DENIED",
            reason=reason or "denied by a person",
            decided_by="hand",
            decided_at_s=self._around.clock(),
        )
        self._runs.remember(run, known)  # first, so that what the app is doing cannot leave
        self._around.runner.end(run_id)
        self._secure.end_run(run_id)
        return run.judgement

    def canary_commitment(self, run_id: str) -> bytes:
        """Return what the node commits to with its yes to a run with canaries; else nothing."""
        run = self.store.load_run(run_id)
        approved = run is not None and run.verdict is Verdict.APPROVED
        return self._runs.commitment(run_id) if approved else b""

    def note_left_out(self, run_id: str, error: RefusedError) -> None:
        """Log that the server takes a yes for a no: the run goes on without this node."""
        self._runs.log(run_id, "refused", code=error.code, reason=error.message)

    def verify_instruction(self, head: fleet_pb2.InstructionHead) -> None:
        """Check an instruction's head before its bytes are accepted.

        Raises:
            ProtocolError: it breaks a rule of the wire.
        """
        verify_message_id(head.run_id, head.message_id)
        if len(head.group_id) > _MOST_GROUP:
            raise ProtocolError("E-MESSAGE-GROUP", "expected the number of a round")
        check_manifest(head.manifest, max_bytes=self.config.policy.max_update_bytes)

    def find_reply(self, head: fleet_pb2.InstructionHead) -> OutboxEntry | None:
        """Return the stored answer to this attempt of an instruction, if there is one."""
        return self._replies.find(head)

    def open_reply(self, entry: OutboxEntry) -> memoryview:
        """Map the payload of a stored answer for sending.

        Raises:
            UnavailableError: it is gone.
            ProtocolError: it is damaged.
        """
        return self._replies.open(entry)

    def answer(self, head: fleet_pb2.InstructionHead, payload: Payload) -> OutboxEntry:
        """Answer an instruction; the answer is stored before this returns.

        Raises:
            ProtocolError: the instruction breaks a rule of the wire, or was closed meanwhile.
            UnavailableError: the disk is full, or the like: try again later.
        """
        self.verify_instruction(head)
        with self._step_lock(head) if is_step(head.message_type) else self._run_lock(head.run_id):
            entry = self._replies.find(head)
            if entry is not None:
                return entry
            self._answering[head.message_id] = False
            try:
                if is_step(head.message_type):
                    return self._stepped(head, payload)
                return self._answered(head, payload)
            except UnavailableError as error:
                if error.code not in _DECIDED:
                    raise  # nothing is decided: a full disk, or this daemon stops
                return self._replies.store_error(head, error)
            except TacitError as error:
                if self._answering[head.message_id]:
                    raise  # nobody waits for an answer
                return self._replies.store_error(head, error)
            finally:
                del self._answering[head.message_id]

    def refuse(self, head: fleet_pb2.InstructionHead, error: TacitError) -> OutboxEntry:
        """Store, as the answer to an instruction that was not even fetched, that it is refused.

        Raises:
            ProtocolError: it is no instruction of a run that was offered here.
        """
        verify_message_id(head.run_id, head.message_id)
        with self._run_lock(head.run_id):
            return self._replies.find(head) or self._replies.store_error(head, error)

    def _answered(self, head: fleet_pb2.InstructionHead, payload: Payload) -> OutboxEntry:
        run = self._runs.known(head.run_id)
        release = self._release(head, run)
        verify_permitted(release)
        self._secure.verify_asked(head, release.specification)
        verify_canaries(release.specification, self.config)
        verify_may_ask(release.specification, self.store, head.run_id, head.message_type)
        self.charges.verify_room(release)
        call = pipe_pb2.WorkerCall(instruction=head)
        noising = None
        if release.specification.noises(head.message_type):
            if not self.store.has_noise_key(head.message_id, head.attempt):
                self.charges.verify_unspent(head)
            if _noises_here(release.specification):
                noising = self._noising(head, release.specification, payload)
            elif _noises_in_worker(release.specification):
                call.noise_key = self._noise_key(head)
        self._runs.prepare(run, release.specification)
        self._keep_last_model(head, release.specification, payload)
        try:
            return self._called(release, call, payload, noising)
        except (AppError, ProtocolError, RefusedError) as error:
            if not conceals_failures(release.specification):
                raise
            verify_permitted(self._renewed(release))  # the owner's own no is no secret
            return self._replies.store_concealed(release, error)

    def _keep_last_model(
        self, head: fleet_pb2.InstructionHead, specification: RunSpec, payload: Payload
    ) -> None:
        """Keep the last round's model for the owner; what stands in the way stops no round."""
        if not is_last_model(specification, head):
            return
        try:
            keep_received(self._runs.run_folder(head.run_id), head, open_view(payload))
        except (ProtocolError, UnavailableError) as error:
            fields = {"run": head.run_id, "code": error.code}
            logger.warning("the last model is not kept", extra={"fields": fields})

    def _called(
        self,
        release: Release,
        call: pipe_pb2.WorkerCall,
        payload: Payload,
        noising: Noising | None,
    ) -> OutboxEntry:
        run_id = release.instruction.run_id
        setup = self._runs.setup(self._runs.known(run_id), release.specification)
        with contextlib.closing(self._around.runner.call(setup, call, payload)) as answer:
            if release.specification.audit is not None:
                keep_report(self._runs.scratch(run_id), self._runs.run_folder(run_id))
            now = self._runs.known(run_id)
            release = self._renewed(release)
            if not release.instruction.HasField("secure"):
                return self._replies.store_answer(release, answer, now, noising=noising)
            received = memoryview(bytes(open_view(payload)))
            verify_digest(release.instruction.manifest, received)
            manifest, reply, state = self._replies.hold_answer(
                release, answer, now, noising=noising
            )
            held = Held(release=release, manifest=manifest, reply=reply, received=received)
            if release.instruction.secure.step == 1:
                self._secure.hold(release.instruction, held)
                return self._replies.store_step(
                    release.instruction, Part(body=b""), run=now, state=state
                )
            part = self._secure.again(release.instruction, held)
            return self._replies.store_step(release.instruction, part, run=now, state=state)

    def _stepped(self, head: fleet_pb2.InstructionHead, payload: Payload) -> OutboxEntry:
        """Take one step of secure aggregation; a vector leaves under the owner's present word."""
        run = self._runs.known(head.run_id)
        specification = parse_specification(run.specification)
        if run.verdict is not Verdict.APPROVED:
            raise RefusedError("E-APPROVAL-MISSING", "the owner has not approved this run")
        if head.specification_sha256 != run.specification_sha256:
            raise RefusedError("E-APPROVAL-HASH", "the step names another specification")
        view = open_view(payload)
        check_secure(head.manifest, most_vector_bytes=0)
        verify_digest(head.manifest, view)
        body, _ = read_secure(head.manifest, view)
        if head.message_type == MASKED and specification.noises("train"):
            self.charges.verify_unspent(head)  # one charge pays for one vector
        part = self._secure.answer(head, body, specification)
        if part.release is not None:
            release = self._release(_charged_as(part.release, head), run)  # as things stand now
            release = self._renewed(release)
            verify_permitted(release)
            part = dataclasses.replace(part, release=release)
        entry = self._replies.store_step(head, part, run=run)
        if part.settles is not None:
            self.charges.settle(specification, head.run_id, part.settles)
        return entry

    def _renewed(self, release: Release) -> Release:
        """Return a release under the owner's present word: it may have become no meanwhile.

        Raises:
            ProtocolError: the server has closed the message meanwhile: it is not charged for.
        """
        if self._answering[release.instruction.message_id]:
            raise ProtocolError("E-MESSAGE-CLOSED", "the message was closed while it was answered")
        run = self._runs.known(release.instruction.run_id)
        return dataclasses.replace(release, verdict=run.verdict)

    def _noise_key(self, head: fleet_pb2.InstructionHead) -> bytes:
        return self.store.noise_key(head.message_id, head.attempt, fresh=self._around.fresh_key)

    def _noising(
        self, head: fleet_pb2.InstructionHead, specification: RunSpec, payload: Payload
    ) -> Noising:
        """Keep what is needed to noise an update where the app cannot reach it.

        Raises:
            ProtocolError: what was received is no longer what it was.
            RefusedError: it holds arrays that nothing can noise.
        """
        verify_noisable(head.manifest)
        received = memoryview(bytes(open_view(payload)))
        verify_digest(head.manifest, received)
        records = self.config.data_sets[specification.data_set].records
        schema = reply_schema(specification, head.manifest, head.message_type)
        return Noising(
            instruction=head.manifest,
            received=received,
            plan=privacy_plan(specification, records=records),
            weighted=WEIGHT in schema.metrics,
            key=self._noise_key(head),
        )

    def _release(self, head: fleet_pb2.InstructionHead, run: RunRecord) -> Release:
        specification = parse_specification(run.specification)
        released = self.store.count_releases(head.run_id, head.message_type)
        epsilon = run.epsilon
        if released >= specification.training_releases:  # rounds were tried again
            epsilon = self._runs.epsilon(specification, released + 1)
        return Release(
            specification=specification,
            verdict=run.verdict,
            approved_sha256=run.specification_sha256,
            approved_app_sha256=run.app_sha256,
            app_sha256=fingerprint_apps(specification),
            released=released,
            epsilon=epsilon,
            policy=self.config.policy,
            instruction=head,
            manifest=records_pb2.Manifest(),
            payload_bytes=0,
            payload_sha256=b"",
        )

    def mark_received(self, message_id: str) -> None:
        """Note that the server has given a receipt for an answer."""
        self.store.mark_received(message_id, self._around.clock())

    def close_message(self, message_id: str, unused: str = "") -> None:
        """Forget an answer that is committed or no longer wanted, and its noise key.

        Args:
            message_id: whose.
            unused: why nothing came of it; empty if the server has committed it. Without a receipt
                the ledger then says that the charge was aborted, which lowers nothing.
        """
        if message_id in self._answering:
            self._answering[message_id] = True
        self._replies.forget(message_id, unused=unused)

    def end_run(self, run_id: str, status: str, reason: str = "") -> bool:
        """Forget what a finished run needed; its split and its decisions stay.

        Args:
            run_id: which.
            status: how it ended.
            reason: what the operator said who stopped it.

        Returns:
            Whether that is news.
        """
        verify_run_id(run_id)
        run = self.store.load_run(run_id)
        if run is None or run.ended:
            return False
        self._around.runner.end(run_id)
        with self._run_lock(run_id):
            self._secure.end_run(run_id)  # after the app, whose last answer would be held
            self._replies.forget_run(run_id, status, reason)
            for name in (PREPARED_NAME, CANARIES_NAME):
                (self._runs.run_folder(run_id) / name).unlink(missing_ok=True)
            shutil.rmtree(self._runs.scratch(run_id), ignore_errors=True)
        if parse_specification(run.specification).secure_aggregation is not None:
            self._secure.forget_run(run_id)
        return True

    @contextlib.contextmanager
    def _step_lock(self, head: fleet_pb2.InstructionHead) -> Iterator[None]:
        """Let the steps of a session go beside the training, one at a time."""
        with self._run_lock(f"{head.run_id}, steps"):
            yield

    @contextlib.contextmanager
    def _run_lock(self, run_id: str) -> Iterator[None]:
        with self._locks_guard:
            lock = self._locks.setdefault(run_id, threading.RLock())
        with lock:
            yield


def _charged_as(release: Release, head: fleet_pb2.InstructionHead) -> fleet_pb2.InstructionHead:
    """Return the instruction that a masked vector is charged under: training, by its own message.

    The vector leaves in answer to another message than the one that was trained on.
    """
    charged = fleet_pb2.InstructionHead()
    charged.CopyFrom(release.instruction)
    charged.message_id, charged.attempt = head.message_id, head.attempt
    return charged


def _noises_here(specification: RunSpec) -> bool:
    """Whether the node noises what an app answers, before it is held or leaves."""
    return specification.audit is None and specification.privacy.mode is PrivacyMode.CLIENT_LOCAL


def _noises_in_worker(specification: RunSpec) -> bool:
    """Whether the built-in app adds the noise, with the node's key.

    A whole update that is summed unseen gets its share in the session (client/secure.py).
    """
    return (
        specification.audit is not None
        or specification.privacy.mode is not PrivacyMode.CLIENT_DISTRIBUTED
    )
