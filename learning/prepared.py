"""``prepared.safetensors``: the cleaned, split data set, which is all of the data a worker sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.artifacts import load_arrays, load_metadata, save_arrays
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.learning.contract import Float32Array, Int64Array, Prepared
    from tacit.learning.splits import Split

_ARRAYS = ("train_features", "train_labels", "validation_features", "validation_labels")
_METADATA = "tacit"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Records that models take.

    Attributes:
        features: float32, records first.
        labels: int64, ``(n,)``.
    """

    features: Float32Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class PreparedSets:
    """One owner's two sides, and the public bound on how many records there are in all.

    Attributes:
        train, validation: the two sides.
        records: declared in client.toml; every mechanism is scaled by it, never by a length.
        feature_names: of a table; empty for images.
    """

    train: Examples
    validation: Examples
    records: int
    feature_names: tuple[str, ...] = ()


def divide(prepared: Prepared, split: Split, *, records: int) -> PreparedSets:
    """Put each record on its side.

    Raises:
        DataError: there are more records than were declared (``E-DATA-MORE-THAN-DECLARED``).
    """
    if len(prepared.labels) > records:
        raise DataError(
            "E-DATA-MORE-THAN-DECLARED",
            f"expected at most {records} records, as client.toml declares, and there are more",
            hint="raise `records` of the data set: it bounds delta and scales every step",
        )
    train, validation = (
        Examples(features=prepared.features[side], labels=prepared.labels[side])
        for side in (split.train, split.validation)
    )
    return PreparedSets(
        train=train, validation=validation, records=records, feature_names=prepared.feature_names
    )


def save_prepared(path: Path, sets: PreparedSets) -> None:
    """Write the two sides, whole or not at all."""
    sides = (
        sets.train.features,
        sets.train.labels,
        sets.validation.features,
        sets.validation.labels,
    )
    metadata = {"records": sets.records, "feature_names": list(sets.feature_names)}
    save_arrays(
        path, dict(zip(_ARRAYS, sides, strict=True)), metadata={_METADATA: json.dumps(metadata)}
    )


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
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "E-PREPARED-MALFORMED", f"expected a prepared data set at {path}, got something else"
        ) from error
    return PreparedSets(
        train=_examples(train_features, train_labels),
        validation=_examples(validation_features, validation_labels),
        records=records,
        feature_names=names,
    )


def _examples(features: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(
        features=features.astype(np.float32, copy=False), labels=labels.astype(np.int64, copy=False)
    )
