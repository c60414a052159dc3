"""What a server in league with some members could work out, if only it were given enough.

Every test of an attack shows both: that a member refuses, and, with the one check taken away, that
the victim's vector stands bare. A check that cannot be missed is no check.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.errors import TacitError
from tacit.privacy.secagg import messages, shamir
from tacit.privacy.secagg.keys import agree, mask_key_of
from tacit.privacy.secagg.masks import apply_masks, pair_mask_key, self_mask_key
from tests.privacy.secagg.parties import MODEL, Cohort, Vector, make_terms, make_vector
from tests.privacy.secagg.test_uniform import statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from tacit.privacy.secagg.client import ClientSession
    from tacit.privacy.secagg.session import Session
    from tacit.privacy.secagg.terms import Terms

VICTIM = 1
DIMENSION = 1 << 12  # enough for a chi-squared statistic


def weakened(terms: Terms, **changes: Any) -> Terms:
    """Terms that nobody could make, as if their own checks were missing."""
    changed = copy.copy(terms)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def cohort_of(count: int, **changes: Any) -> Cohort:
    """A cohort whose vectors are long enough to look at."""
    return Cohort(make_terms(count, dimension=DIMENSION, **changes))


def victims_vector(step: int = 1, victim: int = VICTIM) -> Vector:
    """Return what the victim's vector is, bare."""
    return make_vector(victim, dimension=DIMENSION, step=step)


def session_of(client: ClientSession) -> Session:
    """Return a member's view of its session."""
    session = client._session
    assert session is not None
    return session


def unmasked(
    vector: Vector,
    session: Session,
    *,
    b: bytes = b"",
    pairs: Mapping[int, bytes],
    step: int = 1,
    model: bytes = MODEL,
    victim: int = VICTIM,
) -> Vector:
    """Return a masked vector without the masks whose secrets are known.

    Args:
        vector: as the victim sent it.
        session: its session.
        b: of its own mask, if known.
        pairs: what it agreed on with others, as far as it is known, by the other's id.
        step: of the session.
        model: hash of that step's weights.
        victim: its id.
    """
    bare = vector.copy()
    digest = session.digest
    added, subtracted = [], []
    if b:
        subtracted.append(self_mask_key(b, session=digest, step=step, model=model))
    for other, shared in pairs.items():
        key = pair_mask_key(shared, session=digest, pair=(victim, other), step=step, model=model)
        (subtracted if victim < other else added).append(key)
    apply_masks(bare, added=added, subtracted=subtracted)
    return bare


def combined(session: Session, shares: Mapping[int, bytes], *, least: int = 0) -> bytes | None:
    """Return the secret that shares (by holder) give, if they are enough."""
    threshold = least or session.terms.threshold
    chosen = sorted(shares)[:threshold]
    if len(chosen) < threshold:
        return None
    weights = shamir.weights_at_zero([session.point_of(one) for one in chosen])
    return shamir.combine([shares[one] for one in chosen], weights)


def pairs_of_seed(
    session: Session, seed: bytes, others: Iterable[int], victim: int = VICTIM
) -> dict[int, bytes]:
    """Return what a member agreed on with others, from its mask seed."""
    private = mask_key_of(seed, session.terms.digest)
    return {
        other: agree(private, session.entries[other].mask_key)
        for other in others
        if other != victim
    }


def held_shares(
    clients: Mapping[int, ClientSession], kind: str, victim: int = VICTIM
) -> dict[int, bytes]:
    """Return the shares of a victim's secret that members hold: what colluders hand over."""
    return {
        one: getattr(client._secrets, kind)[victim]
        for one, client in clients.items()
        if victim in getattr(client._secrets, kind)
    }


def revealed_share(
    session: Session,
    message: bytes,
    *,
    holder: int,
    senders: Collection[int],
    survivors: Collection[int],
    victim: int = VICTIM,
) -> bytes:
    """Return the one share of a victim's secret, of whichever kind, that is in an UNMASK."""
    held = [one for one in session.holders_of(holder) if one in senders]
    alive = [one for one in held if one in survivors]
    gone = [one for one in held if one not in survivors and one != holder]
    unmask = messages.parse_unmask(message, session.digest, survivors=len(alive), dropped=len(gone))
    if victim in alive:
        return unmask.b_shares[alive.index(victim)]
    return unmask.seed_shares[gone.index(victim)]


def survivors_message(client: ClientSession, survivors: Collection[int]) -> bytes:
    """Return SURVIVORS as a server writes it for one member."""
    ids = session_of(client).ids
    return messages.encode_survivors(survivors, client.digest, among=ids)


def signatures_message(client: ClientSession, signatures: dict[int, bytes]) -> bytes:
    """Return SIGNATURES as a server writes it for one member."""
    ids = session_of(client).ids
    return messages.encode_signatures(signatures, client.digest, among=ids)


def refused(code: str, call: Callable[[], object]) -> None:
    """Check that a call is refused with a code."""
    with pytest.raises(TacitError) as caught:
        call()
    assert caught.value.code == code


def assert_hidden(vector: Vector) -> None:
    """Nobody can tell a masked vector from uniform numbers."""
    assert statistic(vector) < 6
    assert not np.array_equal(vector, victims_vector())
