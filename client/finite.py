"""Whether every number of a payload is finite, in pieces that stay in the processor's cache.

An array of a type whose numbers cannot be read here is not finite as far as anybody knows: it is
reported like one that holds a NaN.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tacit.protos import records_pb2

_PIECE = 1 << 18  # numbers per piece: 1 MiB of float32
_EXACT = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
_REAL = frozenset(("float16", "float32", "float64"))
_BFLOAT16_EXPONENT = np.uint16(0x7F80)


def first_non_finite(manifest: records_pb2.Manifest, payload: memoryview) -> str | None:
    """Return the name of the first array that is not finite throughout, or None.

    The manifest's sizes must have been checked against the payload.
    """
    offset = 0
    for record in manifest.records:
        for entry in record.arrays:
            if not _is_finite(entry, payload[offset : offset + entry.bytes]):
                return entry.name
            offset += entry.bytes
    return None


def _is_finite(entry: records_pb2.ArrayEntry, data: memoryview) -> bool:
    if entry.dtype in _EXACT:
        return True
    if entry.dtype in _REAL:
        return _all_finite(np.frombuffer(data, dtype=np.dtype(entry.dtype).newbyteorder("<")))
    if entry.dtype == "bfloat16":
        return _all_finite_bfloat16(np.frombuffer(data, dtype="<u2"))
    if entry.dtype == "" and entry.stype == "numpy.ndarray":
        return _is_finite_npy(data)
    return False


def _all_finite(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    flags = np.empty(min(_PIECE, values.size), dtype=bool)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        if not np.isfinite(piece, out=flags[: piece.size]).all():
            return False
    return True


def _all_finite_bfloat16(bits: np.ndarray[Any, np.dtype[Any]]) -> bool:
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE] & _BFLOAT16_EXPONENT
        if (piece == _BFLOAT16_EXPONENT).any():
            return False
    return True


def _is_finite_npy(data: memoryview) -> bool:
    """Check an array that older Flower apps send as the bytes of an .npy file."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return False
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        return False
    return values.dtype.kind != "f" or _all_finite(values.reshape(-1))
