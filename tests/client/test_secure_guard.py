"""What a node remembers of secure sums: the same contract in memory and on the disk."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tacit.client.secure_guard import GUARD_NAME, open_guard
from tacit.core.errors import TacitError
from tacit.privacy.secagg.guard import Attempt, MemoryGuard, Reveal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tacit.privacy.secagg.guard import Guard

    Calls = Callable[[Callable[[Guard], None]], None]

ATTEMPT = Attempt(purpose="ab" * 32, run="r-00000001", round=1, attempt=1)
LATER = replace(ATTEMPT, attempt=2)
S1, OTHER = b"s" * 32, b"o" * 32
NOISED = Reveal(survivors=(1, 2, 3), dropped=(4,), noised=True)
PLAIN = replace(NOISED, noised=False)
LARGEST = Attempt(purpose="ab" * 32, run="r-00000001", round=2**64 - 1, attempt=2**32 - 1)


@pytest.fixture(params=["memory", "disk"])
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Calls:
    """Do one call; the guard on the disk is closed and opened again around each."""
    memory = MemoryGuard()

    def on_disk(do: Callable[[Guard], None]) -> None:
        with contextlib.closing(open_guard(tmp_path, known_runs=())) as guard:
            do(guard)

    return (lambda do: do(memory)) if request.param == "memory" else on_disk


def refused(call: Calls, do: Callable[[Guard], None]) -> str:
    with pytest.raises(TacitError) as caught:
        call(do)
    return caught.value.code


def begun(attempt: Attempt, terms: bytes = S1) -> Callable[[Guard], None]:
    return lambda guard: guard.begin(attempt, terms=terms)


def sent(step: int, digest: bytes, session: bytes = S1) -> Callable[[Guard], None]:
    return lambda guard: guard.send(session, step=step, digest=digest)


def signed(statement: bytes, session: bytes = S1) -> Callable[[Guard], None]:
    return lambda guard: guard.sign(session, statement=statement)


def revealed(
    what: Reveal, attempt: Attempt = ATTEMPT, session: bytes = S1
) -> Callable[[Guard], None]:
    return lambda guard: guard.reveal(session, attempt=attempt, what=what)


def ended(guard: Guard) -> None:
    guard.forget_run(ATTEMPT.run)


def test_an_attempt_is_begun_once(call: Calls) -> None:
    """Neither these terms nor others get it again; each part of its name makes another one."""
    call(begun(ATTEMPT))
    assert refused(call, begun(ATTEMPT)) == "E-SECAGG-BEGUN"
    assert refused(call, begun(ATTEMPT, OTHER)) == "E-SECAGG-BEGUN"
    for other in (
        LATER,
        replace(ATTEMPT, round=2),
        replace(ATTEMPT, run="r-00000002"),
        replace(ATTEMPT, purpose="cd" * 32),
        LARGEST,
    ):
        call(begun(other))
    assert refused(call, begun(LARGEST)) == "E-SECAGG-BEGUN"


def test_one_vector_leaves_in_a_step(call: Calls) -> None:
    """The stored one may leave again; another one may not, whatever came between."""
    call(sent(1, b"x" * 32))
    call(sent(2, b"y" * 32))
    call(sent(1, b"x" * 32))
    assert refused(call, sent(1, b"z" * 32)) == "E-SECAGG-SECOND-VECTOR"
    call(sent(1, b"x" * 32))
    call(sent(1, b"z" * 32, OTHER))


def test_one_signature_in_a_session(call: Calls) -> None:
    """Not even the same statement is signed twice."""
    call(signed(b"a" * 32))
    assert refused(call, signed(b"a" * 32)) == "E-SECAGG-SIGNED"
    assert refused(call, signed(b"b" * 32)) == "E-SECAGG-SIGNED"
    call(signed(b"a" * 32, OTHER))


def test_shares_leave_once(call: Calls) -> None:
    """The first reveal of a session is its last, and never of both kinds for one member."""
    both = replace(NOISED, dropped=(3,))
    assert refused(call, revealed(both)) == "E-SECAGG-REVEALED"
    call(revealed(NOISED))
    assert refused(call, revealed(NOISED)) == "E-SECAGG-REVEALED"
    assert refused(call, revealed(replace(NOISED, dropped=()))) == "E-SECAGG-REVEALED"


def test_without_noise_a_round_has_one_set_of_survivors(call: Calls) -> None:
    """A later attempt is opened for the same members, or not at all; other rounds are free."""
    fewer = replace(PLAIN, survivors=(1, 2))
    call(revealed(PLAIN))
    assert refused(call, revealed(fewer, LATER, OTHER)) == "E-SECAGG-COHORT-CHANGED"
    call(revealed(PLAIN, LATER, OTHER))
    for number, other in enumerate(
        (replace(LATER, round=2), replace(LATER, run="r-2"), replace(LATER, purpose="cd" * 32))
    ):
        call(revealed(fewer, other, bytes([number]) * 32))


def test_a_sum_with_noise_may_be_of_others(call: Calls) -> None:
    """Noise covers the difference; a sum without any is held against all that came before."""
    fewer = replace(NOISED, survivors=(1, 2))
    call(revealed(NOISED))
    call(revealed(fewer, LATER, OTHER))
    third = replace(ATTEMPT, attempt=3)
    assert refused(call, revealed(PLAIN, third, b"t" * 32)) == "E-SECAGG-COHORT-CHANGED"


def test_of_two_at_once_one_is_refused(tmp_path: Path) -> None:
    """Eight threads begin, send and sign the same: of each kind exactly one is let through."""

    def tried(do: Callable[[Guard], None]) -> str:
        try:
            do(guard)
        except TacitError as error:
            return error.code
        return "done"

    with (
        contextlib.closing(open_guard(tmp_path, known_runs=())) as guard,
        ThreadPoolExecutor(8) as threads,
    ):
        begins = [begun(ATTEMPT, bytes([n]) * 32) for n in range(8)]
        sends = [sent(1, bytes([n]) * 32) for n in range(8)]
        signs = [signed(bytes([n]) * 32) for n in range(8)]
        reveals = [revealed(NOISED)] * 8
        for calls, code in (
            (begins, "E-SECAGG-BEGUN"),
            (sends, "E-SECAGG-SECOND-VECTOR"),
            (signs, "E-SECAGG-SIGNED"),
            (reveals, "E-SECAGG-REVEALED"),
        ):
            assert sorted(threads.map(tried, calls)) == [*[code] * 7, "done"]


def test_two_processes_share_one_memory(tmp_path: Path) -> None:
    """What one connection has recorded, another that was open already refuses."""
    with (
        contextlib.closing(open_guard(tmp_path, known_runs=())) as one,
        contextlib.closing(open_guard(tmp_path, known_runs=())) as two,
    ):
        one.begin(ATTEMPT, terms=S1)
        assert refused(lambda do: do(two), begun(ATTEMPT)) == "E-SECAGG-BEGUN"


CALLING = """
import sys
from pathlib import Path
from tacit.client.secure_guard import open_guard
from tests.client.test_secure_guard import ATTEMPT, NOISED, S1

