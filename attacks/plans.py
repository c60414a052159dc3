"""Plans: what an audit runs and how hard it looks, fixed before anything is seen.

Trusts: nothing. Promises: a plan decides how many tests there are, so that what is called evidence
is held to a level that covers all of them (attacks/significance.py), whatever comes out; nothing
here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FPRS = (0.1, 0.05, 0.01, 0.001)
PRIORS = (0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What is run.

    Attributes:
        name: as reports spell it.
        probes: names in the registry; they run in the order of what they need.
        references: models trained by the target's recipe, an even number.
        references_if_large: how many where one model has more than ``large_parameters`` numbers.
        large_parameters: what is no longer small.
        stand_ins: references that are taken for the target to choose realistic thresholds.
        permutations: of membership, in the null self-test.
        query_records: audited records for probes that ask the target about further points.
        queries: of the target, for each of these records.
        fprs: false-positive rates at which members found are counted.
        priors: shares of members among the candidates at which precision is told.
        least_slice: members, and non-members, without which a slice is not scored.
        most_exposed: members listed for the strongest probe.
    """

    name: str
    probes: tuple[str, ...]
    references: int
    references_if_large: int
    large_parameters: int = 200_000
    stand_ins: int
    permutations: int = 200
    query_records: int
    queries: int
    fprs: tuple[float, ...] = FPRS
    priors: tuple[float, ...] = PRIORS
    least_slice: int = 20
    most_exposed: int = 10


_ALL = (
    "loss",
    "modified-entropy",
    "quantile",
    "label-only-boundary",
    "label-only-noise",
    "gradient-norm-all",
    "gradient-norm-last",
    "shadow",
    "calibrated-offline",
    "calibrated-online",
    "lira-offline",
    "lira-offline-pooled",
    "lira-offline-per-example",
    "lira-online",
    "lira-online-pooled",
    "lira-online-per-example",
    "rmia-offline",
    "rmia-online",
    "base-offline",
    "base-online",
)

PLANS: Final[Mapping[str, AuditPlan]] = MappingProxyType(
    {
        "quick": AuditPlan(  # under a minute of one core on a table and a small model
            name="quick",
            probes=("loss", "modified-entropy", "lira-online", "rmia-offline", "base-offline"),
            references=16,
            references_if_large=2,
            stand_ins=2,
            query_records=200,
            queries=400,
        ),
        "standard": AuditPlan(  # at most ten minutes there
            name="standard",
            probes=_ALL,
            references=64,
            references_if_large=16,
            stand_ins=4,
            query_records=200,
            queries=400,
        ),
        "full": AuditPlan(  # hours
            name="full",
            probes=_ALL,
            references=256,
            references_if_large=64,
            stand_ins=16,
            permutations=1000,
            query_records=1000,
            queries=2000,
        ),
    }
)
