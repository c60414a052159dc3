"""Arrays in files, the fingerprint of an app, and the folder that a run leaves behind.

Arrays are stored as safetensors, which can hold numbers and text but nothing that runs. An app's
fingerprint covers the version of its distribution and every file of its package, and is computed
without importing any of it: what an owner approved is what runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tacit.core.errors import RefusedError, UnavailableError
from tacit.core.files import make_private_folder, replacing, sha256_file, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Arrays",
    "RunFolder",
    "load_arrays",
    "load_metadata",
    "save_arrays",
    "sha256_app_files",
    "sha256_file",
    "weights_sha256",
    "write_atomic",
]

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

_ORDER = "tacit-order"
_MAX_APP_FILES = 20_000  # more is a virtual environment or a data folder, not an app
_MAX_APP_BYTES = 1 << 30
_BUILT_IN = ("tacit.core", "tacit.learning", "tacit.privacy", "tacit.protos")
_ROUND_FILE = re.compile(r"(\d{4,})\.safetensors")


def save_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write named arrays, whole or not at all; their order is kept.

    Args:
        path: the file; its folder must exist.
        arrays: arrays of numbers or truth values, of any byte order and layout.
        metadata: text beside them.
        durable: also survive a power cut, not only a kill of the process.

    Raises:
        UnavailableError: the disk is full or the file cannot be written.
        TypeError: an array holds something other than numbers.
    """
    plain = {name: _plain_array(name, array) for name, array in arrays.items()}
    notes = {**(metadata or {}), _ORDER: json.dumps(list(plain))}
    with replacing(path, durable=durable) as temporary:
        try:
            save_file(plain, temporary, metadata=notes)
        except SafetensorError as error:
            raise OSError(_errno_in(str(error)), str(error)) from error


def load_arrays(path: Path) -> Arrays:
    """Read the arrays of a safetensors file, in the order in which they were saved.

    Raises:
        UnavailableError: the file is missing, damaged, or holds types that numpy lacks.
    """
    arrays, _ = _load(path)
    return arrays


