"""What a session is: who takes part under which terms (S1), and who holds shares of whom.

Trusts: SHA-256, and the terms.
Promises: two parties with one S1 have the same terms, members, public keys, weights and graph.

S1 is the hash of S0, of every key entry that the server announced (signatures included), and of
the weights that step 1 is computed from.
"""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, TrustError, UnavailableError
from tacit.privacy.secagg.graph import ring_neighbours
from tacit.privacy.secagg.keys import CONTEXT, id_bytes, verify_signature
from tacit.privacy.secagg.messages import DIGEST_BYTES, KeyEntry, count_bytes, encode_set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.privacy.secagg.terms import Terms


class ShareKind(enum.Enum):
    """What a share is of: a member's b, or the seed of its mask key."""

    B = b"share-b|"
    SEED = b"share-seed|"


def key_statement(terms_digest: bytes, entry: KeyEntry) -> bytes:
    """Return what a member signs over its public keys."""
    who = id_bytes(entry.node_id)
    return CONTEXT + b"keys|" + terms_digest + who + entry.channel_key + entry.mask_key


def verify_keys(terms: Terms, entries: Sequence[KeyEntry]) -> None:
    """Check key entries against the terms' members.

    Raises:
        TrustError: ``E-SECAGG-UNPINNED`` or ``E-SECAGG-KEY-SIGNATURE``.
        ProtocolError: one public key stands twice (``E-SECAGG-KEY-REUSED``).
    """
    enrolled = {member.node_id: member.enrolment_key for member in terms.members}
    digest = terms.digest
    for entry in entries:
        if entry.node_id not in enrolled:
            raise TrustError(
                "E-SECAGG-UNPINNED",
                f"expected keys of this session's members, got those of node {entry.node_id}",
            )
        verify_signature(
            enrolled[entry.node_id],
            statement=key_statement(digest, entry),
            signature=entry.signature,
            code="E-SECAGG-KEY-SIGNATURE",
            what=f"session keys that node {entry.node_id} signed",
        )
    keys = [key for entry in entries for key in (entry.channel_key, entry.mask_key)]
    if len(set(keys)) != len(keys):
        raise ProtocolError("E-SECAGG-KEY-REUSED", "expected distinct public keys, got one twice")


class Session:
    """One S1 and what follows from it.

    Attributes:
        terms: agreed before.
        entries: of U1, ascending by node id; verified by whoever makes a session.
        model: SHA-256 of the weights that step 1 is computed from.
        digest: S1, 32 bytes.
        ids: of U1, ascending.
        enrolment_keys: of all members (raw Ed25519), by node id.
    """

    def __init__(self, terms: Terms, entries: Sequence[KeyEntry], *, model: bytes) -> None:
        if len(model) != DIGEST_BYTES:
            raise ValueError(f"expected a hash of {DIGEST_BYTES} bytes, got {len(model)}")
        self.terms = terms
        self.entries = {entry.node_id: entry for entry in entries}
        self.model = model
        self.ids = tuple(self.entries)
        self.enrolment_keys = {one.node_id: one.enrolment_key for one in terms.members}
        parts = [
            id_bytes(entry.node_id) + entry.channel_key + entry.mask_key + entry.signature
            for entry in entries
        ]
        body = terms.digest + count_bytes(len(parts)) + b"".join(parts) + model
        self.digest = hashlib.sha256(CONTEXT + b"session|" + body).digest()
        self._neighbours = ring_neighbours(self.ids, neighbours=terms.neighbours, seed=self.digest)
        self._holders = {
            one: tuple(sorted((*others, one))) for one, others in self._neighbours.items()
        }
        self._points = {one: rank for rank, one in enumerate(self.ids, start=1)}

    def neighbours_of(self, node_id: int) -> tuple[int, ...]:
        """Return the members that this one shares masks with, in ascending order."""
        return self._neighbours[node_id]

    def holders_of(self, node_id: int) -> tuple[int, ...]:
        """Return who holds shares of this one's secrets: its neighbours and itself, ascending."""
        return self._holders[node_id]

    def point_of(self, node_id: int) -> int:
        """Return where this member's shares are read: 1 + its rank in U1."""
        return self._points[node_id]

    def view_statement(self, senders: Sequence[int], survivors: Sequence[int]) -> bytes:
        """Return what a member signs: this is the session, and these are U2 and U3."""
        sets = encode_set(senders, self.ids) + encode_set(survivors, self.ids)
        return CONTEXT + b"view|" + self.digest + count_bytes(1) + self.model + sets

    def commitment(self, node_id: int, secret: bytes) -> bytes:
        """Return the commitment to a member's b."""
        return hashlib.sha256(CONTEXT + b"b|" + self.digest + id_bytes(node_id) + secret).digest()

    def share_hash(self, kind: ShareKind, *, owner: int, holder: int, share: bytes) -> bytes:
        """Return the hash of one share, which says no more of it than that."""
        who = id_bytes(owner) + id_bytes(holder)
        return hashlib.sha256(CONTEXT + kind.value + self.digest + who + share).digest()


def require_members(found: Sequence[int], *, least: int, step: str) -> None:
    """Check that enough members are left.

    Raises:
        UnavailableError: ``E-SECAGG-THRESHOLD``, with the step.
    """
    if len(found) < least:
        raise UnavailableError(
            "E-SECAGG-THRESHOLD",
            f"expected at least {least} members in {step}, got {len(found)}",
            hint="The attempt ends here; a new one starts with fresh keys and fresh noise.",
        )
