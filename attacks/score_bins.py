"""The public bins of the scores that may leave an owner as histograms.

Trusts: nothing; nobody's record plays a part. A bin's edges follow from the probe, the number of
bins, the data contract and the audited weights, which are public to all who take part: they are
quantiles of the scores that the model gives to records made up within the contract's ranges, with
labels drawn from its own answers (attacks/owner_audit.py). No range of scores fits both a model
that is sure of itself and one that hardly learnt anything; the model itself tells which it is.

Quantiles lie closer towards both ends, where members and non-members differ, and a few edges lie
beyond them: real records may be better known than made-up ones.

Only probes stand here whose score of a record depends on that record, public constants and the
model: none that compares it with reference models or with other records. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.attacks.points import Float64Array

_FEW_BINS = 12  # below that, one edge beyond either end, else two
_LEAST_LOSS = 1e-30
_STEP_LEVELS = (0.25, 0.75)  # the distance of these quantiles is how far edges lie beyond the ends
_LEAST_STEP = 1e-9  # between edges, where made-up records score alike


@dataclass(frozen=True, kw_only=True)
class ScoreScale:
    """How a probe's scores are cut.

    Attributes:
        is_logarithm: whether the score is a logarithm; else minus a positive quantity, of which
            decades are alike.
        source: the probe's paper, as the registry has it.
    """

    is_logarithm: bool
    source: str

    def edges(self, made_up: Float64Array, *, bins: int) -> Float64Array:
        """Return the rising edges between so many bins, float64, ``(bins - 1,)``.

        Args:
            made_up: scores of made-up records, ``(n,)``; those that are no number are left out.
            bins: at least 4.
        """
        finite = made_up[np.isfinite(made_up)]
        scores = self._logarithm(finite) if len(finite) else np.zeros(1)
        beyond = 1 if bins < _FEW_BINS else 2
        inner = bins - 1 - 2 * beyond
        levels = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, inner + 1) / (inner + 1))
        quantiles = np.quantile(scores, levels)
        low, high = np.quantile(scores, _STEP_LEVELS)
        step = max(high - low, _LEAST_STEP)
        steps = step * np.arange(1, beyond + 1)
        logs = np.concatenate([quantiles[0] - steps[::-1], quantiles, quantiles[-1] + steps])
        return self._score(_rising(logs))

    def _logarithm(self, scores: Float64Array) -> Float64Array:
        return scores if self.is_logarithm else -np.log(np.maximum(-scores, _LEAST_LOSS))

    def _score(self, logs: Float64Array) -> Float64Array:
        return logs if self.is_logarithm else -np.exp(-logs)


def _rising(edges: Float64Array) -> Float64Array:
    """Return edges that rise, each by a little where they were equal."""
    least = _LEAST_STEP * np.arange(len(edges)) * max(1.0, float(np.abs(edges).max()))
    rising: Float64Array = np.maximum.accumulate(edges - least) + 2.0 * least
    return rising


SCALES: Final[Mapping[str, ScoreScale]] = MappingProxyType(
    {
        "loss": ScoreScale(is_logarithm=False, source="Yeom et al. 2018, arXiv 1709.01604"),
        "modified-entropy": ScoreScale(
            is_logarithm=True, source="Song & Mittal 2021, arXiv 2003.10595"
        ),
        "gradient-norm-all": ScoreScale(
            is_logarithm=True, source="Nasr et al. 2019, arXiv 1812.00910"
        ),
    }
)
