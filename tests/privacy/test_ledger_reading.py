"""A ledger's file is read as far as it goes, and again from the start once others have written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import TrustError
from tacit.privacy import ledger as ledger_module
from tacit.privacy.ledger import LEDGER_NAME
from tacit.privacy.ledger_entries import FIRST_PREVIOUS, link_hash
from tests.privacy.ledgers import charge, opened, tampering

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = 26


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of many pages in one file: nothing of it is in the write-ahead log."""
    path = tmp_path / LEDGER_NAME
    with opened(path) as ledger:
        for number in range(1, ENTRIES - 1):
            ledger.reserve(charge(number))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def test_another_hand_that_changes_an_earlier_entry_is_noticed(path: Path) -> None:
    """A running node walks the chain again before it appends, once anybody else has written."""
    with opened(path) as ledger:
        with tampering(path) as connection:
            connection.execute("UPDATE entries SET content = x'7b7d' WHERE sequence = 4")
        with pytest.raises(TrustError, match=r"entry 4: .*E-LEDGER-CORRUPT"):
            ledger.reserve(charge(90))
        with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
            ledger.preview(charge(91), ledger.account("heart").terms)
        with pytest.raises(TrustError, match="E-LEDGER-CORRUPT"):
            ledger.head()


def test_a_history_that_another_hand_made_anew_is_noticed(path: Path) -> None:
    """The chain may be sound again from the changed entry on: it is not the one that was known."""
    with opened(path) as ledger:
        with tampering(path) as connection:
            rows = connection.execute("SELECT sequence, content FROM entries ORDER BY 1").fetchall()
            previous = FIRST_PREVIOUS
            for sequence, content in rows:
                new = content.replace(b'"r-1.3"', b'"r-1.x"')
                digest = link_hash(sequence, previous, new)
                connection.execute(
                    "UPDATE entries SET previous = ?, content = ?, hash = ? WHERE sequence = ?",
                    (previous, new, digest, sequence),
                )
                previous = digest
        with pytest.raises(TrustError, match=r"entry 5: .*E-LEDGER-CORRUPT"):
            ledger.reserve(charge(90))


def test_a_file_that_was_replaced_under_a_running_node_is_noticed(path: Path) -> None:
    """What would be written then were in no file of that name: nothing is charged, none leaves."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    with opened(path) as ledger:
        copy.replace(path)
        with pytest.raises(TrustError, match=r"the file that was opened.*E-LEDGER-CORRUPT"):
            ledger.reserve(charge(90))


def test_what_another_process_appended_is_taken_in(path: Path) -> None:
    """Walking again is no reproach: two that append in turn see one another's entries."""
    with opened(path) as first, opened(path) as second:
        second.reserve(charge(90))
        assert first.reserve(charge(91)).sequence == ENTRIES + 2
        assert second.reserve(charge(90)).sequence == ENTRIES + 1
        assert second.head().head == first.head().head


def test_readers_cause_no_second_walk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs that look write nothing: the node reads its last entry, not the whole chain."""
    read: list[int] = []
    stored = ledger_module.stored_rows

    def counted(connection: sqlite3.Connection, since: int) -> object:
        for row in stored(connection, since):
            read.append(1)
            yield row

    with opened(path) as ledger:
        with opened(path, read_only=True) as reader:
            reader.verify()
        monkeypatch.setattr(ledger_module, "stored_rows", counted)
        ledger.reserve(charge(90))
        ledger.reserve(charge(91))
    assert len(read) == 2


@pytest.mark.parametrize("cut", [4096, 8192, 20000])
def test_a_truncated_file_is_read_as_far_as_it_goes(path: Path, cut: int) -> None:
    """The first entry that cannot be read is named, to who looks and to who would append."""
    os.truncate(path, path.stat().st_size - cut)
    with opened(path, read_only=True) as ledger:
        problem, count = ledger.verify().problem, len(ledger.entries())
    assert problem is not None
    assert 0 < count < ENTRIES
    assert f"damage at entry {count + 1}:" in problem.message
    with pytest.raises(TrustError, match=rf"damage at entry {count + 1}: .*E-LEDGER-CORRUPT"):
        opened(path)


@pytest.mark.parametrize(("place", "entry"), [(4096, "1"), (4100, r"\d+")])
def test_a_damaged_root_page_names_an_entry(path: Path, place: int, entry: str) -> None:
    """Where the root of the table is none, nothing can be read: the first entry is named."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    for read_only in (True, False):
        with (
            pytest.raises(TrustError, match=rf"damage at entry {entry}: .*E-LEDGER-CORRUPT"),
            opened(path, terms=None, read_only=read_only) as ledger,
        ):
            ledger.head()
