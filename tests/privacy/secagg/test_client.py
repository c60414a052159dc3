"""A member's rules: each step refuses what would weaken it, by name, and then has forgotten all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.errors import ProtocolError, RefusedError, TacitError, TrustError, UnavailableError
from tacit.privacy.secagg import messages
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.keys import seal
from tacit.privacy.secagg.session import Session, key_statement
from tacit.privacy.secagg.terms import Floors
from tests.privacy.secagg.parties import (
    MODEL,
    Cohort,
    Lost,
    key_of,
    make_client,
    make_terms,
    make_vector,
    model_of,
    public_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tacit.privacy.secagg.client import ClientSession
    from tacit.privacy.secagg.messages import KeyEntry


def refused(client: ClientSession, code: str, call: Callable[[], object]) -> None:
    """Check that a call is refused with a code, and that the session is over and empty."""
    with pytest.raises(TacitError) as caught:
        call()
    assert caught.value.code == code
    assert_wiped(client)
    with pytest.raises(UnavailableError, match="E-SECAGG-CLOSED"):
        client.unmask(b"")


def assert_wiped(client: ClientSession) -> None:
    held = vars(client._secrets)
    assert all(
        not any(value) if isinstance(value, bytearray) else not value for value in held.values()
    )


def test_terms_are_checked_first() -> None:
    """An unpinned member, too small a cohort, or terms without this node: nothing is begun."""
    guard = MemoryGuard()
    terms = make_terms(4)
    known = {one: public_of(one) for one in range(1, 6)}
    with pytest.raises(TrustError, match="E-SECAGG-UNPINNED"):
        make_client(terms, 1, guard=guard, pinned={1: public_of(1)})
    with pytest.raises(RefusedError, match="E-SECAGG-FLOOR"):
        make_client(terms, 1, guard=guard, floors=Floors(cohort=10))
    with pytest.raises(RefusedError, match="E-SECAGG-SMALL"):
        make_client(make_terms(2), 1, guard=guard, floors=Floors())
    with pytest.raises(ProtocolError, match="E-SECAGG-LEFT-OUT"):
        make_client(terms, 5, guard=guard, pinned=known)
    make_client(terms, 1, guard=guard).keys()


def test_an_attempt_is_begun_once() -> None:
    """A restarted node that is asked again for its keys refuses."""
    guard = MemoryGuard()
    make_client(make_terms(4), 1, guard=guard).keys()
    again = make_client(make_terms(4), 1, guard=guard)
    refused(again, "E-SECAGG-BEGUN", again.keys)


@pytest.mark.parametrize("step", ["share", "mask", "sign", "unmask", "mask_again"])
def test_steps_come_in_order(step: str) -> None:
    """A step before its time ends the session."""
    client = make_client(make_terms(4), 1)
    vector = make_vector(1, dimension=5)
    calls: dict[str, Callable[[], object]] = {
        "share": lambda: client.share(b"", model=MODEL),
        "mask": lambda: client.mask(b"", vector),
        "sign": lambda: client.sign(b""),
        "unmask": lambda: client.unmask(b""),
        "mask_again": lambda: client.mask_again(vector, step=2, model=MODEL),
    }
    refused(client, "E-SECAGG-ORDER", calls[step])


def test_a_step_is_not_repeated() -> None:
    """Keys, shares, vector and signature leave once each."""
    client = Cohort(make_terms(4)).clients[1]
    client.keys()
    refused(client, "E-SECAGG-ORDER", client.keys)
    cohort = Cohort(make_terms(4))
    key_list = cohort.keys()
    deliveries = cohort.shares(key_list)
    one, other, third = (cohort.clients[node_id] for node_id in (1, 2, 3))
    refused(one, "E-SECAGG-ORDER", lambda: one.share(key_list, model=MODEL))
    vector = make_vector(2, dimension=5)
    other.mask(deliveries[2], vector)
    refused(other, "E-SECAGG-ORDER", lambda: other.mask(deliveries[2], vector))
    third.mask(deliveries[3], make_vector(3, dimension=5))
    all_four = messages.encode_survivors((1, 2, 3, 4), third.digest, among=(1, 2, 3, 4))
    third.sign(all_four)
    refused(third, "E-SECAGG-ORDER", lambda: third.sign(all_four))


def entries_of(cohort: Cohort) -> list[KeyEntry]:
    return list(messages.parse_key_list(cohort.keys(), cohort.terms.digest, most=99))


def signed(entry: KeyEntry, cohort: Cohort, **changes: bytes) -> KeyEntry:
    """Return an entry with other keys that its member did sign."""
    changed = dataclasses.replace(entry, **changes)
    statement = key_statement(cohort.terms.digest, changed)
    return dataclasses.replace(changed, signature=key_of(entry.node_id).sign(statement))


def check_key_list(cohort: Cohort, entries: Iterable[KeyEntry], code: str) -> None:
    client = cohort.clients[1]
    key_list = messages.encode_key_list(tuple(entries), cohort.terms.digest)
    refused(client, code, lambda: client.share(key_list, model=MODEL))


def test_keys_are_signed_by_pinned_members() -> None:
    """Keys that the server swapped, its own under a member's name, and a stranger's."""
    cohort = Cohort(make_terms(4))
    *others, last = entries_of(cohort)
    changed = dataclasses.replace(last, mask_key=others[0].channel_key)
    check_key_list(cohort, [*others, changed], "E-SECAGG-KEY-SIGNATURE")
    cohort = Cohort(make_terms(4))
    stranger = signed(dataclasses.replace(entries_of(cohort)[3], node_id=9), cohort)
    check_key_list(cohort, [*others, stranger], "E-SECAGG-UNPINNED")


def test_keys_of_another_attempt_are_refused() -> None:
    """A signature holds for one S0."""
    cohort, other = Cohort(make_terms(4)), Cohort(make_terms(4, attempt=2))
    *others, _ = entries_of(cohort)
    check_key_list(cohort, [*others, entries_of(other)[3]], "E-SECAGG-KEY-SIGNATURE")
    cohort = Cohort(make_terms(4))
    cohort.keys()
    client, replayed = cohort.clients[1], Cohort(make_terms(4, attempt=2)).keys()
    refused(client, "E-SECAGG-SESSION", lambda: client.share(replayed, model=MODEL))


def test_no_key_stands_twice() -> None:
    """Not even where both members signed it: the two would share every mask."""
    cohort = Cohort(make_terms(4))
    *others, last = entries_of(cohort)
    doubled = signed(last, cohort, mask_key=others[0].mask_key)
    check_key_list(cohort, [*others, doubled], "E-SECAGG-KEY-REUSED")


def test_own_keys_stand_unchanged() -> None:
    """A list without this node, or with other keys of its own, even signed ones."""
    cohort = Cohort(make_terms(4))
    own, *others = entries_of(cohort)
    check_key_list(cohort, others, "E-SECAGG-LEFT-OUT")
    cohort = Cohort(make_terms(4))
    cohort.keys()
    swapped = signed(own, cohort, channel_key=bytes(31) + b"\x40")
    check_key_list(cohort, [swapped, *others], "E-SECAGG-KEY-SWAPPED")


def test_weak_keys_are_refused() -> None:
    """A member in league with the server that signs a point of small order is found out."""
    cohort = Cohort(make_terms(4))
    *others, last = entries_of(cohort)
    weak = signed(last, cohort, channel_key=bytes(32))
    check_key_list(cohort, [*others, weak], "E-SECAGG-KEY-WEAK")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_keys_end_the_attempt(count: int) -> None:
    """Four members need three."""
    cohort = Cohort(make_terms(4))
    check_key_list(cohort, entries_of(cohort)[:count], "E-SECAGG-THRESHOLD")


def at_masking(**changes: object) -> tuple[Cohort, dict[int, bytes]]:
    cohort = Cohort(make_terms(4, **changes))
    return cohort, cohort.shares(cohort.keys())


def session_of(cohort: Cohort) -> Session:
    session = cohort.clients[1]._session
    assert session is not None
    return session


def test_a_ciphertext_that_fails_ends_the_attempt() -> None:
    """One bit changed, or two messages swapped: never "go on without that sender"."""
    for change in ("bit", "swap"):
        cohort, deliveries = at_masking()
        client, session = cohort.clients[1], session_of(cohort)
        delivered = messages.parse_delivery(
            deliveries[1], session.digest, among=session.ids, due=lambda _: 3
        )
        first, *rest = delivered.sealed
        sealed = (
            (first[:-1] + bytes([first[-1] ^ 1]), *rest)
            if change == "bit"
            else (rest[0], first, rest[1])
        )
        changed = messages.encode_delivery(
            dataclasses.replace(delivered, sealed=sealed), session.digest, among=session.ids
        )
        vector = make_vector(1, dimension=5)
        refused(client, "E-SECAGG-CIPHERTEXT", lambda: client.mask(changed, vector))  # noqa: B023
        np.testing.assert_array_equal(make_vector(1, dimension=5), vector)


@pytest.mark.parametrize(
    ("senders", "code"),
    [((2, 3, 4), "E-SECAGG-LEFT-OUT"), ((1, 2), "E-SECAGG-THRESHOLD"), ((), "E-SECAGG-LEFT-OUT")],
)
def test_u2_holds_this_node_and_enough_others(senders: tuple[int, ...], code: str) -> None:
    """A set without it, or below the threshold, ends the session before a vector is masked."""
    cohort, _ = at_masking()
    client, session = cohort.clients[1], session_of(cohort)
    sealed = (bytes(messages.SEALED_BYTES),) * len(set(senders) - {1})
    delivery = messages.encode_delivery(
        messages.Delivery(senders=senders, sealed=sealed), session.digest, among=session.ids
    )
    refused(client, code, lambda: client.mask(delivery, make_vector(1, dimension=5)))


def test_members_with_other_weights_cannot_go_on() -> None:
    """Who was sent another model is in another session: nothing that it sealed opens."""
    cohort = Cohort(make_terms(4))
    key_list = cohort.keys()
    client = cohort.clients[1]
    shares = client.share(key_list, model=model_of(7))
    with pytest.raises(ProtocolError, match="E-SECAGG-SESSION"):
        cohort.server.take_shares(1, shares)


def test_a_server_cannot_hide_that_weights_differ() -> None:
    """It may put the right session on what it forwards; what the others sealed still fails."""
    cohort = Cohort(make_terms(4))
    key_list = cohort.keys()
    client = cohort.clients.pop(1)
    client.share(key_list, model=model_of(7))
    cohort.shares(key_list)
    sealed = []
    for one in (2, 3, 4):
        dealt = cohort.server._shares[one]
        sealed.append(dealt.sealed[0])  # for node 1, the first of the others
    delivery = messages.encode_delivery(
        messages.Delivery(senders=(1, 2, 3, 4), sealed=tuple(sealed)),
        client.digest,
        among=(1, 2, 3, 4),
    )
    vector = make_vector(1, dimension=5)
    refused(client, "E-SECAGG-CIPHERTEXT", lambda: client.mask(delivery, vector))


def test_a_ciphertext_cannot_be_left_out() -> None:
    """A sender that is named in U2 has its message in the delivery, or there is no delivery."""
    cohort, deliveries = at_masking()
    client, session = cohort.clients[1], session_of(cohort)
    delivered = messages.parse_delivery(
        deliveries[1], session.digest, among=session.ids, due=lambda _: 3
    )
    fewer = messages.encode_delivery(
        dataclasses.replace(delivered, sealed=delivered.sealed[:2]),
        session.digest,
        among=session.ids,
    )
    vector = make_vector(1, dimension=5)
    refused(client, "E-SECAGG-MESSAGE", lambda: client.mask(fewer, vector))


def test_a_vector_of_another_kind_is_not_masked() -> None:
    """A wrong array is a bug of the caller, and ends the session as well."""
    cohort, deliveries = at_masking()
    with pytest.raises(ValueError, match="uint32 array of 5"):
        cohort.clients[1].mask(deliveries[1], np.zeros(4, dtype=np.uint32))
    assert_wiped(cohort.clients[1])


def test_one_vector_under_one_session() -> None:
    """Where the guard knows another vector for this S1, the masked one does not leave."""
    cohort, deliveries = at_masking()
    client = cohort.clients[1]
    client._guard.send(client.digest, step=1, digest=b"another vector's")
    vector = make_vector(1, dimension=5)
    refused(client, "E-SECAGG-SECOND-VECTOR", lambda: client.mask(deliveries[1], vector))


def at_signing(lost: tuple[int, ...] = ()) -> Cohort:
    cohort, deliveries = at_masking()
    cohort.lose(lost)
    cohort.masked(deliveries)
    return cohort


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        ((2, 3, 4), "E-SECAGG-LEFT-OUT"),
        ((1, 2), "E-SECAGG-THRESHOLD"),
        ((1,), "E-SECAGG-THRESHOLD"),
    ],
)
def test_u3_holds_this_node_and_enough_others(survivors: tuple[int, ...], code: str) -> None:
    """A sum without this node, or of too few, is not signed."""
    cohort = at_signing()
    client = cohort.clients[1]
    message = messages.encode_survivors(survivors, client.digest, among=(1, 2, 3, 4))
    refused(client, code, lambda: client.sign(message))


def test_u3_is_within_u2() -> None:
    """A member that dealt no shares cannot turn up among the survivors."""
    cohort = Cohort(make_terms(4))
    key_list = cohort.keys()
    cohort.lose([4])
    cohort.masked(cohort.shares(key_list))
    client = cohort.clients[1]
    message = messages.encode_survivors((1, 2, 3, 4), client.digest, among=(1, 2, 3, 4))
    refused(client, "E-SECAGG-SURVIVORS", lambda: client.sign(message))


def test_a_floor_above_the_threshold_holds() -> None:
    """The terms' floor and colluders count, not only the threshold."""
    cohort, deliveries = at_masking(floor=4)
    for one in (1, 2, 3):
        cohort.clients[one].mask(deliveries[one], make_vector(one, dimension=5))
    client = cohort.clients[1]
    message = messages.encode_survivors((1, 2, 3), client.digest, among=(1, 2, 3, 4))
    refused(client, "E-SECAGG-THRESHOLD", lambda: client.sign(message))


