"""Masks are added in place, vanish again, and depend on everything that tells steps apart."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.secagg.masks import apply_masks, check_vector, pair_mask_key, self_mask_key

SECRET = bytes(range(32))
SESSION = b"s" * 32
MODEL = b"m" * 32


@given(
    dimension=st.integers(1, 2000),
    keys=st.lists(st.binary(min_size=32, max_size=32), max_size=5),
)
def test_what_is_added_can_be_taken_off(dimension: int, keys: list[bytes]) -> None:
    """Adding and subtracting the same masks gives the vector back."""
    vector = np.arange(dimension, dtype=np.uint32)
    apply_masks(vector, added=keys)
    apply_masks(vector, subtracted=keys)
    np.testing.assert_array_equal(np.arange(dimension, dtype=np.uint32), vector)


def test_more_masks_than_are_made_at_a_time() -> None:
    """Three hundred masks at once are what one after the other is."""
    keys = [bytes([number % 256, number // 256]) * 16 for number in range(300)]
    together, singly = np.zeros(7, dtype=np.uint32), np.zeros(7, dtype=np.uint32)
    apply_masks(together, added=keys)
    for key in keys:
        apply_masks(singly, added=[key])
    np.testing.assert_array_equal(singly, together)


def test_masks_need_one_block_of_memory() -> None:
    """A million numbers and a hundred masks take less than a megabyte beside the vector."""
    vector = np.zeros(1_000_000, dtype=np.uint32)
    keys = [bytes([number]) * 32 for number in range(20)]
    tracemalloc.start()
    apply_masks(vector, added=keys[:10], subtracted=keys[10:])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert vector.any()
    assert peak < 1_000_000


def test_a_mask_s_key_depends_on_everything() -> None:
    """Another session, step, model, pair or secret, or the other kind, is another mask."""
    kept = {"session": SESSION, "step": 1, "model": MODEL}
    keys = [self_mask_key(SECRET, **kept)]  # type: ignore[arg-type]
    others = [{"session": bytes(32)}, {"step": 2}, {"model": bytes(32)}]
    keys += [self_mask_key(SECRET, **(kept | other)) for other in others]  # type: ignore[arg-type]
    for change in [{}, *others, {"pair": (1, 3)}]:
        keys.append(pair_mask_key(SECRET, **({"pair": (1, 2)} | kept | change)))  # type: ignore[arg-type]
    keys.append(self_mask_key(bytes(32), **kept))  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 10


def test_a_pair_has_one_mask() -> None:
    """Both members of a pair derive the same key, whoever is named first."""
    one = pair_mask_key(SECRET, session=SESSION, pair=(1, 2), step=1, model=MODEL)
    assert one == pair_mask_key(SECRET, session=SESSION, pair=(2, 1), step=1, model=MODEL)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, dtype=np.uint32),
        np.zeros((5, 1), dtype=np.uint32),
        np.zeros(10, dtype=np.uint32)[::2],
        np.zeros(5, dtype=np.int32),
        np.zeros(5, dtype=np.uint64),
        np.zeros(5, dtype=">u4"),
        np.frombuffer(bytes(20), dtype=np.uint32),
    ],
)
def test_only_vectors_of_the_ring_are_masked(vector: np.ndarray) -> None:
    """Another length, type, byte order or layout would be masked wrongly, so it is refused."""
    with pytest.raises(ValueError, match="little-endian uint32 array of 5"):
        check_vector(vector, 5)
