"""A secret in shares: any t of them give it back, fewer say nothing about it (Shamir 1979).

Trusts: the generator that draws the coefficients.
Promises: over the field of the prime p = 2^256 - 189, with coefficients uniform below p, t - 1
shares are uniform whatever the secret is. A share does not say whether it is true: whoever combines
checks the result against a commitment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.privacy.secagg.keys import SECRET_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PRIME = 2**256 - 189
SHARE_BYTES = 32


def split(
    secret: bytes,
    points: Sequence[int],
    *,
    threshold: int,
    random_bytes: Callable[[int], bytes],
) -> list[bytes]:
    """Return one share of a secret for each point (32 bytes each, the highest first).

    Args:
        secret: 31 bytes.
        points: where the polynomial is read: distinct, from 1.
        threshold: shares that give the secret back.
        random_bytes: a cryptographic generator.

    Raises:
        ValueError: a secret of another length, a threshold that the points cannot reach, or points
            that are not distinct and positive.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"expected a secret of {SECRET_BYTES} bytes, got {len(secret)}")
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"expected a threshold of 1 to {len(points)}, got {threshold}")
    rising = [int.from_bytes(secret, "big")]
    rising += [_below_prime(random_bytes) for _ in range(threshold - 1)]
    falling = rising[::-1]
    return [_value(falling, point).to_bytes(SHARE_BYTES, "big") for point in points]


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or any(point < 1 for point in points):
        raise ValueError("expected distinct points from 1")


def _below_prime(random_bytes: Callable[[int], bytes]) -> int:
    """Return a uniform number below the prime: drawn anew in the one case of 2^248."""
    while True:
        number = int.from_bytes(random_bytes(SHARE_BYTES), "big")
        if number < PRIME:
            return number


def _value(falling: Sequence[int], point: int) -> int:
    """Return the polynomial's value (Horner); points are small, so one division at the end."""
    value = 0
    for coefficient in falling:
        value = value * point + coefficient
    return value % PRIME


def is_share(share: bytes) -> bool:
    """Tell whether these bytes are a number of the field."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Return Lagrange's weights: the secret is the sum of weight times share.

    They depend on the points only, so that one set serves every secret with the same holders.

    Raises:
        ValueError: the points are not distinct and positive.
    """
    _check_points(points)
    weights = []
    for one in points:
        above, below = 1, 1
        for other in points:
            if other != one:
                above *= other
                below *= other - one
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def combine(shares: Sequence[bytes], weights: Sequence[int]) -> bytes | None:
    """Return the secret of 31 bytes, or nothing where these shares cannot be of one.

    Args:
        shares: as many as the threshold, in the order of the weights' points.
        weights: of ``weights_at_zero``.
    """
    value = sum(
        weight * int.from_bytes(share, "big") for weight, share in zip(weights, shares, strict=True)
    )
    value %= PRIME
    if value >> (8 * SECRET_BYTES):
        return None
    return value.to_bytes(SECRET_BYTES, "big")