def test_one_signature_under_one_session() -> None:
    """Where the guard knows a signature for this S1, no other leaves."""
    cohort = at_signing()
    client = cohort.clients[1]
    client._guard.sign(client.digest, statement=b"another statement")
    message = messages.encode_survivors((1, 2, 3), client.digest, among=(1, 2, 3, 4))
    refused(client, "E-SECAGG-SIGNED", lambda: client.sign(message))


def at_unmasking(views: dict[int, tuple[int, ...]]) -> tuple[Cohort, dict[int, bytes]]:
    """Show each member survivors of its own, and return their signatures."""
    cohort = at_signing()
    signatures = {}
    for one, survivors in views.items():
        digest = cohort.clients[one].digest
        message = messages.encode_survivors(survivors, digest, among=(1, 2, 3, 4))
        signature = cohort.clients[one].sign(message)
        signatures[one] = messages.parse_signature(signature, digest)
    return cohort, signatures


def bundle(cohort: Cohort, signatures: dict[int, bytes]) -> bytes:
    digest = cohort.clients[1].digest
    return messages.encode_signatures(signatures, digest, among=(1, 2, 3, 4))


def test_split_views_are_refused() -> None:
    """Two members were shown other survivors: their signatures are on something else."""
    views = {1: (1, 2, 3, 4), 2: (1, 2, 3, 4), 3: (1, 2, 3), 4: (1, 2, 3, 4)}
    cohort, signatures = at_unmasking(views)
    client, message = cohort.clients[1], bundle(cohort, signatures)
    refused(client, "E-SECAGG-SPLIT-VIEW", lambda: client.unmask(message))
    assert client.survivors == ()


