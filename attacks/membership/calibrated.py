"""Calibrated loss: how much lower the loss is than it should be for this record.

An easy record has a low loss under any model. Taking off the mean over models that were not
trained on it (Watson et al. 2022, arXiv 2111.08440, section 3), or over models of which half were
(Sablayrolles et al. 2019, arXiv 1908.11229, section 4), leaves what this model learnt from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tacit.attacks.membership.signals import (
    Mode,
    compared_with,
    needed,
    reference_log_odds,
    softplus,
    true_log_odds,
)
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import Float64Array


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Score: log p_y minus its mean over references.

    Attributes:
        mode: offline is Watson's, online is Sablayrolles'.
    """

    mode: Mode = Mode.OFFLINE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCES})

    @property
    def name(self) -> str:
        """``calibrated-offline`` or ``calibrated-online``."""
        return f"calibrated-{self.mode.value}"

    @property
    def source(self) -> str:
        """The paper of the mode."""
        if self.mode is Mode.OFFLINE:
            return "Watson et al. 2022, arXiv 2111.08440"
        return "Sablayrolles et al. 2019, arXiv 1908.11229"

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the calibrated log p_y per record."""
        references = needed(evidence.references, "references")
        labels = evidence.outputs.labels
        chosen = compared_with(references, self.mode)
        usual = -softplus(-reference_log_odds(references.logits, labels))
        mean = np.where(chosen, usual, 0.0).sum(axis=0) / chosen.sum(axis=0)
        own: Float64Array = -softplus(-true_log_odds(evidence.outputs.logits, labels))
        difference: Float64Array = own - mean
        return difference
