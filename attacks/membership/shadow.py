"""Shadow models (Shokri et al. 2017, arXiv 1610.05820): learn what membership looks like.

One attack model per class (section V-D) is trained on what shadow models, whose members are known,
say of records; it then reads the target's outputs. It never sees the target's membership. It reads
the log odds of the true class and of the three likeliest others: sorted and cut, the rest of the
vector adds nothing (Salem et al. 2019, arXiv 1806.01246, section III).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tacit.attacks.membership.signals import log_odds, needed, softplus
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import BoolArray, Float32Array, Float64Array, Int64Array

_OTHERS = 3
_NEWTON_STEPS = 30
_ENOUGH = 1e-10


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Score: log odds of membership, by the attack model of the record's class.

    Attributes:
        ridge: penalty of the squared coefficients of standardised features.
    """

    ridge: float = 1.0
    name: ClassVar[str] = "shadow"
    source: ClassVar[str] = "Shokri et al. 2017, arXiv 1610.05820"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCES})

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the score per record."""
        references = needed(evidence.references, "references")
        labels = evidence.outputs.labels
        own = _features(evidence.outputs.logits, labels)
        shadows = np.stack([_features(table, labels) for table in references.logits])
        scores = np.zeros(len(labels))
        for label in np.unique(labels):
            rows = labels == label
            seen = shadows[:, rows].reshape(-1, own.shape[1])
            centre, scale = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-12)
            weights = fit_logistic(
                _with_constant((seen - centre) / scale),
                references.is_in[:, rows].ravel(),
                ridge=self.ridge,
            )
            scores[rows] = _with_constant((own[rows] - centre) / scale) @ weights
        return scores


def fit_logistic(rows: Float64Array, is_in: BoolArray, *, ridge: float) -> Float64Array:
    """Return the coefficients of a ridge logistic regression, by Newton's method.

    A step that does not lower the objective is halved, so the objective, which is strictly convex,
    falls to its only minimum.

    Args:
        rows: ``(n, k)``, the last column constant; it is penalised as well, which keeps a class
            with members only finite.
        is_in: bool ``(n,)``.
        ridge: above 0.
    """
    signs = np.where(is_in, 1.0, -1.0)
    weights = np.zeros(rows.shape[1])

    def objective(candidate: Float64Array) -> float:
        penalty = 0.5 * ridge * float(candidate @ candidate)
        return float(softplus(-signs * (rows @ candidate)).sum()) + penalty

    value = objective(weights)
    for _ in range(_NEWTON_STEPS):
        miss = np.exp(-softplus(signs * (rows @ weights)))  # probability of the wrong side
        gradient = ridge * weights - rows.T @ (signs * miss)
        curvature = (rows * (miss * (1.0 - miss))[:, None]).T @ rows + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        while objective(weights - step) > value and float(np.abs(step).max()) > _ENOUGH:
            step = step / 2.0
        weights = weights - step
        value = objective(weights)
        if float(np.abs(step).max()) <= _ENOUGH:
            break
    return weights


def _features(logits: Float64Array | Float32Array, labels: Int64Array) -> Float64Array:
    """Return log odds of the true class, then of the likeliest others, ``(n, at most 4)``."""
    odds = log_odds(logits)
    column = labels[:, None]
    own = np.take_along_axis(odds, column, axis=1)
    np.put_along_axis(odds, column, -np.inf, axis=1)
    others = np.sort(odds, axis=1)[:, ::-1][:, : min(_OTHERS, odds.shape[1] - 1)]
    return np.concatenate([own, others], axis=1)


def _with_constant(rows: Float64Array) -> Float64Array:
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
