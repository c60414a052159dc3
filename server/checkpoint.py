"""Where a run resumes: the strategy's state and the run's secret seed, as one safetensors file.

``RUN_FOLDER/checkpoints/NNNN.safetensors`` goes with ``rounds/NNNN.safetensors``, the weights after
round NNNN (round 0: ``initial.safetensors``). Everything in it is an array; there is no pickle.

The key seeds the generators that Flower's strategies draw from: which nodes a round samples, and
the noise of Flower's own differential-privacy wrappers. Whoever knows it can subtract that noise,
so it is drawn from the operating system, kept in a file of mode 0600 that no verb serves, and
overwritten with zeros when the last round is done.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after one round.

    Attributes:
        round_number: the last finished round; 0 before the first.
        next_sequence: the grid's counter.
        key: seeds the run's generators; secret.
        arrays: the strategy's arrays, named as ``server/strategies.py`` names them.
        numbers: its numbers.
    """

    round_number: int
    next_sequence: int
    key: bytes = field(repr=False)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, float] = field(default_factory=dict)


def first_checkpoint() -> Checkpoint:
    """Return the state before round 1, with a key nobody knows."""
    return Checkpoint(round_number=0, next_sequence=1, key=os.urandom(KEY_BYTES))


def checkpoint_name(round_number: int) -> str:
    """Return the file's name; it sorts by round."""
    return f"{round_number:06d}.safetensors"


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, durable: bool = True) -> None:
    """Write the checkpoint whole or not at all, readable by this account only."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "round": np.array([checkpoint.round_number], dtype=np.int64),
        "sequence": np.array([checkpoint.next_sequence], dtype=np.int64),
        "key": np.frombuffer(checkpoint.key, dtype=np.uint8),
    }
    for name, number in checkpoint.numbers.items():
        arrays[f"number/{name}"] = np.array([number], dtype=np.float64)
    for name, array in checkpoint.arrays.items():
        arrays[f"state/{name}"] = array
    path.parent.mkdir(mode=0o700, exist_ok=True)
    save_arrays(path, arrays, durable=durable)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UnavailableError: the file is missing or is no checkpoint.
    """
    try:
        arrays = load_arrays(path)
        return Checkpoint(
            round_number=int(arrays["round"][0]),
            next_sequence=int(arrays["sequence"][0]),
            key=arrays["key"].tobytes(),
            arrays=_under("state/", arrays),
            numbers={name: float(a[0]) for name, a in _under("number/", arrays).items()},
        )
    except (OSError, KeyError) as error:
        raise UnavailableError(
            "E-CHECKPOINT-LOST",
            f"expected the run's checkpoint in {path}, which is missing or damaged",
            hint="restore the run folder from a backup, or submit the run again",
        ) from error


def seed_generators(key: bytes, round_number: int, attempt: int) -> None:
    """Seed Python's and numpy's global generators, from which Flower's strategies draw."""
    digest = hashlib.sha256(key + f"/{round_number}/{attempt}".encode()).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, dtype="<u4"))  # noqa: NPY002 - Flower draws from it


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
