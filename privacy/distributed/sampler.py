"""Exact discrete Gaussian noise from a cryptographic key, many numbers at a time.

Trusts: AES-256 in counter mode (``privacy/noise.py``).
Promises: each number X is drawn with P(X = x) proportional to exp(-x^2 / (2 sigma^2)) over all
integers, up to :data:`DRAW_ERROR` in total variation; the same key, purpose and sigma give the same
numbers on every machine, however they are cut into calls.

The sampler is that of Canonne, Kamath & Steinke 2020 (arXiv 2004.00010, algorithms 2 and 3) with
its acceptances made in one:

1. Propose |X| = U + tau0 V, with U uniform below tau0 and P(V >= k) = e^-k, and a fair sign; -0 is
   thrown away. So |X| = x is proposed with a probability proportional to e^-V.
2. Keep it with probability exp(V - x^2 / (2 sigma^2)). From tau0 >= sqrt(2) sigma on, that is at
   most 1, since x >= tau0 V and V^2 >= V.

U is exact: a word of 32 bits that no multiple of tau0 fills is thrown away (Lemire 2019, arXiv
1805.10941). V comes from a word of 64 bits, so its probabilities are known integers of 2^64, and
the acceptance makes good what they differ from those of step 1. The acceptance compares a word of
64 bits with a threshold; where float64 cannot tell the two apart, which happens once in 2^42
proposals, the word gets 64 more bits and the threshold 60 digits.
"""

from __future__ import annotations

import decimal
import math
from typing import TYPE_CHECKING

import numpy as np

from tacit.privacy.noise import KeyStream

if TYPE_CHECKING:
    import numpy.typing as npt

    from tacit.privacy.noise import Int64Array, UInt64Array

    UInt32Array = npt.NDArray[np.uint32]

# Of one number, in total variation: acceptances are off by 2^-128, and more than one proposal in
# four is kept. That V ends at 44 is less than e^-2000.
DRAW_ERROR = 2.0**-120

MIN_DEVIATION = 0.5  # Kairouz, Liu & Steinke 2021, proposition 14
MAX_DEVIATION = float(1 << 30)  # tau0 fits into 32 bits

_BLOCK = 1 << 13  # proposals at a time: their numbers stay in the processor's cache
_UNDECIDED = 2.0**21  # of 2^64: far above what float64 loses in a threshold
_DIGITS = decimal.Context(prec=60)
_LOW = np.uint64((1 << 32) - 1)
_HALF = np.uint64(32)

# P(V >= k) for k = 44, ..., 1, of 2^64
_LEVELS = np.array(
    [int(_DIGITS.multiply(1 << 64, _DIGITS.exp(decimal.Decimal(-k)))) for k in range(44, 0, -1)],
    dtype=np.uint64,
)


def draws_error(*, members: int, dimension: int, steps: int) -> float:
    """Return how far all numbers of a run lie from exact ones, in total variation.

    What is claimed of exact noise holds of these numbers after delta has grown by
    (1 + e^epsilon) times this (``accounting.ZeroConcentrated.inexact``).

    Args:
        members: who draw.
        dimension: numbers that each draws in a step.
        steps: noised sums.
    """
    return float(members) * dimension * steps * DRAW_ERROR


