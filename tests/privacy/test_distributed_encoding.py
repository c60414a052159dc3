"""What one unit moves the integers by is within what is charged; sums come back; nothing wraps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tacit.core.errors import RefusedError
from tacit.core.privacy_spec import Relation
from tacit.privacy.distributed.account import LARGEST, DistributedNoise, Rounding
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.distributed.encoding import (
    decode,
    encode_total,
    encode_update,
    rounded_total,
    rounded_update,
)
from tacit.privacy.noise import UniformStream

KEY = bytes(range(32))
PAIRS = 10_000

RECORDS = DistributedNoise(
    cohort=Cohort(members=4, threshold=3, colluders=1),
    dimension=8,
    clip=1.0,
    bound=50.0,
    rounding=Rounding.NEAREST,
    relation=Relation.ADD_REMOVE,
    noise_multiplier=5.0,
)
UPDATES = dataclasses.replace(RECORDS, bound=1.0, rounding=Rounding.CONDITIONAL)


def coarse(noise: DistributedNoise) -> DistributedNoise:
    """Return noise whose scale is so small that rounding is a good part of what a unit moves."""
    return dataclasses.replace(noise, bound=2**31 / (4 * noise.cohort.members))


def directions(generator: np.random.Generator, dimension: int) -> np.ndarray:
    vector = generator.standard_normal(dimension)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("noise", [RECORDS, coarse(RECORDS)], ids=["fine", "coarse"])
def test_a_record_moves_a_sum_by_no_more_than_is_charged(noise: DistributedNoise) -> None:
    """Ten thousand neighbouring sums differ by at most D2 in L2, and D1 in L1."""
    generator = np.random.default_rng(7)
    largest, largest_l1 = 0.0, 0.0
    for _ in range(PAIRS):
        total = generator.uniform(-1.2, 1.2, noise.dimension) * min(noise.bound, 60.0)
        record = noise.clip * directions(generator, noise.dimension)
        moved = rounded_total(total + record, noise) - rounded_total(total, noise)
        largest = max(largest, float(np.linalg.norm(moved)))
        largest_l1 = max(largest_l1, float(np.abs(moved).sum()))
    assert largest <= noise.sensitivity
    assert largest_l1 <= noise.sensitivity_l1
    assert largest > noise.scale * noise.clip  # rounding does move it, so the bound is needed


def test_a_replaced_record_moves_a_sum_by_no_more_than_is_charged() -> None:
    """Under replace-one two clipped records differ by 2C."""
    noise = dataclasses.replace(coarse(RECORDS), relation=Relation.REPLACE_ONE)
    generator = np.random.default_rng(8)
    largest = 0.0
    for _ in range(PAIRS):
        total = generator.uniform(-60.0, 60.0, noise.dimension)
        record = noise.clip * directions(generator, noise.dimension)
        moved = rounded_total(total + record, noise) - rounded_total(total - record, noise)
        largest = max(largest, float(np.linalg.norm(moved)))
    assert 2 * noise.scale * noise.clip < largest <= noise.sensitivity


@pytest.mark.parametrize("noise", [UPDATES, coarse(UPDATES)], ids=["fine", "coarse"])
def test_an_update_is_no_longer_than_is_charged(noise: DistributedNoise) -> None:
    """Ten thousand updates, clipped or not, round to at most D2; so absent and present differ."""
    generator = np.random.default_rng(9)
    coins = UniformStream(KEY, purpose="test")
    norms = []
    for size in generator.uniform(0.5, 3.0, PAIRS):
        update = size * noise.clip * directions(generator, noise.dimension)
        integers = rounded_update(update, noise, coins=coins).view(np.int32)
        norms.append(float(np.linalg.norm(integers.astype(np.float64))))
    assert max(norms) <= noise.sensitivity
    assert max(norms) > 0.9 * noise.scale * noise.clip


def test_two_updates_are_no_further_apart_than_is_charged() -> None:
    """Under replace-one D2 is twice the norm that rounding keeps."""
    noise = dataclasses.replace(coarse(UPDATES), relation=Relation.REPLACE_ONE)
    generator = np.random.default_rng(10)
    coins = UniformStream(KEY, purpose="test")
    largest = 0.0
    for _ in range(PAIRS):
        update = noise.clip * directions(generator, noise.dimension)
        one, other = (
            rounded_update(vector, noise, coins=coins).view(np.int32)
            for vector in (update, -update)
        )
        largest = max(largest, float(np.linalg.norm(one.astype(np.float64) - other)))
    assert 1.5 * noise.scale * noise.clip < largest <= noise.sensitivity


def test_random_rounding_keeps_the_mean() -> None:
    """An update whose coordinates lie between integers is right on average."""
    noise = coarse(UPDATES)
    update = np.full(noise.dimension, 0.3 / math.sqrt(noise.dimension))
    coins = UniformStream(KEY, purpose="test")
    rounded = [rounded_update(update, noise, coins=coins).view(np.int32) for _ in range(20_000)]
    found = np.mean(rounded, axis=0) / noise.scale
    assert found == pytest.approx(update, abs=4 * 0.5 / noise.scale / math.sqrt(20_000))


@pytest.mark.parametrize("members", [3, 10, 100])
@pytest.mark.parametrize("records", [1, 1000])
def test_worst_case_sums_do_not_wrap(members: int, records: int) -> None:
    """Every record's gradient is C in one and the same coordinate, at every member."""
    cohort = Cohort(members=members, threshold=2 * members // 3 + 1, colluders=1)
    noise = dataclasses.replace(RECORDS, cohort=cohort, bound=records * RECORDS.clip)
    total = np.zeros(noise.dimension)
    total[3] = records * noise.clip
    ring = np.zeros(noise.dimension, dtype=np.uint32)
    for member in range(members):
        ring += encode_total(total, noise, key=KEY, purpose=f"member {member}")
    deviation = noise.released_deviation(members)
    assert np.abs(decode(ring, noise) - members * total).max() < 6 * deviation + members / 2
    worst = members * (noise.scale * noise.bound + 1) + 10 * noise.scale * deviation
    assert worst == pytest.approx(LARGEST, rel=1e-4)
    assert worst < LARGEST + 1  # the half that rounding adds at most leaves room


def test_a_coordinate_beyond_the_bound_is_clamped() -> None:
    """What is larger than R counts as R, and nothing wraps."""
    integers = rounded_total(np.linspace(-500, 500, RECORDS.dimension), RECORDS)
    assert np.abs(integers).max() == np.rint(RECORDS.scale * RECORDS.bound)


@pytest.mark.parametrize("survivors", [3, 4])
def test_the_noise_that_is_added_has_the_claimed_variance(survivors: int) -> None:
    """Over 1e5 sums of ten coordinates, within one per cent; with a colluder less, as reserved."""
    noise = dataclasses.replace(RECORDS, dimension=1_000_000, bound=1000.0)
    ring = np.zeros(noise.dimension, dtype=np.uint32)
    for member in range(survivors):
        ring += encode_total(np.zeros(noise.dimension), noise, key=KEY, purpose=str(member))
    released = decode(ring, noise).var()
    assert released == pytest.approx(noise.released_deviation(survivors) ** 2, rel=0.01)
    counted = released * (survivors - 1) / survivors * noise.scale**2
    reserved = (noise.noise_multiplier * noise.sensitivity) ** 2
    assert counted == pytest.approx(reserved * (survivors - 1) / 2, rel=0.01)


def test_the_same_key_gives_the_same_bytes() -> None:
    """A node that restarts sends what it would have sent; another step's key gives other bytes."""
    generator = np.random.default_rng(11)
    values = generator.uniform(-1, 1, RECORDS.dimension)
    for encode, noise in ((encode_total, RECORDS), (encode_update, UPDATES)):
        one = encode(values, noise, key=KEY, purpose="step 1")
        assert np.array_equal(one, encode(values, noise, key=KEY, purpose="step 1"))
        assert not np.array_equal(one, encode(values, noise, key=bytes(32), purpose="step 1"))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    """Nothing leaves of a vector with a number that no bound holds for."""
    values = np.zeros(RECORDS.dimension)
    values[2] = wrong
    for encode, noise in ((encode_total, RECORDS), (encode_update, UPDATES)):
        with pytest.raises(RefusedError) as caught:
            encode(values, noise, key=KEY, purpose="test")
        assert caught.value.code == "E-VECTOR-NOT-FINITE"
    with pytest.raises(RefusedError, match="finite"):
        encode_update(np.full(RECORDS.dimension, 1e300), UPDATES, key=KEY, purpose="test")


def test_vectors_of_another_kind_are_refused() -> None:
    """Sums are not rounded like updates, nor updates like sums; float32 is refused, too."""
    right = np.zeros(RECORDS.dimension)
    with pytest.raises(ValueError, match="CONDITIONAL"):
        encode_total(right, UPDATES, key=KEY, purpose="test")
    with pytest.raises(ValueError, match="NEAREST"):
        encode_update(right, RECORDS, key=KEY, purpose="test")
    for wrong in (right[1:], right.astype(np.float32)):
        with pytest.raises(ValueError, match="float64"):
            encode_total(wrong, RECORDS, key=KEY, purpose="test")
    with pytest.raises(ValueError, match="uint32"):
        decode(np.zeros(3, dtype=np.uint32), RECORDS)
