"""Masks: uint32 streams that hide a vector, and vanish from the sum or can be taken off it.

Trusts: AES-256 in counter mode as a pseudo-random generator; each key is used for one stream, so
that the counter may start at zero.
Promises: arithmetic modulo 2^32, in place, on blocks that stay in the processor's cache: memory
beyond the vector is one block, whatever the number of masks.

A mask's key is derived from a secret (the self-mask seed b, or what two mask keys agree on), the
session, the step and the hash of that step's weights: two members who were sent different weights
do not cancel each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.privacy.secagg.keys import derive, id_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography.hazmat.primitives.ciphers import CipherContext

UInt32Array = npt.NDArray[np.uint32]
RING_DTYPE = np.dtype("<u4")
_BLOCK = 1 << 16  # numbers at a time: 256 KiB, measured as fast as 1 MiB
_ZEROS = memoryview(bytes(4 * _BLOCK))
_STREAMS = 128  # ciphers held at a time


def self_mask_key(secret: bytes, *, session: bytes, step: int, model: bytes) -> bytes:
    """Return the key of a member's own mask in one step, from its b."""
    return derive(secret, info=b"self|" + session + _step(step) + model)


def pair_mask_key(
    shared: bytes, *, session: bytes, pair: tuple[int, int], step: int, model: bytes
) -> bytes:
    """Return the key of the mask between two members in one step; the order does not matter."""
    smaller, larger = sorted(pair)
    who = id_bytes(smaller) + id_bytes(larger)
    return derive(shared, info=b"pair|" + session + who + _step(step) + model)


def _step(step: int) -> bytes:
    return step.to_bytes(4, "big")


def check_vector(vector: UInt32Array, dimension: int) -> None:
    """Check that masks can be applied in place.

    Raises:
        ValueError: not a writeable, contiguous, little-endian uint32 array of that length.
    """
    fits = (
        vector.dtype == RING_DTYPE
        and vector.shape == (dimension,)
        and vector.flags.c_contiguous
        and vector.flags.writeable
    )
    if not fits:
        raise ValueError(
            f"expected a writeable contiguous little-endian uint32 array of {dimension} numbers, "
            f"got {vector.dtype} {vector.shape}"
        )


def apply_masks(
    vector: UInt32Array, *, added: Sequence[bytes] = (), subtracted: Sequence[bytes] = ()
) -> None:
    """Add and subtract the streams of these keys, modulo 2^32, in place.

    Args:
        vector: uint32, shape ``(d,)``.
        added: keys of 32 bytes.
        subtracted: keys of 32 bytes.
    """
    for keys, operation in ((added, np.add), (subtracted, np.subtract)):
        for start in range(0, len(keys), _STREAMS):
            _apply(vector, keys[start : start + _STREAMS], operation)


def _apply(vector: UInt32Array, keys: Sequence[bytes], operation: np.ufunc) -> None:
    streams = [keystream(key) for key in keys]
    buffer = bytearray(4 * _BLOCK + 16)  # the cipher asks for a block more
    numbers = np.frombuffer(buffer, dtype=RING_DTYPE, count=_BLOCK)
    for block in _blocks(vector):
        mask, zeros = numbers[: len(block)], _ZEROS[: 4 * len(block)]
        for stream in streams:
            stream.update_into(zeros, buffer)
            operation(block, mask, out=block)
    buffer[:] = bytes(len(buffer))


def keystream(key: bytes, counter: bytes = bytes(16)) -> CipherContext:
    """Return AES-256-CTR under a key: encrypting zeros gives its stream (SP 800-38A, 6.5)."""
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()


def _blocks(vector: UInt32Array) -> Iterator[UInt32Array]:
    for start in range(0, len(vector), _BLOCK):
        yield vector[start : start + _BLOCK]
