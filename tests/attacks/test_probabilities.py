"""Probabilities from elsewhere: rounded ones are taken, what is none is named by its row."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.attacks.target import Outputs, outputs_of_probabilities
from tacit.core.errors import DataError

LABELS = np.zeros(50, dtype=np.int64)


def drawn(classes: int = 10) -> np.ndarray:
    return np.random.default_rng(3).dirichlet(np.ones(classes), size=50)


@pytest.mark.parametrize(("decimals", "classes"), [(2, 4), (3, 10), (3, 26), (4, 10), (4, 100)])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_rounded_probabilities_are_taken(decimals: int, classes: int, kind: type) -> None:
    """Whatever rounding does to the sums, each row is divided by its own."""
    table = drawn(classes).round(decimals).astype(kind)
    outputs = outputs_of_probabilities(table.astype(np.float64), LABELS)
    sums = np.where(table > 0, np.exp(outputs.logits), 0.0).sum(axis=1)
    assert np.allclose(sums, 1.0, atol=1e-12)


@pytest.mark.parametrize("total", [0.9995, 1.0005])
def test_a_sum_within_rounding_is_taken(total: float) -> None:
    """Sums that four decimals can come to are not refused."""
    table = np.tile([0.25, 0.25, 0.25, total - 0.75], (50, 1))
    shares = np.exp(outputs_of_probabilities(table, LABELS).logits)
    assert np.allclose(shares, table / total)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "expected finite answers, got NaN in row 8 of 50"),
        (np.inf, "expected finite answers, got an infinite value in row 8 of 50"),
        (-0.25, "expected answers of 0 or more, got others in row 8 of 50"),
        (0.9, "sum to 1 within 0.001, got others in row 8 of 50, which sums to 1.8"),
    ],
)
def test_what_is_no_probability_is_named_by_its_row(value: float, said: str) -> None:
    """Rows are counted from 1, and the message says what is wrong with the first."""
    table = drawn(3)
    table[7] = [0.4, value, 0.5]
    with pytest.raises(DataError, match="E-AUDIT-OUTPUTS") as caught:
        outputs_of_probabilities(table, LABELS, name="answers")
    assert said in caught.value.message


def test_rounding_excuses_no_more_than_it_does() -> None:
    """Unrounded rows keep the narrow bound, and two decimals never excuse more than 0.02."""
    for table in (drawn(26) * 1.005, np.full((50, 26), 0.04)):
        with pytest.raises(DataError, match=r"50 of 50 rows, first row 1, which sums to 1\.0"):
            outputs_of_probabilities(table, LABELS)


def test_logits_that_are_no_numbers_are_named_by_their_row() -> None:
    """The same words for saved logits."""
    logits = np.zeros((50, 2))
    logits[[3, 9]] = np.nan
    with pytest.raises(DataError, match="got NaN in 2 of 50 rows, first row 4"):
        Outputs(logits=logits, labels=LABELS)
