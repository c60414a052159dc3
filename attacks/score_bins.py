"""The public bins of the scores that may leave an owner as histograms.

Trusts: nothing; nobody's record plays a part. A bin's edges follow from the probe and the number of
bins alone, fixed before any score was seen. They are even on a logarithmic scale: members' losses
crowd near zero, each decade with as much to tell as the next.

Only probes stand here whose score of a record depends on that record, public constants and the
model: none that compares it with reference models or with other records. Loads no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.attacks.points import Float64Array


@dataclass(frozen=True, kw_only=True)
class ScoreScale:
    """Where a probe's scores lie.

    Attributes:
        least, most: of the positive quantity that the score falls with, at the outer edges.
        is_logarithm: whether the score is minus its logarithm, else minus the quantity itself.
        source: the probe's paper, as the registry has it.
    """

    least: float
    most: float
    is_logarithm: bool
    source: str

    def edges(self, bins: int) -> Float64Array:
        """Return the rising edges between so many bins, float64, ``(bins - 1,)``."""
        logs = np.linspace(math.log(self.most), math.log(self.least), bins - 1)
        return -logs if self.is_logarithm else -np.exp(logs)


SCALES: Final[Mapping[str, ScoreScale]] = MappingProxyType(
    {
        # A loss of 5 nats: the true class has less than a hundredth; of 1e-3: the model is sure.
        "loss": ScoreScale(
            least=1e-3, most=5.0, is_logarithm=False, source="Yeom et al. 2018, arXiv 1709.01604"
        ),
        # With two classes it is about twice the square of a small loss.
        "modified-entropy": ScoreScale(
            least=2e-6, most=10.0, is_logarithm=True, source="Song & Mittal 2021, arXiv 2003.10595"
        ),
        # At most about the norm of what the weights see, which is a few units on scaled features.
        "gradient-norm-all": ScoreScale(
            least=1e-3, most=10.0, is_logarithm=True, source="Nasr et al. 2019, arXiv 1812.00910"
        ),
    }
)
