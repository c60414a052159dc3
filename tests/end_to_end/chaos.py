"""`make chaos`: kill -9 an owner's daemon between charge and upload, and compare the books.

Nothing in the product stops at a point for this. Where a daemon is to stop, it is stopped from
outside: its app waits at a gate, a lock is held on the database that it writes next, or the server
sleeps. After each kill, and at the end, what the server has (answers, and parts of uploads) is held
against the ledger: each answer has one reserve, sound and no cheaper than what left; a message has
one answer, however often it was sent; each run ends, and costs what an uninterrupted one does.

The result is one JSON file: each kill with its point, the books before and after, and a verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.end_to_end.evidence import Auditor, Books, entries_of
from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import DATA_SET, initial_file, private_spec, with_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER, OTHER = "ada", "bea"
ROUNDS = 10  # of a run; one kill in each
ROWS = 150_000  # of the model: 4 MB, which takes a while to upload
LEAST = 1 << 15  # bytes of an answer on the way, before its sender dies
LONGEST_S = 1.0  # until a kill at random: a round is charged and sent within it


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill.

    Attributes:
        point: where the daemon was; ``random`` if nobody knows.
        run_id, round: what it worked on.
        after_s: of a kill at random, since the app was let go.
        part_bytes: of an answer that was at the server when the daemon died, not all of it.
        before, after: the books before the point was set up, and with the daemon dead.
    """

    point: str
    run_id: str
    round: int
    after_s: float | None
    part_bytes: int
    before: Books
    after: Books


class Chaos:
    """One federation of two owners, the first of which is killed again and again."""

    def __init__(self, played: Federation, *, seed: int) -> None:
        self._played = played
        self._rng = random.Random(seed)  # noqa: S311 - when to kill
        self._home = played.root / OWNER
        self._initial = initial_file(played.root, ROWS)
        self.auditor = Auditor(played, OWNER)
        self._other = Auditor(played, OTHER)
        self.kills: list[Kill] = []
        self.runs: dict[str, int] = {}
        self.points = {
            "computing": self._computing,
            "charging": self._charging,
            "charged": self._charged,
            "stored": self._stored,
            "uploading": self._uploading,
            "received": self._received,
            "random": self._at_random,
        }

    def play(self, kills: int) -> None:
        """Kill so often, at each point in turn, over as many runs as it takes."""
        names = [name for _ in range(kills) for name in self.points][:kills]
        for start in range(0, kills, ROUNDS):
            self._play_run(names[start : start + ROUNDS])

    def _play_run(self, names: list[str]) -> None:
        run = with_clients(private_spec(), 2, rounds=len(names))
        for number in range(1, len(names) + 1):
            self._played.hold(number, OWNER)
        run_id = self._played.submit(run, self._initial)
        for number, name in enumerate(names, start=1):
            self._play_kill(name, run_id, number)
        self._played.wait_for_event(run_id, "run_finished")
        self.runs[run_id] = self.auditor.charged(run_id)

    def _play_kill(self, name: str, run_id: str, number: int) -> None:
        self._played.wait_until_held(OWNER, number, run_id)
        before = self.auditor.check()
        after_s = self.points[name](number)
        self.kills.append(
            Kill(
                point=name,
                run_id=run_id,
                round=number,
                after_s=after_s,
                part_bytes=self.auditor.part_bytes(),
                before=before,
                after=self.auditor.check(),
            )
        )
        self._played.start_client(OWNER)

    def _computing(self, number: int) -> None:
        """The app has the message, and nothing is charged."""
        self._kill()
        self._open_gate(number)

    def _charging(self, number: int) -> None:
        """The answer is copied, and the ledger cannot be written."""
        with self._locked(self._home / "ledger.sqlite"):
            self._open_gate(number)
            eventually("a copied answer", lambda: list((self._home / "outbox").iterdir()))
            self._kill()

    def _charged(self, number: int) -> None:
        """The charge is on the disk, and the answer cannot be put into the outbox."""
        entries = entries_of(self._home)
        with self._locked(self._home / "client.sqlite"):
            self._open_gate(number)
            eventually("a charge", lambda: entries_of(self._home) > entries)
            self._kill()

    def _stored(self, number: int) -> None:
        """The answer is in the outbox, and the server sleeps."""
        with self._server_asleep():
            self._open_gate(number)
            eventually("a stored answer", lambda: self._played.outbox(OWNER))
            self._kill()

    def _uploading(self, number: int) -> None:
        """The server has a part of the answer: each side sleeps while the other one works."""
        (message,) = self.auditor.open_messages()
        eventually("the other's answer", lambda: not self._other.open_messages())
        with self._server_asleep():
            self._open_gate(number)
            eventually("bytes on the way", lambda: waiting_bytes(self._played.ports[0]) > LEAST)
            self._played.daemons[OWNER].send(signal.SIGSTOP)
        eventually("a part of the answer", lambda: self._arrived(message))
        self._kill()

    def _received(self, number: int) -> None:
        """The server has given its receipt."""
        (message,) = self.auditor.open_messages()
        self._open_gate(number)
        eventually("a receipt", lambda: message not in self.auditor.open_messages())
        self._kill()

    def _at_random(self, number: int) -> float:
        """Nobody knows."""
        after_s = self._rng.uniform(0, LONGEST_S)
        self._open_gate(number)
        time.sleep(after_s)  # not to wait for something: when it dies is what is tried out
        self._kill()
        return after_s

    def _open_gate(self, number: int) -> None:
        (self._played.gates / f"hold-{number}-{self._played.node_id(OWNER)}").unlink()

    def _arrived(self, message: str) -> bool:
        runs = self._played.home / "runs"
        return any(runs.glob(f"{message.partition('.')[0]}/spool/in-{message}-*.part"))

    def _kill(self) -> None:
        self._played.daemons[OWNER].kill()

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the write lock of a daemon's database."""
        connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.close()

    @contextlib.contextmanager
    def _server_asleep(self) -> Iterator[None]:
        server = self._played.daemons["server"]
        server.send(signal.SIGSTOP)
        try:
            yield
        finally:
            server.send(signal.SIGCONT)


