"""A server that breaks every rule, in league with some members: refused, and what it would gain.

The attacks of an active adversary, each with the code of its refusal. Where the refusal is one
check, the test takes that check away and shows the victim's vector bare.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.errors import ProtocolError
from tacit.privacy.secagg import client as client_module
from tacit.privacy.secagg import dealing, messages
from tacit.privacy.secagg.client import ClientSession, Trust
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.terms import Floors
from tests.privacy.secagg.adversary import (
    DIMENSION,
    VICTIM,
    assert_hidden,
    cohort_of,
    combined,
    held_shares,
    pairs_of_seed,
    refused,
    revealed_share,
    session_of,
    signatures_message,
    survivors_message,
    unmasked,
    victims_vector,
    weakened,
)
from tests.privacy.secagg.parties import (
    MODEL,
    TRUSTING,
    Cohort,
    Lost,
    key_of,
    make_client,
    make_terms,
    make_vector,
    model_of,
    public_of,
    stream,
)

if TYPE_CHECKING:
    from tacit.privacy.secagg.terms import Terms
    from tests.privacy.secagg.parties import Vector

ALL = (1, 2, 3, 4, 5, 6, 7)
COLLUDERS = (6, 7)


# Who is in the session: keys, members, Sybils.


class Impostors:
    """Members whom the server plays itself, under the others' ids, with a key of its own."""

    def __init__(self, terms: Terms, ids: tuple[int, ...]) -> None:
        known = {member.node_id: member.enrolment_key for member in terms.members}
        self.clients = {
            one: ClientSession(
                terms,
                trust=Trust(node_id=one, pinned=known, floors=TRUSTING),
                signer=key_of(99).sign,
                guard=MemoryGuard(),
                random_bytes=stream(f"impostor {one}"),
            )
            for one in ids
        }

    def trap(self, victim: ClientSession) -> Vector:
        """Play the session with one honest member; return its vector as the server sees it."""
        digest = victim.terms.digest
        entries = [messages.parse_keys(victim.keys(), digest, node_id=VICTIM)]
        for one, client in self.clients.items():
            entries.append(messages.parse_keys(client.keys(), digest, node_id=one))
        key_list = messages.encode_key_list(entries, digest)
        dealt = {VICTIM: victim.share(key_list, model=MODEL)}
        dealt |= {one: c.share(key_list, model=MODEL) for one, c in self.clients.items()}
        session = session_of(victim)
        shares = {
            one: messages.parse_shares(message, session.digest, holders=len(session.ids))
            for one, message in dealt.items()
        }
        vector = victims_vector()
        for receiver in session.ids:
            sealed = tuple(
                shares[sender].sealed[[x for x in session.ids if x != sender].index(receiver)]
                for sender in session.ids
                if sender != receiver
            )
            delivery = messages.encode_delivery(
                messages.Delivery(senders=session.ids, sealed=sealed),
                session.digest,
                among=session.ids,
            )
            if receiver == VICTIM:
                victim.mask(delivery, vector)
            else:
                self.clients[receiver].mask(delivery, np.zeros(DIMENSION, dtype=np.uint32))
        b = combined(session, held_shares(self.clients, "b_shares"))
        assert b is not None
        pairs = {one: c._secrets.pairs[VICTIM] for one, c in self.clients.items()}
        return unmasked(vector, session, b=b, pairs=pairs)


def test_swapped_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server puts keys of its own under the members' names: it would be all the others."""
    terms = make_terms(4, dimension=DIMENSION)
    refused(
        "E-SECAGG-KEY-SIGNATURE",
        lambda: Impostors(terms, (2, 3, 4)).trap(make_client(terms, VICTIM)),
    )
    monkeypatch.setattr(client_module, "verify_keys", lambda *_: None)
    seen = Impostors(terms, (2, 3, 4)).trap(make_client(terms, VICTIM))
    np.testing.assert_array_equal(victims_vector(), seen)


