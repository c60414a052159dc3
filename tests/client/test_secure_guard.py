"""What a node remembers of secure sums on its disk, through kills, threads and full disks."""

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

from tacit.client.secure_guard import GUARD_NAME, SqliteGuard, open_guard
from tacit.core.errors import TacitError
from tacit.privacy.secagg.guard import Attempt, Reveal
from tests.privacy.secagg.guard_rules import GuardRules, OpenGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tacit.privacy.secagg.guard import Guard

ATTEMPT = Attempt(run="r-00000001", round=1, attempt=1)
LATER = replace(ATTEMPT, attempt=2)
S1, OTHER = b"s" * 32, b"o" * 32
NOISED = Reveal(survivors=(1, 2, 3), dropped=(4,), noised=True)


class TestSqliteGuard(GuardRules):
    """Every rule of the seam, with the file closed and opened again before each call."""

    @pytest.fixture
    def open_guard(self, tmp_path: Path) -> Iterator[OpenGuard]:
        opened: list[SqliteGuard] = []

        def again() -> SqliteGuard:
            for guard in opened:
                guard.close()
            opened[:] = [open_guard(tmp_path, known_runs=())]
            return opened[0]

        yield again
        opened[0].close()


def refused(guard: Guard, do: Callable[[Guard], None]) -> str:
    with pytest.raises(TacitError) as caught:
        do(guard)
    return caught.value.code


def begun(attempt: Attempt, terms: bytes = S1) -> Callable[[Guard], None]:
    return lambda guard: guard.begin(attempt, terms=terms)


def sent(digest: bytes) -> Callable[[Guard], None]:
    return lambda guard: guard.send(S1, step=1, digest=digest)


def signed(statement: bytes) -> Callable[[Guard], None]:
    return lambda guard: guard.sign(S1, statement=statement)


def revealed(guard: Guard) -> None:
    guard.reveal(S1, attempt=ATTEMPT, what=NOISED)


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
        sends = [sent(bytes([n]) * 32) for n in range(8)]
        signs = [signed(bytes([n]) * 32) for n in range(8)]
        reveals = [revealed] * 8
        for calls, code in (
            (begins, "E-SECAGG-BEGUN"),
            (sends, "E-SECAGG-SECOND-VECTOR"),
            (signs, "E-SECAGG-SIGNED"),
            (reveals, "E-SECAGG-REVEALED"),
        ):
            assert sorted(threads.map(tried, calls)) == [*[code] * 7, "done"]


def test_two_connections_share_one_memory(tmp_path: Path) -> None:
    """What one connection has recorded, another that was open already refuses."""
    with (
        contextlib.closing(open_guard(tmp_path, known_runs=())) as one,
        contextlib.closing(open_guard(tmp_path, known_runs=())) as two,
    ):
        one.begin(ATTEMPT, terms=S1)
        assert refused(two, begun(ATTEMPT)) == "E-SECAGG-BEGUN"


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
        ("guard.send(S1, step=1, digest=S1)", sent(OTHER), "E-SECAGG-SECOND-VECTOR"),
        ("guard.sign(S1, statement=S1)", signed(S1), "E-SECAGG-SIGNED"),
        ("guard.reveal(S1, attempt=ATTEMPT, what=NOISED)", revealed, "E-SECAGG-REVEALED"),
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
        assert refused(guard, again) == code


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
        assert refused(guard, last) == "E-SECAGG-BEGUN"
        guard.begin(replace(ATTEMPT, round=failed), terms=S1)


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
        assert refused(guard, begun(ATTEMPT)) == "E-SECAGG-RUN-OVER"
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
