"""What the node remembers, and what it copies before it trusts."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tacit.client.approvals import Verdict
from tacit.client.outbox import Outbox
from tacit.client.payload import (
    BufferPayload,
    DescriptorPayload,
    InstructionFiles,
    anonymous_file,
    open_view,
    reader_of,
)
from tacit.client.status import Connection, as_json, read_status
from tacit.client.store import Decision, OutboxEntry, RunRecord, Store, open_store
from tacit.core.errors import ProtocolError, RefusedError, UnavailableError
from tacit.core.spares import SMALLEST_BYTES
from tacit.core.specification import canonical_json, specification_sha256
from tacit.protos.payload import map_payload
from tests.client.fakes import RUN, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_record() -> RunRecord:
    canonical = canonical_json(make_spec())
    return RunRecord(
        run_id=RUN,
        name="heart",
        specification=canonical,
        specification_sha256=specification_sha256(canonical),
        app_sha256=b"a",
        verdict=Verdict.APPROVED,
        code="",
        reason="the policy itself",
        decided_by="rule",
        epsilon=1.0,
        offered_at_s=1.0,
        decided_at_s=2.0,
    )


def entry(number: int = 1) -> OutboxEntry:
    return OutboxEntry(
        message_id=f"{RUN}.{number:06d}",
        run_id=RUN,
        attempt=1,
        instruction_sha256=b"i",
        head=b"h",
        payload_file="f",
        payload_bytes=3,
        stored_at_s=3.0,
    )


def released(number: int = 1) -> Decision:
    message_id = f"{RUN}.{number:06d}"
    return Decision(
        at_s=3.0, run_id=RUN, message_id=message_id, message_type="train", outcome="released"
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "client.sqlite")
    opened.save_run(run_record())
    yield opened
    opened.close()


def test_everything_is_there_after_reopening(tmp_path: Path, store: Store) -> None:
    """Runs, replies, releases and decisions are durable when the method returns."""
    store.save_reply(entry(), released(), state_manifest=b"m", state_file="s")
    again = open_store(tmp_path / "client.sqlite")
    run = again.load_run(RUN)
    assert run is not None
    assert (run.verdict, run.state_manifest, run.state_file) == (Verdict.APPROVED, b"m", "s")
    assert again.list_replies() == [entry()]
    assert again.count_releases(RUN, "train") == 1
    assert again.list_decisions(limit=5) == [released()]
    again.close()


def test_store_belongs_to_its_owner_alone(tmp_path: Path, store: Store) -> None:
    """Nobody else can read the store."""
    del store
    mode = stat.S_IMODE((tmp_path / "client.sqlite").stat().st_mode)
    assert mode == 0o600


def test_release_counts_once_per_attempt_and_survives_forgetting(store: Store) -> None:
    """Saving the same reply twice is one release; forgetting the reply takes none back."""
    store.save_reply(entry(), released())
    store.save_reply(entry(), released())
    store.save_reply(entry(2), released(2))
    store.forget_message(entry().message_id)
    assert store.count_releases(RUN, "train") == 2
    assert store.load_reply(entry().message_id) is None


def test_failed_transaction_leaves_nothing(store: Store) -> None:
    """A reply of an unknown run is stored neither as reply nor as release."""
    stranger = OutboxEntry(**{**entry().__dict__, "run_id": "r-ffffffff"})
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.save_reply(stranger, released())
    assert store.list_replies() == []
    assert store.count_releases(RUN, "train") == 0


def test_ended_run_keeps_its_log_and_loses_its_replies(store: Store) -> None:
    """After the end only what the owner may want to see is left."""
    store.save_reply(entry(), released())
    store.noise_key(entry().message_id, 1, fresh=lambda: b"k" * 32)
    assert store.end_run(RUN, "stopped", "enough") == [entry()]
    ended = store.load_run(RUN)
    assert ended is not None
    assert (ended.ended, ended.ended_reason) == ("stopped", "enough")
    assert store.list_replies() == []
    assert store.noise_key(entry().message_id, 1, fresh=lambda: b"n" * 32) == b"n" * 32
    assert len(store.list_decisions(limit=5)) == 1


def test_decision_log_keeps_the_latest_lines(store: Store) -> None:
    """The log has a bound."""
    for number in range(20):
        store.log_decision(released(number), keep=5)
    numbers = [line.message_id[-2:] for line in store.list_decisions(limit=50)]
    assert numbers == ["19", "18", "17", "16", "15"]


def test_store_of_a_later_version_is_not_touched(tmp_path: Path) -> None:
    """An older program refuses instead of guessing."""
    path = tmp_path / "client.sqlite"
    opened = open_store(path)
    opened._connection.execute("PRAGMA user_version = 99")
    opened.close()
    with pytest.raises(UnavailableError) as caught:
        open_store(path)
    assert caught.value.code == "E-STORE-VERSION"


def test_store_of_the_version_before_is_taken_up(tmp_path: Path) -> None:
    """A store that knew no reason for an end keeps its runs, and can hold one from now on."""
    path = tmp_path / "client.sqlite"
    opened = open_store(path)
    opened.save_run(run_record())
    opened._connection.execute("ALTER TABLE runs DROP COLUMN ended_reason")
    for table in ("ledger_heads", "repeats"):
        opened._connection.execute(f"DROP TABLE {table}")
    opened._connection.execute("PRAGMA user_version = 1")
    opened.close()
    opened = open_store(path)
    assert opened.load_run(RUN) == run_record()
    opened.end_run(RUN, "stopped", "enough")
    ended = opened.load_run(RUN)
    opened.close()
    assert ended is not None
    assert ended.ended_reason == "enough"


def test_status_tells_runs_releases_and_reasons(store: Store) -> None:
    """What an owner sees comes from the store alone, and is JSON."""
    store.save_reply(entry(), released())
    connection = Connection(state="stopped")
    status = as_json(read_status(store, member="a", node_id=7, connection=connection))
    assert status["runs"][0]["released"] == 1
    assert status["runs"][0]["mode"] == "record-local"
    assert status["outbox"][0]["received_at_s"] is None
    assert status["decisions"][0]["outcome"] == "released"


def test_outbox_copies_before_anything_is_checked(tmp_path: Path) -> None:
    """Changing the worker's file afterwards does not change what is sent."""
    outbox = Outbox(tmp_path / "outbox", durable=True)
    descriptor = anonymous_file("test", folder=tmp_path)
    os.write(descriptor, b"first")
    stored = outbox.store(DescriptorPayload(descriptor), "reply", max_bytes=10)
    os.pwrite(descriptor, b"later", 0)
    os.close(descriptor)
    assert bytes(outbox.open_view("reply")) == b"first"
    assert stored.size == 5


