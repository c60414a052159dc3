"""From an audit's specification to its noised histograms: the one place of derivation.

Each owner counts in which public bin every record's score falls, members apart from non-members:
one histogram for each probe, each record once in each. A record is on one side of the split, and
each side is a function of that record alone, so both sides of a histogram are one block of
sensitivity 1, and k probes one vector of sensitivity sqrt(k): one release, charged once, to the
whole data set.

Trusts: the specification as the owner approved it, and the caller's word that a score depends on
its record, public constants and the model alone; never the data: nothing here sees a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError
from tacit.core.results import histogram_name
from tacit.privacy import accounting
from tacit.privacy.plan import MIN_NOISE_MULTIPLIER
from tacit.privacy.sums import Block, BoundedSum

if TYPE_CHECKING:
    from tacit.core.audit_spec import AuditSpec
    from tacit.privacy.accounting import SampledGaussian


@dataclass(frozen=True, kw_only=True)
class AuditRelease:
    """Everything public about the histograms of one owner.

    Attributes:
        query: a block for each probe's histogram, named as the metric that carries it.
        epsilon, delta: what they cost each unit, all together.
    """

    query: BoundedSum
    epsilon: float
    delta: float

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise on each count."""
        return self.query.sigma

    def mechanism(self) -> SampledGaussian:
        """Return what the release costs, as a ledger enters it."""
        return self.query.mechanism()


def audit_release(audit: AuditSpec) -> AuditRelease:
    """Derive the noise of an audit that declares an epsilon.

    Raises:
        RefusedError: the noise is next to nothing (``E-NOISE-TOO-SMALL``).
        ValueError: the audit's counts are exact.
    """
    if audit.delta is None or not audit.is_noised:
        raise ValueError("expected an audit with an epsilon and a delta")
    multiplier = accounting.noise_for(audit.epsilon, audit.delta, 1.0, 1)
    if multiplier < MIN_NOISE_MULTIPLIER:
        raise RefusedError(
            "E-NOISE-TOO-SMALL",
            f"expected a noise multiplier of at least {MIN_NOISE_MULTIPLIER}, got {multiplier:.3g}",
            hint="ask for a smaller epsilon",
        )
    blocks = tuple(Block(name=histogram_name(probe), length=audit.length) for probe in audit.probes)
    return AuditRelease(
        query=BoundedSum(blocks=blocks, noise_multiplier=multiplier),
        epsilon=accounting.epsilon_of(multiplier, 1.0, 1, audit.delta),
        delta=audit.delta,
    )
