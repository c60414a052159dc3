"""The shadow attack's own logistic regression is scikit-learn's; it learns from shadows alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tacit.attacks.membership.shadow import Shadow, fit_logistic

if TYPE_CHECKING:
    from tests.attacks.worlds import World


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("spread", [0.5, 50.0])
def test_the_regression_is_the_textbook_s(ridge: float, spread: float) -> None:
    """Ridge logistic regression, also on classes that a plane separates."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(300, 3)), np.ones((300, 1))], axis=1)
    is_in = rows @ [1.0, -2.0, 0.0, 0.5] + rng.logistic(size=300) / spread > 0
    oracle = LogisticRegression(C=1.0 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = oracle.fit(rows, is_in).coef_[0]
    np.testing.assert_allclose(fit_logistic(rows, is_in, ridge=ridge), expected, rtol=1e-4)


def test_a_class_with_members_only_stays_finite() -> None:
    """The constant is penalised as well."""
    found = fit_logistic(np.ones((50, 1)), np.ones(50, dtype=np.bool_), ridge=1.0)
    assert 1.0 < found[0] < 10.0


def test_what_shadows_teach_is_what_is_said(overfit: World) -> None:
    """With the shadows' membership reversed, so are the scores."""
    references = overfit.evidence.references
    assert references is not None
    reversed_ = replace(overfit.evidence, references=replace(references, is_in=~references.is_in))
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(
        Shadow().scores(reversed_, rng=rng), -Shadow().scores(overfit.evidence, rng=rng), rtol=1e-6
    )
