"""The node's half of secure aggregation: what an app answered leaves in a sum, or not at all.

Sessions live in this process only: their secrets reach neither a worker nor a disk. A node that is
restarted in the middle of one has lost it, and counts as lost.

It trusts no server: terms are held against the approved specification, the members whom the owner
has pinned, and the guard, which remembers across restarts what must not happen twice
(privacy/secagg/guard.py). What is masked is the daemon's own copy of a reply that has passed the
envelope; the vector is computed here, from that copy and from what the server had sent.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.errors import ProtocolError, RefusedError, TacitError, TrustError
from tacit.core.specification import PrivacyMode
from tacit.privacy.layout import Form, verify_unchanged
from tacit.privacy.secagg.client import ClientSession, Trust
from tacit.privacy.secagg.keys import KEY_BYTES
from tacit.privacy.secagg.masks import RING_DTYPE
from tacit.privacy.secagg.messages import DIGEST_BYTES
from tacit.privacy.secagg.terms import SMALLEST_COHORT, Floors, Member, parse_terms
from tacit.privacy.secure_sum import secure_plan, terms_of, weight_key
from tacit.protos.manifest import array_of, placed, value_of
from tacit.protos.records_pb2 import Record
from tacit.protos.secure import (
    CONSISTENCY,
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    VECTOR,
    model_digest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from tacit.client.configuration import SecureAggregationPolicy
    from tacit.client.envelope import Release
    from tacit.core.secagg_spec import SecureAggregationSpec
    from tacit.core.specification import RunSpec
    from tacit.privacy.layout import Words
    from tacit.privacy.secagg.guard import Guard
    from tacit.privacy.secagg.terms import Terms
    from tacit.protos.fleet_pb2 import InstructionHead
    from tacit.protos.records_pb2 import Manifest

    Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What an app answered, held until it may leave in a sum.

    Attributes:
        release: of the instruction to train, as it passed the envelope.
        manifest: of the reply, which has passed it too.
        reply: the daemon's own copy of the reply's bytes.
        received: its own copy of the instruction's.
    """

    release: Release
    manifest: Manifest
    reply: memoryview = field(repr=False)
    received: memoryview = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What leaves in one step.

    Attributes:
        body: bytes of the step's message.
        vector: masked, where the step has one.
        release: what the vector costs; None where nothing of a record leaves.
        survivors: in how many members' sum the vector is, where that is proved; else 0.
        settles: the charge that the proof lowers, where there is one.
    """

    body: bytes
    vector: Words | None = None
    release: Release | None = None
    survivors: int = 0
    settles: Settling | None = None


@dataclass(frozen=True, kw_only=True)
class Settling:
    """A charge at the worst, and the proof of how many members' noise is really in the sum.

    Attributes:
        message_id, attempt: what was charged.
        survivors: |U3|.
        evidence: the signatures of a quorum on one list of them, which the session has verified.
    """

    message_id: str
    attempt: int
    survivors: int
    evidence: bytes


@dataclass(kw_only=True)
class _Live:
    run_id: str
    session: ClientSession
    model: bytes
    masked: tuple[str, int] = ("", 0)  # message and attempt that the first vector was charged under
    lock: threading.Lock = field(default_factory=threading.Lock)


class SecureSteps:
    """All sessions of one node; safe to use from several threads."""

    def __init__(
        self,
        *,
        node_id: int,
        policy: SecureAggregationPolicy,
        pinned: Callable[[], Mapping[str, Member]],
        sign: Callable[[bytes], bytes],
        guard: Guard,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._random = random_bytes
        self._node_id = node_id
        self._policy = policy
        self._pinned = pinned
        self._sign = sign
        self._guard = guard
        self._live: dict[bytes, _Live] = {}
        self._held: dict[bytes, Held] = {}
        self._changing = threading.Lock()

    def verify_asked(self, head: InstructionHead, specification: RunSpec) -> None:
        """Check, before an app is called, that its answer would leave as the run says.

        Raises:
            RefusedError: the run sums updates unseen and this instruction is in no session, or the
                other way round (``E-SECAGG-REQUIRED``, ``E-SECAGG-NONE``).
            ProtocolError: the session is for another model or other settings
                (``E-SECAGG-MODEL``).
        """
        in_session = head.HasField("secure")
        wanted = specification.secure_aggregation is not None and (
            head.message_type.partition(".")[0] == "train"
        )
        if wanted and not in_session:
            raise RefusedError(
                "E-SECAGG-REQUIRED",
                "this run's updates leave in secure sums only, and the instruction is in none",
            )
        if in_session and not wanted:
            raise RefusedError("E-SECAGG-NONE", "the run has no secure sum for this instruction")
        if in_session and head.secure.model_sha256 != model_digest(head):
            raise ProtocolError(
                "E-SECAGG-MODEL", "the session is for another model than the one that was sent"
            )

    def hold(self, head: InstructionHead, held: Held) -> None:
        """Keep what an app answered until its session asks for it; a run has one at a time."""
        with self._changing:
            for key, one in list(self._held.items()):
                if one.release.instruction.run_id == head.run_id:
                    del self._held[key]
            self._held[head.secure.session] = held

    def answer(self, head: InstructionHead, body: bytes, specification: RunSpec) -> Part:
        """Take one step.

        Raises:
            TacitError: the step is refused; its session has ended.
        """
        if head.message_type == KEYS:
            return Part(body=self._begin(head, specification))
        live = self._of(head)
        with live.lock:
            try:
                return self._moved(live, head, body)
            except TacitError:
                self._drop(head.secure.session)
                raise

    def _moved(self, live: _Live, head: InstructionHead, body: bytes) -> Part:
        session, kind = live.session, head.message_type
        if kind == SHARES:
            return Part(body=session.share(body, model=live.model))
        if kind == MASKED:
            return self._masked(live, head, body)
        if kind == CONSISTENCY:
            return Part(body=session.sign(body))
        if kind == UNMASK:
            message, (message_id, attempt) = session.unmask(body), live.masked
            settles = None
            if session.terms.local_sigma > 0:
                settles = Settling(
                    message_id=message_id,
                    attempt=attempt,
                    survivors=len(session.survivors),
                    evidence=body,
                )
            return Part(body=message, settles=settles)
        raise ProtocolError("E-MESSAGE-TYPE", "expected a step of secure aggregation")

    def end_run(self, run_id: str) -> None:
        """Wipe the sessions of a run that is over."""
        with self._changing:
            gone = [key for key, live in self._live.items() if live.run_id == run_id]
            held = [
                key for key, one in self._held.items() if one.release.instruction.run_id == run_id
            ]
        for key in {*gone, *held}:
            self._drop(key)

    def forget_run(self, run_id: str) -> None:
        """Let the guard close a run for good.

        Raises:
            UnavailableError: the disk is full.
        """
        self._guard.forget_run(run_id)

    def _begin(self, head: InstructionHead, specification: RunSpec) -> bytes:
        secure = specification.secure_aggregation
        if secure is None:
            raise RefusedError("E-SECAGG-NONE", "the run sums nothing unseen")
        terms = parse_terms(head.secure.terms)
        _verify_place(terms, head)
        if not 1 <= terms.round <= specification.participation.rounds:
            raise RefusedError("E-SECAGG-TERMS", "the session is for a round that the run has not")
        if len(head.secure.model_sha256) != DIGEST_BYTES:
            raise ProtocolError("E-SECAGG-MODEL", "expected the hash of a model")
        session = ClientSession(
            terms,
            trust=Trust(
                node_id=self._node_id,
                pinned=self._trusted(secure, terms),
                floors=Floors(
                    cohort=self._policy.min_members,
                    colluders=1,
                    allow_small=self._policy.min_members < SMALLEST_COHORT,
                ),
            ),
            signer=self._sign,
            guard=self._guard,
        )
        message = session.keys()
        live = _Live(run_id=head.run_id, session=session, model=head.secure.model_sha256)
        with self._changing:
            earlier = [key for key, one in self._live.items() if one.run_id == head.run_id]
            self._live[terms.digest] = live
        for key in earlier:  # an attempt of the same run that came to nothing, or is through
            self._drop(key)
        return message

    def _trusted(self, secure: SecureAggregationSpec, terms: Terms) -> dict[int, bytes]:
        """Return the members whom this session may have, by node id.

        Raises:
            TrustError: one of them is not pinned here, or the terms have others
                (``E-SECAGG-UNPINNED``).
        """
        pinned = self._pinned()
        if not self._policy.require_pinned_members:
            known = {one.node_id: one.enrolment_key for one in pinned.values()}
            told = {one.node_id: one.enrolment_key for one in terms.members}
            if len(told) != len(secure.members):
                raise _other_members()
            return told | known
        missing = [name for name in secure.members if name not in pinned]
        if missing:
            raise TrustError(
                "E-SECAGG-UNPINNED",
                f"expected all members of the run to be pinned here, not so: {', '.join(missing)}",
                hint="Compare six words with their owners: tacit client members pin.",
            )
        members = [pinned[name] for name in secure.members]
        if {one.node_id for one in members} != {one.node_id for one in terms.members}:
            raise _other_members()
        return {one.node_id: one.enrolment_key for one in members}

    def again(self, head: InstructionHead, held: Held) -> Part:
        """Mask what was made of a later step's instruction, in the session of the first.

        Raises:
            TacitError: the step is refused; its session has ended.
        """
        live = self._of(head)
        with live.lock:
            try:
                vector = self._vector(live.session.terms, held)
                message = live.session.mask_again(
                    vector, step=head.secure.step, model=head.secure.model_sha256
                )
            except TacitError:
                self._drop(head.secure.session)
                raise
        return Part(
            body=message,
            vector=vector,
            release=held.release,
            survivors=len(live.session.survivors),
        )

    def _of(self, head: InstructionHead) -> _Live:
        with self._changing:
            live = self._live.get(head.secure.session)
        if live is None or live.run_id != head.run_id:
            raise RefusedError(
                "E-SECAGG-LOST",
                "expected a session that this node is in, and it is in none of this name",
                hint="A node that was restarted leaves the attempt; the next has fresh keys.",
            )
        return live

    def _masked(self, live: _Live, head: InstructionHead, body: bytes) -> Part:
        with self._changing:
            held = self._held.pop(head.secure.session, None)
        if held is None:
            raise RefusedError("E-SECAGG-NOTHING-HELD", "this node holds no update for the session")
        if held.release.instruction.secure.model_sha256 != live.model:
            raise ProtocolError("E-SECAGG-MODEL", "the session is for another model")
        vector = self._vector(live.session.terms, held)
        message = live.session.mask(body, vector)
        live.masked = (head.message_id, head.attempt)
        return Part(body=message, vector=vector, release=held.release)

    def _vector(self, terms: Terms, held: Held) -> Words:
        """Return what a held reply is in the ring, if the terms are those that were approved.

        What it was trained under counts, not what the session is asked under.
        """
        specification = held.release.specification
        _verify_place(terms, held.release.instruction)
        received = _arrays(held.release.instruction.manifest, held.received)
        forms = tuple(
            Form(name=name, shape=array.shape, dtype=array.dtype)
            for name, array in received.items()
        )
        plan = secure_plan(specification, forms)
        expected = terms_of(
            plan,
            terms.members,
            specification_sha256=held.release.approved_sha256,
            run=terms.run,
            round_number=terms.round,
            attempt=terms.attempt,
            steps=terms.steps,
        )
        if expected != terms or terms.steps > specification.secure_steps:
            raise RefusedError(
                "E-SECAGG-TERMS",
                "the session's terms are not those that follow from the approved run",
            )
        reply = _arrays(held.manifest, held.reply)
        if specification.privacy.mode is PrivacyMode.RECORD_DISTRIBUTED:
            return np.array(reply[VECTOR], dtype=RING_DTYPE)  # it has its noise already
        if plan.noise is not None:
            verify_unchanged(plan.layout, received, reply)
            update = np.empty(plan.layout.changes, dtype=np.float64)
            plan.layout.write_changes(update, received, reply)
            purpose = f"update of session {terms.digest.hex()}"
            return plan.encode_noised(update, key=self._random(KEY_BYTES), purpose=purpose)
        metrics = _metrics(held.manifest)
        weight = int(metrics.pop(weight_key(specification), 1)) if plan.layout.weighted else 1
        changes = np.empty(plan.layout.changes, dtype=np.float64)
        plan.layout.write_changes(changes, received, reply, weight=weight)
        limbs = plan.layout.limbs(
            {name: metrics[name] for name in plan.layout.metrics if name in metrics}, weight=weight
        )
        return plan.encode(changes, limbs)

    def _drop(self, session: bytes) -> None:
        with self._changing:
            live, _ = self._live.pop(session, None), self._held.pop(session, None)
        if live is not None:
            live.session.close()


def _verify_place(terms: Terms, head: InstructionHead) -> None:
    named = (head.run_id, head.group_id, head.secure.session)
    if named != (terms.run, str(terms.round), terms.digest):
        raise ProtocolError("E-SECAGG-SESSION", "the terms are of another run, round or session")


def _other_members() -> TrustError:
    return TrustError("E-SECAGG-UNPINNED", "the session's members are not those whom the run names")


def _arrays(manifest: Manifest, payload: memoryview) -> Arrays:
    return {
        place.name: array_of(place, payload)
        for place in placed(manifest)
        if place.entry is not None
    }


def _metrics(manifest: Manifest) -> dict[str, float]:
    return {
        item.key: float(value_of(item))  # type: ignore[arg-type]  # the envelope has checked them
        for record in manifest.records
        if record.kind == Record.METRICS
        for item in record.items
    }