def load_metadata(path: Path) -> dict[str, str]:
    """Read the text beside the arrays of a safetensors file.

    Raises:
        UnavailableError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            notes = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    notes.pop(_ORDER, None)
    return notes


def _load(path: Path) -> tuple[Arrays, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            notes = dict(file.metadata() or {})
            names = list(file.keys())
            order = _order_of(notes, names)
            arrays = {name: file.get_tensor(name) for name in order}
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return arrays, notes


def _order_of(notes: Mapping[str, str], names: list[str]) -> list[str]:
    try:
        order = json.loads(notes.get(_ORDER, "null"))
    except ValueError:
        return names
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        return names
    return order if sorted(order) == sorted(names) else names


def weights_sha256(arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> str:
    """Return the SHA-256, in hex, of a model's arrays one after another, as they travel."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        plain = _plain_array(name, array)
        digest.update(plain.astype(plain.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _plain_array(
    name: str, array: np.ndarray[Any, np.dtype[Any]]
) -> np.ndarray[Any, np.dtype[Any]]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers in array {name!r}, got {array.dtype}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _errno_in(text: str) -> int:
    match = re.search(r"os error (\d+)", text)
    return int(match.group(1)) if match else 0


def _unreadable(path: Path, error: Exception) -> UnavailableError:
    if isinstance(error, FileNotFoundError):
        return UnavailableError("E-ARTIFACT-MISSING", f"expected a safetensors file at {path}")
    return UnavailableError(
        "E-ARTIFACT-DAMAGED",
        f"expected a safetensors file at {path}, got something that cannot be read as one",
        hint="Fetch or make the file again.",
    )


def sha256_app_files(module_name: str) -> bytes:
    """Return the fingerprint of the installed package that holds a module.

    It covers the distribution's name and version and the path and content of every file of the
    first real package on the dotted path (a namespace is passed through), compiled caches
    excepted; for Tacit's own apps, of every package that their worker loads. Nothing is imported.

    Raises:
        UnavailableError: E-APP-MISSING, no such package is installed.
        RefusedError: the package cannot be covered: it is too large, or links to other folders.
    """
    top = module_name.partition(".")[0]
    modules = _built_in(module_name) if top == "tacit" else (module_name,)
    digest = hashlib.sha256(b"tacit app files v1\0")
    for text in _distributions_of(top):
        digest.update(len(text).to_bytes(4, "big") + text)
    for module in modules:
        package, root = _package_of(module)
        for relative, path in _files_below(root):
            name = f"{package}/{relative}".encode("utf-8", errors="surrogateescape")
            digest.update(len(name).to_bytes(4, "big") + name + sha256_file(path))
    return digest.digest()


def _built_in(module_name: str) -> tuple[str, ...]:
    """Return the packages that a worker of one of Tacit's own apps loads."""
    of_attacks = module_name.startswith("tacit.attacks")
    return (*_BUILT_IN, "tacit.attacks") if of_attacks else _BUILT_IN


def app_place(module_name: str) -> Path:
    """Return the folder of the installed package that holds a module, or the module's own file.

    Raises:
        UnavailableError: E-APP-MISSING, no such package is installed.
    """
    return _package_of(module_name)[1]


def _package_of(module_name: str) -> tuple[str, Path]:
    """Return name and place of the first real package on a dotted path."""
    top, *parts = module_name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
        while spec is not None and spec.origin is None and parts:  # a namespace: nothing runs
            top = f"{top}.{parts.pop(0)}"
            spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise _no_app(module_name) from error
    if spec is None or spec.origin is None:
        raise _no_app(module_name)
    origin = Path(spec.origin)
    return top, origin.parent if spec.submodule_search_locations else origin


@functools.cache  # walking all installed distributions takes 0.2 s, and a round must not
def _distributions_of(top: str) -> list[bytes]:
    names = sorted(set(importlib.metadata.packages_distributions().get(top, [])))
    return [f"{name}=={importlib.metadata.version(name)}".encode() for name in names]


def _files_below(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield root.name, root
        return
    found: list[tuple[str, Path]] = []
    total_bytes = 0
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in folders:
            if Path(folder, name).is_symlink():
                raise _not_covered(root, f"the folder {name} is a symbolic link")
        for name in files:
            path = Path(folder, name)
            if path.is_file():
                found.append((path.relative_to(root).as_posix(), path))
                total_bytes += path.stat().st_size
        if len(found) > _MAX_APP_FILES or total_bytes > _MAX_APP_BYTES:
            raise _not_covered(root, "it has too many files")
    yield from sorted(found)


def _no_app(module_name: str) -> UnavailableError:
    return UnavailableError(
        "E-APP-MISSING",
        f"expected a package for {module_name!r} to be installed here",
        hint="Install it into the same Python environment as tacit.",
    )


def _not_covered(root: Path, why: str) -> RefusedError:
    return RefusedError(
        "E-APP-NOT-COVERED",
        f"expected an app whose files can be fingerprinted, got {root}: {why}",
        hint="Install the app as an ordinary package with its data elsewhere.",
    )


@dataclass(frozen=True)
class RunFolder:
    """What one run leaves behind.

    Attributes:
        path: the folder.
    """

    path: Path

    def create(self) -> RunFolder:
        """Make the folder, mode 0700, and the folder of the rounds' weights."""
        make_private_folder(self.path)
        make_private_folder(self.rounds)
        return self

    @property
    def run_toml(self) -> Path:
        """The specification as the operator wrote it."""
        return self.path / "run.toml"

    @property
    def specification(self) -> Path:
        """The resolved specification as canonical JSON: what owners approved."""
        return self.path / "specification.json"

    @property
    def initial(self) -> Path:
        """The weights that the run started from."""
        return self.path / "initial.safetensors"

    @property
    def rounds(self) -> Path:
        """The folder of the rounds' weights."""
        return self.path / "rounds"

    def round(self, number: int) -> Path:
        """The weights after one round."""
        return self.rounds / f"{number:04d}.safetensors"

    def round_numbers(self) -> list[int]:
        """Which rounds' weights are kept, in order."""
        if not self.rounds.is_dir():
            return []
        matches = (_ROUND_FILE.fullmatch(entry.name) for entry in self.rounds.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def forget_weights(self) -> None:
        """Remove all weights that were trained, as at the end of a twin."""
        for path in (self.model, *map(self.round, self.round_numbers())):
            path.unlink(missing_ok=True)

    @property
    def model(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def manifest(self) -> Path:
        """Specification hash, members, and per round the cohort and its metrics."""
        return self.path / "manifest.json"

    @property
    def canaries(self) -> Path:
        """What canaries said of the run's claim."""
        return self.path / "canaries.json"

    @property
    def report(self) -> Path:
        """What an audit found."""
        return self.path / "report.json"

    @property
    def events(self) -> Path:
        """What happened, one event per line."""
        return self.path / "events.jsonl"
