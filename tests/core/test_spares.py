"""Files that are written again: never under a reader's eyes, never with old bytes for new ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tacit.core.spares import SMALLEST_BYTES, Spares, claim, open_held
from tacit.protos.payload import map_payload

if TYPE_CHECKING:
    from pathlib import Path

OLD = b"o" * SMALLEST_BYTES


def old_file(folder: Path, name: str = "old.bin") -> Path:
    path = folder / name
    path.write_bytes(OLD)
    return path


def test_a_spare_is_the_file_that_was_put(tmp_path: Path) -> None:
    """It has lost its name, keeps its pages, and is given away once."""
    spares = Spares(tmp_path, most=1)
    inode = old_file(tmp_path).stat().st_ino
    assert spares.put(tmp_path / "old.bin") is not None
    assert not (tmp_path / "old.bin").exists()
    taken = spares.take()
    assert taken is not None
    assert os.fstat(taken[1]).st_ino == inode
    os.close(taken[1])
    assert spares.take() is None


def test_a_file_that_is_mapped_is_not_written_again(tmp_path: Path) -> None:
    """Whoever maps a payload keeps its bytes, whatever becomes of the file; it makes way."""
    spares = Spares(tmp_path, most=1)
    view = map_payload(old_file(tmp_path))
    spares.put(tmp_path / "old.bin")
    assert spares.take() is None
    assert list(tmp_path.iterdir()) == []
    assert bytes(view) == OLD


def test_the_copy_on_write_pages_hold_the_file_as_well(tmp_path: Path) -> None:
    """An array that an app took from the mapping outlives it, and still counts as a reader."""
    view = map_payload(old_file(tmp_path))
    twin = view.obj.twin
    del view
    assert claim(tmp_path / "old.bin") is None
    assert bytes(twin) == OLD


def test_a_file_is_free_when_the_last_view_has_gone(tmp_path: Path) -> None:
    """The hold ends with the mapping, without anybody saying so."""
    view = map_payload(old_file(tmp_path))
    part = view[10:20]
    del view, part
    descriptor = claim(tmp_path / "old.bin")
    assert descriptor is not None
    os.close(descriptor)


def test_who_opens_late_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that loses its name between being opened and being held is not read."""
    path, stat = old_file(tmp_path), os.fstat

    def moved(descriptor: int) -> os.stat_result:
        path.rename(tmp_path / "spare")
        old_file(tmp_path)
        return stat(descriptor)

    monkeypatch.setattr(os, "fstat", moved)
    with pytest.raises(FileNotFoundError):
        open_held(path)


@pytest.mark.parametrize(("size", "most"), [(SMALLEST_BYTES - 1, 1), (SMALLEST_BYTES, 0)])
def test_what_is_not_worth_it_is_left_to_the_caller(tmp_path: Path, size: int, most: int) -> None:
    """Small files, and more than are wanted, stay where they are."""
    path = tmp_path / "f"
    path.write_bytes(bytes(size))
    assert Spares(tmp_path, most=most).put(path) is None
    assert path.stat().st_size == size


def test_dropped_spares_are_gone(tmp_path: Path) -> None:
    """Their space is free at once."""
    spares = Spares(tmp_path, most=2)
    for name in ("a", "b"):
        spares.put(old_file(tmp_path, name))
    assert len(spares.drop()) == 2
    assert list(tmp_path.iterdir()) == []
    assert spares.names == set()
