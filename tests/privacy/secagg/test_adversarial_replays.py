"""A server that asks twice, late or out of order: refused, and what a second answer would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.privacy.secagg import messages
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.keys import verify_signature
from tests.privacy.secagg.adversary import (
    DIMENSION,
    VICTIM,
    assert_hidden,
    cohort_of,
    combined,
    held_shares,
    pairs_of_seed,
    refused,
    session_of,
    signatures_message,
    survivors_message,
    unmasked,
    victims_vector,
)
from tests.privacy.secagg.parties import (
    MODEL,
    expected_sum,
    make_client,
    model_of,
    public_of,
)

if TYPE_CHECKING:
    from tests.privacy.secagg.parties import Vector

ALL = (1, 2, 3, 4, 5, 6, 7)
COLLUDERS = (6, 7)


def test_an_attempt_is_not_begun_again_after_a_restart() -> None:
    """What follows needs a node that has forgotten what it began; one that has not refuses."""
    cohort = cohort_of(4)
    cohort.keys()
    guard = cohort.clients[VICTIM]._guard
    again = make_client(cohort.terms, VICTIM, guard=guard)
    refused("E-SECAGG-BEGUN", again.keys)


def two_vectors(guards: tuple[MemoryGuard, MemoryGuard]) -> Vector:
    """Mask two vectors under one S1, in two lives of the victim; return their difference."""
    sent = []
    for step, guard in enumerate(guards, start=1):
        cohort = cohort_of(4)
        cohort.clients[VICTIM]._guard = guard
        deliveries = cohort.shares(cohort.keys())
        vector = victims_vector(step)
        cohort.clients[VICTIM].mask(deliveries[VICTIM], vector)
        sent.append(vector)
    difference: Vector = sent[0] - sent[1]
    return difference


class Forgetful(MemoryGuard):
    """A guard that has lost what it knew of attempts that were begun, and of nothing else."""

    def begin(self, attempt: Any, *, terms: bytes) -> None:
        """Let every attempt begin."""


def test_a_second_vector() -> None:
    """Two under one S1 have the same masks: their difference is that of two updates."""
    guard = Forgetful()
    refused("E-SECAGG-SECOND-VECTOR", lambda: two_vectors((guard, guard)))
    expected = victims_vector(1) - victims_vector(2)
    np.testing.assert_array_equal(expected, two_vectors((MemoryGuard(), MemoryGuard())))


def two_signatures(guards: tuple[MemoryGuard, MemoryGuard]) -> list[bytes]:
    """Sign two views of one S1, in two lives of the victim."""
    signatures = []
    for survivors, guard in zip(((1, 2, 3, 4), (1, 2, 3)), guards, strict=True):
        cohort = cohort_of(4)
        client = cohort.clients[VICTIM]
        client._guard = guard
        deliveries = cohort.shares(cohort.keys())
        client.mask(deliveries[VICTIM], victims_vector())
        message = client.sign(survivors_message(client, survivors))
        signatures.append(messages.parse_signature(message, client.digest))
        statement = session_of(client).view_statement((1, 2, 3, 4), survivors)
        verify_signature(
            public_of(VICTIM), statement=statement, signature=signatures[-1], code="", what=""
        )
    return signatures


def test_a_second_signature_after_a_restart() -> None:
    """It would count towards a quorum for each of two views."""
    guard = Forgetful()
    refused("E-SECAGG-SIGNED", lambda: two_signatures((guard, guard)))
    one, other = two_signatures((MemoryGuard(), MemoryGuard()))  # both valid, as verified there
    assert one != other


def test_both_shares_over_two_steps() -> None:
    """After the first share of a b, no share of a mask key: what the server holds of step 2 stays.

    The members give what they have been asked for in step 1, and then have nothing left to give.
    """
    cohort = cohort_of(4, steps=2)
    survivors = cohort.masked(cohort.shares(cohort.keys()))
    signatures = cohort.signatures(survivors)
    kept = held_shares(cohort.clients, "seed_shares")  # had they not forgotten them
    cohort.unmask(signatures)
    victim, session = cohort.clients[VICTIM], session_of(cohort.clients[VICTIM])
    vector = victims_vector(2)
    victim.mask_again(vector, step=2, model=model_of(2))
    opened = cohort.server._opened
    assert opened is not None
    assert held_shares(cohort.clients, "seed_shares") == {}
    how: dict[str, Any] = {"b": opened.b[VICTIM], "step": 2, "model": model_of(2)}
    assert_hidden(unmasked(vector, session, pairs={}, **how))
    seed = combined(session, kept)
    assert seed is not None
    seen = unmasked(vector, session, pairs=pairs_of_seed(session, seed, (2, 3, 4)), **how)
    np.testing.assert_array_equal(victims_vector(2), seen)
    for one in (2, 3, 4):
        client = cohort.clients[one]
        lost = signatures_message(client, dict(cohort.server._signatures))
        refused("E-SECAGG-ORDER", lambda: client.unmask(lost))  # noqa: B023


def test_the_guard_gives_no_second_share_in_another_life() -> None:
    """A node that restarts in between is held to what it revealed before."""
    cohort = cohort_of(4)
    signatures = cohort.signatures(cohort.masked(cohort.shares(cohort.keys())))
    guard = cohort.clients[VICTIM]._guard
    cohort.clients[VICTIM].unmask(signatures)
    client = cohort.clients[2]
    client._guard = guard
    refused("E-SECAGG-REVEALED", lambda: client.unmask(signatures))


def test_a_late_vector() -> None:
    """The victim was lost, its mask key is open: b alone hides its vector, and nobody gives it."""
    cohort = cohort_of(7)
    deliveries = cohort.shares(cohort.keys())
    victim = cohort.clients[VICTIM]
    late, b = victims_vector(), bytes(victim._secrets.b)
    head = victim.mask(deliveries[VICTIM], late)
    cohort.lose([VICTIM])
    survivors = cohort.masked(deliveries)
    refused("E-SECAGG-LATE", lambda: cohort.server.fold(VICTIM, head, late))
    session = session_of(victim)
    seeds = held_shares(cohort.clients, "seed_shares")
    total = cohort.unmask(cohort.signatures(survivors))
    np.testing.assert_array_equal(expected_sum(ALL[1:], dimension=DIMENSION), total.values)
    seed = combined(session, seeds)
    assert seed is not None
    pairs = pairs_of_seed(session, seed, ALL)
    assert_hidden(unmasked(late, session, pairs=pairs))
    np.testing.assert_array_equal(victims_vector(), unmasked(late, session, b=b, pairs=pairs))
    refused("E-SECAGG-LEFT-OUT", lambda: victim.sign(survivors_message(victim, ALL[1:])))


@pytest.mark.parametrize("step", ["share", "mask", "sign", "unmask"])
def test_a_replayed_step(step: str) -> None:
    """A message of another attempt belongs to another session, whatever step it is for."""
    cohort, other = cohort_of(4), cohort_of(4, attempt=2)
    key_list, old_list = cohort.keys(), other.keys()
    client = cohort.clients[VICTIM]
    if step == "share":
        refused("E-SECAGG-SESSION", lambda: client.share(old_list, model=MODEL))
        return
    deliveries, old_deliveries = cohort.shares(key_list), other.shares(old_list)
    if step == "mask":
        old = old_deliveries[VICTIM]
        refused("E-SECAGG-SESSION", lambda: client.mask(old, victims_vector()))
        return
    survivors, old_survivors = cohort.masked(deliveries), other.masked(old_deliveries)
    if step == "sign":
        refused("E-SECAGG-SESSION", lambda: client.sign(old_survivors))
        return
    cohort.signatures(survivors)
    old_signatures = other.signatures(old_survivors)
    refused("E-SECAGG-SESSION", lambda: client.unmask(old_signatures))


def test_re_ordered_steps() -> None:
    """Unmasking before anybody has signed, signing before masking: the session ends."""
    cohort = cohort_of(4)
    deliveries = cohort.shares(cohort.keys())
    early = cohort.clients[2]
    refused("E-SECAGG-ORDER", lambda: early.sign(survivors_message(early, (1, 2, 3, 4))))
    client = cohort.clients[VICTIM]
    client.mask(deliveries[VICTIM], victims_vector())
    signatures = signatures_message(client, {})
    refused("E-SECAGG-ORDER", lambda: client.unmask(signatures))
    third = cohort.clients[3]
    survivors = messages.encode_survivors((1, 2, 3, 4), third.digest, among=(1, 2, 3, 4))
    refused("E-SECAGG-ORDER", lambda: third.mask(survivors, victims_vector()))


def test_colluders_below_the_threshold_learn_no_secret() -> None:
    """All that they hold, and the victim's vector without their masks: uniform numbers."""
    cohort = cohort_of(7, colluders=2)
    deliveries = cohort.shares(cohort.keys())
    victim = cohort.clients[VICTIM]
    session, vector = session_of(victim), victims_vector()
    victim.mask(deliveries[VICTIM], vector)
    cohort.lose([VICTIM])
    cohort.masked(deliveries)
    colluders = {one: cohort.clients[one] for one in COLLUDERS}
    pairs = {one: client._secrets.pairs[VICTIM] for one, client in colluders.items()}
    assert_hidden(unmasked(vector, session, pairs=pairs))
    everybody = cohort.clients
    for kind, truth in (("b_shares", bytes(victim._secrets.b)), ("seed_shares", None)):
        pooled = held_shares(colluders, kind)
        assert combined(session, pooled) is None
        guess = combined(session, held_shares(everybody, kind), least=4)  # one less than needed
        enough = combined(session, held_shares(everybody, kind))
        assert enough is not None
        assert guess != enough
        assert truth in (None, enough)
