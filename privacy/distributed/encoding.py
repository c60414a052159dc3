"""One member's vector as noised integers of the ring, and the ring's sum as numbers again.

Trusts: the noise that was agreed (``account.DistributedNoise``) and a key for this one vector.
Promises: what one unit can move the integers by is at most ``noise.sensitivity`` in L2, whatever
the numbers are; noise is added before the integers leave; the same vector and key give the same
integers. Vectors are worked on in blocks, so that memory is the vector and its integers.

Rules:

1. A sum over records is clamped to R in each coordinate, scaled, and rounded to nearest: once,
   since drawing again would bound the vector, not what a record does to it. The clamp moves no two
   vectors apart.
2. An update is clipped to C, scaled, and rounded at random so that its mean stays; again with new
   randomness until its norm is within the bound that is charged (Kairouz, Liu & Steinke 2021, arXiv
   2102.06387, algorithm 1). How often is drawn is no part of what leaves.
3. A vector with a number that is not finite is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.errors import RefusedError
from tacit.privacy.distributed.account import Rounding
from tacit.privacy.distributed.sampler import DiscreteGaussianStream
from tacit.privacy.noise import UniformStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.privacy.distributed.account import DistributedNoise
    from tacit.privacy.distributed.sampler import UInt32Array
    from tacit.privacy.noise import Float64Array

_BLOCK = 1 << 15  # coordinates at a time
_MOST_DRAWS = 1000  # six draws of ten fail at most: all of these with less than 1e-220


def encode_total(
    total: Float64Array, noise: DistributedNoise, *, key: bytes, purpose: str
) -> UInt32Array:
    """Return a sum over records as noised integers (uint32, shape ``(d,)``).

    Args:
        total: sum of clipped contributions, accumulated in float64, shape ``(d,)``; it stays as it
            is.
        noise: as all members agreed, with :attr:`~account.Rounding.NEAREST`.
        key: 32 bytes, of this one run, round, attempt and step.
        purpose: tells this vector from others under the key.

    Raises:
        RefusedError: a number is not finite (``E-VECTOR-NOT-FINITE``).
        ValueError: shape, dtype or rounding is not what the noise is for.
    """
    _verify(total, noise, Rounding.NEAREST)
    ring = np.empty(noise.dimension, dtype=np.uint32)
    for part in _blocks(noise.dimension):
        ring[part] = rounded_total(total[part], noise).astype(np.int64).astype(np.uint32)
    _add_noise(ring, noise, key=key, purpose=purpose)
    return ring


def rounded_total(values: Float64Array, noise: DistributedNoise) -> Float64Array:
    """Return clamped, scaled and rounded coordinates, whole numbers still without noise."""
    scaled = np.clip(values, -noise.bound, noise.bound)
    scaled *= noise.scale
    return np.rint(scaled, out=scaled)


def encode_update(
    update: Float64Array, noise: DistributedNoise, *, key: bytes, purpose: str
) -> UInt32Array:
    """Return a member's whole update, clipped, as noised integers (uint32, shape ``(d,)``).

    Args:
        update: float64, shape ``(d,)``, every number that leaves; it stays as it is.
        noise: as all members agreed, with :attr:`~account.Rounding.CONDITIONAL`.
        key: 32 bytes, of this one run, round and attempt.
        purpose: tells this vector from others under the key.

    Raises:
        RefusedError: a number, or the norm, is not finite (``E-VECTOR-NOT-FINITE``).
        ValueError: shape, dtype or rounding is not what the noise is for.
    """
    _verify(update, noise, Rounding.CONDITIONAL)
    ring = rounded_update(update, noise, coins=UniformStream(key, purpose=f"{purpose}, rounding"))
    _add_noise(ring, noise, key=key, purpose=purpose)
    return ring


def rounded_update(
    update: Float64Array, noise: DistributedNoise, *, coins: UniformStream
) -> UInt32Array:
    """Return an update clipped, scaled and rounded at random, still without noise.

    Raises:
        RefusedError: its norm is not finite (``E-VECTOR-NOT-FINITE``).
    """
    with np.errstate(over="ignore"):
        norm = math.sqrt(math.fsum(_square(update[part]) for part in _blocks(noise.dimension)))
    if not math.isfinite(norm):
        raise _not_finite()
    factor = noise.scale * (min(1.0, noise.clip / norm) if norm > 0 else 1.0)
    ring = np.empty(noise.dimension, dtype=np.uint32)
    for _ in range(_MOST_DRAWS):
        square = 0.0
        for part in _blocks(noise.dimension):
            rounded = update[part] * factor
            rounded += coins.uniforms(len(rounded))
            np.floor(rounded, out=rounded)
            square += _square(rounded)
            ring[part] = rounded.astype(np.int64).astype(np.uint32)
        if square <= noise.norm_limit**2:
            return ring
    raise RuntimeError("expected the norm to hold in a thousand draws")


def decode(ring_sum: UInt32Array, noise: DistributedNoise) -> Float64Array:
    """Return the sum that a ring's sum of vectors stands for (float64, shape ``(d,)``)."""
    if ring_sum.dtype != np.uint32 or ring_sum.shape != (noise.dimension,):
        raise ValueError(f"expected uint32 ({noise.dimension},), got {ring_sum.shape}")
    decoded = ring_sum.view(np.int32).astype(np.float64)
    decoded /= noise.scale
    return decoded


def _add_noise(ring: UInt32Array, noise: DistributedNoise, *, key: bytes, purpose: str) -> None:
    stream = DiscreteGaussianStream(
        key, purpose=f"{purpose}, noise", deviation=noise.local_deviation
    )
    stream.add_to(ring)


def _verify(values: Float64Array, noise: DistributedNoise, rounding: Rounding) -> None:
    if noise.rounding is not rounding:
        raise ValueError(f"expected noise for {rounding}, got {noise.rounding}")
    if values.dtype != np.float64 or values.shape != (noise.dimension,):
        raise ValueError(
            f"expected float64 ({noise.dimension},), got {values.dtype} {values.shape}"
        )
    if not all(np.isfinite(values[part]).all() for part in _blocks(noise.dimension)):
        raise _not_finite()


def _not_finite() -> RefusedError:
    return RefusedError("E-VECTOR-NOT-FINITE", "expected finite numbers in what is to be summed")


def _square(values: Float64Array) -> float:
    return float(values @ values)


def _blocks(dimension: int) -> Iterator[slice]:
    for start in range(0, dimension, _BLOCK):
        yield slice(start, min(start + _BLOCK, dimension))
