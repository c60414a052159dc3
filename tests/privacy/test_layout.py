"""Where an update's numbers stand in the vector that is aggregated securely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import RefusedError
from tacit.privacy.layout import METRIC_BITS, Form, Layout

FORMS = (
    Form(name="weight", shape=(2, 3), dtype=np.dtype("<f4")),
    Form(name="count", shape=(), dtype=np.dtype("<i8")),
)
LAYOUT = Layout(
    arrays=FORMS, metrics={"loss": (0.0, 1e6), "accuracy": (0.0, 1.0)}, weighted=True,
    most_weight=2**53,
)  # fmt: skip

members = st.lists(
    st.tuples(st.integers(1, 2**53), st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=20
)


@given(members)
def test_weights_and_metrics_are_summed_to_their_weighted_means(
    drawn: list[tuple[int, float, float]],
) -> None:
    """The sum of limbs gives the exact total weight, and means within half a step of 2^-48."""
    limbs = [
        LAYOUT.limbs({"loss": loss, "accuracy": accuracy}, weight=weight)
        for weight, loss, accuracy in drawn
    ]
    total = np.sum(limbs, axis=0, dtype=np.uint32)
    weight, means = LAYOUT.sums(total, members=len(drawn))
    weights = [one[0] for one in drawn]
    assert weight == sum(weights)
    loss = sum(w * one for w, one, _ in drawn) / weight
    accuracy = sum(w * one for w, _, one in drawn) / weight
    assert means["loss"] == pytest.approx(loss, rel=1e-12, abs=1e6 * 2.0**-METRIC_BITS)
    assert means["accuracy"] == pytest.approx(accuracy, rel=1e-12, abs=2.0**-METRIC_BITS)


def test_a_mean_change_is_added_to_what_was_received() -> None:
    """Two members' weighted changes, summed and divided by the weights, move the arrays."""
    received = {"weight": np.ones((2, 3), "<f4"), "count": np.array(5, "<i8")}
    replies = [
        {"weight": np.full((2, 3), 2, "<f4"), "count": np.array(7, "<i8")},
        {"weight": np.full((2, 3), 5, "<f4"), "count": np.array(8, "<i8")},
    ]
    vectors = np.zeros((2, LAYOUT.changes))
    for vector, reply, weight in zip(vectors, replies, (1, 3), strict=True):
        LAYOUT.write_changes(vector, received, reply, weight=weight)
    moved = LAYOUT.updated(received, vectors.sum(axis=0) / 4)
    np.testing.assert_array_equal(moved["weight"], np.full((2, 3), 1 + (1 + 12) / 4, "<f4"))
    assert moved["count"] == 5 + round((2 + 9) / 4)
    assert moved["count"].dtype == np.dtype("<i8")


def test_the_length_counts_every_coordinate() -> None:
    """Arrays, four limbs of weight, eleven of each metric; no limbs where each weighs 1."""
    assert LAYOUT.length == 7 + 4 + 2 * (4 + 7)
    plain = Layout(arrays=FORMS, metrics={}, weighted=False)
    assert plain.length == 7
    assert plain.limbs({}, weight=1).size == 0
    assert plain.sums(np.zeros(0, np.uint32), members=3) == (3, {})


@pytest.mark.parametrize(
    ("metrics", "weight"),
    [
        ({"loss": 1.0, "accuracy": 1.5}, 1),
        ({"loss": float("nan"), "accuracy": 0.5}, 1),
        ({"loss": 1.0, "accuracy": 0.5}, 0),
        ({"loss": 1.0, "accuracy": 0.5}, 2**53 + 1),
    ],
)
def test_what_is_beyond_its_bound_is_refused(metrics: dict[str, float], weight: int) -> None:
    """A metric out of range, or no number, and a weight out of bounds refuse; nothing is cut."""
    with pytest.raises(RefusedError, match="expected") as refused:
        LAYOUT.limbs(metrics, weight=weight)
    assert refused.value.code == "E-SECAGG-RANGE"


def test_another_form_is_refused() -> None:
    """An array of another shape or dtype than was agreed has no place in the vector."""
    received = {"weight": np.ones((2, 3), "<f4"), "count": np.array(5, "<i8")}
    for name, array in (("weight", np.ones((3, 2), "<f4")), ("count", np.array(5.0))):
        with pytest.raises(RefusedError) as refused:
            LAYOUT.write_changes(np.zeros(7), received, received | {name: array})
        assert refused.value.code == "E-SECAGG-FORM"


def test_a_total_that_no_members_could_have_is_refused() -> None:
    """A sum of weights beyond what so many members may weigh is not read."""
    layout = Layout(arrays=(), metrics={}, weighted=True, most_weight=10)
    limbs = layout.limbs({}, weight=10) * np.uint32(3)
    assert layout.sums(limbs, members=3) == (30, {})
    with pytest.raises(RefusedError):
        layout.sums(limbs, members=2)


def test_a_metric_that_some_do_not_report_is_the_mean_of_the_others() -> None:
    """Each metric has a weight of its own; one that nobody reports is not there."""
    limbs = [LAYOUT.limbs({"loss": 4.0}, weight=3), LAYOUT.limbs({}, weight=7)]
    weight, means = LAYOUT.sums(np.sum(limbs, axis=0, dtype=np.uint32), members=2)
    assert weight == 10
    assert means == {"loss": pytest.approx(4.0, abs=1e-8)}
