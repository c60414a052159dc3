"""A member's side of one session: every rule that keeps one vector from everybody else.

Trusts: this process, the guard, and the enrolment keys that this node pinned. It does not trust the
server, which chooses who is asked, carries every message, and may be in league with some members;
nor any single member.
Promises: whatever the server sends, it learns of this member's vector nothing beyond its sum with
at least ``terms.least - colluders - 1`` other honest ones (in a sparse graph, but for the chance
that ``graph.py`` states); or the session ends with an error.

The rules, in order:

1. KEYS: terms with pinned members only, above the owner's floors; an attempt is begun once.
2. SHARES: at least ``least`` members, each key signed, no key twice, this node's own unchanged.
3. MASKED: U2 holds this node and at least ``least`` members; every ciphertext opens, or all ends.
4. CONSISTENCY: U3 within U2 holds this node and at least ``least``; one signature, ever.
5. UNMASK: a quorum of members of U3 has signed the identical view. Of each member one kind of
   share leaves, once; after that there is none left to give.
6. Further steps: the same U3, masks of their own, and nothing more is revealed.

Any refusal, and any other error, wipes the session's secrets: it cannot be gone on with.
"""

from __future__ import annotations

import enum
import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tacit.core.errors import ProtocolError, TrustError, UnavailableError
from tacit.privacy.secagg import messages
from tacit.privacy.secagg.dealing import deal_shares, open_shares
from tacit.privacy.secagg.guard import Reveal, attempt_of
from tacit.privacy.secagg.keys import KEY_BYTES, SECRET_BYTES, mask_key_of, verify_signature
from tacit.privacy.secagg.masks import apply_masks, check_vector, pair_mask_key, self_mask_key
from tacit.privacy.secagg.member_secrets import Secrets
from tacit.privacy.secagg.messages import KeyEntry
from tacit.privacy.secagg.session import (
    Session,
    key_statement,
    require_members,
    verify_keys,
)
from tacit.privacy.secagg.terms import verify_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tacit.privacy.secagg.guard import Attempt, Guard
    from tacit.privacy.secagg.masks import UInt32Array
    from tacit.privacy.secagg.terms import Floors, Terms


