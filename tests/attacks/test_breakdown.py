"""Who is found: slices, and records whose rank does not hang on the references drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tacit.attacks.breakdown import most_exposed, slice_table
from tacit.core.errors import DataError

SCORES = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
IS_MEMBER = np.array([True, False, True, False, True, False])


def test_slices_share_one_threshold() -> None:
    """Each slice is scored at the same threshold; one without non-members has counts alone."""
    slices = {
        "early": np.array([0, 1, 2, 3]),
        "members": np.array([0, 2]),
        "none": np.array([], int),
    }
    rows = slice_table(SCORES, IS_MEMBER, slices, threshold=4.5)
    assert [(r.name, r.members, r.non_members, r.auc) for r in rows] == [
        ("early", 2, 2, 1.0),
        ("members", 2, 0, None),
        ("none", 0, 0, None),
    ]
    assert (rows[0].point.tpr, rows[0].point.fpr, rows[1].point) == (0.5, 0.0, None)


@pytest.mark.parametrize("rows", [[0, 6], [-1], [1, 1], [0.5]])
def test_rows_that_are_not_there_are_refused(rows: list) -> None:
    """A slice names rows of these records, each once."""
    with pytest.raises(DataError, match="E-AUDIT-SLICES"):
        slice_table(SCORES, IS_MEMBER, {"odd": np.array(rows)}, threshold=0.0)


def test_the_same_attack_again_names_the_same_records() -> None:
    """With equal replicates every figure of stability is 1, whatever non-members score."""
    again = np.stack([SCORES, np.where(IS_MEMBER, 2 * SCORES, 99.0)])
    found = most_exposed(SCORES, IS_MEMBER, again, count=2)
    assert found.rows.tolist() == [0, 2]
    assert (found.recurrence.tolist(), found.jaccard) == ([1.0, 1.0], 1.0)
    assert found.spearman == pytest.approx(1.0)


def test_the_opposite_order_names_others() -> None:
    """Reversed ranks correlate with -1, and sets that share one of three records say so."""
    found = most_exposed(SCORES, IS_MEMBER, -SCORES[None], count=2)
    assert (found.recurrence.tolist(), found.jaccard) == ([0.0, 1.0], pytest.approx(1 / 3))
    assert found.spearman == pytest.approx(-1.0)


def test_noise_is_not_stable() -> None:
    """Scores that are drawn anew agree in rank by chance alone."""
    rng = np.random.default_rng(1)
    found = most_exposed(
        rng.standard_normal(2000), rng.random(2000) < 0.5, rng.standard_normal((20, 2000)), count=50
    )
    assert abs(found.spearman) < 0.05
    assert found.jaccard < 0.1


def test_constant_scores_order_nobody() -> None:
    """A constant score has no ranks to be stable; the count is cut to the members there are."""
    found = most_exposed(np.zeros(6), IS_MEMBER, SCORES[None], count=9)
    assert (found.rows.tolist(), found.spearman) == ([0, 2, 4], 0.0)


def test_ranks_of_ties_are_their_middle() -> None:
    """Correlation with ties in both is that of scipy."""
    rng = np.random.default_rng(2)
    scores, again = rng.integers(0, 4, (2, 50)).astype(float)
    found = most_exposed(scores, np.arange(50) < 40, again[None], count=5)
    assert found.spearman == pytest.approx(spearmanr(scores[:40], again[:40]).statistic)


def test_replicates_are_needed() -> None:
    """Without replicates nothing can be said of stability."""
    with pytest.raises(ValueError, match="at least one"):
        most_exposed(SCORES, IS_MEMBER, np.zeros((0, 6)), count=1)
