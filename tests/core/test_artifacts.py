from __future__ import annotations

import os
import resource
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from tacit.core import artifacts
from tacit.core.artifacts import (
    RunFolder,
    load_arrays,
    load_metadata,
    save_arrays,
    sha256_app_files,
)
from tacit.core.errors import RefusedError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.artifacts import Arrays

kinds = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i8", ">i4", "u1", "?", "<i2", "<u4"])
arrays = hnp.arrays(kinds, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(st.text(min_size=1).filter(lambda n: n != "__metadata__"), arrays))
def test_arrays_survive_the_disk(tmp_path: Path, named: Arrays) -> None:
    """Names, order, shapes, types and bits are kept, whatever the byte order in memory."""
    try:
        [name.encode() for name in named]
    except UnicodeEncodeError:
        return
    path = tmp_path / "x.safetensors"
    save_arrays(path, named, {"note": "ä"})
    loaded = load_arrays(path)
    assert list(loaded) == list(named)
    for name, array in named.items():
        assert loaded[name].shape == array.shape
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], array)
    assert load_metadata(path) == {"note": "ä"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_layout_does_not_matter(tmp_path: Path) -> None:
    """A transposed view is stored as what it shows."""
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_arrays(tmp_path / "x", {"a": view})
    np.testing.assert_array_equal(load_arrays(tmp_path / "x")["a"], view)


def test_only_numbers_are_stored(tmp_path: Path) -> None:
    """Objects and text have no place in a file of arrays."""
    for array in (np.array([object()]), np.array(["a"])):
        with pytest.raises(TypeError, match="expected numbers"):
            save_arrays(tmp_path / "x", {"a": array})
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A missing file, a cut file and a file of something else are errors of ours."""
    with pytest.raises(UnavailableError, match="E-ARTIFACT-MISSING"):
        load_arrays(tmp_path / "none")
    path = tmp_path / "x"
    save_arrays(path, {"a": np.ones(100)})
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:9], b"", b"PK\x03\x04" * 10, b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(UnavailableError, match="E-ARTIFACT-DAMAGED"):
            load_arrays(path)
        with pytest.raises(UnavailableError, match="E-ARTIFACT-DAMAGED"):
            load_metadata(path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must never be imported."""
    root = tmp_path / "forbidden_app"
    (root / "part").mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit('imported')\n")
    (root / "part" / "__init__.py").write_text("")
    (root / "part" / "app.py").write_text("x = 1\n")
    (root / "weights.txt").write_text("data")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_an_app_has_a_fingerprint_without_running(package: Path) -> None:
    """The fingerprint follows every file of the package, data included, and imports nothing."""
    first = sha256_app_files("forbidden_app.part.app")
    assert first == sha256_app_files("forbidden_app")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert sha256_app_files("forbidden_app") == first
    seen = {first}
    for change in (
        lambda: (package / "part" / "app.py").write_text("x = 2\n"),
        lambda: (package / "weights.txt").write_text("other"),
        lambda: (package / "new.py").write_text(""),
        lambda: (package / "new.py").rename(package / "newer.py"),
        lambda: (package / "hidden.pyc").write_bytes(b"x"),
    ):
        change()
        seen.add(sha256_app_files("forbidden_app.part"))
    assert len(seen) == 6


def test_a_linked_folder_is_not_covered(package: Path, tmp_path: Path) -> None:
    """Code behind a symbolic link would escape the fingerprint: refused."""
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", package / "linked")  # noqa: PTH211 - what an attacker does
    with pytest.raises(RefusedError, match="E-APP-NOT-COVERED"):
        sha256_app_files("forbidden_app")


@pytest.mark.parametrize("name", ["no_such_package.app", "", ".x", "tests..x"])
def test_a_missing_app_is_named(name: str) -> None:
    """An app that is not installed is an error of ours."""
    with pytest.raises(UnavailableError, match="E-APP-MISSING"):
        sha256_app_files(name)


def test_a_single_module_has_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app may be one file."""
    (tmp_path / "one_file_app.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = sha256_app_files("one_file_app")
    (tmp_path / "one_file_app.py").write_text("x = 2\n")
    assert sha256_app_files("one_file_app") != first


def test_the_built_in_app_has_a_fingerprint() -> None:
    """Tacit's own apps are covered as a whole: learning, privacy, codec and kernel."""
    assert sha256_app_files("tacit.learning.app") == sha256_app_files("tacit.privacy.noise")


def test_a_run_folder_has_its_layout(tmp_path: Path) -> None:
    """Files stand where the documentation says, and rounds are listed in order."""
    folder = RunFolder(tmp_path / "run").create()
    names = [
        folder.run_toml,
        folder.specification,
        folder.initial,
        folder.round(7),
        folder.model,
        folder.manifest,
        folder.events,
    ]
    assert [path.relative_to(folder.path).as_posix() for path in names] == [
        "run.toml",
        "specification.json",
        "initial.safetensors",
        "rounds/0007.safetensors",
        "model.safetensors",
        "manifest.json",
        "events.jsonl",
    ]
    for number in (12345, 2, 10):
        folder.round(number).touch()
    (folder.rounds / ".0003.safetensors.part").touch()
    assert folder.round_numbers() == [2, 10, 12345]
    assert RunFolder(tmp_path / "none").round_numbers() == []
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_write_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    """Whatever stops the writing of arrays becomes an error of ours and leaves the old file."""
    path = tmp_path / "x"
    save_arrays(path, {"a": np.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UnavailableError, match="E-DISK-FULL"):
            save_arrays(path, {"a": np.ones(3000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(load_arrays(path)) == ["a"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("order", ["{", "3", '["b"]', '["a", 3]', '["a", "a"]'])
def test_a_foreign_order_is_ignored(tmp_path: Path, order: str) -> None:
    """A file of somebody else may say what it likes about the order; the arrays are there."""
    path = tmp_path / "x"
    save_file({"a": np.ones(1), "b": np.ones(2)}, path, metadata={"tacit-order": order})
    assert sorted(load_arrays(path)) == ["a", "b"]


def test_a_package_that_is_no_app_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole environment is not an app: its fingerprint would take for ever."""
    monkeypatch.setattr(artifacts, "_MAX_APP_FILES", 2)
    with pytest.raises(RefusedError, match="too many files"):
        sha256_app_files(package.name)