class _Phase(enum.Enum):
    NEW = "nothing"
    KEYS = "keys"
    SHARES = "shares"
    MASKED = "a masked vector"
    SIGNED = "a signature"
    OPEN = "shares of the unmasking"
    CLOSED = "its end"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a node brings to every session.

    Attributes:
        node_id: its own.
        pinned: enrolment keys (raw Ed25519) by node id that it pinned itself, its own included.
        floors: of its owner.
    """

    node_id: int
    pinned: Mapping[int, bytes]
    floors: Floors


class ClientSession:
    """One member in one session; each method is one step, takes and returns bytes.

    A step is called once: a caller that must send again sends the bytes that it kept. A member that
    the server leaves behind is closed by its caller. One thread at a time.

    Every method raises, and then has wiped the session:
        ProtocolError: ``E-SECAGG-MESSAGE`` malformed, ``E-SECAGG-ORDER`` not due now,
            ``E-SECAGG-SESSION`` of another session, and what the method names.
        UnavailableError: ``E-SECAGG-CLOSED``: the session has ended; ``E-SECAGG-THRESHOLD``: too
            few members are left.
        RefusedError: what the guard refuses.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        trust: Trust,
        signer: Callable[[bytes], bytes],
        guard: Guard,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Check the terms; nothing is drawn or recorded yet.

        Args:
            terms: as proposed; compare what is not about members with the run's specification.
            trust: who this node is, whom it pinned, what its owner demands.
            signer: signs with the enrolment key (Ed25519).
            guard: what is remembered across crashes.
            random_bytes: a cryptographic generator; tests give another one.

        Raises:
            TrustError: ``E-SECAGG-UNPINNED``.
            RefusedError: ``E-SECAGG-SMALL``, ``E-SECAGG-FLOOR``.
            ProtocolError: this node is no member (``E-SECAGG-LEFT-OUT``).
        """
        verify_terms(terms, pinned=trust.pinned, floors=trust.floors)
        self.terms = terms
        self._me = trust.node_id
        if all(member.node_id != self._me for member in terms.members):
            raise _left_out("the members")
        self._signer = signer
        self._guard = guard
        self._random_bytes = random_bytes
        self._phase = _Phase.NEW
        self._secrets = Secrets()
        self._entry: KeyEntry | None = None
        self._session: Session | None = None
        self._senders: tuple[int, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._step = 0

    def __repr__(self) -> str:
        return f"ClientSession(node_id={self._me}, after={self._phase.value!r})"

    @property
    def attempt(self) -> Attempt:
        """Which attempt this is."""
        return attempt_of(self.terms)

    @property
    def digest(self) -> bytes:
        """S1, once ``share`` was called."""
        return self._known.digest

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, ascending, once a quorum has signed it and ``unmask`` has returned; before, empty."""
        return self._survivors if self._phase in {_Phase.OPEN, _Phase.CLOSED} else ()

    @property
    def _known(self) -> Session:
        if self._session is None:
            raise RuntimeError("expected a session whose members are known")
        return self._session

    def close(self) -> None:
        """Wipe all secrets; every later step is refused."""
        if self._phase is not _Phase.CLOSED and self._phase is not _Phase.OPEN:
            self._survivors = ()
        self._phase = _Phase.CLOSED
        self._secrets.wipe()

    @contextmanager
    def _moving(self, expected: _Phase, then: _Phase) -> Iterator[None]:
        """Do one step, or end the session."""
        try:
            self._expect(expected)
            yield
        except BaseException:
            self.close()
            raise
        self._phase = then

    def _expect(self, due: _Phase) -> None:
        if self._phase is _Phase.CLOSED:
            raise UnavailableError("E-SECAGG-CLOSED", "this session has ended")
        if self._phase is not due:
            raise ProtocolError(
                "E-SECAGG-ORDER",
                f"expected the step after {self._phase.value}, got the one after {due.value}",
            )

    def keys(self) -> bytes:
        """Begin the attempt and return KEYS.

        Raises:
            RefusedError: the attempt was begun before (``E-SECAGG-BEGUN``).
        """
        with self._moving(_Phase.NEW, _Phase.KEYS):
            digest = self.terms.digest
            self._guard.begin(self.attempt, terms=digest)
            secrets = self._secrets
            secrets.seed = bytearray(self._random_bytes(SECRET_BYTES))
            secrets.channel = X25519PrivateKey.from_private_bytes(self._random_bytes(KEY_BYTES))
            secrets.mask = mask_key_of(bytes(secrets.seed), digest)
            self._entry = self._signed_entry(secrets.channel, secrets.mask)
            return messages.encode_keys(self._entry, digest)

    def _signed_entry(self, channel: X25519PrivateKey, mask: X25519PrivateKey) -> KeyEntry:
        unsigned = KeyEntry(
            node_id=self._me,
            channel_key=channel.public_key().public_bytes_raw(),
            mask_key=mask.public_key().public_bytes_raw(),
            signature=b"",
        )
        return KeyEntry(
            node_id=self._me,
            channel_key=unsigned.channel_key,
            mask_key=unsigned.mask_key,
            signature=self._signer(key_statement(self.terms.digest, unsigned)),
        )

    def share(self, key_list: bytes, *, model: bytes) -> bytes:
        """Take KEY_LIST and return SHARES.

        Args:
            key_list: from the server.
            model: SHA-256 of the weights that step 1 is computed from, as this node got them.

        Raises:
            TrustError: ``E-SECAGG-UNPINNED``, ``E-SECAGG-KEY-SIGNATURE``, or this node's keys are
                others (``E-SECAGG-KEY-SWAPPED``).
            ProtocolError: ``E-SECAGG-KEY-REUSED``, ``E-SECAGG-KEY-WEAK``, or this node is not in
                the list (``E-SECAGG-LEFT-OUT``).
        """
        with self._moving(_Phase.KEYS, _Phase.SHARES):
            entries = messages.parse_key_list(
                key_list, self.terms.digest, most=len(self.terms.members)
            )
            self._verify_own(entries)
            require_members(
                [entry.node_id for entry in entries], least=self.terms.least, step="KEYS"
            )
            verify_keys(self.terms, entries)
            self._session = Session(self.terms, entries, model=model)
            dealt = deal_shares(
                self._session, self._secrets, owner=self._me, random_bytes=self._random_bytes
            )
            return messages.encode_shares(dealt, self._session.digest)

    def _verify_own(self, entries: tuple[KeyEntry, ...]) -> None:
        own = [entry for entry in entries if entry.node_id == self._me]
        if not own:
            raise _left_out("KEY_LIST")
        if own != [self._entry]:
            raise TrustError(
                "E-SECAGG-KEY-SWAPPED", "expected this node's own keys in KEY_LIST, got others"
            )

    def mask(self, delivery: bytes, vector: UInt32Array) -> bytes:
        """Take DELIVERY, mask the vector of step 1 in place, and return its head, MASKED.

        Args:
            delivery: from the server.
            vector: uint32, shape ``(d,)``, writeable; afterwards what may leave.

        Raises:
            ProtocolError: a ciphertext does not open (``E-SECAGG-CIPHERTEXT``), or U2 is without
                this node (``E-SECAGG-LEFT-OUT``).
            RefusedError: ``E-SECAGG-SECOND-VECTOR``.
            ValueError: the vector is another kind of array.
        """
        with self._moving(_Phase.SHARES, _Phase.MASKED):
            check_vector(vector, self.terms.dimension)
            session = self._known
            neighbours = session.neighbours_of(self._me)
            delivered = messages.parse_delivery(
                delivery,
                session.digest,
                among=session.ids,
                due=lambda senders: len(set(senders) & set(neighbours)),
            )
            self._senders = delivered.senders
            self._require_own(self._senders, "U2")
            partners = [one for one in neighbours if one in set(self._senders)]
            sealed = dict(zip(partners, delivered.sealed, strict=True))
            open_shares(session, self._secrets, receiver=self._me, sealed=sealed)
            return self._masked(vector, step=1, model=session.model)

    def _require_own(self, members: tuple[int, ...], name: str) -> None:
        """Check that a set holds this node, enough members, and enough holders of its shares.

        The last is what keeps a server from "losing" all honest neighbours of one member in a
        sparse graph, and so from taking off every mask on its vector (Bell et al. 2020).
        """
        if self._me not in members:
            raise _left_out(name)
        require_members(members, least=self.terms.least, step=name)
        holders = set(self._known.holders_of(self._me)) & set(members)
        require_members(tuple(holders), least=self.terms.threshold, step=f"{name} near this node")

    def _masked(self, vector: UInt32Array, *, step: int, model: bytes) -> bytes:
        """Mask in place: y = x + PRG(b) + sum over partners of +-PRG(pair), modulo 2^32."""
        digest = self._known.digest
        own = self_mask_key(bytes(self._secrets.b), session=digest, step=step, model=model)
        added, subtracted = [own], list[bytes]()
        for other, shared in self._secrets.pairs.items():
            key = pair_mask_key(
                shared, session=digest, pair=(self._me, other), step=step, model=model
            )
            (added if self._me < other else subtracted).append(key)
        apply_masks(vector, added=added, subtracted=subtracted)
        self._guard.send(digest, step=step, digest=hashlib.sha256(vector.data).digest())
        self._step = step
        return messages.encode_masked(step, model, digest)

    def sign(self, survivors: bytes) -> bytes:
        """Take SURVIVORS and return SIGNATURE: this node's one word on who is in the sum.

        Raises:
            ProtocolError: U3 is not within U2 (``E-SECAGG-SURVIVORS``) or without this node
                (``E-SECAGG-LEFT-OUT``).
            RefusedError: ``E-SECAGG-SIGNED``.
        """
        with self._moving(_Phase.MASKED, _Phase.SIGNED):
            session = self._known
            announced = messages.parse_survivors(survivors, session.digest, among=session.ids)
            if not set(announced) <= set(self._senders):
                raise ProtocolError(
                    "E-SECAGG-SURVIVORS", "expected survivors among those who sent shares"
                )
            self._require_own(announced, "U3")
            self._survivors = announced
            statement = session.view_statement(self._senders, announced)
            self._guard.sign(session.digest, statement=hashlib.sha256(statement).digest())
            return messages.encode_signature(self._signer(statement), session.digest)

    def unmask(self, signatures: bytes) -> bytes:
        """Take SIGNATURES and return UNMASK; afterwards ``survivors`` may be relied on.

        Raises:
            TrustError: a signature is on another view (``E-SECAGG-SPLIT-VIEW``), or fewer than a
                quorum signed (``E-SECAGG-QUORUM``).
            ProtocolError: a signer is not in U3 (``E-SECAGG-SURVIVORS``).
            RefusedError: ``E-SECAGG-REVEALED``, ``E-SECAGG-COHORT-CHANGED``.
        """
        last = self.terms.steps == 1
        with self._moving(_Phase.SIGNED, _Phase.OPEN):
            session = self._known
            self._verify_view(session, signatures)
            dropped = tuple(one for one in self._senders if one not in set(self._survivors))
            noised = self.terms.local_sigma > 0
            self._guard.reveal(
                session.digest,
                attempt=self.attempt,
                what=Reveal(survivors=self._survivors, dropped=dropped, noised=noised),
            )
            secrets = self._secrets
            unmask = messages.Unmask(
                b_shares=_of(secrets.b_shares, self._survivors),
                seed_shares=_of(secrets.seed_shares, dropped),
            )
            secrets.keep_pairs(self._survivors)
            message = messages.encode_unmask(unmask, session.digest)
        if last:
            self.close()
        return message

    def _verify_view(self, session: Session, signatures: bytes) -> None:
        signed = messages.parse_signatures(signatures, session.digest, among=session.ids)
        if not set(signed) <= set(self._survivors):
            raise ProtocolError("E-SECAGG-SURVIVORS", "expected signatures of survivors only")
        if len(signed) < self.terms.quorum:
            raise TrustError(
                "E-SECAGG-QUORUM",
                f"expected {self.terms.quorum} members who signed this view, got {len(signed)}",
            )
        statement = session.view_statement(self._senders, self._survivors)
        for node_id, signature in signed.items():
            verify_signature(
                session.enrolment_keys[node_id],
                statement=statement,
                signature=signature,
                code="E-SECAGG-SPLIT-VIEW",
                what=f"node {node_id}'s signature on the view that this node signed",
            )

    def mask_again(self, vector: UInt32Array, *, step: int, model: bytes) -> bytes:
        """Mask the vector of a later step in place, and return its head, MASKED.

        Args:
            vector: uint32, shape ``(d,)``, writeable.
            step: from 2, each once and in order.
            model: SHA-256 of the weights that this step is computed from.

        Raises:
            ProtocolError: not the next step (``E-SECAGG-ORDER``).
            RefusedError: ``E-SECAGG-SECOND-VECTOR``.
            ValueError: the vector is another kind of array, or the hash has another length.
        """
        with self._moving(_Phase.OPEN, _Phase.OPEN):
            check_vector(vector, self.terms.dimension)
            if len(model) != messages.DIGEST_BYTES:
                raise ValueError(f"expected a hash of 32 bytes, got {len(model)}")
            if step != self._step + 1 or step > self.terms.steps:
                raise ProtocolError(
                    "E-SECAGG-ORDER",
                    f"expected step {self._step + 1} of {self.terms.steps}, got {step}",
                )
            head = self._masked(vector, step=step, model=model)
        if step == self.terms.steps:
            self.close()
        return head


def _of(shares: dict[int, bytes], owners: tuple[int, ...]) -> tuple[bytes, ...]:
    return tuple(shares[owner] for owner in owners if owner in shares)


def _left_out(where: str) -> ProtocolError:
    return ProtocolError("E-SECAGG-LEFT-OUT", f"expected this node among {where}")
