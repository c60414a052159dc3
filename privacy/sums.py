"""Typed bounded sums: what is asked of records that may not be shared, clipped, noised once.

A query is a declared vector of blocks. Each record adds one vector to it; the vector is cut to one
L2 bound over all blocks together, the vectors are summed in float64, and Gaussian noise from a
cryptographic key is added once. The whole vector is one release of one mechanism.

Trusts: the caller's word that row i of the contributions is phi(record i), where phi reads that
record, public constants and outputs already released under differential privacy, and nothing else:
no ranks, quantiles, means or models of the other rows. The bound on one record's effect is worth
nothing without it. Bins, categories and bounds are public.

Promises:

1. One unit of privacy moves the weighted sum by at most ``clip``, whatever it contributes: rows of
   one subject are added first, and cut as one.
2. A row that is not finite counts as zero, and nothing tells that there was one.
3. An empty data set is answered like any other.
4. The noise of every coordinate is public, and so are standard errors and intervals.

k blocks of equal weight cost sqrt(k) times the noise of one.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tacit.privacy.accounting import SampledGaussian
from tacit.privacy.noise import GaussianStream
from tacit.privacy.plan import SENSITIVITY_MARGIN

if TYPE_CHECKING:
    from collections.abc import Mapping

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


# The low bits of a float64 sum can tell what it was made of (Mironov 2012, "On significance of the
# least significant bits for differential privacy"): results are multiples of sigma / 2^20.
_GRID_BITS = 20

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Block:
    """One part of a query's vector.

    Attributes:
        name: what the part is called in the result.
        length: its coordinates.
        bound: L2 norm that one unit's part is expected to keep to, in the part's own terms.
        weight: how much of the query's precision the part gets: its noise is proportional to
            ``bound / weight``.
    """

    name: str
    length: int = 1
    bound: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"expected a block of at least 1 coordinate, got {self.length}")
        if not all(math.isfinite(x) and x > 0 for x in (self.bound, self.weight)):
            raise ValueError(f"expected positive numbers, got {self.bound} and {self.weight}")


@dataclass(frozen=True, kw_only=True)
class BoundedSum:
    """A declared query: everything public about one noised vector of sums.

    Attributes:
        blocks: the vector's parts, in order.
        noise_multiplier: sigma / clip, where both are in terms of the weighted vector.
    """

    blocks: tuple[Block, ...]
    noise_multiplier: float

    def __post_init__(self) -> None:
        twice = [name for name, n in Counter(b.name for b in self.blocks).items() if n > 1]
        if not self.blocks or twice:
            raise ValueError(f"expected at least one block, each name once, got {twice} twice")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"expected a positive noise multiplier, got {self.noise_multiplier}")

    @property
    def length(self) -> int:
        """Coordinates of the whole vector."""
        return sum(block.length for block in self.blocks)

    @property
    def clip(self) -> float:
        """L2 bound of one unit's weighted vector: C^2 = sum over blocks of weight^2."""
        return math.hypot(*(block.weight for block in self.blocks))

    def deviation(self, name: str) -> float:
        """Return the standard deviation of the noise on each coordinate of a block."""
        block = next(block for block in self.blocks if block.name == name)
        return self.sigma * block.bound / block.weight

    def mechanism(self) -> SampledGaussian:
        """Return what one release of this query costs, as a ledger enters it."""
        return SampledGaussian(noise_multiplier=self.noise_multiplier, sample_rate=1.0, steps=1)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on each coordinate of the weighted vector."""
        return self.noise_multiplier * self.clip * (1.0 + SENSITIVITY_MARGIN)

    @property
    def scales(self) -> Float64Array:
        """What weighs each coordinate, float64, ``(length,)``."""
        return np.repeat(
            [block.weight / block.bound for block in self.blocks],
            [block.length for block in self.blocks],
        )


@dataclass(frozen=True, kw_only=True)
class NoisedSums:
    """The answer to a query.

    Attributes:
        query: what was asked.
        values: the noised sums by block, float64, shape ``(length,)``.
    """

    query: BoundedSum
    values: Mapping[str, Float64Array]

    def standard_error(self, name: str) -> float:
        """Return the standard error of each coordinate of a block: that of the noise."""
        return self.query.deviation(name)

    def interval(
        self, name: str, *, confidence: float = CONFIDENCE
    ) -> tuple[Float64Array, Float64Array]:
        """Return low and high ends around the sums over the records that were asked."""
        half = quantile(confidence) * self.standard_error(name)
        return self.values[name] - half, self.values[name] + half


def noised_sums(
    query: BoundedSum,
    contributions: npt.ArrayLike,
    *,
    key: bytes,
    purpose: str,
    subjects: Int64Array | None = None,
) -> NoisedSums:
    """Clip, sum and noise the contributions: one release.

    Args:
        query: the declared vector.
        contributions: phi(record) by row, shape ``(n, query.length)``, n may be 0; see the module's
            docstring for what phi may read.
        key: a noise key of 32 bytes, which serves this release alone.
        purpose: tells this release apart from what else the key is used for.
        subjects: a number per row where the unit of privacy is the subject, ``(n,)``.

    Raises:
        ValueError: a shape or the key is wrong.
    """
    rows = np.asarray(contributions, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != query.length:
        raise ValueError(f"expected contributions (n, {query.length}), got shape {rows.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = _finite_rows(rows * query.scales)
        if subjects is not None:
            weighted = _by_subject(weighted, subjects)
        total = _clipped(weighted, query.clip).sum(axis=0)
    sigma = query.sigma
    noise = GaussianStream(key, purpose=f"sums {purpose}").normals(query.length)
    grid = 2.0 ** (math.floor(math.log2(sigma)) - _GRID_BITS)
    values = np.rint((total + sigma * noise) / grid) * grid / query.scales
    ends = np.cumsum([block.length for block in query.blocks])[:-1]
    parts = np.split(values, ends)
    return NoisedSums(
        query=query, values={b.name: part for b, part in zip(query.blocks, parts, strict=True)}
    )


def _finite_rows(rows: Float64Array) -> Float64Array:
    """Return the rows with zeros for each that holds a NaN or an infinity."""
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)


def _by_subject(rows: Float64Array, subjects: Int64Array) -> Float64Array:
    if subjects.shape != (len(rows),):
        raise ValueError(f"expected a subject for each of {len(rows)} rows, got {subjects.shape}")
    names, positions = np.unique(subjects, return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, positions, rows)
    return sums


def _clipped(rows: Float64Array, clip: float) -> Float64Array:
    """Cut each row to the L2 norm; one whose norm overflows (beyond 1e154) counts as zero."""
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    factors = np.minimum(1.0, clip / np.maximum(norms, 1e-300))
    return np.where(np.isfinite(norms), rows * factors, 0.0)


def histograms(bins: Mapping[str, int], *, deviation: float) -> BoundedSum:
    """Declare histograms whose every count gets noise of one standard deviation.

    Args:
        bins: how many bins each histogram has, by name. A unit counts once in each.
        deviation: of the noise on each count; k histograms cost sqrt(k) of what one costs.
    """
    blocks = tuple(Block(name=name, length=length) for name, length in bins.items())
    multiplier = deviation / (math.sqrt(len(blocks)) * (1.0 + SENSITIVITY_MARGIN))
    return BoundedSum(blocks=blocks, noise_multiplier=multiplier)


def one_hot(positions: Int64Array, *, bins: int) -> Float64Array:
    """Return each record's contribution to a histogram, ``(n, bins)``; outside the bins: zeros."""
    inside: Float64Array = (positions[:, None] == np.arange(bins)).astype(np.float64)
    return inside


def quantile(confidence: float) -> float:
    """Return how many standard errors an interval of that confidence reaches to either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected 0 < confidence < 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Two noised sums, one over the other, and what is known of their noise.

    Attributes:
        above, below: the noised sums.
        variance_above, variance_below, covariance: of their noise.
    """

    above: float
    below: float
    variance_above: float
    variance_below: float
    covariance: float = 0.0

    def interval(self, *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Return the ends of Fieller's interval around the ratio of the sums without noise.

        Fieller (1954): all r with (above - r below)^2 <= q^2 Var(above - r below). Its coverage is
        exact for Gaussian noise, whatever the sums; a linearised error is far too small where the
        noise is not small beside ``below``. None: the noise leaves no positive ``below`` certain,
        so that the interval has no end.
        """
        q2 = quantile(confidence) ** 2
        a = self.below**2 - q2 * self.variance_below
        b = self.above * self.below - q2 * self.covariance
        c = self.above**2 - q2 * self.variance_above
        if a <= 0 or self.below <= 0:
            return None
        root = math.sqrt(max(0.0, b * b - a * c))
        return (b - root) / a, (b + root) / a