def test_a_quorum_signs() -> None:
    """Four members need three signatures, each of another one."""
    cohort, signatures = at_unmasking(dict.fromkeys((1, 2, 3, 4), (1, 2, 3, 4)))
    client = cohort.clients[1]
    message = bundle(cohort, {one: signatures[one] for one in (1, 2)})
    refused(client, "E-SECAGG-QUORUM", lambda: client.unmask(message))


def test_only_survivors_sign() -> None:
    """A dropped member's word does not count."""
    cohort, signatures = at_unmasking(dict.fromkeys((1, 2, 3), (1, 2, 3)))
    client = cohort.clients[1]
    message = bundle(cohort, signatures | {4: signatures[1]})
    refused(client, "E-SECAGG-SURVIVORS", lambda: client.unmask(message))


def test_shares_leave_once_under_one_session() -> None:
    """Where the guard knows that shares of this S1 have left, no others do."""
    cohort, signatures = at_unmasking(dict.fromkeys((1, 2, 3, 4), (1, 2, 3, 4)))
    client, message = cohort.clients[1], bundle(cohort, signatures)
    guard = cohort.clients[2]._guard
    cohort.clients[2].unmask(message)
    client._guard = guard  # the one that knows
    refused(client, "E-SECAGG-REVEALED", lambda: client.unmask(message))


