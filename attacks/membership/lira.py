"""LiRA, the likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570).

phi of a record is close to normal over retrainings, with one mean where it was trained on and
another where it was not (section IV). Online (algorithm 1): the log ratio of the two densities at
the target's phi. Offline (section IV, the one-sided test): how far in the upper tail of the OUT
density phi lies; a phi far *below* what is usual is no sign of a member.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from tacit.attacks.membership.signals import (
    Mode,
    compared_with,
    needed,
    reference_log_odds,
    true_log_odds,
)
from tacit.attacks.probe import Need
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import BoolArray, Float64Array

# Pseudo-observations that the pooled variance counts for: at or near the best from 4 references to
# 256 in our measurements.
_SHRINKAGE_NU = 8.0
_LEAST_SHARE = 1e-6  # of the pooled variance: a record on which all references agree


class Variance(enum.Enum):
    """How the deviation of phi over retrainings is estimated."""

    PER_EXAMPLE = "per-example"  # from about 64 references on
    POOLED = "pooled"  # one for all records
    SHRUNK = "shrunk"  # per example, drawn towards the pooled one by an inverse-gamma prior


@dataclass(frozen=True, kw_only=True)
class Lira:
    """Score: log N(phi; IN) - log N(phi; OUT) online; log odds of Pr[N(OUT) <= phi] offline.

    The log odds keep the order of the tail's probability and, unlike it, never round to one.
    """

    mode: Mode = Mode.ONLINE
    variance: Variance = Variance.SHRUNK
    source: ClassVar[str] = "Carlini et al. 2022, arXiv 2112.03570"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCES})

    @property
    def name(self) -> str:
        """Mode and, unless it is the default, variance."""
        suffix = "" if self.variance is Variance.SHRUNK else f"-{self.variance.value}"
        return f"lira-{self.mode.value}{suffix}"

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the score per record.

        Raises:
            DataError: too few references for a variance per example (``E-AUDIT-REFERENCES``).
        """
        references = needed(evidence.references, "references")
        compared_with(references, self.mode)  # refuses records that lack a side
        labels = evidence.outputs.labels
        phi = true_log_odds(evidence.outputs.logits, labels)
        usual = reference_log_odds(references.logits, labels)
        out_mean, out_variance = _moments(usual, ~references.is_in, self.variance)
        if self.mode is Mode.OFFLINE:
            return _log_tail_odds((phi - out_mean) / np.sqrt(out_variance))
        in_mean, in_variance = _moments(usual, references.is_in, self.variance)
        return _log_normal(phi, in_mean, in_variance) - _log_normal(phi, out_mean, out_variance)


def _moments(
    phi: Float64Array, chosen: BoolArray, kind: Variance
) -> tuple[Float64Array, Float64Array]:
    """Return mean and variance of phi over the chosen references, ``(n,)`` each."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, phi, 0.0).sum(axis=0) / count
    squares = np.where(chosen, np.square(phi - mean), 0.0).sum(axis=0)
    freedom = count - 1
    # With one reference a side, how records differ stands in for how retrainings do.
    spread = squares.sum() / freedom.sum() if freedom.any() else mean.var()
    pooled = max(float(spread), float(np.finfo(np.float64).tiny))
    match kind:
        case Variance.POOLED:
            variance = np.full(len(mean), pooled)
        case Variance.PER_EXAMPLE:
            if (freedom < 1).any():
                raise DataError(
                    "E-AUDIT-REFERENCES",
                    "expected at least 2 references on each side of every record for a variance "
                    f"per example, got {int(count.min())}",
                    hint="train more references, or pool the variance",
                )
            variance = squares / freedom
        case Variance.SHRUNK:
            # The posterior of an inverse-gamma prior with nu degrees of freedom and scale the
            # pooled variance (Smyth 2004, doi 10.2202/1544-6115.1027, section 3).
            variance = (_SHRINKAGE_NU * pooled + squares) / (_SHRINKAGE_NU + freedom)
    return mean, np.maximum(variance, _LEAST_SHARE * pooled)


def _log_normal(x: Float64Array, mean: Float64Array, variance: Float64Array) -> Float64Array:
    """Return the log density of a normal, without the constant that cancels."""
    return -0.5 * (np.log(variance) + np.square(x - mean) / variance)


def _log_tail_odds(z: Float64Array) -> Float64Array:
    """Return log Phi(z) - log(1 - Phi(z)): strictly increasing, far beyond where Phi is one."""
    tensor = torch.from_numpy(z)
    odds = torch.special.log_ndtr(tensor) - torch.special.log_ndtr(-tensor)
    return np.asarray(odds.numpy(), dtype=np.float64)
