"""Modified entropy (Song & Mittal 2021, arXiv 2003.10595, section 3): sure, and sure of the label.

``M = -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)`` is zero for a model that is sure of the
true class, and grows without bound for one that is sure of another. Members are those with M below
a threshold per class, and thresholds come from shadow models; where there are none, one threshold
serves all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tacit.attacks.membership.signals import log_odds, log_softplus, softplus

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence, Need, References
    from tacit.attacks.target import BoolArray, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, kw_only=True)
class ModifiedEntropy:
    """Score: log threshold of the record's class - log M.

    In logarithms, because M of two records that a model is sure of differs in digits that would
    drown in the threshold.
    """

    name: ClassVar[str] = "modified-entropy"
    source: ClassVar[str] = "Song & Mittal 2021, arXiv 2003.10595"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return how far below its class's threshold each record lies."""
        outputs = evidence.outputs
        signal = -log_modified_entropy(outputs.logits, outputs.labels)
        if evidence.references is None:
            return signal
        return signal - _thresholds(evidence.references, outputs.labels)[outputs.labels]


def log_modified_entropy(logits: Float64Array | Float32Array, labels: Int64Array) -> Float64Array:
    """Return log M, ``(n,)``; finite where the logits are."""
    odds = log_odds(logits)
    # p_i log(1 - p_i) for every class; then (1 - p_y) log p_y in the place of the true one.
    terms: Float64Array = log_softplus(odds) - softplus(-odds)
    column = labels[:, None]
    own = np.take_along_axis(odds, column, axis=1)
    np.put_along_axis(terms, column, log_softplus(-own) - softplus(own), axis=1)
    total: Float64Array = np.logaddexp.reduce(terms, axis=1)
    return total


def _thresholds(references: References, labels: Int64Array) -> Float64Array:
    """Return a threshold of -log M per class, chosen on the references' own members."""
    signals = np.stack([-log_modified_entropy(table, labels) for table in references.logits])
    thresholds = np.zeros(references.logits.shape[2])
    for label in np.unique(labels):
        rows = labels == label
        thresholds[label] = _best_threshold(
            signals[:, rows].ravel(), references.is_in[:, rows].ravel()
        )
    return thresholds


def _best_threshold(signal: Float64Array, is_in: BoolArray) -> float:
    """Return the value from which on calling "member" is right most often, each side weighted."""
    order = np.argsort(signal)
    members, others = max(1, int(is_in.sum())), max(1, int((~is_in).sum()))
    gain = np.where(is_in[order], 1.0 / members, -1.0 / others)
    advantage = gain[::-1].cumsum()[::-1]  # of calling this record and all above it members
    return float(signal[order[int(advantage.argmax())]])