def test_outbox_takes_no_more_than_the_owner_allows(tmp_path: Path) -> None:
    """A reply above the limit is refused and leaves no file."""
    outbox = Outbox(tmp_path / "outbox", durable=False)
    with pytest.raises(RefusedError):
        outbox.store(BufferPayload((memoryview(b"four!"),)), "reply", max_bytes=4)
    assert list(outbox.folder.iterdir()) == []


def test_descriptor_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A worker cannot make the daemon wait on a pipe."""
    outbox = Outbox(tmp_path / "outbox", durable=False)
    reading, writing = os.pipe()
    try:
        with pytest.raises(ProtocolError):
            outbox.store(DescriptorPayload(reading), "reply", max_bytes=4)
    finally:
        os.close(reading)
        os.close(writing)


def test_shrinking_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    """A file that is cut while it is read ends in an error of ours."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20))
    descriptor = os.open(path, os.O_RDWR)
    pieces = DescriptorPayload(descriptor).pieces()
    next(pieces)
    os.ftruncate(descriptor, 1 << 20)
    with pytest.raises(ProtocolError):
        list(pieces)
    os.close(descriptor)


def test_sweep_removes_what_no_entry_names(tmp_path: Path) -> None:
    """The rest of a crash is removed; stored replies stay."""
    outbox = Outbox(tmp_path / "outbox", durable=False)
    for name in ("kept", "left-over"):
        outbox.store(BufferPayload((memoryview(b"x"),)), name, max_bytes=4)
    outbox.sweep({"kept"})
    assert [path.name for path in outbox.folder.iterdir()] == ["kept"]


def test_buffers_are_read_as_one_payload() -> None:
    """Segments of any shape are bytes in order."""
    payload = BufferPayload((memoryview(b"ab"), memoryview(b""), memoryview(b"cd")))
    assert payload.size == 4
    assert bytes(open_view(payload)) == b"abcd"


LARGE = SMALLEST_BYTES + 7


