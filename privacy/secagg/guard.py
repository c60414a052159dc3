"""What a node must still know after a crash, or its protection ends: the seam to its disk.

Trusts: the store that implements it, and that no older copy of that store is ever put back.
Promises: each method either records something for good, or refuses; it never forgets. A session
asks before it acts, so that a node killed between the two has given nothing away.

==============  ===================================================================================
before          what is recorded, and what is refused later
==============  ===================================================================================
keys leave      the attempt: it is never begun again, not with other terms and not with the same
a vector leaves the digest of the masked vector by session and step: two different ones under one S1
                would reveal the difference of two updates
a signature     the statement by session: one signature under one S1, ever
shares leave    whose shares of which kind: once under one S1, and never both for one member; where
                nothing is noised, one set of survivors for a round, whatever the attempt, since
                two sums that differ by a member reveal that member's update
==============  ===================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tacit.core.errors import RefusedError

if TYPE_CHECKING:
    from tacit.privacy.secagg.terms import Terms


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Which attempt at which round's sum; unique in a node's life.

    Attributes:
        run: as in the terms.
        round: number of the round.
        attempt: number of the attempt.
    """

    run: str
    round: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """What leaves when a member unmasks.

    Attributes:
        survivors: ids whose b is opened (all of U3, in ascending order).
        dropped: ids whose mask key is opened (U2 without U3, ascending).
        noised: whether the sum has noise in it.
    """

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    noised: bool


class Guard(Protocol):
    """Durable memory of one node, for all its sessions.

    Every method records and is durable (synced to the disk, as far as the node's store promises
    it) BEFORE it returns; two calls at once behave as one after the other. A method that cannot
    record raises, and nothing leaves. Records are kept until the run is over, and never removed on
    abort.
    """

    def begin(self, attempt: Attempt, *, terms: bytes) -> None:
        """Record that this node begins an attempt.

        Args:
            attempt: looked up as a whole.
            terms: S0, for the log.

        Raises:
            RefusedError: ``E-SECAGG-BEGUN``: it was begun before, under these terms or others;
                ``E-SECAGG-RUN-OVER``: its run is over.
        """

    def send(self, session: bytes, *, step: int, digest: bytes) -> None:
        """Record which masked vector is this node's in one step.

        Args:
            session: S1, 32 bytes.
            step: from 1.
            digest: SHA-256 of the masked vector's bytes.

        Raises:
            RefusedError: ``E-SECAGG-SECOND-VECTOR``: another digest is recorded. The same digest is
                accepted: stored bytes may be sent again.
        """

    def sign(self, session: bytes, *, statement: bytes) -> None:
        """Record that this node signs its view of a session.

        Args:
            session: S1.
            statement: SHA-256 of what is signed.

        Raises:
            RefusedError: ``E-SECAGG-SIGNED``: a statement is recorded for S1, this one or another.
        """

    def reveal(self, session: bytes, *, attempt: Attempt, what: Reveal) -> None:
        """Record which shares leave; the first call for a session is its last.

        Args:
            session: S1.
            attempt: that the session belongs to.
            what: survivors and dropped members, which have nobody in common.

        Raises:
            RefusedError: ``E-SECAGG-REVEALED``: shares of this session left before, whatever they
                were; or a member is in both lists; or the run is over.
                ``E-SECAGG-COHORT-CHANGED``: not noised, and another attempt at the same run and
                round was revealed for other survivors.
        """

    def forget_run(self, run: str) -> None:
        """Remove the records of a run whose sessions are closed, and never begin in it again.

        The run's id is kept for good: a server that offers the run anew gets no second sum.
        """


def attempt_of(terms: Terms) -> Attempt:
    """Return which attempt some terms are for."""
    return Attempt(run=terms.run, round=terms.round, attempt=terms.attempt)


