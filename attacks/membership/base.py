"""BASE (Lassila et al. 2025, arXiv 2505.24089): the Bayes-optimal score, given models' losses.

``log p(x|theta) - log mean_k p(x|theta_k)``: the same order as RMIA's, for RMIA's population moves
all records alike; and no population is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tacit.attacks.membership.signals import (
    Mode,
    compared_with,
    log_ratio,
    needed,
    reference_log_odds,
    true_log_odds,
)
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import Float64Array


@dataclass(frozen=True, kw_only=True)
class Base:
    """Score: log p_y - [logsumexp over the references of log p_y - log of their number].

    Attributes:
        mode: all references, or those that were not trained on the record.
    """

    mode: Mode = Mode.ONLINE
    source: ClassVar[str] = "Lassila et al. 2025, arXiv 2505.24089"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCES})

    @property
    def name(self) -> str:
        """``base-online`` or ``base-offline``."""
        return f"base-{self.mode.value}"

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the score per record."""
        references = needed(evidence.references, "references")
        labels = evidence.outputs.labels
        return log_ratio(
            true_log_odds(evidence.outputs.logits, labels),
            reference_log_odds(references.logits, labels),
            compared_with(references, self.mode),
        )