def minted(terms: Terms) -> Terms:
    """The terms, with every member but the victim one that the server has enrolled itself."""
    sybil = [
        dataclasses.replace(member, enrolment_key=public_of(100 + member.node_id))
        for member in terms.members
        if member.node_id != VICTIM
    ]
    return dataclasses.replace(terms, members=(terms.members[0], *sybil))


def test_members_whom_the_server_has_minted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sybils with valid certificates and signatures: only the owner's pins tell them apart."""
    terms = minted(make_terms(4, dimension=DIMENSION))
    pinned = {one: public_of(one) for one in (1, 2, 3, 4)}
    refused("E-SECAGG-UNPINNED", lambda: make_client(terms, VICTIM, pinned=pinned))
    believing = {one.node_id: one.enrolment_key for one in terms.members}
    monkeypatch.setattr(client_module, "verify_keys", lambda *_: None)  # they would sign truly
    seen = Impostors(terms, (2, 3, 4)).trap(make_client(terms, VICTIM, pinned=believing))
    np.testing.assert_array_equal(victims_vector(), seen)


def test_one_unpinned_member_among_pinned_ones() -> None:
    """One is enough to refuse: in the terms, or smuggled into the list of keys."""
    terms = make_terms(5)
    pinned = {one: public_of(one) for one in (1, 2, 3, 4)}
    refused("E-SECAGG-UNPINNED", lambda: make_client(terms, VICTIM, pinned=pinned))
    cohort = Cohort(make_terms(4))
    entries = list(messages.parse_key_list(cohort.keys(), cohort.terms.digest, most=4))
    smuggled = dataclasses.replace(entries[3], node_id=9)
    for kept in ((*entries[:3], smuggled), (entries[0], *entries[2:], smuggled)):
        client = make_client(cohort.terms, VICTIM)
        client.keys()
        message = messages.encode_key_list(kept, cohort.terms.digest)
        refused("E-SECAGG-UNPINNED", lambda: client.share(message, model=MODEL))  # noqa: B023


# How many are in the sum.


def test_a_small_cohort() -> None:
    """Of a sum of two each knows the other's vector; no sum is of fewer than its owner's floor."""
    small = make_terms(2, dimension=DIMENSION)
    refused("E-SECAGG-SMALL", lambda: make_client(small, VICTIM, floors=Floors(cohort=2)))
    refused("E-SECAGG-FLOOR", lambda: make_client(make_terms(4), VICTIM, floors=Floors(cohort=4)))
    refused(
        "E-SECAGG-FLOOR", lambda: make_client(make_terms(4), VICTIM, floors=Floors(colluders=1))
    )
    total = Cohort(small).first().values  # where both owners allow it
    colluders_own = make_vector(2, dimension=DIMENSION)
    np.testing.assert_array_equal(victims_vector(), total - colluders_own)


@pytest.mark.parametrize("step", ["keys", "shares", "survivors"])
def test_a_cohort_that_shrinks_on_the_way(step: str) -> None:
    """Each step counts again: four of seven are too few in U1, in U2 and in U3."""
    cohort = cohort_of(7, colluders=2)
    few = (1, 2, 6, 7)
    if step == "keys":
        entries = messages.parse_key_list(cohort.keys(), cohort.terms.digest, most=7)
        kept = tuple(entry for entry in entries if entry.node_id in few)
        message = messages.encode_key_list(kept, cohort.terms.digest)
        refused("E-SECAGG-THRESHOLD", lambda: cohort.clients[1].share(message, model=MODEL))
        return
    deliveries = cohort.shares(cohort.keys())
    client, session = cohort.clients[1], session_of(cohort.clients[1])
    if step == "shares":
        delivered = messages.parse_delivery(
            deliveries[1], session.digest, among=session.ids, due=lambda _: 6
        )
        sealed = tuple(
            one for other, one in zip(ALL[1:], delivered.sealed, strict=True) if other in few
        )
        message = messages.encode_delivery(
            messages.Delivery(senders=few, sealed=sealed), session.digest, among=session.ids
        )
        refused("E-SECAGG-THRESHOLD", lambda: client.mask(message, victims_vector()))
        return
    client.mask(deliveries[1], victims_vector())
    refused("E-SECAGG-THRESHOLD", lambda: client.sign(survivors_message(client, few)))


