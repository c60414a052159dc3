"""Features of records that nobody has: drawn within a data contract's public ranges.

Trusts: the contract and a stream of coins. No record plays a part in what comes of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.data_contract import ColumnKind, DataKind
from tacit.learning.features import input_shape

if TYPE_CHECKING:
    from tacit.core.data_contract import DataSpec
    from tacit.learning.contract import Float32Array
    from tacit.privacy.noise import Float64Array, UniformStream


def features_from_ranges(
    data: DataSpec, count: int, coins: UniformStream, *, at_ends: bool
) -> Float32Array:
    """Return made-up features as ``learning/contract.py`` would encode them, float32.

    Args:
        data: the contract.
        count: how many records.
        coins: what they are drawn by.
        at_ends: every number at one of its range's ends, so that records are far from each other;
            else evenly within the range. Categories and booleans are evenly drawn either way.
    """
    if data.kind is DataKind.IMAGE:
        shape = (count, *input_shape(data))
        drawn = _numbers(coins.uniforms(math.prod(shape)), at_ends=at_ends)
        return drawn.reshape(shape).astype(np.float32)
    return np.concatenate(_columns(data, count, coins, at_ends=at_ends), axis=1)


def _columns(
    data: DataSpec, count: int, coins: UniformStream, *, at_ends: bool
) -> list[Float32Array]:
    """Return each column's features, in the order of the model's inputs; nothing is missing."""
    parts: list[Float32Array] = []
    for _, column in sorted(data.columns.items()):
        drawn = coins.uniforms(count)
        if column.type is ColumnKind.CATEGORY:
            values = len(column.values)
            part = np.eye(values, dtype=np.float32)[(drawn * values).astype(np.int64)]
        else:
            whole = at_ends or column.type is ColumnKind.BOOLEAN
            part = _numbers(drawn, at_ends=whole).astype(np.float32)[:, None]
        parts.append(part)
        if column.flag_missing:
            parts.append(np.zeros((count, 1), dtype=np.float32))
    return parts


def _numbers(drawn: Float64Array, *, at_ends: bool) -> Float64Array:
    return (drawn < 0.5).astype(np.float64) if at_ends else drawn