guard = open_guard(Path(sys.argv[1]), known_runs=())
{call}
print("returned", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "again", "code"),
    [
        ("guard.begin(ATTEMPT, terms=S1)", begun(ATTEMPT), "E-SECAGG-BEGUN"),
        ("guard.send(S1, step=1, digest=S1)", sent(1, OTHER), "E-SECAGG-SECOND-VECTOR"),
        ("guard.sign(S1, statement=S1)", signed(S1), "E-SECAGG-SIGNED"),
        ("guard.reveal(S1, attempt=ATTEMPT, what=NOISED)", revealed(NOISED), "E-SECAGG-REVEALED"),
        ("guard.forget_run(ATTEMPT.run)", begun(ATTEMPT), "E-SECAGG-RUN-OVER"),
    ],
)
def test_a_killed_process_remembers(
    tmp_path: Path, source: str, again: Callable[[Guard], None], code: str
) -> None:
    """SIGKILL right after a method returned: the next process refuses what the first has done."""
    command = [sys.executable, "-c", CALLING.format(call=source), str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "returned\n"
        process.send_signal(signal.SIGKILL)
    with contextlib.closing(open_guard(tmp_path, known_runs=())) as guard:
        assert refused(lambda do: do(guard), again) == code


@contextlib.contextmanager
def full_disk(guard: object) -> Iterator[None]:
    """Let the file grow no further, which SQLite reports as a full disk does."""
    connection: sqlite3.Connection = vars(guard)["_connection"]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    yield
    connection.execute("PRAGMA max_page_count = 100000")


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """What cannot be written is an error; what was written holds, and later calls work again."""
    with contextlib.closing(open_guard(tmp_path, known_runs=())) as guard:
        rounds = itertools.count()

        def fill() -> None:
            for number in rounds:  # until the pages that are there are full
                guard.begin(replace(ATTEMPT, round=number), terms=S1)

        with full_disk(guard), pytest.raises(TacitError) as caught:
            fill()
        failed = next(rounds) - 1
        assert caught.value.code == "E-DISK-FULL"
        assert failed > 0
        last = begun(replace(ATTEMPT, round=failed - 1))
        assert refused(lambda do: do(guard), last) == "E-SECAGG-BEGUN"
        guard.begin(replace(ATTEMPT, round=failed), terms=S1)


def test_a_run_that_is_over_is_never_begun_in_again(call: Calls) -> None:
    """Its records go, its id stays; other runs keep all of theirs."""
    other = replace(ATTEMPT, run="r-00000002")
    for attempt, session in ((ATTEMPT, S1), (other, OTHER)):
        for do in (
            begun(attempt, session),
            sent(1, session, session),
            signed(session, session),
            revealed(PLAIN, attempt, session),
        ):
            call(do)
    call(ended)
    call(ended)
    assert refused(call, begun(LATER)) == "E-SECAGG-RUN-OVER"
    assert refused(call, begun(ATTEMPT)) == "E-SECAGG-RUN-OVER"
    assert refused(call, revealed(PLAIN)) == "E-SECAGG-REVEALED"
    assert refused(call, begun(other)) == "E-SECAGG-BEGUN"
    assert refused(call, sent(1, S1, OTHER)) == "E-SECAGG-SECOND-VECTOR"
    assert refused(call, signed(S1, OTHER)) == "E-SECAGG-SIGNED"
    assert refused(call, revealed(PLAIN, other, OTHER)) == "E-SECAGG-REVEALED"


def test_what_was_known_of_a_run_that_is_over_is_gone(tmp_path: Path) -> None:
    """Of a session that was played to its end no row is left, however many steps it had."""
    with contextlib.closing(open_guard(tmp_path, known_runs=())) as guard:
        guard.begin(ATTEMPT, terms=S1)
        guard.sign(S1, statement=S1)
        guard.reveal(S1, attempt=ATTEMPT, what=NOISED)
        for step in range(1, 5):
            guard.send(S1, step=step, digest=S1)
        guard.forget_run(ATTEMPT.run)
    with contextlib.closing(sqlite3.connect(tmp_path / GUARD_NAME)) as connection:
        for table in ("begun", "sent", "signed", "revealed"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608 - ours


def test_without_the_file_the_runs_that_are_known_are_over(tmp_path: Path) -> None:
    """A node that has lost its memory begins in new runs alone; one that has it goes on in all."""
    known = (ATTEMPT.run, "r-00000002")
    with contextlib.closing(open_guard(tmp_path, known_runs=known)) as guard:
        assert refused(lambda do: do(guard), begun(ATTEMPT)) == "E-SECAGG-RUN-OVER"
        guard.begin(replace(ATTEMPT, run="r-00000003"), terms=S1)
    with contextlib.closing(open_guard(tmp_path, known_runs=(*known, "r-00000003"))) as guard:
        guard.begin(replace(LATER, run="r-00000003"), terms=S1)


def test_the_file_is_private_and_durable(tmp_path: Path) -> None:
    """Mode 0600, a write-ahead log, and each commit flushed."""
    with contextlib.closing(open_guard(tmp_path, known_runs=())) as guard:
        assert stat.S_IMODE((tmp_path / GUARD_NAME).stat().st_mode) == 0o600
        connection: sqlite3.Connection = vars(guard)["_connection"]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Of a later version, or damaged: a node that cannot know does not begin."""
    path = tmp_path / GUARD_NAME
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    for content, code in ((None, "E-SECAGG-STORE-VERSION"), (b"no" * 99, "E-SECAGG-STORE-CORRUPT")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(TacitError) as caught:
            open_guard(tmp_path, known_runs=())
        assert caught.value.code == code
