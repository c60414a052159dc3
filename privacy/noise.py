"""Randomness that protects records: Gaussian noise and secret samples from a cryptographic key.

Trusts: AES-256 in counter mode, and the operating system for fresh keys.
Promises: the same key and purpose give the same numbers on every machine with the same libm;
another key or purpose gives numbers that nobody without the key can tell from independent ones.
No seed of a run, and no global generator, has any influence here.

One key serves one (run, round, attempt). Streams that serve different ends of one call are told
apart by a purpose string; a stream is read from its start, and never twice for different data.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_PAIRS = 1 << 13  # made at a time: 128 kB of numbers

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


def fresh_key() -> bytes:
    """Return a new noise key from the operating system's generator (32 bytes)."""
    return os.urandom(KEY_BYTES)


def derive_key(key: bytes, *, purpose: str) -> bytes:
    """Return the sub-key of ``key`` for one purpose (HMAC-SHA-256 as a pseudo-random function).

    Raises:
        ValueError: the key is not 32 bytes long, or the purpose is empty.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
    if not purpose:
        raise ValueError("expected a purpose: streams of one key are told apart by it")
    return hmac.new(key, b"tacit noise 1|" + purpose.encode(), hashlib.sha256).digest()


class KeyStream:
    """AES-256-CTR under a derived key, read as little-endian 64-bit words."""

    def __init__(self, key: bytes, purpose: str) -> None:
        derived = derive_key(key, purpose=purpose)
        # The derived key is used for this one stream, so the counter may start at zero.
        self._encryptor = Cipher(algorithms.AES(derived), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> UInt64Array:
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def fill(self, words: bytearray, zeros: bytes) -> None:
        """Overwrite a buffer with the next bytes; it is as long as the zeros, and 16 more."""
        self._encryptor.update_into(zeros, words)


class UniformStream:
    """Uniform numbers in [0, 1) with 53 random bits each."""

    def __init__(self, key: bytes, *, purpose: str) -> None:
        self._words = KeyStream(key, purpose)

    def uniforms(self, count: int) -> Float64Array:
        """Return the next ``count`` numbers of the stream (float64, shape ``(count,)``)."""
        return (self._words.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def select(self, count: int, *, probability: float) -> Int64Array:
        """Return the positions below ``count`` that a Poisson sample takes, each independently."""
        return np.flatnonzero(self.uniforms(count) < probability).astype(np.int64)


class SignStream:
    """Fair signs, one random bit each: a canary's direction, never a record's protection."""

    def __init__(self, key: bytes, *, purpose: str) -> None:
        self._words = KeyStream(key, purpose)

    def bits(self, rows: int, *, columns: int) -> npt.NDArray[np.uint8]:
        """Return the next rows, eight bits a byte: uint8, ``(rows, 8 x ceil(columns / 64))``.

        A row starts at a whole word, so that rows can be unpacked one by one.
        """
        width = -(-columns // 64)
        return self._words.words(rows * width).view(np.uint8).reshape(rows, 8 * width)


class GaussianStream:
    """Standard normal numbers in float64, by Box and Muller (1958), from 53-bit uniforms.

    The radius comes from u in (0, 1], so it is finite, and reaches 8.57 standard deviations
    (float32 generators stop at 5.9, which an attacker of the tail can see).
    """

    def __init__(self, key: bytes, *, purpose: str) -> None:
        self._words = KeyStream(key, purpose)
        self._zeros = bytes(16 * _PAIRS)
        self._bytes = bytearray(16 * _PAIRS + 16)  # the cipher asks for a block more
        self._numbers = np.empty((3, _PAIRS), dtype=np.float64)

    def normals(self, count: int) -> Float64Array:
        """Return the next ``count`` numbers of the stream (float64, shape ``(count,)``).

        An odd count drops the second half of its last pair.
        """
        values = np.zeros(count, dtype=np.float64)
        self.add_to(values, deviation=1.0)
        return values

    def add_to(self, values: Float64Array, *, deviation: float) -> None:
        """Add the next numbers of the stream, times a deviation, to ``(count,)`` values in place.

        Works on blocks that stay in the processor's cache: fresh memory for millions of numbers
        would cost more than the numbers.
        """
        for start in range(0, len(values), 2 * _PAIRS):
            part = values[start : start + 2 * _PAIRS]
            pairs = (len(part) + 1) // 2
            cosines, sines = self._pairs(pairs, deviation)
            part[:pairs] += cosines
            part[pairs:] += sines[: len(part) - pairs]

    def _pairs(self, count: int, deviation: float) -> tuple[Float64Array, Float64Array]:
        self._words.fill(self._bytes, self._zeros[: 16 * count])
        words = np.frombuffer(self._bytes, dtype="<u8", count=2 * count)
        np.right_shift(words, np.uint64(11), out=words)
        radius, tangent, square = self._numbers[:, :count]
        np.copyto(radius, words[:count].view(np.int64))
        np.copyto(tangent, words[count:].view(np.int64))
        radius += 1.0
        radius *= 2.0**-53  # u in (0, 1]
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        radius *= deviation
        # By half the angle, t = tan(angle / 2): cos = (1 - t^2) / (1 + t^2), sin = 2t / (1 + t^2).
        # One tangent costs a sixth of numpy's cosine and sine.
        tangent *= math.pi * 2.0**-53
        np.tan(tangent, out=tangent)
        np.multiply(tangent, tangent, out=square)
        square += 1.0
        radius /= square
        tangent *= radius
        tangent *= 2.0
        np.subtract(2.0, square, out=square)
        square *= radius
        return square, tangent
