"""What is attacked: a model in hand, or a function that answers for one.

Promises: a target is read, never changed; what it says of a record depends on that record alone
(no dropout, no batch statistics), so neither order nor batch size moves a score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_BATCH = 4096  # records per forward pass: bounds memory only

# Probabilities do not sum to one exactly: of single precision by a little, and where each was
# rounded to d decimals by up to half a unit of the last one for each class.
_SUM_TOLERANCE = 1e-3
_ROUNDED_TO = (2, 3, 4)
_MOST_TOLERANCE = 0.02
_LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a target says of some records.

    Attributes:
        logits: float64, ``(n, classes)``; a constant added to a row changes nothing.
        labels: int64, ``(n,)``: the true classes.
    """

    logits: Float64Array
    labels: Int64Array

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.labels.shape != self.logits.shape[:1]:
            raise DataError(
                "E-AUDIT-OUTPUTS",
                f"expected logits (n, classes) and labels (n,), got {self.logits.shape} "
                f"and {self.labels.shape}",
            )
        if not np.isfinite(self.logits).all():
            raise DataError(
                "E-AUDIT-OUTPUTS", f"expected finite outputs, got {_first_not_finite(self.logits)}"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise DataError(
                "E-AUDIT-OUTPUTS",
                f"expected labels from 0 to {self.classes - 1}, got {self.labels.min()} "
                f"to {self.labels.max()}",
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Columns of the logits."""
        return int(self.logits.shape[1])

    def take(self, rows: Int64Array) -> Outputs:
        """Return the outputs for some of the records."""
        return Outputs(logits=self.logits[rows], labels=self.labels[rows])


def outputs_of_probabilities(
    probabilities: Float64Array, labels: Int64Array, *, name: str = "probabilities"
) -> Outputs:
    """Return the outputs of a target that was asked for probabilities, ``(n, classes)``.

    Each row is divided by its sum, which may differ from one by 0.001; where the whole table is
    rounded to 2, 3 or 4 decimals, by what that can come to over all classes, and 0.02 at most.

    Args:
        probabilities: float64.
        labels: int64, ``(n,)``: the true classes.
        name: what messages call them.

    Raises:
        DataError: rows do not sum to one, or hold what is no probability (``E-AUDIT-OUTPUTS``).
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2:
        raise DataError("E-AUDIT-OUTPUTS", f"expected {name} (n, classes), got shape {table.shape}")
    if not np.isfinite(table).all():
        raise DataError(
            "E-AUDIT-OUTPUTS", f"expected finite {name}, got {_first_not_finite(table)}"
        )
    negative = np.flatnonzero((table < 0).any(axis=1))
    if len(negative):
        raise DataError(
            "E-AUDIT-OUTPUTS",
            f"expected {name} of 0 or more, got others in {_rows(negative, len(table))}",
            hint="hand in logits under their own name, or the softmax of them",
        )
    sums, tolerance = table.sum(axis=1), _tolerance(table)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > tolerance)
    if len(wrong):
        raise DataError(
            "E-AUDIT-OUTPUTS",
            f"expected rows of {name} that sum to 1 within {tolerance:g}, got others in "
            f"{_rows(wrong, len(table))}, which sums to {sums[wrong[0]]:.6g}",
            hint="hand in logits under their own name, or the softmax of them",
        )
    shares = table / sums[:, None]
    return Outputs(logits=np.log(np.maximum(shares, _LEAST_PROBABILITY)), labels=labels)


def _tolerance(table: Float64Array) -> float:
    """Return how far a row's sum may be from one, by the decimals that the table has."""
    for decimals in _ROUNDED_TO:
        scaled = table * 10.0**decimals
        if np.abs(scaled - np.round(scaled)).max(initial=0.0) < 1e-3:  # single precision, too
            rounding: float = table.shape[1] * 0.5 * 10.0**-decimals
            return min(_MOST_TOLERANCE, max(_SUM_TOLERANCE, rounding)) + 1e-9
    return _SUM_TOLERANCE


def _first_not_finite(table: Float64Array) -> str:
    """Say which rows hold no number, counted from 1, and what the first holds."""
    bad = ~np.isfinite(table)
    rows = np.flatnonzero(bad.any(axis=1))
    what = "NaN" if np.isnan(table[rows[0]]).any() else "an infinite value"
    return f"{what} in {_rows(rows, len(table))}"


def _rows(rows: Int64Array, among: int) -> str:
    """Name the first of some rows, counted from 1, at the end of the sentence."""
    if len(rows) == 1:
        return f"row {rows[0] + 1} of {among}"
    return f"{len(rows)} of {among} rows, first row {rows[0] + 1}"


class Target(Protocol):
    """Something that can be asked about a record."""

    def logits(self, features: Float32Array) -> Float64Array:
        """Return float64 ``(n, classes)`` for features ``(n, ...)``."""


@dataclass(frozen=True, kw_only=True)
class ModelTarget:
    """A model in hand: its weights and gradients can be read too.

    Raises:
        DataError: the model is in training mode (``E-AUDIT-TRAIN-MODE``): dropout and batch
            statistics would move every score.
    """

    model: nn.Module

    def __post_init__(self) -> None:
        if any(module.training for module in self.model.modules()):
            raise DataError(
                "E-AUDIT-TRAIN-MODE",
                "expected a model in evaluation mode, got one in training mode",
                hint="call model.eval() first",
            )

    def logits(self, features: Float32Array) -> Float64Array:
        """Return the model's own logits."""
        with torch.no_grad():
            parts = [
                self.model(part).to(torch.float64).numpy()
                for part in torch.split(torch.from_numpy(features), _BATCH)
            ]
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class PredictTarget:
    """A function that answers for a model elsewhere: probabilities and nothing more.

    Attributes:
        predict: features ``(n, ...)`` to probabilities ``(n, classes)``.
    """

    predict: Callable[[Float32Array], Float64Array]

    def logits(self, features: Float32Array) -> Float64Array:
        """Return the logarithms of what it answers."""
        nobody = np.zeros(len(features), dtype=np.int64)
        return outputs_of_probabilities(self.predict(features), nobody).logits
