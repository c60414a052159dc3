"""The rules of a guard, for every guard: what a node remembers holds after it was opened anew.

A test of another guard derives from ``GuardRules`` and gives the fixture ``open_guard``, which
returns a guard over the same records each time it is called: a store opens its file again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tacit.core.errors import RefusedError
from tacit.privacy.secagg.guard import Attempt, Guard, Reveal

S1, OTHER = b"1" * 32, b"2" * 32
FIRST = Attempt(run="r", round=3, attempt=1)
SECOND = dataclasses.replace(FIRST, attempt=2)
NOISED = Reveal(survivors=(1, 2, 3), dropped=(4,), noised=True)
BARE = dataclasses.replace(NOISED, noised=False)

OpenGuard = Callable[[], Guard]


class GuardRules:
    """One test for each rule of ``Guard``."""

    @pytest.fixture
    def open_guard(self) -> OpenGuard:
        raise NotImplementedError

    def test_an_attempt_is_begun_once(self, open_guard: OpenGuard) -> None:
        """Neither with the same terms nor with others; another attempt may begin."""
        open_guard().begin(FIRST, terms=S1)
        for terms in (S1, OTHER):
            with pytest.raises(RefusedError, match="E-SECAGG-BEGUN"):
                open_guard().begin(FIRST, terms=terms)
        open_guard().begin(SECOND, terms=S1)

    def test_one_vector_for_each_session_and_step(self, open_guard: OpenGuard) -> None:
        """Stored bytes may be sent again; others under the same S1 and step may not."""
        open_guard().send(S1, step=1, digest=b"a")
        open_guard().send(S1, step=1, digest=b"a")
        open_guard().send(S1, step=2, digest=b"b")
        open_guard().send(OTHER, step=1, digest=b"b")
        with pytest.raises(RefusedError, match="E-SECAGG-SECOND-VECTOR"):
            open_guard().send(S1, step=1, digest=b"b")

    def test_one_signature_for_each_session(self, open_guard: OpenGuard) -> None:
        """Not even the same statement is signed again."""
        open_guard().sign(S1, statement=b"a")
        open_guard().sign(OTHER, statement=b"a")
        for statement in (b"a", b"b"):
            with pytest.raises(RefusedError, match="E-SECAGG-SIGNED"):
                open_guard().sign(S1, statement=statement)

    def test_shares_leave_once(self, open_guard: OpenGuard) -> None:
        """After the first shares of a session none leave, at any step, whatever they are."""
        open_guard().reveal(S1, attempt=FIRST, what=NOISED)
        for what in (NOISED, Reveal(survivors=(), dropped=(1,), noised=True)):
            with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
                open_guard().reveal(S1, attempt=FIRST, what=what)

    def test_never_both_shares_of_one_member(self, open_guard: OpenGuard) -> None:
        """A member is a survivor or dropped: both secrets together would bare its vector."""
        both = Reveal(survivors=(1, 2, 3), dropped=(3,), noised=True)
        with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
            open_guard().reveal(S1, attempt=FIRST, what=both)
        open_guard().reveal(S1, attempt=FIRST, what=NOISED)

    def test_without_noise_a_round_has_one_cohort(self, open_guard: OpenGuard) -> None:
        """Two bare sums that differ by a member bare its vector; the same sum may recur."""
        open_guard().reveal(S1, attempt=FIRST, what=BARE)
        other = dataclasses.replace(BARE, survivors=(1, 2, 3, 4), dropped=())
        with pytest.raises(RefusedError, match="E-SECAGG-COHORT-CHANGED"):
            open_guard().reveal(OTHER, attempt=SECOND, what=other)
        open_guard().reveal(OTHER, attempt=SECOND, what=BARE)
        open_guard().reveal(b"3" * 32, attempt=dataclasses.replace(FIRST, round=4), what=other)

    def test_with_noise_another_cohort_is_another_charge(self, open_guard: OpenGuard) -> None:
        """Fresh noise is charged anew elsewhere, so another attempt may lose other members."""
        open_guard().reveal(S1, attempt=FIRST, what=NOISED)
        other = dataclasses.replace(NOISED, survivors=(1, 2, 4), dropped=(3,))
        open_guard().reveal(OTHER, attempt=SECOND, what=other)

    def test_without_noise_no_noised_sum_hides_another_cohort(self, open_guard: OpenGuard) -> None:
        """A bare sum is held against all that were opened in its round, noised ones too."""
        open_guard().reveal(S1, attempt=FIRST, what=NOISED)
        fewer = dataclasses.replace(BARE, survivors=(1, 2))
        with pytest.raises(RefusedError, match="E-SECAGG-COHORT-CHANGED"):
            open_guard().reveal(OTHER, attempt=SECOND, what=fewer)

    def test_the_largest_numbers_are_kept_apart(self, open_guard: OpenGuard) -> None:
        """Rounds go to 2^64 - 1 and attempts to 2^32 - 1: none is taken for another."""
        rounds = (0, 1, 2**63 - 1, 2**63, 2**64 - 1)
        for attempt in (0, 2**32 - 1):
            named = [Attempt(run="r", round=number, attempt=attempt) for number in rounds]
            for each in named:
                open_guard().begin(each, terms=S1)
            for each in named:
                with pytest.raises(RefusedError, match="E-SECAGG-BEGUN"):
                    open_guard().begin(each, terms=S1)

    def test_a_run_that_is_over_is_never_begun_in_again(self, open_guard: OpenGuard) -> None:
        """Its records go and its id stays, however often it is said; others keep all of theirs."""
        elsewhere = dataclasses.replace(FIRST, run="other")
        for attempt, session in ((FIRST, S1), (elsewhere, OTHER)):
            open_guard().begin(attempt, terms=session)
            open_guard().send(session, step=1, digest=b"a")
            open_guard().sign(session, statement=b"a")
            open_guard().reveal(session, attempt=attempt, what=BARE)
        open_guard().forget_run(FIRST.run)
        open_guard().forget_run(FIRST.run)
        for attempt in (FIRST, SECOND):
            with pytest.raises(RefusedError, match="E-SECAGG-RUN-OVER"):
                open_guard().begin(attempt, terms=S1)
        with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
            open_guard().reveal(S1, attempt=FIRST, what=BARE)
        with pytest.raises(RefusedError, match="E-SECAGG-BEGUN"):
            open_guard().begin(elsewhere, terms=OTHER)
        with pytest.raises(RefusedError, match="E-SECAGG-SECOND-VECTOR"):
            open_guard().send(OTHER, step=1, digest=b"b")
        with pytest.raises(RefusedError, match="E-SECAGG-SIGNED"):
            open_guard().sign(OTHER, statement=b"a")
        with pytest.raises(RefusedError, match="E-SECAGG-REVEALED"):
            open_guard().reveal(OTHER, attempt=elsewhere, what=BARE)
