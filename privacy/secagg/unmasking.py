"""From shares to the bare sum: open what members committed to, and take their masks off.

Trusts: a member's commitments, which it made before anybody could know who would drop out.
Promises: a share that is not the one its dealer hashed is left out; an opened secret that is not
what its owner committed to ends the session, naming the owner.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.privacy.secagg import shamir
from tacit.privacy.secagg.keys import agree, mask_key_of
from tacit.privacy.secagg.masks import apply_masks, pair_mask_key, self_mask_key
from tacit.privacy.secagg.session import ShareKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.privacy.secagg.masks import UInt32Array
    from tacit.privacy.secagg.messages import Shares, Unmask
    from tacit.privacy.secagg.session import Session


@dataclass(kw_only=True, eq=False)
class Opened:
    """What the server may know of a session's secrets.

    Attributes:
        b: of each survivor.
        pairs: what a dropped member and a surviving neighbour agreed on, by (dropped, survivor).
    """

    b: dict[int, bytes] = field(repr=False)
    pairs: dict[tuple[int, int], bytes] = field(repr=False)

    def drop_seeds(self) -> None:
        """Forget the dropped members: in later steps nobody shares a mask with them."""
        self.pairs.clear()


def open_secrets(
    session: Session,
    *,
    dealt: Mapping[int, Shares],
    revealed: Mapping[int, Unmask],
    survivors: Sequence[int],
) -> Opened:
    """Return the survivors' b, and the dropped members' pair secrets, each verified.

    Args:
        session: with its graph.
        dealt: SHARES of each member of U2.
        revealed: UNMASK of each member that answered.
        survivors: U3, ascending.

    Raises:
        UnavailableError: ``E-SECAGG-THRESHOLD``: too few true shares of one secret.
        ProtocolError: ``E-SECAGG-COMMITMENT``.
    """
    weights = functools.cache(shamir.weights_at_zero)
    opened = Opened(b={}, pairs={})
    shares = _by_owner(session, dealt, revealed, survivors)
    for owner, of_holders in shares.items():
        chosen = sorted(of_holders)[: session.terms.threshold]
        if len(chosen) < session.terms.threshold:
            raise UnavailableError(
                "E-SECAGG-THRESHOLD",
                f"expected {session.terms.threshold} true shares of node {owner}'s secret, got "
                f"{len(chosen)}",
                hint="The attempt ends here; a new one starts with fresh keys and fresh noise.",
            )
        points = tuple(session.point_of(holder) for holder in chosen)
        secret = shamir.combine([of_holders[holder] for holder in chosen], weights(points))
        if owner in set(survivors):
            _open_b(session, dealt[owner], owner, secret, opened)
        else:
            _open_pairs(session, owner, secret, survivors, opened)
    return opened


def _by_owner(
    session: Session,
    dealt: Mapping[int, Shares],
    revealed: Mapping[int, Unmask],
    survivors: Sequence[int],
) -> dict[int, dict[int, bytes]]:
    """Return the true shares of each member of U2, by owner and holder."""
    alive = frozenset(survivors)
    claimed = {
        holder: _claimed(session.holders_of(holder), dealt, unmask, alive)
        for holder, unmask in revealed.items()
    }
    shares: dict[int, dict[int, bytes]] = {}
    for owner, commitments in dealt.items():
        survives = owner in alive
        kind = ShareKind.B if survives else ShareKind.SEED
        hashes = commitments.b_hashes if survives else commitments.seed_hashes
        holders = zip(session.holders_of(owner), hashes, strict=True)
        shares[owner] = {
            holder: claimed[holder][owner]
            for holder, dealt_hash in holders
            if holder in claimed
            and owner in claimed[holder]
            # Without its own commitment a share could spoil every other member's round.
            and dealt_hash
            == session.share_hash(kind, owner=owner, holder=holder, share=claimed[holder][owner])
        }
    return shares


def _claimed(
    owners: Sequence[int], dealt: Mapping[int, Shares], unmask: Unmask, alive: frozenset[int]
) -> dict[int, bytes]:
    """Return the shares that one member revealed, by owner; both lists ascend."""
    of_b = [one for one in owners if one in dealt and one in alive]
    of_seed = [one for one in owners if one in dealt and one not in alive]
    return dict(zip(of_b, unmask.b_shares, strict=True)) | dict(
        zip(of_seed, unmask.seed_shares, strict=True)
    )


def _open_b(
    session: Session, dealt: Shares, owner: int, secret: bytes | None, opened: Opened
) -> None:
    if secret is None or session.commitment(owner, secret) != dealt.commitment:
        raise _not_committed(owner)
    opened.b[owner] = secret


def _open_pairs(
    session: Session,
    owner: int,
    seed: bytes | None,
    survivors: Sequence[int],
    opened: Opened,
) -> None:
    if seed is None:
        raise _not_committed(owner)
    private = mask_key_of(seed, session.terms.digest)
    if private.public_key().public_bytes_raw() != session.entries[owner].mask_key:
        raise _not_committed(owner)
    for other in set(session.neighbours_of(owner)) & set(survivors):
        opened.pairs[owner, other] = agree(private, session.entries[other].mask_key)


def _not_committed(owner: int) -> ProtocolError:
    return ProtocolError(
        "E-SECAGG-COMMITMENT",
        f"expected the secret that node {owner} committed to, got another one",
        hint="That member dealt false shares. The attempt ends here; leave the member out.",
    )


def remove_masks(
    values: UInt32Array, session: Session, opened: Opened, *, step: int, model: bytes
) -> None:
    """Take the survivors' own masks off the sum, and what dropped members left in it, in place.

    A survivor u added sign(u, v) PRG(pair) for a dropped v; sign is +1 where u's id is smaller.
    """
    digest = session.digest
    subtracted = [
        self_mask_key(secret, session=digest, step=step, model=model)
        for secret in opened.b.values()
    ]
    added: list[bytes] = []
    for (dropped, survivor), shared in opened.pairs.items():
        key = pair_mask_key(
            shared, session=digest, pair=(dropped, survivor), step=step, model=model
        )
        (subtracted if survivor < dropped else added).append(key)
    apply_masks(values, added=added, subtracted=subtracted)
