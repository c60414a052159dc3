"""The aggregator's side of one session: it learns the sum over the survivors, and who they are.

Trusts: that a message is of the node that the connection's certificate names. It checks what
members send only so far as one bad message must not cost the others the round.
Promises: a vector is in the sum whole or not at all; once the survivors are announced, no other
vector is taken. What members claim about their secrets is checked against their commitments before
it touches the sum. Memory is one accumulator, beside the vector that is being folded.

Each step takes one message from each member until the caller ends it, which returns what to send
next. A message that is refused counts as none; a step that ends with too few members ends the
session: the caller starts another attempt, with fresh keys and fresh noise.

======================  =====================  ====================================================
take                    end the step           send
======================  =====================  ====================================================
``take_keys``           ``end_keys``           KEY_LIST, to U1
``take_shares``         ``end_shares``         DELIVERY, to each of U2
``fold`` (step 1)       ``end_masked``         SURVIVORS, to U3
``take_signature``      ``end_signatures``     SIGNATURES, to U3
``take_unmask``         ``end_unmask``         nothing: it returns the sum
``start_step``, fold    ``end_step``           nothing: it returns the sum of a later step
======================  =====================  ====================================================
"""

from __future__ import annotations

import enum
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.privacy.secagg import messages
from tacit.privacy.secagg.keys import verify_signature
from tacit.privacy.secagg.masks import RING_DTYPE
from tacit.privacy.secagg.session import Session, require_members, verify_keys
from tacit.privacy.secagg.unmasking import Opened, open_secrets, remove_masks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tacit.privacy.secagg.masks import UInt32Array
    from tacit.privacy.secagg.messages import KeyEntry, Shares, Unmask
    from tacit.privacy.secagg.terms import Terms