def attempts(guards: dict[int, MemoryGuard] | None) -> Vector:
    """Sum a round with and without the victim, not noised; return the difference."""
    sums = []
    for attempt, lost in ((1, ()), (2, (VICTIM,))):
        cohort = cohort_of(4, local_sigma=0.0, attempt=attempt)
        for one, client in cohort.clients.items():
            client._guard = MemoryGuard() if guards is None else guards[one]
        sums.append(cohort.first(Lost(masked=lost)).values)
    difference: Vector = sums[0] - sums[1]
    return difference


def test_cohorts_that_differ_by_one() -> None:
    """Two bare sums of a round, with the victim and without it: the difference is its vector."""
    guards = {one: MemoryGuard() for one in (1, 2, 3, 4)}
    refused("E-SECAGG-COHORT-CHANGED", lambda: attempts(guards))
    np.testing.assert_array_equal(victims_vector(), attempts(None))


# What each is shown: models, ciphertexts, views.


def test_a_different_model_for_each_member() -> None:
    """The others get a model with no gradient: the sum would be the victim's update alone."""
    cohort = cohort_of(4)
    key_list = cohort.keys()
    victim = cohort.clients.pop(VICTIM)
    victim.share(key_list, model=model_of(9))
    others = cohort.shares(key_list)  # the others' session is another one
    session, first = session_of(victim), session_of(cohort.clients[2])
    assert session.digest != first.digest
    refused("E-SECAGG-SESSION", lambda: victim.mask(others[2], victims_vector()))
    control = cohort_of(4)
    deliveries = control.shares(control.keys())
    for one, client in control.clients.items():  # with one model for all, so that masks cancel
        vector = victims_vector() if one == VICTIM else np.zeros(DIMENSION, dtype=np.uint32)
        control.server.fold(one, client.mask(deliveries[one], vector), vector)
    total = control.unmask(control.signatures(control.server.end_masked())).values
    np.testing.assert_array_equal(victims_vector(), total)


def test_a_different_model_in_a_later_step() -> None:
    """Its masks belong to that model: they neither cancel nor come off."""
    cohort = cohort_of(4, steps=2)
    cohort.first()
    server = cohort.server
    opened = dict(server._opened.b) if server._opened else {}
    total = np.zeros(DIMENSION, dtype=np.uint32)
    for one, client in cohort.clients.items():
        vector = np.zeros(DIMENSION, dtype=np.uint32)
        model = model_of(2 if one != VICTIM else 3)
        client.mask_again(vector, step=2, model=model)
        total += unmasked(
            vector, session_of(client), b=opened[one], pairs={}, step=2, model=model, victim=one
        )
    assert_hidden(total)  # zeros, had they been told the same


def tampered(delivery: bytes, place: int) -> bytes:
    changed = bytearray(delivery)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("place", [-1, -17, -80, -81, -160, -240])
def test_a_tampered_ciphertext(place: int) -> None:
    """One bit of a tag or of a share, of any sender: nothing is opened, no vector is masked."""
    cohort = cohort_of(4)
    deliveries = cohort.shares(cohort.keys())
    vector = victims_vector()
    delivery = tampered(deliveries[VICTIM], place)
    refused("E-SECAGG-CIPHERTEXT", lambda: cohort.clients[VICTIM].mask(delivery, vector))
    np.testing.assert_array_equal(victims_vector(), vector)


