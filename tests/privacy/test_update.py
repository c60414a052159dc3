"""A whole update, clipped and noised: what is left says at most C of what was there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.errors import RefusedError
from tacit.privacy.update import UpdatedArray, noise_update

KEY = bytes(range(32))
TINY = 1e-9  # a deviation that shows the clipped update itself


def arrays(**pairs: tuple[Any, Any]) -> list[UpdatedArray]:
    """Arrays from (received, reply); float32 unless they have a dtype."""
    return [
        UpdatedArray(name=name, received=np.asarray(old), reply=np.array(new))
        for name, (old, new) in pairs.items()
    ]


def noised(update: list[UpdatedArray], *, deviation: float = TINY, clip: float = 1.0) -> float:
    """Noise in place and return the L2 norm of what is left of the update."""
    noise_update(update, clip=clip, deviation=deviation, key=KEY, purpose="test")
    squares = [
        np.square(array.reply.astype(np.float64) - array.received).sum()
        for array in update
        if array.reply.dtype.kind == "f"
    ]
    return math.sqrt(sum(squares))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    st.floats(0.01, 100),
)
def test_no_update_moves_the_result_by_more_than_the_clip(values: list[float], clip: float) -> None:
    """Whatever an app answers, at most C of it is left, over all arrays together."""
    half = len(values) // 2
    update = arrays(
        a=(np.zeros(half), np.array(values[:half])),
        b=(np.zeros(len(values) - half), np.array(values[half:])),
    )
    assert noised(update, clip=clip) <= clip * (1 + 1e-6) + 1e-6


def test_a_small_update_is_left_whole() -> None:
    """Below the clip only the noise changes it."""
    update = arrays(a=(np.full(3, 5.0), np.array([5.1, 5.0, 4.9])))
    noised(update)
    assert update[0].reply == pytest.approx([5.1, 5.0, 4.9], abs=1e-7)


def test_every_coordinate_is_noised_with_the_declared_deviation() -> None:
    """An update of zero leaves as noise of the deviation asked for, also beyond one piece."""
    count = 700_001
    update = arrays(a=(np.zeros(count, np.float32), np.zeros(count, np.float32)))
    noised(update, deviation=2.5)
    values = update[0].reply.astype(np.float64)
    assert values.std() == pytest.approx(2.5, rel=0.01)
    assert abs(values.mean()) < 5 * 2.5 / math.sqrt(count)
    assert len(np.unique(values)) > 0.9 * count


def test_the_same_key_gives_the_same_bytes_and_another_key_others() -> None:
    """A restarted node sends what it sent before; another attempt is noised anew."""
    results = []
    for key in (KEY, KEY, bytes(32)):
        update = arrays(a=(np.zeros(5), np.ones(5)))
        noise_update(update, clip=1.0, deviation=1.0, key=key, purpose="test")
        results.append(update[0].reply.tobytes())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_an_update_without_a_norm_counts_as_none(value: float) -> None:
    """NaN, infinity and overflow leave nothing but noise."""
    update = arrays(a=(np.zeros(2), np.array([value, 1.0])))
    assert noised(update) < 1e-7


def test_integers_leave_as_they_came() -> None:
    """A counter is kept if it is unchanged, and refuses the reply if not."""
    same = arrays(n=(np.array([7]), np.array([7])), a=(np.zeros(1), np.ones(1)))
    noised(same)
    assert same[0].reply.tolist() == [7]
    with pytest.raises(RefusedError, match="E-UPDATE-INTEGER"):
        noised(arrays(n=(np.array([7]), np.array([8])), a=(np.zeros(1), np.ones(1))))


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        ((np.zeros(1, np.float16), np.zeros(1, np.float16)), "E-UPDATE-DTYPE"),
        ((np.zeros(1, np.float32), np.zeros(1, np.float64)), "E-UPDATE-DTYPE"),
        ((np.zeros(1), np.zeros(2)), "E-UPDATE-DTYPE"),
        ((np.array([1]), np.array([1])), "E-UPDATE-EMPTY"),
        (
            (np.array([3e38], np.float32), np.array([3e38], np.float32)),
            "E-UPDATE-NOT-FINITE",
        ),
    ],
)
def test_what_cannot_be_noised_is_refused(pair: tuple[Any, Any], code: str) -> None:
    """Fail closed: another dtype or shape, nothing to noise, a result out of range."""
    with pytest.raises(RefusedError, match=code):
        noised(arrays(a=pair), deviation=1e38)


@pytest.mark.parametrize(("clip", "deviation"), [(0.0, 1.0), (1.0, 0.0), (math.inf, 1.0)])
def test_a_mechanism_without_bounds_is_an_error(clip: float, deviation: float) -> None:
    """No clip and no noise is no mechanism."""
    with pytest.raises(ValueError, match="positive"):
        noised(arrays(a=(np.zeros(1), np.ones(1))), clip=clip, deviation=deviation)
