"""Bounded sums: one clip over the whole vector, one noise, one charge, honest intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tacit.privacy.accounting import epsilon_of
from tacit.privacy.noise import GaussianStream
from tacit.privacy.sums import Block, BoundedSum, Ratio, histograms, noised_sums, one_hot

KEY = bytes(range(32))
SILENT = 1e-9  # a noise multiplier that leaves the sum to be read
BLOCKS = (Block(name="answers", length=2), Block(name="loss", bound=4.0, weight=0.5))
ROWS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(0, 20), st.just(3)),
    elements=st.floats(allow_nan=True, allow_infinity=True),
)


def bounded(noise_multiplier: float = SILENT) -> BoundedSum:
    return BoundedSum(blocks=BLOCKS, noise_multiplier=noise_multiplier)


def weighted_total(rows: Any, **options: Any) -> np.ndarray:
    """Return the nearly exact sum, in the weighted terms that the clip is about."""
    query = bounded()
    sums = noised_sums(query, rows, key=KEY, purpose="test", **options)
    return np.concatenate([sums.values[block.name] for block in BLOCKS]) * query.scales


def epsilon(query: BoundedSum) -> float:
    event = query.mechanism()
    return epsilon_of(event.noise_multiplier, event.sample_rate, event.steps, 1e-5)


@pytest.mark.parametrize(("blocks", "expected"), [(1, 0.73), (3, 1.33), (6, 1.95)])
def test_k_histograms_cost_the_square_root_of_k(blocks: int, expected: float) -> None:
    """Sigma 5 at delta 1e-5, one clip over all blocks: epsilon 0.73, 1.33, 1.95."""
    query = histograms({f"column {k}": 4 for k in range(blocks)}, deviation=5.0)
    assert query.deviation("column 0") == pytest.approx(5.0)
    assert query.clip == pytest.approx(math.sqrt(blocks))
    assert epsilon(query) == pytest.approx(expected, abs=0.005)


@given(ROWS)
def test_one_record_moves_the_sum_by_at_most_the_clip(rows: np.ndarray) -> None:
    """Whatever a record holds, with or without it: over all blocks together, in L2."""
    for number in range(len(rows)):
        apart = weighted_total(rows) - weighted_total(np.delete(rows, number, axis=0))
        assert np.linalg.norm(apart) <= bounded().clip * (1 + 1e-5)


@given(ROWS, st.integers(0, 2**32))
def test_one_subject_moves_the_sum_by_at_most_the_clip(rows: np.ndarray, seed: int) -> None:
    """A subject's rows are added before the clip: 20 of them weigh no more than one."""
    subjects = np.random.default_rng(seed).integers(0, 3, size=len(rows))
    others = subjects != 0
    apart = weighted_total(rows, subjects=subjects) - weighted_total(
        rows[others], subjects=subjects[others]
    )
    assert np.linalg.norm(apart) <= bounded().clip * (1 + 1e-5)


def test_a_clip_per_row_would_not_bound_a_subject() -> None:
    """Positive control: the same rows without their subject move the sum by twenty clips."""
    rows = np.tile([1.0, 0.0, 4.0], (20, 1))
    assert np.linalg.norm(weighted_total(rows)) == pytest.approx(20 * bounded().clip)
    one = weighted_total(rows, subjects=np.zeros(20, dtype=np.int64))
    assert np.linalg.norm(one) == pytest.approx(bounded().clip)