def begun_before(attempt: Attempt) -> RefusedError:
    """Return the error for an attempt that was begun before."""
    return RefusedError(
        "E-SECAGG-BEGUN",
        f"expected an attempt that this node has not begun, got round {attempt.round}, "
        f"attempt {attempt.attempt} of run {attempt.run} again",
        hint="A node that restarts leaves the attempt; the next one has fresh keys.",
    )


def run_over(run: str) -> RefusedError:
    """Return the error for an attempt in a run that is over at this node."""
    return RefusedError(
        "E-SECAGG-RUN-OVER",
        f"expected a run in which this node may still sum, got {run}: it has ended, or this node "
        "was restored from a backup, or lost its memory, since it knows of it",
        hint="Ask the operator to submit the run anew.",
    )


def second_vector(step: int) -> RefusedError:
    """Return the error for another masked vector under one S1."""
    return RefusedError(
        "E-SECAGG-SECOND-VECTOR",
        f"expected one masked vector in step {step} of a session, got another one",
        hint="Two of them would reveal the difference of two updates. Send the stored one.",
    )


def signed_before() -> RefusedError:
    """Return the error for a second signature under one S1."""
    return RefusedError(
        "E-SECAGG-SIGNED", "expected one signature in a session, and this node has signed before"
    )


def revealed_before(why: str) -> RefusedError:
    """Return the error for shares that must not leave."""
    return RefusedError("E-SECAGG-REVEALED", f"expected to reveal shares once: {why}")


def cohort_changed() -> RefusedError:
    """Return the error for a second sum without noise over other members."""
    return RefusedError(
        "E-SECAGG-COHORT-CHANGED",
        "expected the survivors of the attempt that was revealed before, got others: without "
        "noise, two such sums reveal what the members between them sent",
    )


class MemoryGuard:
    """A guard for simulation and tests: it forgets when the process ends."""

    def __init__(self) -> None:
        self._begun: set[Attempt] = set()
        self._sent: dict[tuple[bytes, int], bytes] = {}
        self._signed: set[bytes] = set()
        self._revealed: dict[bytes, tuple[Attempt, Reveal]] = {}
        self._over: set[str] = set()

    def begin(self, attempt: Attempt, *, terms: bytes) -> None:  # noqa: ARG002 - for a log
        """See Guard."""
        if attempt.run in self._over:
            raise run_over(attempt.run)
        if attempt in self._begun:
            raise begun_before(attempt)
        self._begun.add(attempt)

    def send(self, session: bytes, *, step: int, digest: bytes) -> None:
        """See Guard."""
        if self._sent.setdefault((session, step), digest) != digest:
            raise second_vector(step)

    def sign(self, session: bytes, *, statement: bytes) -> None:  # noqa: ARG002 - for a log
        """See Guard."""
        if session in self._signed:
            raise signed_before()
        self._signed.add(session)

    def reveal(self, session: bytes, *, attempt: Attempt, what: Reveal) -> None:
        """See Guard."""
        if attempt.run in self._over:
            raise revealed_before("the run is over")
        if session in self._revealed:
            raise revealed_before("shares of this session have left")
        if set(what.survivors) & set(what.dropped):
            raise revealed_before("a member is named as survivor and as dropped")
        if not what.noised and any(
            _round_of(earlier) == _round_of(attempt) and seen.survivors != what.survivors
            for earlier, seen in self._revealed.values()
        ):
            raise cohort_changed()
        self._revealed[session] = (attempt, what)

    def forget_run(self, run: str) -> None:
        """See Guard."""
        gone = {session for session, (attempt, _) in self._revealed.items() if attempt.run == run}
        self._begun = {attempt for attempt in self._begun if attempt.run != run}
        self._sent = {key: value for key, value in self._sent.items() if key[0] not in gone}
        self._signed -= gone
        self._revealed = {k: v for k, v in self._revealed.items() if k not in gone}
        self._over.add(run)


def _round_of(attempt: Attempt) -> tuple[str, int]:
    return attempt.run, attempt.round
