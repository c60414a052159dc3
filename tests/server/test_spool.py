"""Payload files: staged, resumed, checked, limited."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError, UnavailableError
from tacit.server.spool import Space, Spool

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).digest()


def space(limit: int = 1 << 20) -> Space:
    return Space(limit_bytes=limit, keep_free_bytes=0)


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6))
def test_any_division_into_streams_and_chunks_gives_the_same_payload(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    """Each cut is a broken stream; some are followed by a new process that finds the file."""
    folder = tmp_path_factory.mktemp("spool")
    spool, before = Spool(folder, space(), durable=True), 0
    for number, cut in enumerate(sorted(cuts)):
        staged = spool.stage("m", size=len(DATA), sha256=SHA)
        staged.write(staged.begin(), before, memoryview(DATA)[before:cut])
        before = cut
        if number % 2:
            spool.close()
            spool = Spool(folder, space(), durable=True)
    assert spool.staged_bytes("m") == before
    staged = spool.stage("m", size=len(DATA), sha256=SHA)
    staged.write(staged.begin(), before, memoryview(DATA)[before:])
    staged.verify_complete()
    spool.finish("m", staged, "reply.bin")
    assert (folder / "reply.bin").read_bytes() == DATA
    assert spool.is_whole("reply.bin", size=len(DATA), sha256=SHA)


def test_an_older_stream_can_no_longer_write(tmp_path: Path) -> None:
    """A connection that died without anybody noticing must not mix its bytes in."""
    staged = Spool(tmp_path / "s", space(), durable=True).stage("m", size=len(DATA), sha256=SHA)
    first = staged.begin()
    staged.begin()
    with pytest.raises(ProtocolError, match="E-UPLOAD-SUPERSEDED"):
        staged.write(first, 0, memoryview(DATA))
    staged.close()


def test_another_payload_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """What was staged for another digest is dropped, and cannot be finished."""
    spool = Spool(tmp_path / "s", space(), durable=True)
    first = spool.stage("m", size=len(DATA), sha256=SHA)
    first.write(first.begin(), 0, memoryview(DATA))
    second = spool.stage("m", size=10, sha256=bytes(32))
    second.begin()
    with pytest.raises(ProtocolError, match="E-UPLOAD-SUPERSEDED"):
        spool.finish("m", first, "reply.bin")
    assert spool.staged_bytes("m") == 0
    spool.clear()


def test_the_limit_is_kept_before_the_first_byte(tmp_path: Path) -> None:
    """Space is promised once per payload, and given back when it is dropped."""
    room = space(limit=len(DATA) + 100)
    spool = Spool(tmp_path / "s", room, durable=True)
    spool.stage("a", size=len(DATA), sha256=SHA)
    spool.stage("a", size=len(DATA), sha256=SHA)
    with pytest.raises(UnavailableError, match="E-SPOOL-FULL"):
        spool.stage("b", size=101, sha256=SHA)
    spool.discard("a")
    assert room.used_bytes == 0
    spool.stage("b", size=101, sha256=SHA)


def test_a_disk_without_room_is_a_named_error(tmp_path: Path) -> None:
    """The disk keeps what the journal needs."""
    room = Space(limit_bytes=1 << 62, keep_free_bytes=1 << 61)
    with pytest.raises(UnavailableError, match="E-DISK-FULL"):
        Spool(tmp_path / "s", room, durable=True).stage("m", size=1, sha256=SHA)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "x" * 200, "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    """A worker names its payloads; none of them is a path."""
    with pytest.raises(ProtocolError, match="E-SPOOL-NAME"):
        Spool(tmp_path / "s", space(), durable=True).path(name)


def test_only_wanted_files_are_kept(tmp_path: Path) -> None:
    """Files nobody refers to go; uploads in progress stay."""
    spool = Spool(tmp_path / "s", space(), durable=True)
    for name in ("a.bin", "b.bin"):
        (spool.folder / name).write_bytes(DATA)
    staged = spool.stage("m", size=len(DATA), sha256=SHA)
    staged.write(staged.begin(), 0, memoryview(DATA)[:7])
    spool.keep_only({"b.bin"})
    assert sorted(path.name[:3] for path in spool.folder.iterdir()) == ["b.b", "in-"]
    spool.close()


def test_a_damaged_payload_is_not_whole(tmp_path: Path) -> None:
    """A changed byte, another length, or no file at all."""
    spool = Spool(tmp_path / "s", space(), durable=True)
    path = spool.folder / "a.bin"
    assert not spool.is_whole("a.bin", size=len(DATA), sha256=SHA)
    path.write_bytes(DATA[:-1])
    assert not spool.is_whole("a.bin", size=len(DATA), sha256=SHA)
    path.write_bytes(bytes([1]) + DATA[1:])
    assert not spool.is_whole("a.bin", size=len(DATA), sha256=SHA)
    path.write_bytes(DATA)
    assert spool.is_whole("a.bin", size=len(DATA), sha256=SHA)