def test_what_keeps_to_its_bounds_is_summed_as_it_is() -> None:
    """Bounds of single blocks together fill the clip, and no more is cut."""
    rows = np.array([[1.0, 0.0, 4.0], [0.0, 1.0, 0.5]])
    sums = noised_sums(bounded(), rows, key=KEY, purpose="test")
    assert sums.values["answers"] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert sums.values["loss"] == pytest.approx([4.5], abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_a_record_that_is_not_finite_counts_as_zero(bad: float) -> None:
    """Nor does it spoil the others, or raise; beyond 1e154 its norm is not finite either."""
    rows = np.array([[1.0, 0.0, 2.0], [1.0, bad, 2.0]])
    assert weighted_total(rows) == pytest.approx(weighted_total(rows[:1]), abs=1e-6)


def test_no_records_are_an_answer_like_any_other() -> None:
    """The result is the noise alone, with the same standard error."""
    query = bounded(2.0)
    sums = noised_sums(query, np.zeros((0, 3)), key=KEY, purpose="test")
    noise = GaussianStream(KEY, purpose="sums test").normals(3)
    assert sums.values["answers"] / sums.standard_error("answers") == pytest.approx(
        noise[:2], abs=1e-5
    )
    assert np.isfinite(sums.values["loss"]).all()


def test_another_key_or_purpose_draws_another_noise_and_the_same_the_same() -> None:
    """A restarted node rebuilds its answer; no two releases share noise."""
    query, none = bounded(1.0), np.zeros((0, 3))
    draws = [
        noised_sums(query, none, key=key, purpose=purpose).values["answers"]
        for key, purpose in ((KEY, "a"), (KEY, "a"), (KEY, "b"), (bytes(32), "a"))
    ]
    assert draws[0].tobytes() == draws[1].tobytes()
    assert len({draw.tobytes() for draw in draws}) == 3


def test_low_bits_do_not_tell_the_sum() -> None:
    """Results are multiples of a grid that the noise alone decides."""
    query = histograms({"a": 2}, deviation=3.0)
    grid = 2.0 ** (math.floor(math.log2(query.sigma)) - 20)
    rows = np.full((7, 2), 0.1)
    values = noised_sums(query, rows, key=KEY, purpose="test").values["a"]
    assert (values / grid == np.rint(values / grid)).all()


def test_intervals_cover_the_truth_in_95_of_100_trials() -> None:
    """500 keys, three coordinates each: between 92 and 98 of 100."""
    query = bounded(3.0)
    rows = np.tile([1.0, 0.0, 2.0], (40, 1))
    covered = []
    for trial in range(500):
        sums = noised_sums(query, rows, key=trial.to_bytes(32, "big"), purpose="test")
        for name, truth in (("answers", [40.0, 0.0]), ("loss", [80.0])):
            low, high = sums.interval(name)
            covered += list((low <= truth) & (truth <= high))
    assert 0.92 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("records", [30, 300])
def test_the_interval_of_a_ratio_covers_the_truth_also_for_few_records(records: int) -> None:
    """Fieller's interval: 92 to 98 of 100 where the noise is a tenth of the count, or a third."""
    query = BoundedSum(blocks=(Block(name="answers", length=2),), noise_multiplier=10.0)
    variance = query.deviation("answers") ** 2
    rows = one_hot(np.arange(records) % 5 // 4, bins=2)
    covered = []
    for trial in range(500):
        sums = noised_sums(query, rows, key=trial.to_bytes(32, "big"), purpose="test")
        right, wrong = sums.values["answers"]
        ends = Ratio(
            above=right,
            below=right + wrong,
            variance_above=variance,
            variance_below=2 * variance,
            covariance=variance,
        ).interval()
        covered.append(ends is None or ends[0] <= 0.8 <= ends[1])
    assert 0.92 <= np.mean(covered) <= 1.0 if records == 30 else 0.92 <= np.mean(covered) <= 0.98


def test_a_ratio_over_noise_has_no_interval() -> None:
    """Where nothing is known of the number of records, nothing is said of the share."""
    noise = {"variance_above": 100.0, "variance_below": 200.0, "covariance": 100.0}
    assert Ratio(above=5.0, below=9.0, **noise).interval() is None
    assert Ratio(above=-50.0, below=-90.0, **noise).interval() is None
    assert Ratio(above=50.0, below=90.0, **noise).interval() is not None


def test_positions_outside_the_bins_count_nowhere() -> None:
    """A category that the declaration does not know adds zeros."""
    assert one_hot(np.array([0, 2, -1, 5]), bins=3).tolist() == [
        [1, 0, 0],
        [0, 0, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: BoundedSum(blocks=(), noise_multiplier=1.0),
        lambda: BoundedSum(blocks=(BLOCKS[0], BLOCKS[0]), noise_multiplier=1.0),
        lambda: BoundedSum(blocks=BLOCKS, noise_multiplier=0.0),
        lambda: Block(name="a", bound=math.inf),
        lambda: Block(name="a", length=0),
        lambda: noised_sums(bounded(), np.zeros((2, 4)), key=KEY, purpose="test"),
        lambda: noised_sums(bounded(), np.zeros((2, 3)), key=b"short", purpose="test"),
        lambda: weighted_total(np.zeros((2, 3)), subjects=np.zeros(3, dtype=np.int64)),
    ],
    ids=range(8),
)
def test_what_declares_no_query_is_refused(wrong: Any) -> None:
    """No block, a name twice, no noise, no bound, another length, no key."""
    with pytest.raises(ValueError, match="expected"):
        wrong()
