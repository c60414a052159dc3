"""A member's shares: dealt to its neighbours, and taken from them.

Trusts: the session, whose keys were verified.
Promises: a neighbour gets its shares sealed for itself alone, under a key that serves this one
message; whoever carries it learns nothing, and cannot change or redirect it unseen. Keys and seeds
are dropped as soon as they have done their work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.privacy.secagg import shamir
from tacit.privacy.secagg.keys import SECRET_BYTES, agree, channel_key, open_sealed, seal
from tacit.privacy.secagg.messages import Shares
from tacit.privacy.secagg.session import ShareKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.privacy.secagg.member_secrets import Secrets
    from tacit.privacy.secagg.session import Session


def deal_shares(
    session: Session,
    secrets: Secrets,
    *,
    owner: int,
    random_bytes: Callable[[int], bytes],
) -> Shares:
    """Draw b, and return shares of it and of the mask seed; the seed and channel key are dropped.

    Args:
        session: whose graph says who holds shares.
        secrets: of the owner; what it holds itself, and the keys to its inbox, are put there.
        owner: id of the member that deals.
        random_bytes: a cryptographic generator.

    Raises:
        ProtocolError: a neighbour's channel key is weak (``E-SECAGG-KEY-WEAK``).
    """
    secrets.b = bytearray(random_bytes(SECRET_BYTES))
    holders = session.holders_of(owner)
    points = [session.point_of(holder) for holder in holders]
    threshold = session.terms.threshold
    of_b, of_seed = (
        shamir.split(bytes(secret), points, threshold=threshold, random_bytes=random_bytes)
        for secret in (secrets.b, secrets.seed)
    )
    sealed = []
    for holder, b_share, seed_share in zip(holders, of_b, of_seed, strict=True):
        if holder == owner:
            secrets.b_shares[holder] = b_share
        else:
            sealed.append(_seal(session, secrets, owner, holder, shares=b_share + seed_share))
    secrets.forget_dealt()
    return Shares(
        commitment=session.commitment(owner, bytes(secrets.b)),
        b_hashes=_hashes(session, ShareKind.B, owner, of_b),
        seed_hashes=_hashes(session, ShareKind.SEED, owner, of_seed),
        sealed=tuple(sealed),
    )


def _seal(session: Session, secrets: Secrets, owner: int, other: int, *, shares: bytes) -> bytes:
    """Seal both shares for a neighbour, and keep the key that opens its own message."""
    shared = agree(secrets.channel_key(), session.entries[other].channel_key)
    digest = session.digest
    secrets.inbox[other] = channel_key(shared, session=digest, sender=other, receiver=owner)
    key = channel_key(shared, session=digest, sender=owner, receiver=other)
    return seal(key, shares, session=digest, sender=owner, receiver=other)


def _hashes(
    session: Session, kind: ShareKind, owner: int, shares: Sequence[bytes]
) -> tuple[bytes, ...]:
    return tuple(
        session.share_hash(kind, owner=owner, holder=holder, share=share)
        for holder, share in zip(session.holders_of(owner), shares, strict=True)
    )


def open_shares(
    session: Session, secrets: Secrets, *, receiver: int, sealed: dict[int, bytes]
) -> None:
    """Open what neighbours dealt, and agree on masks with them; inbox and mask key are dropped.

    Args:
        session: both sides' S1.
        secrets: of the receiver.
        receiver: its id.
        sealed: by sender: every neighbour in U2.

    Raises:
        ProtocolError: ``E-SECAGG-CIPHERTEXT`` (one that fails ends the attempt: to go on without
            its sender would let the server choose whom this member masks with), or
            ``E-SECAGG-KEY-WEAK``.
    """
    for sender, ciphertext in sealed.items():
        plain = open_sealed(
            secrets.inbox.pop(sender),
            ciphertext,
            session=session.digest,
            sender=sender,
            receiver=receiver,
        )
        b_share, seed_share = plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]
        if not (shamir.is_share(b_share) and shamir.is_share(seed_share)):
            raise ProtocolError(
                "E-SECAGG-CIPHERTEXT", f"expected shares from node {sender}, got other numbers"
            )
        secrets.b_shares[sender] = b_share
        secrets.seed_shares[sender] = seed_share
    private = secrets.mask_key()
    for sender in sealed:
        secrets.pairs[sender] = agree(private, session.entries[sender].mask_key)
    secrets.forget_opened()