@pytest.mark.parametrize("change", ["session", "sender", "receiver"])
def test_tampered_associated_data(change: str) -> None:
    """The very key opens nothing under another session, sender or receiver."""
    cohort = cohort_of(4)
    deliveries = cohort.shares(cohort.keys())
    victim, session = cohort.clients[VICTIM], session_of(cohort.clients[VICTIM])
    delivered = messages.parse_delivery(
        deliveries[VICTIM], session.digest, among=session.ids, due=lambda _: 3
    )
    right: dict[str, Any] = {"session": session.digest, "sender": 2, "receiver": VICTIM}
    key = victim._secrets.inbox[2]
    assert len(dealing.open_sealed(key, delivered.sealed[0], **right)) == 64
    wrong = right | {change: bytes(32) if change == "session" else 3}
    refused("E-SECAGG-CIPHERTEXT", lambda: dealing.open_sealed(key, delivered.sealed[0], **wrong))


def test_a_ciphertext_of_another_session() -> None:
    """Shares of an earlier attempt, sealed by the same members, do not open in this one."""
    cohort, other = cohort_of(4), cohort_of(4, attempt=2)
    deliveries, replayed = cohort.shares(cohort.keys()), other.shares(other.keys())
    mixed = deliveries[VICTIM][:-80] + replayed[VICTIM][-80:]
    client = cohort.clients[VICTIM]
    refused("E-SECAGG-CIPHERTEXT", lambda: client.mask(mixed, victims_vector()))


def skipping(session: Any, secrets: Any, *, receiver: int, sealed: dict[int, bytes]) -> None:
    """Open what opens, and go on without the others: the mistake."""
    good = {}
    for sender, ciphertext in sealed.items():
        try:
            dealing.open_sealed(
                secrets.inbox[sender],
                ciphertext,
                session=session.digest,
                sender=sender,
                receiver=receiver,
            )
        except ProtocolError:
            continue
        good[sender] = ciphertext
    dealing.open_shares(session, secrets, receiver=receiver, sealed=good)


def test_a_failed_ciphertext_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """To go on without its sender lets the server choose with whom a member shares masks."""
    for patched in (False, True):
        cohort = cohort_of(7, colluders=2)
        deliveries = cohort.shares(cohort.keys())
        victim = cohort.clients[VICTIM]
        spoilt = deliveries[VICTIM]
        for place in range(4):  # of the senders 2 to 5, who are honest
            spoilt = tampered(spoilt, len(spoilt) - 80 * (6 - place))
        vector = victims_vector()
        if not patched:
            refused("E-SECAGG-CIPHERTEXT", lambda: victim.mask(spoilt, vector))  # noqa: B023
            monkeypatch.setattr(client_module, "open_shares", skipping)
            continue
        b = bytes(victim._secrets.b)  # which the members open, as the victim survives
        victim.mask(spoilt, vector)
        pairs = {one: victim._secrets.pairs[one] for one in COLLUDERS}
        seen = unmasked(vector, session_of(victim), b=b, pairs=pairs)
        np.testing.assert_array_equal(victims_vector(), seen)


# Views: who is told what of the survivors.


def split_session(*, threshold: int) -> tuple[Cohort, dict[int, bytes], Vector]:
    """Mask all vectors; members 1 to 3 are told that the victim survives, 4 and 5 that not."""
    terms = weakened(make_terms(7, dimension=DIMENSION), threshold=threshold)
    cohort = Cohort(terms)
    deliveries = cohort.shares(cohort.keys())
    vectors = {one: make_vector(one, dimension=DIMENSION) for one in ALL}
    for one, client in cohort.clients.items():
        client.mask(deliveries[one], vectors[one])
    signatures = {}
    for one in (1, 2, 3, 4, 5):
        client = cohort.clients[one]
        told = ALL if one <= 3 else ALL[1:]
        message = client.sign(survivors_message(client, told))
        signatures[one] = messages.parse_signature(message, client.digest)
    return cohort, signatures, vectors[VICTIM]