def waiting_bytes(port: int) -> int:
    """Return how many bytes have reached a port of this machine that nobody has read yet."""
    tables = [Path(f"/proc/net/tcp{version}").read_text() for version in ("", "6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    mine = [row[4] for row in rows if int(row[1].partition(":")[2], 16) == port]
    return sum(int(queues.partition(":")[2], 16) for queues in mine)


def play_chaos(root: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill so often in a federation below an empty folder; return the result as JSON has it."""
    started = time.monotonic()
    with federation(root, start=False) as played:
        played.start_server()
        for name in (OWNER, OTHER):
            played.join(name, data=DATA_SET)
            played.start_client(name)
        chaos = Chaos(played, seed=seed)
        chaos.play(kills)
        books = chaos.auditor.check()
    problems = [problem for kill in chaos.kills for problem in kill.after.problems]
    problems += books.problems
    rounds = sum(min(ROUNDS, kills - start) for start in range(0, kills, ROUNDS))
    if sum(chaos.runs.values()) != rounds:
        problems.append(f"{rounds} rounds cost {sum(chaos.runs.values())} reserves")
    return {
        "verdict": "wrong" if problems else "ok",
        "problems": problems,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "rounds": rounds,
        "reserves_by_run": chaos.runs,
        "books": dataclasses.asdict(books),
        "kills": [dataclasses.asdict(kill) for kill in chaos.kills],
    }


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often (200)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills at random (1)")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"), help="the result's file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = play_chaos(Path(folder), kills=arguments.kills, seed=arguments.seed)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(  # noqa: T201 - a command
        f"{len(result['kills'])} kills in {result['seconds']} s: {result['verdict']}; "
        f"{result['books']['seen']} releases seen, epsilon {result['books']['epsilon_seen']:.6g}, "
        f"by the ledger {result['books']['epsilon']:.6g}; {arguments.out}"
    )
    for problem in result["problems"]:
        print(problem)  # noqa: T201
    return 0 if result["verdict"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