def test_after_unmasking_there_is_no_share_left() -> None:
    """At a later step nobody's mask key can be asked for: the shares are gone."""
    cohort = Cohort(make_terms(4, steps=3))
    cohort.first(Lost(masked=[2]))
    client = cohort.clients[1]
    assert client.survivors == (1, 3, 4)
    secrets = client._secrets
    assert [secrets.seed_shares, secrets.b_shares] == [{}, {}]
    assert not any(secrets.seed)
    assert sorted(secrets.pairs) == [3, 4]
    refused(client, "E-SECAGG-ORDER", lambda: client.unmask(b""))
    assert client.survivors == (1, 3, 4)


@pytest.mark.parametrize("step", [1, 3, 0])
def test_later_steps_come_in_order(step: int) -> None:
    """After step 1 comes step 2, once."""
    cohort = Cohort(make_terms(4, steps=3))
    cohort.first()
    client, vector = cohort.clients[1], make_vector(1, dimension=5)
    call = lambda: client.mask_again(vector, step=step, model=MODEL)  # noqa: E731
    refused(client, "E-SECAGG-ORDER", call)


def test_after_the_last_step_the_session_is_over() -> None:
    """K steps, and then no key is left."""
    cohort = Cohort(make_terms(4, steps=2))
    cohort.first()
    cohort.again(2)
    client = cohort.clients[1]
    assert_wiped(client)
    with pytest.raises(UnavailableError, match="E-SECAGG-CLOSED"):
        client.mask_again(make_vector(1, dimension=5), step=3, model=MODEL)


