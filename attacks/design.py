"""Who is audited, and who is in which reference model, drawn by what records hold.

A record's key (:func:`tacit.attacks.subject.record_keys`) takes the place of its row: the same
records in another order are drawn alike, so that no score follows from the order of a file.
Records that are equal are one to any model: they are drawn together, all in or all out, or a
reference without one copy would have learnt the record from another.

Trusts: keys differ where records do. Promises: each record is in a reference with a chance of
exactly one half, over the seeds, and in exactly one of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from numpy.random import Generator

    from tacit.attacks.target import BoolArray, Int64Array

    Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Who is in which reference.

    A pair follows from the records, the seed and its number alone: more models leave the first
    ones as they are, and those that are trained already are used again.

    Attributes:
        models: an even number.
        seed: of the pairs, the batches and the shadows' noise.
    """

    models: int
    seed: int

    def __post_init__(self) -> None:
        if self.models < 2 or self.models % 2:
            raise ValueError("expected pairs of models")

    def is_in(self, keys: Keys) -> BoolArray:
        """Return bool ``(models, n)``: model 2k + 1 has what model 2k has not.

        Args:
            keys: uint64 ``(n,)``, of at least two records that differ.
        """
        _, record, copies = np.unique(keys, return_inverse=True, return_counts=True)
        if len(copies) < 2:
            raise ValueError("expected at least two records that differ")
        halves = [
            _half(copies, rng=np.random.default_rng([self.seed, pair]))[record]
            for pair in range(self.models // 2)
        ]
        paired: BoolArray = np.stack([side for half in halves for side in (half, ~half)])
        return paired


def _half(copies: Int64Array, *, rng: Generator) -> BoolArray:
    """Draw which distinct records are in: half of all copies, as near as whole records come.

    The most frequent records come first, and the rarer ones make up for what is uneven. In and out
    are treated alike, a tie by a fair coin, so that each has the same chance.

    Args:
        copies: int64 ``(k,)``: how often each distinct record is there.
        rng: draws.
    """
    half = np.zeros(len(copies), dtype=np.bool_)
    lead = 0  # of copies that are in, before those that are out
    for often in np.unique(copies)[::-1].tolist():
        records = rng.permutation(np.flatnonzero(copies == often))
        even = (len(records) - lead / often) / 2.0  # so many in would leave no lead
        nearest = math.floor(even + 0.5) if rng.random() < 0.5 else math.ceil(even - 0.5)
        count = min(max(nearest, 0), len(records))
        half[records[:count]] = True
        lead += often * (2 * count - len(records))
    return half


def choose_audited(
    is_member: BoolArray, keys: Keys, *, rng: Generator
) -> tuple[Int64Array, Int64Array]:
    """Choose whom to audit so that references are as large as the target.

    Copies of a record are chosen together, but for one record where the number is reached.

    Args:
        is_member: bool ``(n,)``, of all records that may be audited.
        keys: uint64 ``(n,)``, theirs.
        rng: chooses among the side that has more.

    Returns:
        Positions of the audited records, as many members as non-members, and of the members that
        are left, which belong into every reference. Both in ascending order.
    """
    members, others = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    size = min(len(members), len(others))
    chosen = [_some(side, keys[side], size, rng=rng) for side in (members, others)]
    audited = np.sort(np.concatenate(chosen)).astype(np.int64)
    return audited, np.setdiff1d(members, chosen[0]).astype(np.int64)


def _some(side: Int64Array, keys: Keys, size: int, *, rng: Generator) -> Int64Array:
    distinct, record = np.unique(keys, return_inverse=True)
    place = rng.permutation(len(distinct))[record]
    return side[np.argsort(place, kind="stable")[:size]]