class DiscreteGaussianStream:
    """Independent discrete Gaussian integers, in the order of one key stream."""

    def __init__(self, key: bytes, *, purpose: str, deviation: float) -> None:
        """Begin a stream.

        Args:
            key: 32 bytes.
            purpose: tells this stream from others under the key.
            deviation: sigma; the variance is at most sigma^2, and from sigma = 4 on equal to it
                to 60 digits.

        Raises:
            ValueError: key, purpose or deviation is outside of its domain.
        """
        if not MIN_DEVIATION <= deviation <= MAX_DEVIATION:
            raise ValueError(f"expected 0.5 <= deviation <= 2^30, got {deviation}")
        self._deviation = deviation
        self._width = math.floor(math.sqrt(2.0) * deviation) + 1  # tau0
        self._words = KeyStream(key, purpose)
        self._more = KeyStream(key, f"{purpose}, more bits")
        self._zeros = bytes(24 * _BLOCK)
        self._bytes = bytearray(24 * _BLOCK + 16)  # the cipher asks for a block more
        self._left = np.empty(0, dtype=np.int64)

    def draw(self, count: int) -> Int64Array:
        """Return the next ``count`` numbers of the stream (int64, shape ``(count,)``)."""
        values = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            part = self._next(count - done)
            values[done : done + len(part)] = part
            done += len(part)
        return values

    def add_to(self, ring: UInt32Array) -> None:
        """Add the next numbers of the stream to ``(d,)`` numbers modulo 2^32, in place."""
        done = 0
        while done < len(ring):
            part = self._next(len(ring) - done)
            # An integer's last 32 bits are what it is modulo 2^32, negative ones included.
            ring[done : done + len(part)] += part.astype(np.uint32)
            done += len(part)

    def _next(self, most: int) -> Int64Array:
        if len(self._left) == 0:
            self._left = self._kept()
        part, self._left = self._left[:most], self._left[most:]
        return part

    def _kept(self) -> Int64Array:
        """Return what is kept of the next block of proposals."""
        self._words.fill(self._bytes, self._zeros)
        words = np.frombuffer(self._bytes, dtype="<u8", count=3 * _BLOCK).reshape(3, _BLOCK)
        negative = (words[0] & np.uint64(1)).view(np.int64)
        product = (words[0] >> _HALF) * np.uint64(self._width)
        levels = levels_of(words[1])
        sizes = (product >> _HALF).view(np.int64)
        sizes += levels * self._width
        kept = self._accepted(words[2], sizes, levels)
        kept &= (product & _LOW) >= np.uint64((1 << 32) % self._width)
        kept &= (sizes | (negative ^ 1)) != 0
        values: Int64Array = sizes[kept]
        negative = negative[kept]
        values ^= -negative  # one's complement, then two's
        values += negative
        return values

    def _accepted(
        self, words: UInt64Array, sizes: Int64Array, levels: Int64Array
    ) -> npt.NDArray[np.bool_]:
        gaps = sizes.astype(np.float64)
        gaps *= gaps
        gaps *= -0.5 / self._deviation**2
        gaps += levels
        np.exp(gaps, out=gaps)
        gaps *= 2.0**64
        gaps -= words
        accepted = gaps > 0.0
        np.abs(gaps, out=gaps)
        if gaps.min() < _UNDECIDED:
            for place in np.flatnonzero(gaps < _UNDECIDED):
                word = int(words[place]) << 64 | int(self._more.words(1)[0])
                size, level = int(sizes[place]), int(levels[place])
                accepted[place] = word < threshold_of(size, level, deviation=self._deviation)
        return accepted


def levels_of(words: UInt64Array) -> Int64Array:
    """Return V for uniform 64-bit words: how many of its thresholds lie above each."""
    few = (words < _LEVELS[-1]).view(np.int8) + (words < _LEVELS[-2]).view(np.int8)
    few += (words < _LEVELS[-3]).view(np.int8)
    levels: Int64Array = few.astype(np.int64)
    rare = np.flatnonzero(few == 3)
    levels[rare] = len(_LEVELS) - np.searchsorted(_LEVELS, words[rare], side="right")
    return levels


def threshold_of(size: int, level: int, *, deviation: float) -> decimal.Decimal:
    """Return below which of 2^128 words a proposal is kept, to 60 digits.

    It is proportional to exp(-size^2 / (2 deviation^2)) over the probability that V is ``level``,
    and at most 2^128: the last factor is for levels whose probability was rounded down.
    """
    with decimal.localcontext(_DIGITS):
        above = int(_LEVELS[-level]) if level else 1 << 64
        below = int(_LEVELS[-level - 1]) if level < len(_LEVELS) else 0
        square = decimal.Decimal(size) ** 2 / (2 * decimal.Decimal(deviation) ** 2)
        exact = (1 - decimal.Decimal(-1).exp()) * (-square).exp()
        return exact * (1 << 192) / (above - below) * (1 - decimal.Decimal(2) ** -60)
