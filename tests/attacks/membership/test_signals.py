"""Log odds keep their digits where probabilities round to one or to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from tacit.attacks.membership.modified_entropy import ModifiedEntropy, log_modified_entropy
from tacit.attacks.membership.signals import (
    Mode,
    compared_with,
    log_mean_probability,
    log_odds,
    needed,
    softplus,
    true_log_odds,
)
from tacit.attacks.probe import Evidence, References
from tacit.attacks.target import Outputs
from tacit.core.errors import DataError

LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(50, 5))
LABELS = np.random.default_rng(1).integers(5, size=50)


def test_log_odds_are_those_of_the_softmax() -> None:
    """phi is log p - log(1 - p), for the true class and for all."""
    p = softmax(LOGITS, axis=1)
    np.testing.assert_allclose(log_odds(LOGITS), np.log(p) - np.log1p(-p), rtol=1e-9)
    own = log_odds(LOGITS)[np.arange(50), LABELS]
    np.testing.assert_allclose(true_log_odds(LOGITS, LABELS), own, rtol=1e-9)


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_log_odds_of_a_sure_model_are_its_gap(gap: float) -> None:
    """With logits gap, 0, 0 the top class has phi = gap - log 2, whatever a float can hold."""
    logits = np.array([[gap, 0.0, 0.0]])
    found = log_odds(logits)
    np.testing.assert_allclose(found, [[gap - np.log(2.0), -gap, -gap]], rtol=1e-12)


def test_classes_that_share_the_top_share_their_odds() -> None:
    """Equal logits have equal odds, although one of them is taken for the largest."""
    np.testing.assert_allclose(log_odds(np.zeros((1, 2))), [[0.0, 0.0]], atol=1e-15)
    np.testing.assert_allclose(log_odds(np.zeros((1, 4))), np.full((1, 4), -np.log(3.0)))


@pytest.mark.parametrize("slope", [0.5, 0.65, 1.0])
def test_a_mean_probability_is_the_plain_one(slope: float) -> None:
    """log(1 - s (1 - mean p)) over the chosen models."""
    rng = np.random.default_rng(2)
    phi, chosen = rng.normal(scale=4.0, size=(6, 30)), rng.random((6, 30)) < 0.5
    chosen[0] = True
    mean = np.array([(1 / (1 + np.exp(-phi[chosen[:, i], i]))).mean() for i in range(30)])
    expected = np.log(1 - slope * (1 - mean))
    np.testing.assert_allclose(log_mean_probability(phi, chosen, slope=slope), expected, rtol=1e-9)


def test_a_mean_probability_near_one_keeps_its_digits() -> None:
    """Of models with phi = 60 the mean misses one by e^-60, which no probability can say."""
    found = log_mean_probability(np.full((3, 1), 60.0), np.ones((3, 1), dtype=np.bool_))
    np.testing.assert_allclose(found, [-np.exp(-60.0)], rtol=1e-9)


def test_modified_entropy_is_the_paper_s() -> None:
    """-(1 - p_y) log p_y - sum over the other classes of p_i log(1 - p_i)."""
    p = softmax(LOGITS, axis=1)
    own = p[np.arange(50), LABELS]
    terms = p * np.log1p(-p)
    others = terms.sum(axis=1) - terms[np.arange(50), LABELS]
    expected = -(1 - own) * np.log(own) - others
    np.testing.assert_allclose(np.exp(log_modified_entropy(LOGITS, LABELS)), expected, rtol=1e-9)


def test_modified_entropy_learns_a_threshold_per_class() -> None:
    """Where members of one class are surer than those of another, thresholds level them."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 100)
    is_in = np.stack([rng.permutation(200) < 100 for _ in range(4)])
    # members have phi 2 above the others; class 1 is 10 above class 0
    phi = 2.0 * is_in + 10.0 * labels + rng.normal(scale=0.3, size=is_in.shape)
    logits = np.zeros((4, 200, 2), dtype=np.float32)
    logits[:, np.arange(200), labels] = phi
    references = References(
        logits=logits[1:], is_in=is_in[1:], population_logits=np.zeros((3, 0, 2), dtype=np.float32)
    )
    outputs = Outputs(logits=logits[0].astype(np.float64), labels=labels)
    found = ModifiedEntropy().scores(Evidence(outputs=outputs, references=references), rng=rng)
    np.testing.assert_array_equal(found >= 0.0, is_in[0])
    alone = ModifiedEntropy().scores(Evidence(outputs=outputs), rng=rng)
    assert alone[labels == 1].min() > alone[labels == 0].max()


def test_a_record_without_a_reference_is_refused() -> None:
    """What has nothing to be compared with gets no score: expected and got are said."""
    references = References(
        logits=np.zeros((2, 3, 2), dtype=np.float32),
        is_in=np.array([[True, False, True], [True, True, False]]),
        population_logits=np.zeros((2, 0, 2), dtype=np.float32),
    )
    with pytest.raises(DataError, match="got 1 records") as refused:
        compared_with(references, Mode.OFFLINE)
    assert refused.value.code == "E-AUDIT-REFERENCES"


def test_what_was_not_promised_is_a_mistake() -> None:
    """A probe that is run without what it needs raises, and names it."""
    with pytest.raises(ValueError, match="expected references"):
        needed(None, "references")


def test_softplus_of_a_large_number_is_that_number() -> None:
    """log(1 + e^x) does not overflow."""
    np.testing.assert_allclose(softplus(np.array([0.0, 1e3])), [np.log(2.0), 1e3])
    assert logsumexp([0.0, 1e3]) == 1e3
