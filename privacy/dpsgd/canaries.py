"""White-box canaries: units without a record, whose gradients are random directions.

Each canary is in or out by a bit that its owner drew. One that is in goes through every act of the
mechanism as a record does: its own coin at each step, its norm taken, clipped, added to the same
sum. After each step every canary, in or out, is compared with what was released: its score is the
sum over steps of <released gradient, direction>. Scores see released values alone, so they cost no
privacy; how far those of the included stand above the others tells how much noise there really was
(Nasr et al. 2023, arXiv 2302.07956; Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, section 6).

Directions are signs over sqrt(d): exactly of norm one, as independent of each other and of any
gradient as points on the sphere (products of mean zero and variance 1/d), and made from one random
bit a coordinate. Steps go in pairs: a canary's direction is new in every pair, and turned round
within it. What the records' gradient has along a direction cancels, and so does what canaries do to
the model. A mechanism owes its epsilon to whatever vectors a unit brings, so both are allowed.

A direction is cut from ``OVERSHOOT`` times the clip down to the clip: a clip that is not there
shows. What white-box canaries cannot show is a norm that is wrong for records' gradients, since
theirs are written out; mislabelled records can (``learning/mislabelled.py``).

Trusts: the seed was fixed before training and says nothing about the bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tacit.privacy.dpsgd.contributions import Written
from tacit.privacy.noise import KEY_BYTES, SignStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tacit.privacy.dpsgd.contributions import Contribution

    Int64Array = npt.NDArray[np.int64]

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

OVERSHOOT = 10.0  # times the clip, before clipping
_CHUNK_NUMBERS = 1 << 22  # of directions at once: 16 MB


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Canaries:
    """White-box canaries of one release.

    Attributes:
        seed: 32 bytes that name the directions; the same in every release of a run.
        included: bool ``(m,)``: which of them are in. Secret until the audit.
        first_step: noised steps of this run before this release.
    """

    seed: bytes
    included: BoolArray
    first_step: int = 0

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_BYTES:
            raise ValueError(f"expected a seed of {KEY_BYTES} bytes, got {len(self.seed)}")
        if self.included.dtype != np.bool_ or self.included.ndim != 1 or not len(self.included):
            raise ValueError(
                "expected inclusion bits as booleans (m,), got "
                f"{self.included.dtype} {self.included.shape}"
            )
        if self.first_step < 0:
            raise ValueError(f"expected steps before this release, got {self.first_step}")

    def __repr__(self) -> str:
        return f"Canaries({len(self.included)}, first_step={self.first_step})"


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryScores:
    """What released gradients say of each canary. Those of several releases add up.

    Attributes:
        products: float64 ``(m,)``: the sum over steps of <released gradient, direction>.
        squared_norm: of all released gradients.
        steps: how many there were.
        parameters: numbers in each (d).
    """

    products: Float64Array
    squared_norm: float
    steps: int
    parameters: int

    def __add__(self, other: CanaryScores) -> CanaryScores:
        if self.products.shape != other.products.shape or self.parameters != other.parameters:
            raise ValueError("expected scores of the same canaries and model")
        return CanaryScores(
            products=self.products + other.products,
            squared_norm=self.squared_norm + other.squared_norm,
            steps=self.steps + other.steps,
            parameters=self.parameters,
        )

    @property
    def dimension(self) -> int:
        """How many numbers were released in all (steps x d): of the space of the cosines."""
        return self.steps * self.parameters

    def cosines(self) -> Float64Array:
        """Return each canary's cosine with everything released, float64 ``(m,)``.

        Of a canary that is out it follows N(0, 1 / dimension).
        """
        size = math.sqrt(self.squared_norm * self.steps)
        return self.products / size if size > 0 else np.zeros_like(self.products)


class CanaryUnits:
    """The canaries of one engine: what they bring to a step, and what they make of its release."""

    def __init__(
        self, canaries: Canaries, parameters: Sequence[torch.Tensor], *, clip: float
    ) -> None:
        """Take the trained parameters, in order, and the clip that cuts every canary."""
        self.count = len(canaries.included)
        self._canaries = canaries
        self._shapes = [tuple(p.shape) for p in parameters]
        self._numbers = sum(math.prod(shape) for shape in self._shapes)
        self._entry = OVERSHOOT * clip / math.sqrt(self._numbers)
        self._chunk = max(1, _CHUNK_NUMBERS // self._numbers)
        self._products = np.zeros(self.count)
        self._squared_norm = 0.0
        self._steps = 0

    def contributions(self, chosen: Int64Array, *, step: int) -> Iterator[list[Contribution]]:
        """Yield what the included ones of the chosen canaries bring, a bounded number at a time.

        Args:
            chosen: positions of the canaries whose coins fell for this step.
            step: of this release, from 0.
        """
        takes_part = np.zeros(self.count, dtype=np.bool_)
        takes_part[chosen] = True
        takes_part &= self._canaries.included
        for _, signs in self._signs(step, takes_part):
            rows = torch.from_numpy(signs).mul_(self._turn(step) * self._entry)
            parts: list[Contribution] = []
            start = 0
            for index, shape in enumerate(self._shapes):
                stop = start + math.prod(shape)
                parts.append(Written(index, rows[:, start:stop].reshape(len(rows), *shape)))
                start = stop
            yield parts

    def observe(self, released: Sequence[torch.Tensor], *, step: int) -> None:
        """Score every canary, in or out, by a released gradient."""
        gradient = torch.cat([part.reshape(-1) for part in released]).numpy()
        scale = self._turn(step) / math.sqrt(self._numbers)
        for rows, signs in self._signs(step, np.ones(self.count, dtype=np.bool_)):
            self._products[rows] += scale * (signs @ gradient).astype(np.float64)
        self._squared_norm += float(np.square(gradient, dtype=np.float64).sum())
        self._steps += 1

    def scores(self) -> CanaryScores:
        """Return the scores of the steps so far."""
        return CanaryScores(
            products=self._products.copy(),
            squared_norm=self._squared_norm,
            steps=self._steps,
            parameters=self._numbers,
        )

    def _turn(self, step: int) -> float:
        return -1.0 if (self._canaries.first_step + step) % 2 else 1.0

    def _signs(
        self, step: int, wanted: BoolArray
    ) -> Iterator[tuple[Int64Array, npt.NDArray[np.float32]]]:
        """Yield positions of wanted canaries, and their signs: float32 ``(rows, d)``."""
        pair = (self._canaries.first_step + step) // 2
        stream = SignStream(self._canaries.seed, purpose=f"canary directions of pair {pair}")
        for start in range(0, self.count, self._chunk):
            rows = np.arange(start, min(start + self._chunk, self.count))
            packed = stream.bits(len(rows), columns=self._numbers)
            mine = wanted[rows]
            if mine.any():
                bits = np.unpackbits(packed[mine], axis=1, count=self._numbers)
                signs = bits.astype(np.float32)
                signs *= 2.0
                signs -= 1.0
                yield rows[mine], signs
