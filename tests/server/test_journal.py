"""The journal and its desks over a real database and spool, without sockets or processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.core.events import EventKind
from tacit.core.specification import (
    AppSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
)
from tacit.protos import fleet_pb2, pipe_pb2
from tacit.protos.records_pb2 import ArrayEntry, Manifest, Record
from tacit.server.catalogue import RunRecord, RunStatus, add_run, events_after
from tacit.server.configuration import LimitsConfig
from tacit.server.grid_desk import GridDesk
from tacit.server.journal import JournalSurroundings, RunJournal
from tacit.server.ledger_heads import LedgerHeads
from tacit.server.reply_desk import ReplyDesk
from tacit.server.spool import Space, Spool
from tacit.server.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = "r-00000001"
IDS = [f"{RUN}.00000{number}" for number in (1, 2)]
RECORD = RunRecord(
    run_id=RUN,
    name="x",
    status=RunStatus.RUNNING,
    round=0,
    rounds=1,
    submitted_at_s=0,
    started_at_s=0,
    ended_at_s=0,
    submitted_by="",
    reason="",
    specification=b"",
    specification_sha256=b"",
)


def manifest(payload: bytes) -> Manifest:
    entry = ArrayEntry(name="w", dtype="float32", shape=[len(payload) // 4], bytes=len(payload))
    entry.stype = "numpy.ndarray"
    return Manifest(
        records=[Record(key="arrays", kind=Record.ARRAYS, arrays=[entry])],
        payload_bytes=len(payload),
        payload_sha256=hashlib.sha256(payload).digest(),
    )


def specification(mode: PrivacyMode) -> RunSpec:
    """A run whose replies carry the model alone."""
    return RunSpec(
        name="x",
        privacy=PrivacySpec(mode=mode),
        participation=ParticipationSpec(rounds=1),
        app=AppSpec(client="a.b:app"),
        results={"train": ReplySpec()},
    )


@dataclass
class Desk:
    """One opened journal with its desks, as a daemon would build them."""

    root: Path
    store: Store
    now: float = 0.0
    mode: PrivacyMode = PrivacyMode.NONE
    told: list[tuple[int, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        space = Space(limit_bytes=1 << 20, keep_free_bytes=0)
        around = JournalSurroundings(
            store=self.store,
            limits=LimitsConfig(),
            durable=False,
            grace_s=30,
            tell=self._tell,
            member=str,
            directory=dict,
            keep_head=LedgerHeads(self.store, now=lambda: 0.0).keep,
            changed=lambda _run: None,
            now=lambda: 1000.0 + self.now,
            clock=lambda: self.now,
        )
        self.journal = RunJournal(
            RUN,
            quorum=2,
            spool=Spool(self.root / "spool", space, durable=False),
            surroundings=around,
        )
        self.replies = ReplyDesk(self.journal, specification(self.mode))
        self.grid = GridDesk(self.journal)
        self.journal.load()
        for node in (1, 2):
            self.journal.observe_node(node, approved=True, connected=True)

    def _tell(self, node: int, task: fleet_pb2.Task) -> None:
        kind = str(task.WhichOneof("task"))
        self.told.append((node, kind, getattr(task, kind).message_id))

    async def push(self, payload: bytes = b"send" * 10, name: str = "out-1.bin") -> None:
        self.journal.spool.path(name).write_bytes(payload)
        pushed = pipe_pb2.GridPush()
        for node, message_id in enumerate(IDS, 1):
            head = fleet_pb2.InstructionHead(
                run_id=RUN,
                message_id=message_id,
                group_id="1",
                message_type="train",
                ttl_s=60,
                manifest=manifest(payload),
            )
            pushed.messages.add(instruction=head, node_id=node, payload_name=name)
        await self.grid.answer(pipe_pb2.GridRequest(call_id=1, push=pushed))

    def head(self, message_id: str, payload: bytes) -> fleet_pb2.ReplyHead:
        return fleet_pb2.ReplyHead(run_id=RUN, message_id=message_id, manifest=manifest(payload))

    async def reply(self, node: int, payload: bytes = b"\0\0\0\0" * 10) -> fleet_pb2.Receipt:
        head = self.head(IDS[node - 1], payload)
        step = self.replies.begin_reply(node, head)
        if isinstance(step, fleet_pb2.Receipt):
            return step
        step.write(step.begin(), 0, memoryview(payload))
        return await self.replies.commit_reply(node, head, step)

    def pull(self) -> asyncio.Future[pipe_pb2.GridReply]:
        pull = pipe_pb2.GridPull(message_ids=IDS, timeout_s=0, wait=True)
        return asyncio.ensure_future(self.grid.answer(pipe_pb2.GridRequest(call_id=2, pull=pull)))

    def kinds(self) -> list[str]:
        return [event.kind.value for event in events_after(self.store, RUN, 0)]

    def again(self) -> Desk:
        """Open the same journal as a new process would."""
        self.journal.spool.close()
        return Desk(self.root, self.store)


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Desk]:
    with open_store(root / "s.sqlite3") as store:
        with store.transaction() as connection:
            add_run(connection, RECORD)
        yield Desk(root, store)


def test_nodes_hear_of_messages_and_the_worker_of_replies(tmp_path: Path) -> None:
    """Push, both replies, pull: the answers name their payloads in the spool."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        assert desk.told == [(1, "ready", IDS[0]), (2, "ready", IDS[1])]
        pull = desk.pull()
        await desk.reply(1)
        await desk.reply(2)
        results = (await pull).results
        assert [result.node_id for result in results] == [1, 2]
        names = [desk.journal.spool.path(result.payload_name) for result in results]
        assert all(path.read_bytes() == b"\0\0\0\0" * 10 for path in names)
        assert desk.kinds() == ["reply_received", "reply_received"]

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_new_process_holds_what_the_old_one_stored(tmp_path: Path) -> None:
    """The push is known, the first reply is there, the second is still wanted."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        await desk.reply(1)
        later = desk.again()
        assert later.journal.verify_payloads() == []
        await later.push(name="out-2.bin")
        assert later.told == []
        assert later.journal.open_messages(2) == [IDS[1]]
        assert (await later.reply(1)).repeated
        assert not (await later.reply(2)).repeated
        assert len((await later.pull()).results) == 2

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


@pytest.mark.parametrize("damage", [b"", b"other bytes of any length", None])
def test_a_receipt_whose_payload_is_damaged_is_void(tmp_path: Path, damage: bytes | None) -> None:
    """After a loss of power the node is asked again, and its persisted update counts."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        await desk.reply(1)
        path = desk.journal.spool.path(f"reply-{IDS[0]}.bin")
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        later = desk.again()
        assert later.journal.verify_payloads() == [IDS[0]]
        status = later.replies.submit_status(1, IDS[0])
        assert (status.state, status.offset) == (fleet_pb2.SubmitStatusReply.WANTED, 0)
        assert not (await later.reply(1)).repeated

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_lost_instruction_is_written_again_by_the_replay(tmp_path: Path) -> None:
    """The payload that was sent is damaged: nodes wait until the worker has pushed it again."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        _, path = desk.replies.fetch(1, IDS[0])
        assert path is not None
        path.write_bytes(b"damaged")
        later = desk.again()
        later.journal.verify_payloads()
        assert not path.exists()
        await later.push()
        assert path.read_bytes() == b"send" * 10

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_worker_that_says_something_else_starts_a_new_attempt(tmp_path: Path) -> None:
    """Nodes are told to drop the old message and to fetch the new one, under another id."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        await desk.reply(1)
        desk.told.clear()
        await desk.push(payload=b"else" * 10, name="out-2.bin")
        assert desk.told[:2] == [(1, "closed", IDS[0]), (1, "ready", IDS[0] + ".2")]
        with pytest.raises(ProtocolError, match="E-MESSAGE-CLOSED"):
            await desk.reply(1)
        head, _ = desk.replies.fetch(1, IDS[0] + ".2")
        assert (head.attempt, head.manifest) == (2, manifest(b"else" * 10))
        later = desk.again()
        assert later.journal.open_messages(1) == [IDS[0] + ".2"]

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_checkpoint_forgets_messages_and_payloads(tmp_path: Path) -> None:
    """Nothing of the round is left in the spool, and nodes hear that it is committed."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        await desk.reply(1)
        await desk.reply(2)
        desk.told.clear()
        point = pipe_pb2.GridCheckpoint(round=1, next_sequence=3, name="000001")
        await desk.grid.answer(pipe_pb2.GridRequest(call_id=3, checkpoint=point))
        assert desk.told == [(1, "closed", IDS[0]), (2, "closed", IDS[1])]
        assert list(desk.journal.spool.folder.iterdir()) == []
        assert desk.again().journal.checkpointed.name == "000001"

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_full_database_tells_nobody_anything_that_was_not_stored(tmp_path: Path) -> None:
    """The reply is refused and can be sent again; the waiting pull survives."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        pull = desk.pull()
        await asyncio.sleep(0)
        await desk.reply(1)
        with desk.store.reading() as connection:
            pages = connection.execute(sa.text("PRAGMA page_count")).scalar()
            connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
        for size in (4000, 400, 0):
            with contextlib.suppress(UnavailableError):
                for _ in range(200):
                    desk.journal.note(EventKind.NODE_DECIDED, {"filler": "x" * size})
        with pytest.raises(UnavailableError, match="E-DISK-FULL"):
            await desk.reply(2)
        assert not pull.done()
        with desk.store.reading() as connection:
            connection.execute(sa.text("PRAGMA max_page_count = 100000"))
        assert not (await desk.reply(2)).repeated
        assert len((await pull).results) == 2

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_two_streams_of_one_message_never_mix(tmp_path: Path) -> None:
    """The second takes over; what the first still sends is refused."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        payload = b"\0\0\0\0" * 10
        head = desk.head(IDS[0], payload)
        first = desk.replies.begin_reply(1, head)
        second = desk.replies.begin_reply(1, head)
        assert not isinstance(first, fleet_pb2.Receipt)
        assert first is second
        old, new = first.begin(), first.begin()
        with pytest.raises(ProtocolError, match="E-UPLOAD-SUPERSEDED"):
            first.write(old, 0, memoryview(payload))
        first.write(new, 0, memoryview(payload))
        assert not (await desk.replies.commit_reply(1, head, first)).repeated

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))


def test_a_message_that_ends_during_its_upload_is_closed(tmp_path: Path) -> None:
    """The node is revoked while its bytes arrive: nothing of them stays."""

    async def scenario(desk: Desk) -> None:
        await desk.push()
        payload = b"\0\0\0\0" * 10
        head = desk.head(IDS[0], payload)
        staged = desk.replies.begin_reply(1, head)
        assert not isinstance(staged, fleet_pb2.Receipt)
        staged.write(staged.begin(), 0, memoryview(payload))
        desk.journal.drop_node(1, "E-MEMBER-REVOKED")
        with pytest.raises(ProtocolError, match="E-MESSAGE-CLOSED"):
            await desk.replies.commit_reply(1, head, staged)
        assert not list(desk.journal.spool.folder.glob("in-*"))

    with opened(tmp_path) as desk:
        asyncio.run(scenario(desk))
