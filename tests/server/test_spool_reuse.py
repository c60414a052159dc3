"""The spool's files that are written again: after a kill at any moment no old byte is a new one."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError
from tacit.core.spares import SMALLEST_BYTES
from tacit.protos.payload import map_payload
from tacit.protos.pipe import Pipe
from tacit.server.pipe_port import PipePort
from tacit.server.spool import SEND_SPARE, Space, Spool

if TYPE_CHECKING:
    from pathlib import Path

SIZE = SMALLEST_BYTES + 5  # not a whole number of pages
OLD, NEW = b"\x01" * SIZE, b"\x02" * SIZE
SHA = hashlib.sha256(NEW).digest()


def spool_with_a_spare(folder: Path, *, limit: int = 1 << 30) -> Spool:
    """Return a spool in which one whole reply was received and forgotten."""
    spool = Spool(folder, Space(limit_bytes=limit, keep_free_bytes=0), durable=False)
    receive(spool, "old", OLD)
    spool.remove("reply-old.bin")
    return spool


def receive(spool: Spool, key: str, data: bytes) -> None:
    staged = spool.stage(key, size=len(data), sha256=hashlib.sha256(data).digest())
    writer = staged.begin()
    staged.write(writer, staged.offset, memoryview(data)[staged.offset :])
    staged.verify_complete()
    spool.finish(key, staged, f"reply-{key}.bin")


def killed(spool: Spool) -> Spool:
    """Return the spool of the next process: like a kill, closing writes nothing."""
    spool.close()
    return Spool(spool.folder, Space(limit_bytes=1 << 30, keep_free_bytes=0), durable=False)


def test_the_next_reply_is_written_into_the_last_ones_file(tmp_path: Path) -> None:
    """The same pages serve; what is read is the new payload alone."""
    spool = spool_with_a_spare(tmp_path / "s")
    (spare,) = spool.folder.iterdir()
    inode = spare.stat().st_ino
    receive(spool, "new", NEW[:-3])
    assert (spool.folder / "reply-new.bin").read_bytes() == NEW[:-3]
    assert (spool.folder / "reply-new.bin").stat().st_ino == inode


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, SIZE), max_size=4), size=st.integers(SMALLEST_BYTES, SIZE))
def test_a_daemon_killed_at_any_byte_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], size: int
) -> None:
    """The offset is what was received, not the size of a file full of old bytes."""
    spool, before, data = spool_with_a_spare(tmp_path_factory.mktemp("s") / "s"), 0, NEW[:size]
    sha256 = hashlib.sha256(data).digest()
    spool.stage("m", size=size, sha256=sha256)  # the spare has its new name, and nothing more
    for cut in sorted(min(cut, size) for cut in cuts):
        staged = spool.stage("m", size=size, sha256=sha256)
        staged.write(staged.begin(), before, memoryview(data)[before:cut])
        before, spool = cut, killed(spool)
        assert spool.staged_bytes("m") == before
    staged = spool.stage("m", size=size, sha256=sha256)
    staged.write(staged.begin(), before, memoryview(data)[before:])
    staged.verify_complete()
    spool.finish("m", staged, "reply-m.bin")
    assert (spool.folder / "reply-m.bin").read_bytes() == data
    assert spool.is_whole("reply-m.bin", size=size, sha256=sha256)


def test_a_daemon_killed_before_the_last_rename_asks_again(tmp_path: Path) -> None:
    """A file that has its length but not its name counts as nothing, whatever it holds."""
    spool = spool_with_a_spare(tmp_path / "s")
    staged = spool.stage("m", size=SIZE, sha256=SHA)
    staged.write(staged.begin(), 0, memoryview(NEW))
    os.truncate(staged.path, SIZE)
    assert killed(spool).staged_bytes("m") == 0


def test_what_a_killed_daemon_left_is_hashed(tmp_path: Path) -> None:
    """A power cut may have lost it: old bytes in its place are found, with journal = kill too."""
    spool = spool_with_a_spare(tmp_path / "s")
    staged = spool.stage("m", size=SIZE, sha256=SHA)
    staged.write(staged.begin(), 0, memoryview(NEW)[:4096])
    with staged.path.open("r+b") as file:
        file.write(OLD[:4096])
    spool = killed(spool)
    staged = spool.stage("m", size=SIZE, sha256=SHA)
    staged.write(staged.begin(), 4096, memoryview(NEW)[4096:])
    with pytest.raises(ProtocolError, match="E-UPLOAD-DIGEST"):
        staged.verify_complete()
    spool.close()


def test_spares_do_not_outlive_their_process(tmp_path: Path) -> None:
    """The next process knows nothing of them, and accounts for nothing."""
    spool = spool_with_a_spare(tmp_path / "s")
    assert [path.name for path in spool.folder.iterdir()] == ["spare-1.bin"]
    killed(spool)
    assert list(spool.folder.iterdir()) == []


def test_spares_make_way_for_what_is_wanted(tmp_path: Path) -> None:
    """A spare takes no room from an upload that the limit would admit."""
    spool = spool_with_a_spare(tmp_path / "s", limit=SIZE + 100)
    staged = spool.stage("m", size=SIZE + 50, sha256=SHA)
    assert list(spool.folder.iterdir()) == []
    assert staged.offset == 0


def test_a_reply_that_is_still_mapped_keeps_its_bytes(tmp_path: Path) -> None:
    """A strategy may hold a reply's array beyond the checkpoint (Krum's weights are one)."""
    spool = Spool(tmp_path / "s", Space(limit_bytes=1 << 30, keep_free_bytes=0), durable=False)
    receive(spool, "old", OLD)
    view = map_payload(spool.path("reply-old.bin"))
    spool.remove("reply-old.bin")
    receive(spool, "new", NEW)
    assert bytes(view) == OLD
    assert spool.path("reply-new.bin").read_bytes() == NEW


def test_nothing_is_written_again_where_power_cuts_count(tmp_path: Path) -> None:
    """With journal = power old bytes never lie under a new name."""
    spool = Spool(tmp_path / "s", Space(limit_bytes=1 << 30, keep_free_bytes=0), durable=True)
    receive(spool, "old", OLD)
    (spool.folder / "send-1.bin").write_bytes(OLD)
    spool.adopt("send-1.bin", "send-2.bin")
    for name in ("reply-old.bin", "send-2.bin"):
        spool.remove(name)
    assert list(spool.folder.iterdir()) == []


@pytest.mark.parametrize("reading", [False, True])
def test_the_runs_worker_writes_its_next_payload_into_the_last_ones_file(
    tmp_path: Path, *, reading: bool
) -> None:
    """Unless a node is still fetching the last one, which then stays as it was."""
    spool = Spool(tmp_path / "s", Space(limit_bytes=1 << 30, keep_free_bytes=0), durable=False)
    ours, theirs = socket.socketpair()
    port = PipePort(Pipe(ours), spool.folder)
    port.store("out-1.bin", [OLD])
    spool.adopt("out-1.bin", "send-1.bin")
    inode = spool.path("send-1.bin").stat().st_ino
    view = map_payload(spool.path("send-1.bin")) if reading else memoryview(OLD)
    spool.remove("send-1.bin")
    assert spool.exists(SEND_SPARE)
    port.store("out-2.bin", [NEW[:-9]])
    assert bytes(view) == OLD
    assert not spool.exists(SEND_SPARE)
    assert spool.path("out-2.bin").read_bytes() == NEW[:-9]
    assert (spool.path("out-2.bin").stat().st_ino == inode) is not reading
    for end in (ours, theirs):
        end.close()
