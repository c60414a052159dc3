"""A ledger that was tampered with, cut, copied or replaced is found, and the entry is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import ProtocolError, TacitError, TrustError
from tacit.core.plain import plain
from tacit.privacy.ledger import LEDGER_NAME
from tacit.privacy.ledger_head import (
    Head,
    SignedHead,
    signed_head_from,
    verify_head,
    verify_successor,
)
from tests.privacy.ledgers import PUBLIC, charge, opened, tampering

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of six entries: begin, open and four reserves."""
    path = tmp_path / LEDGER_NAME
    with opened(path) as ledger:
        for number in range(1, 5):
            ledger.reserve(charge(number))
    return path


def problem_of(path: Path) -> TrustError:
    """Return what is found, after seeing that nothing can be appended and much can be read."""
    with opened(path, terms=None) as ledger:
        found = ledger.verify().problem
        assert found is not None
        assert found.code == "E-LEDGER-CORRUPT"
        with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
            ledger.reserve(charge(9))
        with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
            ledger.head()
        assert len(ledger.account("heart").charges) == len(ledger.entries()) - 2
        return found


@pytest.mark.parametrize("column", ["previous", "content", "hash"])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_flipped_byte_is_found_in_every_column(path: Path, column: str, place: int) -> None:
    """One byte of entry 4 differs: entry 4 is named."""
    with tampering(path) as connection:
        query = f"SELECT {column} FROM entries WHERE sequence = 4"  # noqa: S608 - our column names
        value = bytearray(connection.execute(query).fetchone()[0])
        value[place] ^= 1
        update = f"UPDATE entries SET {column} = ? WHERE sequence = 4"  # noqa: S608
        connection.execute(update, (bytes(value),))
    assert "entry 4" in problem_of(path).message


@pytest.mark.parametrize("number", [40, -4])
def test_a_changed_number_is_found(path: Path, number: int) -> None:
    """An entry that was moved is missing from its place, or the first is not the first."""
    with tampering(path) as connection:
        connection.execute("UPDATE entries SET sequence = ? WHERE sequence = 4", (number,))
    with opened(path, terms=None) as ledger:
        found = ledger.verify().problem
    assert found is not None
    assert f"entry {4 if number > 0 else 1}:" in found.message


def test_a_deleted_middle_entry_is_found(path: Path) -> None:
    """A charge cannot be taken back."""
    with tampering(path) as connection:
        connection.execute("DELETE FROM entries WHERE sequence = 4")
    assert "entry 4: it is missing" in problem_of(path).message


def test_reordered_entries_are_found(path: Path) -> None:
    """Two entries that change places do not fit there."""
    with tampering(path) as connection:
        for old, new in ((4, 99), (5, 4), (99, 5)):
            connection.execute("UPDATE entries SET sequence = ? WHERE sequence = ?", (new, old))
    assert "entry 4" in problem_of(path).message


