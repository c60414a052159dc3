"""The claim that an audit is held against: an epsilon, and what exactly it is about.

A bound and a claim can be compared only where both mean the same unit, relation and delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError
from tacit.core.privacy_spec import PrivacyUnit, Relation

if TYPE_CHECKING:
    from tacit.privacy.plan import PrivacyPlan


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is audited: epsilon at delta for one unit, under add/remove.

    Attributes:
        epsilon, delta: as the accountant gave them.
        unit: whose presence it is about: a canary is one such unit.
        relation: of the data sets it compares: a canary is in or out.
    """

    epsilon: float
    delta: float
    unit: PrivacyUnit
    relation: Relation = Relation.ADD_REMOVE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0 and 0 < self.delta < 1):
            raise RefusedError(
                "E-CANARIES-NO-CLAIM",
                "expected a finite epsilon and a delta to audit, "
                f"got {self.epsilon} and {self.delta}",
                hint="without noise there is no claim to hold canaries against",
            )
        if self.unit is PrivacyUnit.CLIENT or self.relation is not Relation.ADD_REMOVE:
            raise RefusedError(
                "E-CANARIES-RELATION",
                "expected a claim for records or subjects under add/remove, "
                f"got {self.unit.value} under {self.relation}",
                hint="a canary is one record more or less; bound and claim must mean the same",
            )


def claim_of(plan: PrivacyPlan) -> Claim:
    """Return a run's own claim at one owner.

    Raises:
        RefusedError: it claims no epsilon (``E-CANARIES-NO-CLAIM``), or one for clients or under
            replace-one (``E-CANARIES-RELATION``).
    """
    return Claim(epsilon=plan.epsilon, delta=plan.delta, unit=plan.unit, relation=plan.relation)
