"""Output hardening says less, and never something else; the limit is counted per caller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tacit.core.errors import RefusedError
from tacit.privacy.release import Hardened, Hardening, RateLimit, harden

ROW = np.array([[0.123456, 0.5, 0.376544]])


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def constant(features: np.ndarray) -> np.ndarray:
    return np.repeat(ROW, len(features), axis=0)


def answer(**settings: Any) -> list[float]:
    hardened = Hardened(constant, Hardening(**settings), Clock())
    row: list[float] = hardened(np.zeros((1, 4))).tolist()[0]
    return row


def distributions() -> st.SearchStrategy[np.ndarray]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
    positive = st.floats(min_value=0.01, max_value=1.0)
    made = arrays.arrays(np.float64, shapes, elements=positive)
    return made.map(lambda a: a / a.sum(axis=1, keepdims=True))


def test_nothing_declared_changes_nothing() -> None:
    """The default answers as the model does."""
    assert answer() == ROW[0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"decimals": 2}, [0.12, 0.5, 0.38]),
        ({"decimals": 0}, [0.0, 0.0, 0.0]),
        ({"top_k": 1}, [0.0, 0.5, 0.0]),
        ({"top_k": 2}, [0.0, 0.5, 0.376544]),
        ({"top_k": 9}, [0.123456, 0.5, 0.376544]),
        ({"top_k": 2, "decimals": 1}, [0.0, 0.5, 0.4]),
        ({"label_only": True}, [0.0, 1.0, 0.0]),
    ],
)
def test_each_setting_leaves_out_what_it_says(
    settings: dict[str, Any], expected: list[float]
) -> None:
    """Rounding, top-k and label-only, alone and composed."""
    assert answer(**settings) == expected


@given(probabilities=distributions(), decimals=st.integers(0, 15), top_k=st.integers(1, 7))
def test_an_answer_says_no_more_than_declared(
    probabilities: np.ndarray, decimals: int, top_k: int
) -> None:
    """At most k classes, no further decimals, and each row by itself."""
    settings = Hardening(decimals=decimals, top_k=top_k)
    whole = harden(probabilities, settings, records=len(probabilities))
    rows = [harden(row[None], settings, records=1) for row in probabilities]
    assert np.array_equal(whole, np.concatenate(rows))
    assert (np.count_nonzero(whole, axis=1) <= top_k).all()
    assert np.array_equal(np.round(whole, decimals), whole)


@given(probabilities=distributions())
def test_the_label_is_the_models_label(probabilities: np.ndarray) -> None:
    """Label-only keeps the decision and nothing else; ties go to the first class."""
    labels = harden(probabilities, Hardening(label_only=True), records=len(probabilities))
    assert labels.argmax(axis=1).tolist() == probabilities.argmax(axis=1).tolist()
    assert set(labels.ravel().tolist()) <= {0.0, 1.0}
    assert (labels.sum(axis=1) == 1.0).all()


def test_the_models_own_array_is_left_alone() -> None:
    """A model that keeps its answer finds it unchanged."""
    kept = ROW.copy()
    harden(kept, Hardening(decimals=1, top_k=1), records=1)
    assert kept.tolist() == ROW.tolist()


@pytest.mark.parametrize(
    "output",
    [
        np.array([0.5, 0.5]),
        np.array([[2.0, -1.0]]),
        np.array([[0.9, 0.9]]),
        np.array([[np.nan, 1.0]]),
        np.array([[np.inf, 0.0]]),
        np.array([[0.5, 0.5], [0.5, 0.5]]),
        np.zeros((1, 0)),
    ],
)
def test_what_is_no_distribution_is_refused(output: np.ndarray) -> None:
    """Logits, or rows that nobody asked for, would pass the hardening unhardened."""
    hardened = Hardened(lambda _: output, Hardening(label_only=True), Clock())
    with pytest.raises(RefusedError) as caught:
        hardened(np.zeros((1, 4)))
    assert caught.value.code == "E-RELEASE-OUTPUT"


def test_a_caller_gets_a_burst_and_then_the_rate() -> None:
    """Ten at once, then one every six seconds; a refused question costs nothing."""
    clock = Clock()
    rate = RateLimit(records_per_hour=600.0, burst=10)
    hardened = Hardened(constant, Hardening(rate=rate), clock)
    hardened(np.zeros((10, 4)), caller="a")
    for _ in range(3):
        with pytest.raises(RefusedError, match="E-RELEASE-RATE"):
            hardened(np.zeros((1, 4)), caller="a")
    clock.now_s += 6.0
    hardened(np.zeros((1, 4)), caller="a")
    with pytest.raises(RefusedError) as caught:
        hardened(np.zeros((1, 4)), caller="a")
    assert caught.value.hint == "ask again in 6 s"
    clock.now_s += 1e6
    with pytest.raises(RefusedError):
        hardened(np.zeros((11, 4)), caller="a")
    hardened(np.zeros((10, 4)), caller="a")


def test_callers_have_buckets_of_their_own() -> None:
    """One caller's questions leave another's bucket full; the nameless share one."""
    hardened = Hardened(constant, Hardening(rate=RateLimit(records_per_hour=1.0, burst=1)), Clock())
    hardened(np.zeros((1, 4)), caller="a")
    hardened(np.zeros((1, 4)), caller="b")
    hardened(np.zeros((1, 4)))
    with pytest.raises(RefusedError):
        hardened(np.zeros((1, 4)))


def test_the_model_is_not_asked_beyond_the_rate() -> None:
    """A refusal comes before the model: its work, its side effects and its timing stay apart."""
    asked: list[int] = []

    def predict(features: np.ndarray) -> np.ndarray:
        asked.append(len(features))
        return constant(features)

    hardened = Hardened(predict, Hardening(rate=RateLimit(records_per_hour=1.0, burst=2)), Clock())
    with pytest.raises(RefusedError):
        hardened(np.zeros((3, 4)))
    assert asked == []


@given(steps=st.lists(st.tuples(st.integers(0, 30), st.floats(0.0, 100.0)), max_size=40))
def test_no_pattern_of_questions_beats_the_bucket(steps: list[tuple[int, float]]) -> None:
    """Answered records never exceed the burst plus what has flowed back since the start."""
    clock = Clock()
    rate = RateLimit(records_per_hour=720.0, burst=20)
    hardened = Hardened(constant, Hardening(rate=rate), clock)
    start_s, answered = clock.now_s, 0
    for records, pause_s in steps:
        clock.now_s += pause_s
        try:
            answered += len(hardened(np.zeros((records, 4)), caller="a"))
        except RefusedError:
            continue
        assert answered <= 20 + (clock.now_s - start_s) * 0.2 + 1e-6


def test_many_callers_fill_no_memory_and_win_nothing() -> None:
    """Forgotten buckets are full ones: a busy caller is still held after thousands of others."""
    clock = Clock()
    hardened = Hardened(
        constant, Hardening(rate=RateLimit(records_per_hour=3600.0, burst=5000)), clock
    )
    hardened(np.zeros((5000, 4)), caller="busy")
    for number in range(3000):
        clock.now_s += 1.5
        hardened(np.zeros((1, 4)), caller=str(number))
        hardened(np.zeros((1, 4)), caller="busy")
    assert hardened._buckets is not None
    assert len(hardened._buckets._full_at) <= 1025
    with pytest.raises(RefusedError):
        hardened(np.zeros((3600, 4)), caller="busy")


@pytest.mark.parametrize(
    "hardening",
    [
        pytest.param(Hardening(decimals=-1), id="decimals"),
        pytest.param(Hardening(top_k=0), id="top_k"),
        pytest.param(Hardening(label_only=True, decimals=2), id="label_only"),
        pytest.param(Hardening(rate=RateLimit(records_per_hour=0.0, burst=1)), id="rate"),
        pytest.param(Hardening(rate=RateLimit(records_per_hour=1.0, burst=0)), id="burst"),
    ],
)
def test_a_contradiction_hardens_nothing(hardening: Hardening) -> None:
    """A setting that cannot hold is refused before the first answer."""
    with pytest.raises(ValueError, match="expected"):
        Hardened(constant, hardening, Clock())