def test_the_file_itself_refuses_changes(path: Path) -> None:
    """No statement changes or drops a row by mistake."""
    connection = sqlite3.connect(path)
    for statement in ("UPDATE entries SET hash = x'00'", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_truncated_tail_is_found_by_a_kept_head(path: Path) -> None:
    """What others saw must still be there: the first entry that is gone is named."""
    with opened(path) as ledger:
        kept = ledger.head().head
    with tampering(path) as connection:
        connection.execute("DELETE FROM entries WHERE sequence > 4")
    with opened(path) as ledger:
        assert ledger.verify().problem is None
        with pytest.raises(TrustError, match=r"entry 5 .*E-LEDGER-ROLLBACK"):
            ledger.check_against(kept)
        with pytest.raises(TrustError, match="E-LEDGER-ROLLBACK"):
            ledger.restore(kept, reason="a backup")


def test_a_restored_copy_is_found_and_never_lowers_a_head(path: Path) -> None:
    """A backup that lacks nothing may go on, and says so; an older one may not."""
    backup = path.with_name("backup")
    shutil.copy2(path, backup)
    with opened(path) as ledger:
        complete = ledger.head().head
    shutil.copy2(backup, path)
    with opened(path) as ledger:
        entry = ledger.restore(complete, reason="a new disk")
        assert (entry.kind, entry.sequence) == ("restore", complete.count + 1)
        ledger.check_against(complete)
        later = ledger.head().head
    shutil.copy2(backup, path)
    with opened(path) as ledger, pytest.raises(TrustError, match="E-LEDGER-ROLLBACK"):
        ledger.restore(later, reason="again")


def test_a_second_node_on_a_copied_directory_is_found(path: Path) -> None:
    """Two nodes that go on from one copy differ at the first entry after it."""
    copy = path.with_name("copy.sqlite")
    shutil.copy2(path, copy)
    with opened(path) as first, opened(copy) as second:
        first.reserve(charge(7))
        second.reserve(charge(8))
        with pytest.raises(TrustError, match=r"entry 7 .*E-LEDGER-FORK"):
            second.check_against(first.head().head)
        with pytest.raises(TrustError, match="E-LEDGER-FORK"):
            verify_successor(second.head().head, known=first.head().head)
        second.reserve(charge(9))
        verify_successor(second.head().head, known=first.head().head)  # heads alone cannot tell
        with pytest.raises(TrustError, match=r"entry 7 .*E-LEDGER-FORK"):
            second.check_against(first.head().head)


def test_a_replaced_file_is_another_ledger(path: Path) -> None:
    """A new ledger has a new id, however long it is."""
    with opened(path) as ledger:
        kept = ledger.head().head
    path.unlink()
    with opened(path) as ledger, pytest.raises(TrustError, match="E-LEDGER-FORK"):
        ledger.check_against(kept)


def test_a_cut_under_a_running_daemon_is_found(path: Path) -> None:
    """What this process knew must still be there before it appends."""
    with opened(path) as ledger:
        with tampering(path) as connection:
            connection.execute("DELETE FROM entries WHERE sequence > 4")
        with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
            ledger.reserve(charge(9))
        assert ledger.entries()[-1].sequence == 6


def test_what_is_no_ledger_refuses(path: Path) -> None:
    """Another file in its place is not overwritten."""
    path.write_bytes(b"minutes of the ethics committee" * 100)
    with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
        opened(path)


@pytest.mark.parametrize("offset", range(8))
def test_a_flipped_byte_of_the_file_never_passes(path: Path, offset: int) -> None:
    """Wherever a byte of the file flips, it is found, or every entry is as it was."""
    with opened(path) as ledger:
        rows = ledger.rows()
        kept = ledger.head().head
    original = path.read_bytes()
    for position in range(offset * 31, len(original), 257):
        data = bytearray(original)
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        found = ""
        left = rows
        try:
            with opened(path, terms=None, read_only=True) as ledger:
                ledger.check_against(kept)
                left = ledger.rows()
        except TacitError as error:
            found = error.code
        known = ("", "E-LEDGER-CORRUPT", "E-LEDGER-VERSION", "E-LEDGER-UNAVAILABLE")
        assert found in known, position
        assert left == rows, position


def test_a_head_is_signed_by_the_node(path: Path) -> None:
    """Another key, another count or another hash is no head of this node."""
    with opened(path) as ledger:
        signed = ledger.head()
    assert verify_head(signed, PUBLIC) == signed.head
    assert signed.head.count == 6
    again = signed_head_from(json.loads(json.dumps(plain(signed))))
    assert again == signed
    forged = SignedHead(
        head=Head(ledger=signed.head.ledger, count=7, hash=signed.head.hash),
        signature=signed.signature,
    )
    for head, key in ((forged, PUBLIC), (signed, bytes(32))):
        with pytest.raises(TrustError, match="E-LEDGER-SIGNATURE"):
            verify_head(head, key)
    for tree in ({"head": {}}, [], {"signature": "ab"}):
        with pytest.raises(ProtocolError, match="E-LEDGER-HEAD"):
            signed_head_from(tree)


def test_heads_alone_tell_a_shorter_ledger() -> None:
    """A server that keeps heads finds a rollback without seeing an entry."""
    known = Head(ledger="aa", count=5, hash="bb")
    verify_successor(known, known=known)
    with pytest.raises(TrustError, match="E-LEDGER-ROLLBACK"):
        verify_successor(Head(ledger="aa", count=4, hash="cc"), known=known)
    with pytest.raises(TrustError, match="E-LEDGER-FORK"):
        verify_successor(Head(ledger="ab", count=6, hash="cc"), known=known)
