"""The null self-test of a whole audit: membership is permuted, and everything is scored again.

Trusts: nothing of the target: permuted membership belongs to no model. Promises: the functions that
make findings are the ones that are tested; a fault in them voids the report. A correct audit fails
by chance in well under one audit in a hundred, however many probes it has.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

from tacit.attacks.arrangement import rng_for
from tacit.attacks.findings import SelfTestFinding
from tacit.attacks.scoring import is_evidence
from tacit.attacks.self_test import null_self_test
from tacit.attacks.significance import LEVEL
from tacit.attacks.statistics import roc_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.plans import AuditPlan
    from tacit.attacks.scoring import Scored
    from tacit.attacks.target import BoolArray

_ONE_PROBE_TAIL = NormalDist().cdf(-3.0)  # three standard errors, on either side


def self_test(
    scored: Sequence[Scored], is_member: BoolArray, *, plan: AuditPlan, level: float, seed: int
) -> SelfTestFinding | None:
    """Return what the audit makes of permuted membership; None where no probe was scored.

    Args:
        scored: the probes' scores.
        is_member: bool ``(n,)``.
        plan: permutations and rates.
        level: of each test.
        seed: of the permutations.
    """
    if not scored:
        return None
    allowed = -NormalDist().inv_cdf(_ONE_PROBE_TAIL / len(scored))
    worst, worst_mean = -1.0, 0.5
    for each in scored:
        rng = rng_for(seed, f"self-test of {each.probe}")
        membership = is_member[each.rows]
        tested = null_self_test(
            each.scores, membership, {}, rng=rng, permutations=plan.permutations
        )
        deviations = _deviations(tested.mean_auc, tested.standard_error)
        if deviations > worst:
            worst, worst_mean = deviations, tested.mean_auc
    false_evidence = _false_evidence(scored, is_member, plan=plan, level=level, seed=seed)
    allowed_share = LEVEL + 2.0 * math.sqrt(LEVEL * (1.0 - LEVEL) / plan.permutations)
    return SelfTestFinding(
        permutations=plan.permutations,
        mean_auc=worst_mean,
        deviations=worst,
        allowed_deviations=allowed,
        false_evidence=false_evidence,
        allowed_false_evidence=allowed_share,
        passed=worst <= allowed and false_evidence <= allowed_share,
    )


def _deviations(mean: float, standard_error: float) -> float:
    if standard_error == 0.0:  # one tie: the AUC is exactly 0.5
        return 0.0 if abs(mean - 0.5) < 1e-12 else math.inf
    return abs(mean - 0.5) / standard_error


def _false_evidence(
    scored: Sequence[Scored], is_member: BoolArray, *, plan: AuditPlan, level: float, seed: int
) -> float:
    """Return the share of permutations in which any probe at all shows evidence."""
    rng = rng_for(seed, "self-test of all probes")
    found = 0
    for _ in range(plan.permutations):
        permuted = rng.permutation(is_member)
        found += any(
            is_evidence(roc_of(each.scores, permuted[each.rows]), plan.fprs, level=level)
            for each in scored
        )
    return found / plan.permutations
