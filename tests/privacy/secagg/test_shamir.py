"""Any t shares give the secret back, and fewer say nothing of it."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.secagg.shamir import PRIME, combine, is_share, split, weights_at_zero
from tests.privacy.secagg.parties import stream


def test_the_prime_is_prime() -> None:
    """2^256 - 189 passes Fermat's test to 40 bases, and is the largest below 2^256 that does."""
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in range(2, 42))
    above = range(PRIME + 2, 2**256, 2)
    assert all(pow(2, number - 1, number) != 1 for number in above)


@given(secret=st.binary(min_size=31, max_size=31), data=st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    """Whatever the points, the threshold and the choice among the shares."""
    points = data.draw(st.lists(st.integers(1, 2000), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shares = split(secret, points, threshold=threshold, random_bytes=os.urandom)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    weights = weights_at_zero([points[one] for one in chosen])
    assert secret == combine([shares[one] for one in chosen], weights)
    assert all(is_share(share) for share in shares)


@given(
    secret=st.binary(min_size=31, max_size=31),
    other=st.binary(min_size=31, max_size=31),
    threshold=st.integers(2, 6),
)
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """For t - 1 shares there is exactly one polynomial for any other secret: they exclude none."""
    points = list(range(1, threshold + 1))
    shares = split(secret, points, threshold=threshold, random_bytes=os.urandom)
    weights = weights_at_zero(points)
    kept = sum(
        weight * int.from_bytes(share, "big")
        for weight, share in zip(weights[:-1], shares[:-1], strict=True)
    )
    wanted = (int.from_bytes(other, "big") - kept) * pow(weights[-1], -1, PRIME) % PRIME
    assert other == combine([*shares[:-1], wanted.to_bytes(32, "big")], weights)


def test_a_share_below_the_threshold_is_uniform() -> None:
    """Over many dealings of one secret, the first byte of t - 1 shares is uniform (chi-squared)."""
    counts = [[0] * 16 for _ in range(2)]
    dealings = 4000
    draw = stream("uniform shares")
    for _ in range(dealings):
        shares = split(bytes(31), [1, 2, 3], threshold=3, random_bytes=draw)
        for place in range(2):
            counts[place][shares[place][0] >> 4] += 1
    expected = dealings / 16
    for row in counts:
        statistic = sum((count - expected) ** 2 / expected for count in row)
        assert statistic < 15 + 6 * math.sqrt(30)  # six deviations above 15 degrees of freedom


def test_a_wrong_share_gives_another_secret() -> None:
    """A changed share cannot pass for the secret: commitments find it out."""
    secret = bytes(range(31))
    shares = split(secret, [1, 2, 3], threshold=3, random_bytes=os.urandom)
    changed = bytes([shares[0][0] ^ 1]) + shares[0][1:]
    assert combine([changed, *shares[1:]], weights_at_zero([1, 2, 3])) != secret


@pytest.mark.parametrize("points", [[1, 1, 2], [0, 1, 2], [-1, 1, 2]])
def test_points_are_distinct_and_positive(points: list[int]) -> None:
    """A share at zero would be the secret itself."""
    with pytest.raises(ValueError, match="distinct points from 1"):
        split(bytes(31), points, threshold=2, random_bytes=os.urandom)
    with pytest.raises(ValueError, match="distinct points from 1"):
        weights_at_zero(points)


@pytest.mark.parametrize(("length", "threshold"), [(30, 2), (32, 2), (31, 0), (31, 4)])
def test_a_secret_has_31_bytes_and_a_threshold_can_be_met(length: int, threshold: int) -> None:
    """What could not be given back is not dealt out."""
    with pytest.raises(ValueError, match="expected a"):
        split(bytes(length), [1, 2, 3], threshold=threshold, random_bytes=os.urandom)


def test_a_coefficient_above_the_prime_is_drawn_again() -> None:
    """Reducing it instead would make some coefficients likelier."""
    draws = iter([b"\xff" * 32, (5).to_bytes(32, "big")])
    shares = split(bytes(31), [1, 2], threshold=2, random_bytes=lambda _: next(draws))
    assert [int.from_bytes(share, "big") for share in shares] == [5, 10]
    assert not is_share(b"\xff" * 32)
