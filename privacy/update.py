"""One client's whole update, clipped and noised: the mechanism of mode ``client-local``.

Trusts: nobody who made the reply; the received model must be the caller's own copy, not one that
whoever trained could have changed.
Promises: what is left in the reply is ``received + clip_C(reply - received) + noise``, over all
real arrays together; so one release bounds what the whole data set, replaced by any other, can
change: the L2 sensitivity is 2C (replace-one, unit client). Integer arrays leave as they came.
An array that the mechanism cannot read refuses; so does a result that is not finite.

McMahan, Ramage, Talwar & Zhang 2018 (arXiv 1710.06963) clip updates so; here each owner adds the
whole noise, since nobody else is trusted to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tacit.core.errors import RefusedError
from tacit.privacy.noise import GaussianStream

_PIECE = 1 << 18  # numbers at a time: the temporaries stay in the processor's cache; it is even,
# so that no normal number of a pair is dropped between two pieces

_REAL = (np.dtype("<f4"), np.dtype("<f8"))

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class UpdatedArray:
    """One array of a reply, beside what was received under its name.

    Attributes:
        name: of the array.
        received: as the instruction brought it.
        reply: of the same shape and dtype, C order; float32 and float64 are changed in place.
    """

    name: str
    received: Array
    reply: Array


def noise_update(
    arrays: list[UpdatedArray], *, clip: float, deviation: float, key: bytes, purpose: str
) -> None:
    """Clip the whole update to L2 norm ``clip`` and add noise to every coordinate, in place.

    Args:
        arrays: every array of the reply, in a fixed order.
        clip: the clipping norm C, over all real arrays together.
        deviation: of the noise on each coordinate; 2C times the noise multiplier.
        key: 32 bytes, for this one release.
        purpose: tells this stream from others under the key.

    Raises:
        RefusedError: an array is of a type that cannot be noised (``E-UPDATE-DTYPE``), an integer
            array has changed (``E-UPDATE-INTEGER``), there is no real array (``E-UPDATE-EMPTY``),
            or the result is not finite (``E-UPDATE-NOT-FINITE``).
        ValueError: clip or deviation is not positive and finite.
    """
    for name, value in (("clip", clip), ("deviation", deviation)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"expected a positive {name}, got {value}")
    real = [array for array in arrays if _is_real(array)]
    if not real:
        raise RefusedError("E-UPDATE-EMPTY", "expected an update with real numbers, got none")
    norm = math.sqrt(sum(_square(array) for array in real))
    # A norm that overflows says nothing of the direction: such an update counts as none.
    factor = min(1.0, clip / norm) if 0 < norm < math.inf else 0.0
    noise = GaussianStream(key, purpose=purpose)
    for array in real:
        _noise(array, factor, deviation, noise)


def is_noisable(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of a type can be in an update: real ones are noised, integers stay."""
    return dtype in _REAL or dtype.kind in "biu"


def _is_real(array: UpdatedArray) -> bool:
    received, reply = array.received, array.reply
    if received.dtype != reply.dtype or received.shape != reply.shape:
        raise RefusedError(
            "E-UPDATE-DTYPE", f"array {array.name}: expected the form that was received"
        )
    if reply.dtype in _REAL:
        return True
    if not is_noisable(reply.dtype):
        raise RefusedError(
            "E-UPDATE-DTYPE",
            f"array {array.name}: expected float32, float64 or integers, got {reply.dtype}",
            hint="Noise is added in float32 and float64 only: convert the model.",
        )
    if not np.array_equal(received.reshape(-1).view(np.uint8), reply.reshape(-1).view(np.uint8)):
        raise RefusedError(
            "E-UPDATE-INTEGER",
            f"array {array.name}: expected integers as they were received, got others",
            hint="Nothing can noise them, so they may not change.",
        )
    return False


def _pieces(array: UpdatedArray) -> list[tuple[Array, Array]]:
    received, reply = array.received.reshape(-1), array.reply.reshape(-1)
    if not np.shares_memory(reply, array.reply) and reply.size:
        raise ValueError("expected a reply in C order, which can be changed in place")
    return [
        (received[start : start + _PIECE], reply[start : start + _PIECE])
        for start in range(0, reply.size, _PIECE)
    ]


def _square(array: UpdatedArray) -> float:
    total = 0.0
    for received, reply in _pieces(array):
        with np.errstate(over="ignore", invalid="ignore"):
            change = reply.astype(np.float64) - received
            total += float(change @ change)
    return total if not math.isnan(total) else math.inf


def _noise(array: UpdatedArray, factor: float, deviation: float, noise: GaussianStream) -> None:
    for received, reply in _pieces(array):
        start = received.astype(np.float64)
        noised = start + deviation * noise.normals(reply.size)
        if factor > 0:
            noised += factor * (reply.astype(np.float64) - start)
        with np.errstate(over="ignore"):
            reply[...] = noised
        if not np.isfinite(reply).all():
            raise RefusedError(
                "E-UPDATE-NOT-FINITE",
                f"array {array.name}: the noised update is beyond what {reply.dtype} holds",
            )
