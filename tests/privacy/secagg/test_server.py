"""The aggregator: no member can spoil the round of the others, and no late word counts."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.errors import TacitError
from tacit.privacy.secagg import messages
from tacit.privacy.secagg.server import Phase, ServerSession
from tests.privacy.secagg.parties import (
    MODEL,
    Cohort,
    Lost,
    expected_sum,
    make_client,
    make_terms,
    make_vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def refused(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(TacitError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.message


def test_a_bad_message_counts_as_none() -> None:
    """It is refused to its sender; the round goes on, and the sender may still do better."""
    cohort = Cohort(make_terms(4))
    server = cohort.server
    refused("E-SECAGG-MESSAGE", lambda: server.take_keys(1, b"nonsense"))
    stolen = cohort.clients[2].keys()
    refused("E-SECAGG-KEY-SIGNATURE", lambda: server.take_keys(1, stolen))
    assert server.awaited == (1, 2, 3, 4)
    server.take_keys(2, stolen)
    refused("E-SECAGG-TWICE", lambda: server.take_keys(2, stolen))
    refused("E-SECAGG-STRANGER", lambda: server.take_keys(9, stolen))
    assert server.awaited == (1, 3, 4)
    refused("E-SECAGG-ORDER", lambda: server.take_shares(2, b""))


def test_a_step_that_is_over_takes_nothing() -> None:
    """A vector that comes after the survivors are announced is dropped for good."""
    cohort = Cohort(make_terms(4))
    deliveries = cohort.shares(cohort.keys())
    vector = make_vector(4, dimension=5)
    head = cohort.clients[4].mask(deliveries[4], vector)
    cohort.lose([4])
    survivors = cohort.masked(deliveries)
    refused("E-SECAGG-LATE", lambda: cohort.server.fold(4, head, vector))
    result = cohort.unmask(cohort.signatures(survivors))
    np.testing.assert_array_equal(expected_sum((1, 2, 3), dimension=5), result.values)
    refused("E-SECAGG-LATE", lambda: cohort.server.fold(4, head, vector))


def test_a_member_that_was_lost_is_a_stranger() -> None:
    """Who sent no shares is not in the sum, whatever it sends afterwards."""
    cohort = Cohort(make_terms(4))
    key_list = cohort.keys()
    lost = cohort.clients[4]
    cohort.lose([4])
    cohort.shares(key_list)
    lost.share(key_list, model=MODEL)
    head = messages.encode_masked(1, MODEL, cohort.server.digest)
    vector = make_vector(4, dimension=5)
    refused("E-SECAGG-STRANGER", lambda: cohort.server.fold(4, head, vector))


@pytest.mark.parametrize("size", [0, 16, 19, 24])
def test_a_vector_is_folded_whole_or_not_at_all(size: int) -> None:
    """A partial upload changes nothing; the whole one may follow."""
    cohort = Cohort(make_terms(4))
    deliveries = cohort.shares(cohort.keys())
    vector = make_vector(1, dimension=5)
    head = cohort.clients[1].mask(deliveries[1], vector)
    server = cohort.server
    refused("E-SECAGG-VECTOR", lambda: server.fold(1, head, bytes(size)))
    assert not server._accumulator.any()
    server.fold(1, head, memoryview(vector.tobytes()))
    np.testing.assert_array_equal(vector, server._accumulator)
    refused("E-SECAGG-TWICE", lambda: server.fold(1, head, vector))


def test_a_vector_from_other_weights_is_refused() -> None:
    """Its masks would not cancel: better one member less than a sum of noise."""
    cohort = Cohort(make_terms(4, steps=2))
    cohort.first()
    cohort.server.start_step(model=MODEL)
    vector = make_vector(1, dimension=5)
    head = cohort.clients[1].mask_again(vector, step=2, model=bytes(32))
    refused("E-SECAGG-STEP", lambda: cohort.server.fold(1, head, vector))
    earlier = messages.encode_masked(1, MODEL, cohort.server.digest)
    refused("E-SECAGG-STEP", lambda: cohort.server.fold(1, earlier, vector))


def test_a_signature_on_another_view_is_refused() -> None:
    """It would end the session at every other member."""
    cohort = Cohort(make_terms(4))
    survivors = cohort.masked(cohort.shares(cohort.keys()))
    signature = cohort.clients[1].sign(survivors)
    refused("E-SECAGG-SPLIT-VIEW", lambda: cohort.server.take_signature(2, signature))
    cohort.server.take_signature(1, signature)


@pytest.mark.parametrize("step", ["keys", "shares", "masked", "signature", "unmask"])
def test_below_the_threshold_a_session_ends_with_a_reason(step: str) -> None:
    """The error says at which step, how many were needed and how many came; then all is over."""
    cohort = Cohort(make_terms(4))
    with pytest.raises(TacitError) as caught:
        cohort.first(Lost(**{step: (1, 2)}))
    assert caught.value.code == "E-SECAGG-THRESHOLD"
    assert "at least 3" in caught.value.message
    assert "got 2" in caught.value.message
    assert cohort.server.phase is Phase.CLOSED
    refused("E-SECAGG-LATE", lambda: cohort.server.take_keys(1, b""))


def at_unmasking(count: int, **lost: tuple[int, ...]) -> tuple[Cohort, bytes]:
    cohort = Cohort(make_terms(count))
    deliveries = cohort.shares(cohort.keys())
    cohort.lose(lost.get("masked", ()))
    return cohort, cohort.signatures(cohort.masked(deliveries))


def test_false_shares_are_left_out() -> None:
    """A member that reveals false shares costs nothing as long as enough true ones are left."""
    cohort, signatures = at_unmasking(4)
    for one, client in cohort.clients.items():
        message = client.unmask(signatures)
        if one == 1:  # every share of its own and of others
            message = message[:42] + bytes(4 * 32) + message[42 + 4 * 32 :]
        cohort.server.take_unmask(one, message)
    result = cohort.server.end_unmask()
    np.testing.assert_array_equal(expected_sum((1, 2, 3, 4), dimension=5), result.values)


def test_too_many_false_shares_end_the_session() -> None:
    """Two of four members lie: no secret can be opened, and the sum stays masked."""
    cohort, signatures = at_unmasking(4)
    for one, client in cohort.clients.items():
        message = client.unmask(signatures)
        if one in {1, 2}:
            message = message[:42] + bytes(4 * 32) + message[42 + 4 * 32 :]
        cohort.server.take_unmask(one, message)
    assert "true shares" in refused("E-SECAGG-THRESHOLD", cohort.server.end_unmask)
    assert cohort.server.phase is Phase.CLOSED


@pytest.mark.parametrize("liar", ["survivor", "dropped"])
def test_a_dealer_of_false_secrets_is_named(liar: str) -> None:
    """A b or a mask seed other than the committed one would spoil the sum unseen."""
    cohort, signatures = at_unmasking(4, masked=(4,))
    for one, client in cohort.clients.items():
        cohort.server.take_unmask(one, client.unmask(signatures))
    server = cohort.server
    if liar == "survivor":
        server._shares[2] = dataclasses.replace(server._shares[2], commitment=bytes(32))
    else:
        session = server._session
        assert session is not None
        session.entries[4] = dataclasses.replace(session.entries[4], mask_key=bytes(32))
    named = "node 2" if liar == "survivor" else "node 4"
    assert named in refused("E-SECAGG-COMMITMENT", server.end_unmask)


def test_memory_is_flat_whatever_the_number_of_members() -> None:
    """Folding keeps nothing of a vector but its part of the sum."""
    dimension = 1 << 18
    cohort = Cohort(make_terms(6, dimension=dimension))
    deliveries = cohort.shares(cohort.keys())
    heads = {}
    vector = np.zeros(dimension, dtype=np.uint32)
    for one, client in cohort.clients.items():
        heads[one] = client.mask(deliveries[one], vector)
    tracemalloc.start()
    for one, head in heads.items():
        cohort.server.fold(one, head, vector)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < dimension  # a quarter of one vector


def test_the_caller_can_tell_when_a_step_may_end() -> None:
    """With the least number of members, a quorum of signatures, or a threshold of shares."""
    cohort = Cohort(make_terms(4, steps=2))
    server = cohort.server
    seen = []
    for one, client in cohort.clients.items():
        server.take_keys(one, client.keys())
        seen.append((server.enough, server.awaited))
    assert seen == [(False, (2, 3, 4)), (False, (3, 4)), (True, (4,)), (True, ())]
    deliveries = cohort.shares(server.end_keys(model=MODEL))
    survivors = cohort.masked(deliveries)
    assert (server.enough, server.awaited) == (False, (1, 2, 3, 4))
    cohort.unmask(cohort.signatures(survivors))
    assert (server.enough, server.awaited) == (True, ())
    server.start_step(model=MODEL)
    for one in (1, 2, 3):
        vector = make_vector(one, dimension=5)
        server.fold(one, cohort.clients[one].mask_again(vector, step=2, model=MODEL), vector)
    assert (server.enough, server.awaited) == (False, (4,))


def test_the_caller_ends_steps_in_order() -> None:
    """Ending a step that is not due is a bug of the caller."""
    server = ServerSession(make_terms(4))
    for end in (server.end_shares, server.end_masked, server.end_signatures, server.end_unmask):
        with pytest.raises(RuntimeError, match="due is keys"):
            end()
    with pytest.raises(RuntimeError, match="between steps"):
        server.start_step(model=MODEL)
    cohort = Cohort(make_terms(3))
    cohort.shares(cohort.keys())
    with pytest.raises(RuntimeError, match="this is step 1"):
        cohort.server.end_step()


def test_a_key_that_somebody_else_sent_is_refused() -> None:
    """The second sender of one key is turned away, not both."""
    cohort = Cohort(make_terms(4))
    cohort.server.take_keys(1, cohort.clients[1].keys())
    twin = make_client(cohort.terms, 2)
    twin._random_bytes = make_client(cohort.terms, 1)._random_bytes
    message = twin.keys()
    refused("E-SECAGG-KEY-REUSED", lambda: cohort.server.take_keys(2, message))
