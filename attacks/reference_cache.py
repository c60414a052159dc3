"""Reference models' answers on disk, so that an audit that is stopped or repeated trains them once.

Trusts: the folder to be the owner's own (it is made with mode 0700): what lies there tells as much
about the records as a model does. A checksum finds damage, not a forger who can write there.
Promises: what is read back was made from the same records, recipe, first weights, seed and code;
whatever is missing, cut off or changed counts as absent, and is trained again. Chunks are written
whole or not at all. The folder stays below its limit: the entries that were not used for longest
go first, and what does not fit alone is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import TacitError
from tacit.core.files import make_private_folder, sha256_file, write_atomic
from tacit.core.plain import plain
from tacit.learning import (
    models,
    shadow_recipe,
    stacked_dense,
    stacked_gradients,
    training,
    vectorised,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

    from tacit.learning.shadow_recipe import ShadowRecipe

Arrays = dict[str, np.ndarray]

logger = logging.getLogger("tacit.attacks.references")

DEFAULT_MAX_BYTES = 2 << 30  # 64 models on 20,000 records of 26 classes are 133 MB
_CODE = (models, shadow_recipe, stacked_dense, stacked_gradients, training, vectorised)
_KEY = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"chunk-\d{6}-\d{6}\.(safetensors|json)")


@dataclass(frozen=True, kw_only=True)
class ReferenceCache:
    """A folder of reference models' answers.

    Attributes:
        folder: made where it is missing.
        max_bytes: of all files in it together.
    """

    folder: Path
    max_bytes: int = DEFAULT_MAX_BYTES

    def load(self, key: str, chunk: range) -> Arrays | None:
        """Return the arrays that were saved for some models, or None."""
        arrays_path, note_path = self._paths(key, chunk)
        try:
            note = json.loads(note_path.read_bytes())
            if note != {"sha256": sha256_file(arrays_path).hex()}:
                raise ValueError("another checksum")  # noqa: TRY301 - one way out
            arrays = load_arrays(arrays_path)
            os.utime(self.folder / key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TacitError):
            logger.warning("%s is damaged or incomplete: trained again", arrays_path.name)
            return None
        return arrays

    def save(self, key: str, chunk: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of some models, if they fit.

        Raises:
            UnavailableError: the folder cannot be written.
        """
        arrays_path, note_path = self._paths(key, chunk)
        make_private_folder(self.folder)
        make_private_folder(self.folder / key)
        if not self._make_room(key, sum(array.nbytes for array in arrays.values())):
            logger.warning("%s is not kept: the cache would exceed its limit", arrays_path.name)
            return
        note_path.unlink(missing_ok=True)  # the old checksum must not stand beside new arrays
        save_arrays(arrays_path, arrays, durable=False)
        note = {"sha256": sha256_file(arrays_path).hex()}
        write_atomic(note_path, json.dumps(note).encode(), durable=False)

    def _paths(self, key: str, chunk: range) -> tuple[Path, Path]:
        name = f"chunk-{chunk.start:06d}-{chunk.stop:06d}"
        folder = self.folder / key
        return folder / f"{name}.safetensors", folder / f"{name}.json"

    def _make_room(self, key: str, wanted_bytes: int) -> bool:
        sizes = {
            folder: sum(f.stat().st_size for f in _files(folder)) for folder in self._entries()
        }
        free = self.max_bytes - sum(sizes.values())
        others = [folder for folder in sizes if folder.name != key]
        for folder in sorted(others, key=lambda entry: entry.stat().st_mtime):
            if free >= wanted_bytes:
                break
            for file in _files(folder):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else lies in it
                folder.rmdir()
            free += sizes[folder]
        return free >= wanted_bytes

    def _entries(self) -> Iterator[Path]:
        return (
            entry
            for entry in self.folder.iterdir()
            if _KEY.fullmatch(entry.name) and entry.is_dir()
        )


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if _FILE.fullmatch(file.name)]


def cache_key(
    *, model: nn.Module, recipe: ShadowRecipe, seed: int, data: Iterable[np.ndarray], code: Path
) -> str:
    """Return the SHA-256, in hex, of all that reference models' answers follow from.

    Args:
        model: architecture and first weights.
        recipe: of every model.
        seed: of the design, the batches and the noise.
        data: every array of records, in a fixed order.
        code: the file that trains; those that it calls are known here. What it is handed back is
            held against the design, and needs no part in the key.
    """
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    parts = {
        "format": 1,
        "architecture": repr(model),
        "state": {name: _sha256(value) for name, value in state.items()},
        "recipe": plain(recipe),
        "seed": seed,
        "data": [_sha256(array) for array in data],
        "code": [sha256_file(path).hex() for path in (code, *_code_files(model))],
        "versions": [torch.__version__, np.__version__],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_files(model: nn.Module) -> list[Path]:
    """Return the files of the training, and of a factory's own layers."""
    files = {__file__, *(str(module.__file__) for module in _CODE)}
    for kind in {type(module) for module in model.modules()}:
        if kind.__module__.partition(".")[0] != "torch":
            files.add(inspect.getfile(kind))
    return [Path(file) for file in sorted(files)]


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}|{array.shape}|".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