class Phase(enum.Enum):
    """Which messages a server session takes."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked vectors"
    SIGNATURES = "signatures"
    UNMASK = "shares of the unmasking"
    BETWEEN = "the start of a further step"
    CLOSED = "nothing: it has ended"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
    """What a session is for.

    Attributes:
        values: sum of the survivors' vectors modulo 2^32; uint32, shape ``(d,)``.
        survivors: whose vectors are in it, ascending.
        step: from 1.
    """

    values: UInt32Array
    survivors: tuple[int, ...]
    step: int


class ServerSession:
    """The aggregator in one session; node ids come from the transport, never from a message.

    One thread at a time.

    Every method for a member's message raises, and changes nothing then:
        ProtocolError: ``E-SECAGG-MESSAGE`` malformed, ``E-SECAGG-SESSION`` of another session,
            ``E-SECAGG-LATE`` its step is over or the session has ended, ``E-SECAGG-ORDER`` its step
            has not begun, ``E-SECAGG-TWICE`` sent before, ``E-SECAGG-STRANGER`` not of a member
            that is still in; and what the method names.

    Every method that ends a step raises, and has ended the session then:
        UnavailableError: ``E-SECAGG-THRESHOLD``: too few members are left.
    """

    def __init__(self, terms: Terms) -> None:
        """Wait for KEYS under some terms."""
        self.terms = terms
        self._phase = Phase.KEYS
        self._due: tuple[int, ...] = tuple(member.node_id for member in terms.members)
        self._keys: dict[int, KeyEntry] = {}
        self._session: Session | None = None
        self._shares: dict[int, Shares] = {}
        self._folded: set[int] = set()
        self._signatures: dict[int, bytes] = {}
        self._unmasks: dict[int, Unmask] = {}
        self._senders: tuple[int, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._sum: UInt32Array | None = None
        self._step, self._model = 1, b""
        self._opened: Opened | None = None

    def __repr__(self) -> str:
        return f"ServerSession(step={self._step}, waits_for={self._phase.value!r})"

    @property
    def phase(self) -> Phase:
        """Which messages are taken now."""
        return self._phase

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, ascending; empty before it is announced."""
        return self._survivors

    @property
    def awaited(self) -> tuple[int, ...]:
        """The members whose message of this step has not come, ascending."""
        taken = self._taken()
        return tuple(one for one in self._due if one not in taken)

    @property
    def enough(self) -> bool:
        """Whether the step can end with the members that have answered.

        A caller need not wait for more, except for vectors: those who are missing leave the sum.
        Shares may turn out false, so that more of them than needed are better than just enough.
        """
        needed = {
            Phase.SIGNATURES: self.terms.quorum,
            Phase.UNMASK: self.terms.threshold,
            Phase.BETWEEN: 0,
            Phase.CLOSED: 0,
        }.get(self._phase, self.terms.least if self._step == 1 else len(self._due))
        return len(self._taken()) >= needed

    @property
    def digest(self) -> bytes:
        """S1, once ``end_keys`` was called."""
        return self._known.digest

    @property
    def _known(self) -> Session:
        if self._session is None:
            raise RuntimeError("expected a session whose members are known")
        return self._session

    def _taken(self) -> Collection[int]:
        taken: dict[Phase, Collection[int]] = {
            Phase.KEYS: self._keys,
            Phase.SHARES: self._shares,
            Phase.MASKED: self._folded,
            Phase.SIGNATURES: self._signatures,
            Phase.UNMASK: self._unmasks,
        }
        return taken.get(self._phase, self._due)

    def close(self) -> None:
        """End the session, and drop what it holds."""
        self._phase, self._due = Phase.CLOSED, ()
        self._sum = self._opened = None
        for kept in (self._keys, self._shares, self._signatures, self._unmasks):
            kept.clear()
        self._folded.clear()

    def _expect(self, phase: Phase, node_id: int) -> None:
        """Check that a member's message is due now."""
        if self._phase is not phase:
            order = list(Phase)
            late = order.index(self._phase) > order.index(phase)
            raise ProtocolError(
                "E-SECAGG-LATE" if late else "E-SECAGG-ORDER",
                f"expected {self._phase.value}, got {phase.value} of node {node_id}",
            )
        if node_id not in self._due:
            raise ProtocolError(
                "E-SECAGG-STRANGER", f"expected a member that is still in, got node {node_id}"
            )
        if node_id in self._taken():
            raise ProtocolError("E-SECAGG-TWICE", f"node {node_id} has sent {phase.value} before")

    @contextmanager
    def _ending(self, phase: Phase, then: Phase) -> Iterator[None]:
        """End one step and go on to another, or end the session."""
        if self._phase is not phase:
            raise RuntimeError(f"expected to end {phase.value}, but due is {self._phase.value}")
        try:
            yield
        except BaseException:
            self.close()
            raise
        self._phase = then

    def take_keys(self, node_id: int, message: bytes) -> None:
        """Take KEYS.

        Raises:
            TrustError: not signed by the member's enrolment key (``E-SECAGG-KEY-SIGNATURE``).
            ProtocolError: a key that somebody else has sent (``E-SECAGG-KEY-REUSED``).
        """
        self._expect(Phase.KEYS, node_id)
        entry = messages.parse_keys(message, self.terms.digest, node_id=node_id)
        verify_keys(self.terms, [entry])
        known = {
            key for other in self._keys.values() for key in (other.channel_key, other.mask_key)
        }
        if known & {entry.channel_key, entry.mask_key}:
            raise ProtocolError("E-SECAGG-KEY-REUSED", f"node {node_id} sent another one's key")
        self._keys[node_id] = entry

    def end_keys(self, *, model: bytes) -> bytes:
        """Fix U1 and return KEY_LIST, the same for each of them.

        Args:
            model: SHA-256 of the weights that step 1 is computed from.
        """
        with self._ending(Phase.KEYS, Phase.SHARES):
            entries = [self._keys[one] for one in sorted(self._keys)]
            self._due = tuple(entry.node_id for entry in entries)
            require_members(self._due, least=self.terms.least, step="KEYS")
            self._session = Session(self.terms, entries, model=model)
            self._model = model
            return messages.encode_key_list(entries, self.terms.digest)

    def take_shares(self, node_id: int, message: bytes) -> None:
        """Take SHARES."""
        self._expect(Phase.SHARES, node_id)
        holders = len(self._known.holders_of(node_id))
        self._shares[node_id] = messages.parse_shares(message, self._known.digest, holders=holders)

    def end_shares(self) -> dict[int, bytes]:
        """Fix U2 and return DELIVERY for each of them, by node id."""
        with self._ending(Phase.SHARES, Phase.MASKED):
            self._due = self._senders = tuple(sorted(self._shares))
            require_members(self._senders, least=self.terms.least, step="SHARES")
            self._sum = np.zeros(self.terms.dimension, dtype=RING_DTYPE)
            session = self._known
            inboxes: dict[int, list[bytes]] = {one: [] for one in session.ids}
            for sender in self._senders:  # ascending, and so is each inbox
                sealed = self._shares[sender].sealed
                for receiver, one in zip(session.neighbours_of(sender), sealed, strict=True):
                    inboxes[receiver].append(one)
            return {
                receiver: messages.encode_delivery(
                    messages.Delivery(senders=self._senders, sealed=tuple(inboxes[receiver])),
                    session.digest,
                    among=session.ids,
                )
                for receiver in self._senders
            }

    def fold(
        self, node_id: int, message: bytes, vector: bytes | bytearray | memoryview | UInt32Array
    ) -> None:
        """Take MASKED and add the vector to the sum; the vector is not kept.

        Args:
            node_id: of the sender.
            message: the head, MASKED.
            vector: 4 d bytes, little-endian uint32, whole: a partial upload is never folded.

        Raises:
            ProtocolError: another step or other weights (``E-SECAGG-STEP``), or another size
                (``E-SECAGG-VECTOR``).
        """
        self._expect(Phase.MASKED, node_id)
        step, model = messages.parse_masked(message, self._known.digest)
        if (step, model) != (self._step, self._model):
            raise ProtocolError(
                "E-SECAGG-STEP",
                f"expected a vector of step {self._step} from this step's weights, got one of "
                f"step {step}" + (" from others" if step == self._step else ""),
            )
        data = vector.data if isinstance(vector, np.ndarray) else memoryview(vector)
        if data.nbytes != 4 * self.terms.dimension or not data.c_contiguous:
            raise ProtocolError(
                "E-SECAGG-VECTOR",
                f"expected {4 * self.terms.dimension} bytes in one piece, got {data.nbytes}",
            )
        accumulator = self._accumulator
        np.add(accumulator, np.frombuffer(data, dtype=RING_DTYPE), out=accumulator)
        self._folded.add(node_id)

    @property
    def _accumulator(self) -> UInt32Array:
        if self._sum is None:
            raise RuntimeError("expected a session that is under way")
        return self._sum

    def end_masked(self) -> bytes:
        """Fix U3 and return SURVIVORS, the same for each of them: no vector is taken any more."""
        with self._ending(Phase.MASKED, Phase.SIGNATURES):
            if self._step != 1:
                raise RuntimeError("expected end_step: the survivors were fixed at step 1")
            self._due = self._survivors = tuple(sorted(self._folded))
            require_members(self._survivors, least=self.terms.least, step="MASKED")
            session = self._known
            return messages.encode_survivors(self._survivors, session.digest, among=session.ids)

    def take_signature(self, node_id: int, message: bytes) -> None:
        """Take SIGNATURE.

        Raises:
            TrustError: not the member's, or on another view (``E-SECAGG-SPLIT-VIEW``).
        """
        self._expect(Phase.SIGNATURES, node_id)
        signature = messages.parse_signature(message, self._known.digest)
        verify_signature(
            self._known.enrolment_keys[node_id],
            statement=self._known.view_statement(self._senders, self._survivors),
            signature=signature,
            code="E-SECAGG-SPLIT-VIEW",
            what=f"node {node_id}'s signature on this server's view",
        )
        self._signatures[node_id] = signature

    def end_signatures(self) -> bytes:
        """Return SIGNATURES, the same for each of U3, who may all answer."""
        with self._ending(Phase.SIGNATURES, Phase.UNMASK):
            require_members(tuple(self._signatures), least=self.terms.quorum, step="CONSISTENCY")
            session = self._known
            return messages.encode_signatures(self._signatures, session.digest, among=session.ids)

    def take_unmask(self, node_id: int, message: bytes) -> None:
        """Take UNMASK; whether its shares are true is looked at when the step ends."""
        self._expect(Phase.UNMASK, node_id)
        held = set(self._known.holders_of(node_id)) & set(self._senders)
        survivors = len(held & set(self._survivors))
        self._unmasks[node_id] = messages.parse_unmask(
            message, self._known.digest, survivors=survivors, dropped=len(held) - survivors
        )

    def end_unmask(self) -> Sum:
        """Return the sum of step 1.

        Raises:
            ProtocolError: a member's opened secret is not what it committed to
                (``E-SECAGG-COMMITMENT``); the message names it.
        """
        then = Phase.BETWEEN if self.terms.steps > 1 else Phase.CLOSED
        with self._ending(Phase.UNMASK, then):
            require_members(tuple(self._unmasks), least=self.terms.threshold, step="UNMASK")
            self._opened = open_secrets(
                self._known,
                dealt={one: self._shares[one] for one in self._senders},
                revealed=self._unmasks,
                survivors=self._survivors,
            )
            remove_masks(self._accumulator, self._known, self._opened, step=1, model=self._model)
            self._opened.drop_seeds()
            return self._finished()

    def _finished(self) -> Sum:
        done = Sum(values=self._accumulator, survivors=self._survivors, step=self._step)
        self._sum = None
        if self._step == self.terms.steps:
            self.close()
        return done

    def start_step(self, *, model: bytes) -> int:
        """Take vectors of the next step, computed from these weights; return its number.

        Raises:
            RuntimeError: the step before has not ended, or was the last.
        """
        if self._phase is not Phase.BETWEEN or len(model) != messages.DIGEST_BYTES:
            raise RuntimeError(f"expected a hash of weights between steps, in {self._phase.value}")
        self._phase = Phase.MASKED
        self._step, self._model = self._step + 1, model
        self._folded.clear()
        self._sum = np.zeros(self.terms.dimension, dtype=RING_DTYPE)
        return self._step

    def end_step(self) -> Sum:
        """Return the sum of a later step.

        Raises:
            UnavailableError: a survivor of step 1 is lost (``E-SECAGG-LOST``): its masks cannot be
                taken off any more.
        """
        then = Phase.BETWEEN if self._step < self.terms.steps else Phase.CLOSED
        with self._ending(Phase.MASKED, then):
            if self._opened is None:
                raise RuntimeError("expected end_masked: this is step 1")
            if self.awaited:
                raise UnavailableError(
                    "E-SECAGG-LOST",
                    f"expected all {len(self._survivors)} survivors of step 1 in step "
                    f"{self._step}, got {len(self._folded)}",
                    hint="The session ends here; the rest of its steps are another attempt.",
                )
            remove_masks(
                self._accumulator,
                self._known,
                self._opened,
                step=self._step,
                model=self._model,
            )
            return self._finished()
