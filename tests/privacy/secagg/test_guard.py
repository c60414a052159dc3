"""What a node must remember: each rule of the guard, and the errors that a store raises."""

from __future__ import annotations

import dataclasses

import pytest

from tacit.core.errors import RefusedError
from tacit.privacy.secagg.guard import Attempt, Guard, MemoryGuard, Reveal, attempt_of
from tests.privacy.secagg.parties import make_terms

S1, OTHER = b"1" * 32, b"2" * 32
FIRST = Attempt(purpose="aa", run="r", round=3, attempt=1)
SECOND = dataclasses.replace(FIRST, attempt=2)
NOISED = Reveal(survivors=(1, 2, 3), dropped=(4,), noised=True)
BARE = dataclasses.replace(NOISED, noised=False)


@pytest.fixture
def guard() -> Guard:
    return MemoryGuard()


def test_an_attempt_is_begun_once(guard: Guard) -> None:
    """Neither with the same terms nor with others; another attempt may begin."""
    guard.begin(FIRST, terms=S1)
    for terms in (S1, OTHER):
        with pytest.raises(RefusedError, match="E-SECAGG-BEGUN"):
            guard.begin(FIRST, terms=terms)
    guard.begin(SECOND, terms=S1)


def test_one_vector_for_each_session_and_step(guard: Guard) -> None:
    """Stored bytes may be sent again; others under the same S1 and step may not."""
    guard.send(S1, step=1, digest=b"a")
    guard.send(S1, step=1, digest=b"a")
    guard.send(S1, step=2, digest=b"b")
    guard.send(OTHER, step=1, digest=b"b")
    with pytest.raises(RefusedError, match="E-SECAGG-SECOND-VECTOR"):
        guard.send(S1, step=1, digest=b"b")


def test_one_signature_for_each_session(guard: Guard) -> None:
    """Not even the same statement is signed again."""
    guard.sign(S1, statement=b"a")
    guard.sign(OTHER, statement=b"a")
    for statement in (b"a", b"b"):
        with pytest.raises(RefusedError, match="E-SECAGG-SIGNED"):
            guard.sign(S1, statement=statement)


def test_shares_leave_once(guard: Guard) -> None:
    """After the first shares of a session none leave, at any step, whatever they are."""
    guard.reveal(S1, attempt=FIRST, what=NOISED)
    for what in (NOISED, Reveal(survivors=(), dropped=(1,), noised=True)):
        with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
            guard.reveal(S1, attempt=FIRST, what=what)


def test_never_both_shares_of_one_member(guard: Guard) -> None:
    """A member is a survivor or dropped: both secrets together would bare its vector."""
    both = Reveal(survivors=(1, 2, 3), dropped=(3,), noised=True)
    with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
        guard.reveal(S1, attempt=FIRST, what=both)
    guard.reveal(S1, attempt=FIRST, what=NOISED)


def test_without_noise_a_round_has_one_cohort(guard: Guard) -> None:
    """Two bare sums that differ by a member are that member's vector; the same sum may recur."""
    guard.reveal(S1, attempt=FIRST, what=BARE)
    other = dataclasses.replace(BARE, survivors=(1, 2, 3, 4), dropped=())
    with pytest.raises(RefusedError, match="E-SECAGG-COHORT-CHANGED"):
        guard.reveal(OTHER, attempt=SECOND, what=other)
    guard.reveal(OTHER, attempt=SECOND, what=BARE)
    guard.reveal(b"3" * 32, attempt=dataclasses.replace(FIRST, round=4), what=other)


def test_with_noise_another_cohort_is_another_charge(guard: Guard) -> None:
    """Fresh noise is charged anew elsewhere, so another attempt may lose other members."""
    guard.reveal(S1, attempt=FIRST, what=NOISED)
    other = dataclasses.replace(NOISED, survivors=(1, 2, 4), dropped=(3,))
    guard.reveal(OTHER, attempt=SECOND, what=other)


def test_an_attempt_is_named_by_its_terms() -> None:
    """Purpose, run, round and attempt; nothing else makes another attempt."""
    terms = make_terms(4)
    assert attempt_of(terms) == attempt_of(dataclasses.replace(terms, dimension=6, steps=2))
    assert attempt_of(terms) != attempt_of(dataclasses.replace(terms, attempt=2))