def test_a_session_of_one_step_is_over_once_unmasked() -> None:
    """Its shares have left, and nothing stays; who survived is still told."""
    cohort = Cohort(make_terms(4))
    cohort.first(Lost(masked=[2]))
    for client in cohort.clients.values():
        assert_wiped(client)
        assert client.survivors == (1, 3, 4)


def test_keys_are_dropped_when_they_have_done_their_work() -> None:
    """The seed and channel key once shares are dealt, the mask key and inbox once masks are on."""
    cohort, deliveries = at_masking()
    secrets = cohort.clients[1]._secrets
    assert (secrets.channel, any(secrets.seed)) == (None, False)
    cohort.clients[1].mask(deliveries[1], make_vector(1, dimension=5))
    assert (secrets.mask, secrets.inbox) == (None, {})
    with pytest.raises(RuntimeError, match="wiped"):
        secrets.mask_key()


def test_a_sealed_message_holds_numbers_of_the_field() -> None:
    """A member that seals something else is found out when it is opened."""
    cohort, deliveries = at_masking()
    client, session = cohort.clients[1], session_of(cohort)
    key = client._secrets.inbox[2]
    forged = seal(key, b"\xff" * 64, session=session.digest, sender=2, receiver=1)
    delivered = messages.parse_delivery(
        deliveries[1], session.digest, among=session.ids, due=lambda _: 3
    )
    changed = messages.encode_delivery(
        dataclasses.replace(delivered, sealed=(forged, *delivered.sealed[1:])),
        session.digest,
        among=session.ids,
    )
    vector = make_vector(1, dimension=5)
    refused(client, "E-SECAGG-CIPHERTEXT", lambda: client.mask(changed, vector))


def test_without_noise_another_attempt_sums_over_the_same_members() -> None:
    """A second bare sum of the round with one member less would bare that member's vector."""
    guards = {one: MemoryGuard() for one in (1, 2, 3, 4)}
    first = Cohort(make_terms(4, local_sigma=0.0))
    again = Cohort(make_terms(4, local_sigma=0.0, attempt=2))
    for cohort in (first, again):
        for one, client in cohort.clients.items():
            client._guard = guards[one]
    first.first()
    with pytest.raises(RefusedError, match="E-SECAGG-COHORT-CHANGED"):
        again.first(Lost(masked=[4]))


def test_nothing_secret_is_shown() -> None:
    """No repr holds a secret, nor does any error of a failed step."""
    cohort, deliveries = at_masking()
    client = cohort.clients[1]
    secret = bytes(client._secrets.b)
    with pytest.raises(ProtocolError) as caught:
        client.mask(deliveries[2], make_vector(1, dimension=5))
    for text in (repr(client), repr(client._secrets), str(caught.value), repr(cohort.server)):
        assert secret.hex() not in text
        assert "bytearray" not in text
    unmask = messages.Unmask(b_shares=(b"secret",), seed_shares=(b"secret",))
    assert "secret" not in repr(unmask)


def test_a_neighbourhood_cannot_be_emptied() -> None:
    """In a sparse graph the server may not lose a member's neighbours until it stands alone."""
    cohort = Cohort(make_terms(300, dimension=1))
    client = cohort.clients[1]
    own = client.keys()
    entries = []
    for one, other in cohort.clients.items():
        message = own if one == 1 else other.keys()
        entries.append(messages.parse_keys(message, cohort.terms.digest, node_id=one))
    client.share(messages.encode_key_list(entries, cohort.terms.digest), model=MODEL)
    session = session_of(cohort)
    neighbours = session.neighbours_of(1)
    gone = set(neighbours[:30])  # 30 may go in all, but only 29 of its 117 holders
    senders = tuple(one for one in session.ids if one not in gone)
    sealed = (bytes(messages.SEALED_BYTES),) * (len(neighbours) - len(gone))
    delivery = messages.encode_delivery(
        messages.Delivery(senders=senders, sealed=sealed), session.digest, among=session.ids
    )
    refused(
        client, "E-SECAGG-THRESHOLD", lambda: client.mask(delivery, make_vector(1, dimension=1))
    )
