"""Noise is Gaussian, reproducible from its key, and independent otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.noise import GaussianStream, UniformStream, derive_key, fresh_key

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
MANY = 1_000_000


def normals(count: int, *, key: bytes = KEY, purpose: str = "test") -> np.ndarray:
    return GaussianStream(key, purpose=purpose).normals(count)


def test_the_same_key_and_purpose_give_the_same_numbers() -> None:
    """A restarted node rebuilds the same bytes."""
    assert normals(1001).tobytes() == normals(1001).tobytes()


def test_the_first_four_moments_are_those_of_a_standard_normal() -> None:
    """Mean 0, variance 1, skewness 0, kurtosis 3, each within five standard errors."""
    sample = normals(MANY)
    errors = [math.sqrt(v / MANY) for v in (1, 2, 15, 96)]  # of x, x^2, x^3, x^4
    for power, (expected, error) in enumerate(zip((0, 1, 0, 3), errors, strict=True), start=1):
        assert abs(np.mean(sample**power) - expected) < 5 * error


def test_tails_have_the_right_mass() -> None:
    """The share of numbers beyond 1, 2, 3 and 4 deviations is the normal law's."""
    sample = np.abs(normals(MANY))
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2.0))
        assert abs(np.mean(sample > bound) - share) < 5 * math.sqrt(share / MANY)


def test_the_distribution_function_is_followed_everywhere() -> None:
    """The Kolmogorov-Smirnov distance to the normal law is below its 1e-6 quantile."""
    sample = np.sort(normals(200_000))
    law = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in sample])
    distance = np.max(np.abs(law - (np.arange(len(sample)) + 0.5) / len(sample)))
    assert distance < 2.7 / math.sqrt(len(sample))


def test_numbers_do_not_repeat() -> None:
    """A million draws of 53-bit precision hold no value twice (chance of it: below 1e-3)."""
    assert len(np.unique(normals(MANY))) > MANY - 2


@pytest.mark.parametrize(
    ("key", "purpose"), [(OTHER_KEY, "test"), (KEY, "another"), (KEY, "test ")]
)
def test_another_key_or_purpose_is_independent(key: bytes, purpose: str) -> None:
    """The correlation between two streams is no larger than chance allows."""
    first, second = normals(100_000), normals(100_000, key=key, purpose=purpose)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(100_000)


def test_the_two_halves_of_a_draw_are_uncorrelated() -> None:
    """Cosine and sine of one angle do not move together."""
    sample = normals(200_000)
    half = len(sample) // 2
    assert abs(np.corrcoef(sample[:half], sample[half:])[0, 1]) < 5 / math.sqrt(half)
    assert abs(np.corrcoef(sample[:half] ** 2, sample[half:] ** 2)[0, 1]) < 5 / math.sqrt(half)


@given(count=st.integers(min_value=0, max_value=99))
def test_any_count_is_served_and_finite(count: int) -> None:
    """Odd and empty draws work."""
    sample = normals(count)
    assert sample.shape == (count,)
    assert sample.dtype == np.float64
    assert bool(np.isfinite(sample).all())


def test_global_seeds_do_not_touch_noise() -> None:
    """Seeding numpy's global generator changes nothing."""
    before = normals(10)
    np.random.seed(0)  # noqa: NPY002 - the global generator is the point of this test
    assert before.tobytes() == normals(10).tobytes()


def test_a_poisson_sample_takes_each_position_with_the_given_probability() -> None:
    """The size of a sample of a million positions is within five deviations of its mean."""
    chosen = UniformStream(KEY, purpose="sample").select(MANY, probability=0.01)
    assert abs(len(chosen) - 10_000) < 5 * math.sqrt(MANY * 0.01 * 0.99)
    assert bool((np.diff(chosen) > 0).all())


def test_a_uniform_stream_continues_where_it_stopped() -> None:
    """Two reads are one longer read: no number is handed out twice."""
    stream = UniformStream(KEY, purpose="sample")
    parts = np.concatenate([stream.uniforms(3), stream.uniforms(4)])
    assert parts.tobytes() == UniformStream(KEY, purpose="sample").uniforms(7).tobytes()


def test_fresh_keys_differ() -> None:
    """Two keys of the operating system are not equal, and have 32 bytes."""
    first, second = fresh_key(), fresh_key()
    assert first != second
    assert len(first) == len(second) == 32


@pytest.mark.parametrize(("key", "purpose"), [(b"short", "p"), (KEY, "")])
def test_keys_and_purposes_that_do_not_separate_are_refused(key: bytes, purpose: str) -> None:
    """A short key or no purpose is misuse."""
    with pytest.raises(ValueError, match="expected a"):
        derive_key(key, purpose=purpose)


def test_known_answer() -> None:
    """The stream's bytes are part of the format: a replay on another version rebuilds them."""
    assert derive_key(KEY, purpose="known answer").hex()[:16] == "66147d738e921a4b"
    first = UniformStream(KEY, purpose="known answer").uniforms(2)
    assert first.tolist() == [0.034615610953380616, 0.13040395793653736]
