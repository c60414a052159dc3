"""The loss threshold (Yeom et al. 2018, arXiv 1709.01604, adversary 2): members have a low loss.

Useful as the baseline that others must beat: many records are easy for any model, so at a low
false-positive rate it finds next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tacit.attacks.membership.signals import softplus, true_log_odds

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence, Need
    from tacit.attacks.target import Float64Array


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Score: log p_y, which is minus the cross-entropy."""

    name: ClassVar[str] = "loss"
    source: ClassVar[str] = "Yeom et al. 2018, arXiv 1709.01604"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return log p_y per record."""
        outputs = evidence.outputs
        return -softplus(-true_log_odds(outputs.logits, outputs.labels))
