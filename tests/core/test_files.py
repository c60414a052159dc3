from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import UnavailableError
from tacit.core.files import make_private_folder, replacing, sha256_file, write_atomic

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_replaced_in_one_step(tmp_path: Path, durable: bool) -> None:  # noqa: FBT001
    """The new content stands under the old name, private by default, with nothing left over."""
    path = tmp_path / "file"
    write_atomic(path, b"old", durable=durable)
    write_atomic(path, memoryview(b"new"), durable=durable)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An error in the middle keeps the old content and leaves no temporary file."""
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_has_a_name(tmp_path: Path) -> None:
    """What a full disk refuses is E-DISK-FULL, and what was stored before is unharmed."""
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fill() -> None:
        with replacing(path), open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
            full.write(b"x" * 100_000)

    with pytest.raises(UnavailableError, match="E-DISK-FULL"):
        fill()
    assert path.read_bytes() == b"old"


def test_a_missing_folder_has_a_name(tmp_path: Path) -> None:
    """A file that cannot be written is named with the reason."""
    with pytest.raises(UnavailableError, match="E-FILE-UNWRITABLE"):
        write_atomic(tmp_path / "none" / "file", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="E-FILE-UNWRITABLE"):
        make_private_folder(tmp_path / "file")


def test_digest_of_a_file(tmp_path: Path) -> None:
    """SHA-256 of the content; a missing file is named."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path).hex().startswith("ba7816bf8f01cfea")
    with pytest.raises(UnavailableError, match=os.strerror(errno.ENOENT)):
        sha256_file(tmp_path / "none")
