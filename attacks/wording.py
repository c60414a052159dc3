"""The sentences of a report: what was found, or how little would have been seen.

Promises: "no evidence" never stands without its power, and no sentence says that a model is safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.attacks.findings import Outcome, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.findings import AucFinding, Estimate, PointFinding, ProbeFinding

LIMITS = (
    "Members and non-members are taken to be of one source: a probe may find what else differs.",
    "A stronger attack may find what these did not: nothing here bounds what can be learned.",
    "Scores concern records as they were handed in; changed or partial records were not tried.",
)


def evidence_line(auc: AucFinding, best: PointFinding | None) -> str:
    """Say what was found."""
    if best is not None:
        return f"evidence: at FPR {percent(best.asked_fpr)} finds {_interval(best.tpr)} of members"
    return f"evidence: AUC {_area(auc.area)}, and at no FPR asked for more members than by chance"


def power_line(
    auc: AucFinding, points: Sequence[PointFinding], *, members: int, others: int
) -> str:
    """Say that nothing was found, and what would have been."""
    return f"no evidence at this power ({power(auc, points, members=members, others=others)})"


def power(auc: AucFinding, points: Sequence[PointFinding], *, members: int, others: int) -> str:
    """Say how many records there were, and the least that would have been called evidence."""
    said = [f"n = {members} members and {others} non-members"]
    said.append(f"smallest resolvable FPR {percent(1.0 / others)}")
    visible = [point for point in points if point.least_evident_tpr is not None]
    if visible:
        point = min(visible, key=lambda point: point.asked_fpr)
        said.append(
            f"at FPR {percent(point.asked_fpr)} a TPR of {percent(point.least_evident_tpr or 0.0)} "
            f"or more would have been seen"
        )
    else:
        said.append("no TPR at an FPR asked for could have been seen")
    if auc.least_evident <= 1.0:
        said.append(f"an AUC of {auc.least_evident:.3g} or more as well")
    return "; ".join(said)


def overall_line(probes: Sequence[ProbeFinding], strongest: ProbeFinding | None) -> str:
    """Say what the audit comes to: its strongest finding, or its power where there is none."""
    if strongest is not None:
        return f"{strongest.probe}: {strongest.line}"
    if not probes:
        return "inconclusive: no probe was run to its end"
    widest = max(
        probes, key=lambda probe: (probe.members + probe.non_members, probe.auc.area.value)
    )
    said = power(widest.auc, widest.points, members=widest.members, others=widest.non_members)
    count = "1 probe" if len(probes) == 1 else f"any of {len(probes)} probes"
    return f"no evidence by {count} at this power ({said})"


def inconclusive_line(reasons: Sequence[str], line: str) -> str:
    """Say why nothing follows, and what was seen nevertheless."""
    return f"{Outcome.INCONCLUSIVE.value}: {'; '.join(reasons)}. Seen: {line}"


def _interval(estimate: Estimate) -> str:
    low, high = 100.0 * estimate.low, 100.0 * estimate.high
    return f"{percent(estimate.value)} [{low:.3g}, {high:.3g}]"


def _area(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
