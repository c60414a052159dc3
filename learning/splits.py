"""Which records are trained on: a seeded split, record by record, and the owner's note of it.

Promises: a record's side depends on its own content (or its subject's name) and the run's seed
alone. So one record more or less moves no other record across, which the add/remove relation
needs; copies of a record, and the records of a subject, stay on one side.
The note, ``split.json``, holds keyed hashes: without the owner's key nobody can look a record up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tacit.core.artifacts import write_atomic
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tacit.learning.contract import Prepared

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions (from 0) of the records on either side.

    Attributes:
        train, validation: int64 positions in the prepared data, rising.
        seed: the run's, which names the split.
        fraction: expected share of validation records.
        by_subject: whether sides follow subjects.
    """

    train: Int64Array
    validation: Int64Array
    seed: int
    fraction: float
    by_subject: bool = False


def split_records(
    prepared: Prepared, *, fraction: float, seed: int, subjects: Sequence[str] | None = None
) -> Split:
    """Assign each record to training or validation, by a hash of its content and the seed.

    Args:
        prepared: the encoded records.
        fraction: each record goes to validation with this probability.
        seed: another seed gives another split.
        subjects: one name per record; records of one subject stay together.

    Raises:
        DataError: no record is left to train on (``E-SPLIT-EMPTY``).
    """
    contents = record_bytes(prepared) if subjects is None else [s.encode() for s in subjects]
    if len(contents) != len(prepared.labels):
        raise ValueError("expected one subject per record")
    prefix = f"tacit split 1|{seed}|".encode()
    words = [hashlib.sha256(prefix + content).digest()[:8] for content in contents]
    uniforms = np.frombuffer(b"".join(words), dtype=">u8").astype(np.float64) * 2.0**-64
    held_out = uniforms < fraction
    if held_out.all():
        raise DataError(
            "E-SPLIT-EMPTY",
            "expected records to train on, the split left none",
            hint="use more records, or a smaller training.validation_fraction",
        )
    return Split(
        train=np.flatnonzero(~held_out).astype(np.int64),
        validation=np.flatnonzero(held_out).astype(np.int64),
        seed=seed,
        fraction=fraction,
        by_subject=subjects is not None,
    )


def record_bytes(prepared: Prepared) -> list[bytes]:
    """Return each record's content: its features and label, little-endian."""
    features = np.ascontiguousarray(prepared.features, dtype="<f4").reshape(
        len(prepared.labels), -1
    )
    labels = np.ascontiguousarray(prepared.labels, dtype="<i8")
    return [row.tobytes() + label.tobytes() for row, label in zip(features, labels, strict=True)]


def record_hashes(prepared: Prepared, *, key: bytes) -> list[str]:
    """Return a keyed hash of each record (HMAC-SHA-256, 16 bytes, hex)."""
    return [
        hmac.new(key, content, hashlib.sha256).hexdigest()[:32]
        for content in record_bytes(prepared)
    ]


def split_document(
    split: Split, prepared: Prepared, *, key: bytes, cleaning_sha256: str = ""
) -> dict[str, Any]:
    """Return what ``split.json`` holds; it never leaves the owner.

    Args:
        split: the sides.
        prepared: the encoded records.
        key: the owner's, for the row hashes.
        cleaning_sha256: names the owner's cleaning rules by which these records took part.
    """
    hashes = record_hashes(prepared, key=key)
    return {
        "format": 1,
        "rule": "SHA-256 of seed and subject" if split.by_subject else "SHA-256 of seed and record",
        "seed": split.seed,
        "fraction": split.fraction,
        "cleaning_sha256": cleaning_sha256,
        "train": [hashes[index] for index in split.train],
        "validation": [hashes[index] for index in split.validation],
        "train_rows": [int(row) for row in prepared.row_numbers[split.train]],
        "validation_rows": [int(row) for row in prepared.row_numbers[split.validation]],
    }


def save_split(
    path: Path, split: Split, prepared: Prepared, *, key: bytes, cleaning_sha256: str = ""
) -> None:
    """Write ``split.json``, whole or not at all; see :func:`split_document`."""
    document = split_document(split, prepared, key=key, cleaning_sha256=cleaning_sha256)
    write_atomic(path, json.dumps(document, indent=1).encode())
