"""Where each number of a reply stands in the one vector that is aggregated securely.

A member's vector holds its change of every array, times its weight. Behind them stand, as whole
numbers in limbs of 16 bits, the weight, and for each metric its weight and the metric times the
weight. The server learns sums only, so that a mean needs no single value, and neither a weight nor
a metric is rounded by the scale of the changes.

Everything is public but the numbers themselves: names, shapes, bounds. What does not fit a bound
refuses (``E-SECAGG-RANGE``); nothing is cut without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tacit.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIMB_BITS = 16  # sums of limbs stay below 2^32 with up to 65,536 members
METRIC_BITS = 48  # of a metric within its range: finer than float32, coarser than float64
_WEIGHT_LIMBS = 4  # 2^53 at most
_SHARE_LIMBS = 7  # 2^53 times 2^48
_METRIC_LIMBS = _WEIGHT_LIMBS + _SHARE_LIMBS
_LIMB = (1 << LIMB_BITS) - 1
_MOST_WEIGHT = 2**53

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One array of the model: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many coordinates it takes."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The coordinates of a member's vector.

    Attributes:
        arrays: of the model, in the order of the instruction.
        metrics: inclusive range of each scalar metric, by name; they stand in sorted order.
        weighted: whether the weight and the metrics stand behind the arrays; else each member
            weighs 1, and no metric leaves.
        most_weight: public bound on a member's weight.
    """

    arrays: tuple[Form, ...]
    metrics: Mapping[str, tuple[float, float]]
    weighted: bool
    most_weight: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.most_weight <= _MOST_WEIGHT:
            raise ValueError(f"expected 1 <= most_weight <= 2^53, got {self.most_weight}")
        if not self.weighted and (self.metrics or self.most_weight != 1):
            raise ValueError("expected metrics and weights in a weighted layout only")
        for name, (low, high) in self.metrics.items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"expected a finite range of {name}, got {low}, {high}")

    @cached_property
    def changes(self) -> int:
        """Coordinates that hold changes of arrays."""
        return sum(form.size for form in self.arrays)

    @cached_property
    def length(self) -> int:
        """All coordinates of the vector: the dimension d."""
        limbs = _WEIGHT_LIMBS + _METRIC_LIMBS * len(self.metrics) if self.weighted else 0
        return self.changes + limbs

    def write_changes(
        self,
        into: Float64Array,
        received: Mapping[str, Array],
        reply: Mapping[str, Array],
        *,
        weight: int = 1,
    ) -> None:
        """Write the weighted change of every array into the first ``changes`` coordinates.

        Args:
            into: float64 of at least ``changes``.
            received: what the member was sent, by name.
            reply: what it made of it.
            weight: of the member.

        Raises:
            RefusedError: an array has another form (``E-SECAGG-FORM``) or the weight is beyond its
                bound (``E-SECAGG-RANGE``).
        """
        self._verify_weight(weight)
        start = 0
        for form in self.arrays:
            target = into[start : start + form.size]
            start += form.size
            old, new = received[form.name], reply[form.name]
            for array in (old, new):
                if array.shape != form.shape or array.dtype != form.dtype:
                    raise RefusedError(
                        "E-SECAGG-FORM",
                        f"array {form.name}: expected {form.dtype} of shape {form.shape}, "
                        f"got {array.dtype} of {array.shape}",
                    )
            np.subtract(new.reshape(-1), old.reshape(-1), out=target, dtype=np.float64)
            if weight != 1:
                target *= weight

    def write_sums(self, into: Float64Array, sums: Mapping[str, Array]) -> None:
        """Write summed gradients (float64, in the forms of the arrays) into the coordinates.

        Raises:
            RefusedError: an array has another form (``E-SECAGG-FORM``).
        """
        start = 0
        for form in self.arrays:
            values = sums[form.name]
            if values.shape != form.shape or values.dtype != np.float64:
                raise RefusedError(
                    "E-SECAGG-FORM",
                    f"array {form.name}: expected float64 of shape {form.shape}, "
                    f"got {values.dtype} of {values.shape}",
                )
            into[start : start + form.size] = values.reshape(-1)
            start += form.size

    def split(self, vector: Float64Array) -> dict[str, Float64Array]:
        """Return each array's part of a vector, in its shape."""
        parts, start = {}, 0
        for form in self.arrays:
            parts[form.name] = vector[start : start + form.size].reshape(form.shape)
            start += form.size
        return parts

    def limbs(self, metrics: Mapping[str, float], *, weight: int) -> Words:
        """Return the coordinates behind the changes: weight and weighted metrics (uint32).

        A metric that a member does not report has the weight 0.

        Raises:
            RefusedError: a value is beyond its bound (``E-SECAGG-RANGE``).
        """
        if not self.weighted:
            return np.zeros(0, dtype=np.uint32)
        self._verify_weight(weight)
        words = _split(weight, _WEIGHT_LIMBS)
        for name in sorted(self.metrics):
            if name not in metrics:
                words += [0] * _METRIC_LIMBS
                continue
            low, high = self.metrics[name]
            value = metrics[name]
            if not low <= value <= high:
                raise RefusedError(
                    "E-SECAGG-RANGE",
                    f"metric {name}: expected a value within [{low:g}, {high:g}], got {value:g}",
                )
            share = round((value - low) / (high - low) * (1 << METRIC_BITS))
            words += _split(weight, _WEIGHT_LIMBS) + _split(weight * share, _SHARE_LIMBS)
        return np.array(words, dtype=np.uint32)

    def sums(self, limbs: Words, *, members: int) -> tuple[int, dict[str, float]]:
        """Read summed limbs: the total weight, and each reported metric's weighted mean.

        Args:
            limbs: the coordinates behind the changes, summed over the members.
            members: how many; the total weight where the layout is not weighted.

        Raises:
            RefusedError: no member weighed anything (``E-SECAGG-RANGE``).
        """
        if not self.weighted:
            return members, {}
        weight = _joined(limbs[:_WEIGHT_LIMBS])
        if not 1 <= weight <= members * self.most_weight:
            raise RefusedError(
                "E-SECAGG-RANGE",
                f"expected a total weight of 1 to {members * self.most_weight}, got {weight}",
                hint="A member's vector was not what the layout says.",
            )
        means = {}
        for index, name in enumerate(sorted(self.metrics)):
            start = _WEIGHT_LIMBS + index * _METRIC_LIMBS
            part = limbs[start : start + _METRIC_LIMBS]
            reported = _joined(part[:_WEIGHT_LIMBS])
            if reported:
                share = _joined(part[_WEIGHT_LIMBS:]) / (reported << METRIC_BITS)
                low, high = self.metrics[name]
                means[name] = low + min(share, 1.0) * (high - low)
        return weight, means

    def updated(self, received: Mapping[str, Array], mean: Float64Array) -> dict[str, Array]:
        """Return the received arrays, each moved by its part of the mean change.

        Integers are rounded to the nearest; an array that is not laid out stays as it is.
        """
        arrays = dict(received)
        forms = {form.name: form for form in self.arrays}
        for name, change in self.split(mean).items():
            moved = received[name].astype(np.float64) + change
            dtype = forms[name].dtype
            arrays[name] = (np.rint(moved) if dtype.kind in "biu" else moved).astype(dtype)
        return arrays

    def _verify_weight(self, weight: int) -> None:
        if not 1 <= weight <= self.most_weight:
            raise RefusedError(
                "E-SECAGG-RANGE",
                f"expected a weight of 1 to {self.most_weight}, got {weight}",
                hint="The run's secure_aggregation.most_weight bounds how many records count.",
            )


def verify_unchanged(
    layout: Layout, received: Mapping[str, Array], reply: Mapping[str, Array]
) -> None:
    """Check that arrays which are not laid out, and so get no noise, are as they were received.

    Raises:
        RefusedError: one of them has changed (``E-UPDATE-INTEGER``).
    """
    laid_out = {form.name for form in layout.arrays}
    for name, old in received.items():
        if name not in laid_out and old.tobytes() != reply[name].tobytes():
            raise RefusedError(
                "E-UPDATE-INTEGER",
                f"array {name}: expected integers as they were received, got others",
                hint="Nothing can noise them, so they may not change.",
            )


def _split(value: int, limbs: int) -> list[int]:
    return [(value >> (LIMB_BITS * index)) & _LIMB for index in range(limbs)]


def _joined(limbs: Sequence[Any] | Words) -> int:
    return sum(int(limb) << (LIMB_BITS * index) for index, limb in enumerate(limbs))