def reused_outbox(folder: Path) -> tuple[Outbox, int]:
    """Return an outbox whose first reply was committed, and the inode of its file."""
    outbox = Outbox(folder, durable=False, spares=1)
    outbox.store(BufferPayload((memoryview(b"o" * LARGE),)), "old", max_bytes=1 << 30)
    inode = (folder / "old").stat().st_ino
    outbox.remove("old")
    return outbox, inode


def test_a_committed_replys_file_serves_for_the_next(tmp_path: Path) -> None:
    """What is sent is the new reply, to its last byte, though it is shorter."""
    outbox, inode = reused_outbox(tmp_path / "outbox")
    data = b"n" * (LARGE - 3)
    stored = outbox.store(BufferPayload((memoryview(data),)), "new", max_bytes=1 << 30)
    assert bytes(outbox.open_view("new")) == data
    assert (stored.size, stored.sha256) == (len(data), hashlib.sha256(data).digest())
    assert (outbox.folder / "new").stat().st_ino == inode


def test_a_reply_that_is_still_being_sent_keeps_its_bytes(tmp_path: Path) -> None:
    """The next reply gets a file of its own."""
    outbox = Outbox(tmp_path / "outbox", durable=False, spares=1)
    outbox.store(BufferPayload((memoryview(b"o" * LARGE),)), "old", max_bytes=1 << 30)
    view = outbox.open_view("old")
    outbox.remove("old")
    outbox.store(BufferPayload((memoryview(b"n" * LARGE),)), "new", max_bytes=1 << 30)
    assert bytes(view) == b"o" * LARGE
    assert bytes(outbox.open_view("new")) == b"n" * LARGE


def test_what_a_kill_leaves_half_written_is_swept(tmp_path: Path) -> None:
    """A file under its new name with old bytes in it is named by no entry of the store."""
    outbox, _ = reused_outbox(tmp_path / "outbox")
    (spare,) = outbox.folder.iterdir()
    spare.rename(outbox.folder / "half")  # as far as a killed daemon came
    again = Outbox(outbox.folder, durable=False, spares=1)
    again.sweep(set())
    assert list(again.folder.iterdir()) == []


def test_what_an_earlier_process_stored_is_compared_with_its_digest(tmp_path: Path) -> None:
    """After a power cut old bytes may stand under a new name: they are not sent."""
    outbox, _ = reused_outbox(tmp_path / "outbox")
    data = b"n" * LARGE
    stored = outbox.store(BufferPayload((memoryview(data),)), "new", max_bytes=1 << 30)
    again = Outbox(outbox.folder, durable=False, spares=1)
    again.verify("new", again.open_view("new"), stored.sha256)
    (again.folder / "new").write_bytes(b"n" * (LARGE - 1) + b"o")
    with pytest.raises(ProtocolError, match="E-OUTBOX-DAMAGED"):
        again.verify("new", again.open_view("new"), stored.sha256)


def test_an_instruction_file_is_used_again_when_nobody_reads_it() -> None:
    """An app that keeps an array of one instruction does not see the next one in it."""
    files = InstructionFiles()
    first = files.take("r")
    os.pwrite(first, b"o" * 4096, 0)
    reader = reader_of(first)
    view = map_payload(reader)
    os.close(reader)
    files.give_back("r", first)
    second = files.take("r")
    assert not same_file(second, view)
    os.pwrite(second, b"n" * 4096, 0)
    assert bytes(view) == b"o" * 4096
    files.give_back("r", second)
    inode = os.fstat(second).st_ino
    third = files.take("r")
    assert os.fstat(third).st_ino == inode
    files.give_back("r", third)
    files.close()


def test_the_workers_end_of_an_instruction_is_read_only() -> None:
    """What the daemon writes next into the same file is not the worker's to change."""
    descriptor = anonymous_file("test", folder=Path())
    os.write(descriptor, b"instruction")
    reader = reader_of(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reader, b"x")
    for each in (reader, descriptor):
        os.close(each)


def test_runs_do_not_share_instruction_files() -> None:
    """Each run's app is as untrusted as any: it gets no file that another run's app has seen."""
    files = InstructionFiles()
    first = files.take("r1")
    files.give_back("r1", first)
    other = files.take("r2")
    assert other != first
    files.give_back("r2", other)
    files.close()


def same_file(descriptor: int, view: memoryview) -> bool:
    """Tell whether a byte written to a file shows in a mapping."""
    before = view[0]
    os.pwrite(descriptor, bytes([before ^ 1]), 0)
    return view[0] != before
