"""``prepared.safetensors``: the cleaned, split data set, which is all of the data a worker sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.artifacts import load_arrays, load_metadata, save_arrays
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tacit.learning.contract import BoolArray, Float32Array, Int64Array, Prepared
    from tacit.learning.splits import Split

_ARRAYS = ("train_features", "train_labels", "validation_features", "validation_labels")
_SUBJECTS = ("train_subjects", "validation_subjects")
_METADATA = "tacit"
_CANARY_BITS = "canary_bits"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Records that models take.

    Attributes:
        features: float32, records first.
        labels: int64, ``(n,)``.
        subjects: int64, ``(n,)``: whose record each one is, numbered from 0 in order of first
            appearance on this side; None where the run's unit is the record.
    """

    features: Float32Array
    labels: Int64Array
    subjects: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HeldCanaries:
    """An owner's canaries of one run, as its worker gets them; secret until the run is over.

    Attributes:
        seed: 32 bytes that name the directions.
        salt: 32 bytes, of the commitment.
        included: bool ``(m,)``: directions first, then mislabelled records, of which those that
            are in stand among the training records.
        directions: how many of them are directions.
    """

    seed: bytes
    salt: bytes
    included: BoolArray
    directions: int


@dataclass(frozen=True, kw_only=True)
class PreparedSets:
    """One owner's two sides, and the public bound on how many records there are in all.

    Attributes:
        train, validation: the two sides.
        records: declared in client.toml; every mechanism is scaled by it, never by a length.
        feature_names: of a table; empty for images.
        canaries: of a run that has some.
    """

    train: Examples
    validation: Examples
    records: int
    feature_names: tuple[str, ...] = ()
    canaries: HeldCanaries | None = None


def divide(
    prepared: Prepared,
    split: Split,
    *,
    records: int,
    reserved: int = 0,
    subjects: Sequence[str] | None = None,
) -> PreparedSets:
    """Put each record on its side.

    Args:
        prepared: the encoded records.
        split: their sides.
        records: the public bound that client.toml declares.
        reserved: how many of them client.toml keeps for canaries.
        subjects: one name per record, where the run's unit is the subject; the names stay here.

    Raises:
        DataError: there are more records than were declared (``E-DATA-MORE-THAN-DECLARED``).
        ValueError: the split does not follow the subjects.
    """
    if subjects is not None and not split.by_subject:
        raise ValueError("expected a split by subject: another one may cut a subject in two")
    verify_declared(len(prepared.labels), records, reserved=reserved)
    train, validation = (
        Examples(
            features=prepared.features[side],
            labels=prepared.labels[side],
            subjects=None if subjects is None else _numbered([subjects[row] for row in side]),
        )
        for side in (split.train, split.validation)
    )
    return PreparedSets(
        train=train, validation=validation, records=records, feature_names=prepared.feature_names
    )


def verify_declared(count: int, records: int, *, reserved: int = 0) -> None:
    """Check that there are no more records than client.toml declares, less those for canaries.

    The room for canaries is kept free in every run, whether it has some or not: what it comes to
    depends on nothing that a run asks for.

    Raises:
        DataError: there are (``E-DATA-MORE-THAN-DECLARED``).
    """
    if count > records - reserved:
        kept = f" with {reserved} of {records} kept for canaries (max_canaries)" if reserved else ""
        raise DataError(
            "E-DATA-MORE-THAN-DECLARED",
            f"expected at most {records - reserved} records, as client.toml declares{kept}, and "
            "there are more",
            hint="raise `records` of the data set: it bounds delta and scales every step",
        )


def _numbered(names: Sequence[str]) -> Int64Array:
    """Number names from 0, in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def save_prepared(path: Path, sets: PreparedSets) -> None:
    """Write the two sides, whole or not at all."""
    sides = (
        sets.train.features,
        sets.train.labels,
        sets.validation.features,
        sets.validation.labels,
    )
    metadata: dict[str, object] = {
        "records": sets.records,
        "feature_names": list(sets.feature_names),
    }
    arrays: dict[str, np.ndarray] = dict(zip(_ARRAYS, sides, strict=True))
    for name, side in zip(_SUBJECTS, (sets.train, sets.validation), strict=True):
        if side.subjects is not None:
            arrays[name] = side.subjects
    held = sets.canaries
    if held is not None:
        arrays[_CANARY_BITS] = held.included.astype(np.uint8)
        metadata["canaries"] = {
            "seed": held.seed.hex(),
            "salt": held.salt.hex(),
            "directions": held.directions,
        }
    save_arrays(path, arrays, metadata={_METADATA: json.dumps(metadata)})


def load_prepared(path: Path) -> PreparedSets:
    """Read what :func:`save_prepared` wrote.

    Raises:
        UnavailableError: the file is missing or damaged.
        DataError: it holds something else (``E-PREPARED-MALFORMED``).
    """
    arrays = load_arrays(path)
    try:
        train_features, train_labels, validation_features, validation_labels = (
            arrays[name] for name in _ARRAYS
        )
        metadata = json.loads(load_metadata(path)[_METADATA])
        records = int(metadata["records"])
        names = tuple(str(name) for name in metadata["feature_names"])
        train = _examples(train_features, train_labels, arrays.get(_SUBJECTS[0]))
        validation = _examples(validation_features, validation_labels, arrays.get(_SUBJECTS[1]))
        if (train.subjects is None) != (validation.subjects is None):
            raise ValueError("subjects on one side only")  # noqa: TRY301 - one way out
        canaries = _held(metadata.get("canaries"), arrays.get(_CANARY_BITS))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "E-PREPARED-MALFORMED", f"expected a prepared data set at {path}, got something else"
        ) from error
    return PreparedSets(
        train=train,
        validation=validation,
        records=records,
        feature_names=names,
        canaries=canaries,
    )


def _held(told: Mapping[str, Any] | None, bits: np.ndarray | None) -> HeldCanaries | None:
    if told is None or bits is None:
        return None
    return HeldCanaries(
        seed=bytes.fromhex(told["seed"]),
        salt=bytes.fromhex(told["salt"]),
        included=bits.astype(np.bool_),
        directions=int(told["directions"]),
    )


def _examples(features: np.ndarray, labels: np.ndarray, subjects: np.ndarray | None) -> Examples:
    lengths = {len(array) for array in (features, labels, subjects) if array is not None}
    if len(lengths) != 1:
        raise ValueError("expected arrays of one length")
    return Examples(
        features=features.astype(np.float32, copy=False),
        labels=labels.astype(np.int64, copy=False),
        subjects=None if subjects is None else subjects.astype(np.int64, copy=False),
    )