def colluding(cohort: Cohort, survivors: tuple[int, ...]) -> dict[int, bytes]:
    """The colluders sign whatever the server wants, as often as it wants."""
    session = session_of(cohort.clients[VICTIM])
    statement = session.view_statement(ALL, survivors)
    return {one: key_of(one).sign(statement) for one in COLLUDERS}


def both_secrets(cohort: Cohort, signatures: dict[int, bytes]) -> tuple[bytes | None, bytes | None]:
    """Unmask under both views; return the victim's b and mask seed, as far as shares give them."""
    session = session_of(cohort.clients[VICTIM])
    colluders = {one: cohort.clients[one] for one in COLLUDERS}
    b_shares = held_shares(colluders, "b_shares")
    seed_shares = held_shares(colluders, "seed_shares")
    for one in (1, 2, 3, 4, 5):
        told = ALL if one <= 3 else ALL[1:]
        same_view = {x: s for x, s in signatures.items() if (x <= 3) == (one <= 3)}
        client = cohort.clients[one]
        bundle = signatures_message(client, same_view | colluding(cohort, told))
        share = revealed_share(
            session, client.unmask(bundle), holder=one, senders=ALL, survivors=told
        )
        (b_shares if one <= 3 else seed_shares)[one] = share
    return combined(session, b_shares), combined(session, seed_shares)


def test_split_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the members give shares of the victim's b, half of its mask key: both, and it is bare.

    Terms that withstand two colluders need five of seven shares, which two such halves cannot
    reach; the threshold is four here, as if nobody had checked it, so that views alone decide.
    """
    cohort, signatures, vector = split_session(threshold=4)
    refused("E-SECAGG-QUORUM", lambda: both_secrets(cohort, signatures))
    cohort, signatures, vector = split_session(threshold=4)
    client = cohort.clients[5]
    mixed = {one: signatures[one] for one in (3, 4, 5)} | colluding(cohort, ALL[1:])
    bundle = signatures_message(client, mixed)
    refused("E-SECAGG-SPLIT-VIEW", lambda: client.unmask(bundle))
    monkeypatch.setattr(ClientSession, "_verify_view", lambda *_: None)
    cohort, signatures, vector = split_session(threshold=4)
    b, seed = both_secrets(cohort, signatures)
    assert b is not None
    assert seed is not None
    session = session_of(cohort.clients[2])
    seen = unmasked(vector, session, b=b, pairs=pairs_of_seed(session, seed, ALL))
    np.testing.assert_array_equal(victims_vector(), seen)


def test_split_views_with_a_true_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the check of views, two colluders of seven do not reach both secrets."""
    monkeypatch.setattr(ClientSession, "_verify_view", lambda *_: None)
    cohort, signatures, vector = split_session(threshold=5)
    b, seed = both_secrets(cohort, signatures)
    assert b is not None
    assert seed is None
    session = session_of(cohort.clients[2])
    known = {one: cohort.clients[one]._secrets.pairs[VICTIM] for one in COLLUDERS}
    assert_hidden(unmasked(vector, session, b=b, pairs=known))


def test_overlapping_lists() -> None:
    """A member is a survivor or lost: both is no message, and no record of a guard either."""
    cohort = cohort_of(4)
    key_list = cohort.keys()
    cohort.lose([4])
    deliveries = cohort.shares(key_list)
    client = cohort.clients[VICTIM]
    client.mask(deliveries[VICTIM], victims_vector())
    outside = survivors_message(client, (1, 2, 3, 4))  # 4 has dealt no shares
    refused("E-SECAGG-SURVIVORS", lambda: client.sign(outside))
    other = cohort.clients[2]
    other.mask(deliveries[2], make_vector(2, dimension=DIMENSION))
    nobody = survivors_message(other, (1, 2, 3))[:-1] + b"\xff"
    refused("E-SECAGG-MESSAGE", lambda: other.sign(nobody))
