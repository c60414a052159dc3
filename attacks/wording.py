"""The sentences of a report: what was found, or how little would have been seen.

Promises: "no evidence" never stands without its power, no sentence says that a model is safe, and
evidence stands with the interval, or the limit, of the very test that made it so: what was picked
among many tests is stated at the level of one of them.
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


def evidence_line(auc: AucFinding, best: PointFinding | None, *, tests: int) -> str:
    """Say what was found, corrected for all the tests that it was picked from.

    Where the exact test sees what the interval at the FPR asked for leaves open, since few
    non-members say where that FPR is, the test's own limit is told in place of the interval.
    """
    corrected = f"(corrected for {tests} tests)"
    if best is not None:
        return f"evidence: {_found(best)} {corrected}{_thin(best)}"
    area = _area(auc.corrected)
    if auc.corrected.low <= 0.5:
        area = f"{auc.area.value:.3f}, and chance gives less than {auc.least_evident:.3f}"
    return f"evidence: AUC {area} {corrected}, and at no FPR asked for more members than by chance"


def _found(point: PointFinding) -> str:
    fpr = percent(point.asked_fpr)
    if point.corrected_fpr is not None:
        fpr = _interval(point.corrected_fpr)
    if point.corrected_tpr is not None and point.strength[0] > 1.0:
        return f"at FPR {fpr} finds {_interval(point.corrected_tpr)} of members"
    limit = percent(point.least_evident_tpr or 0.0)
    return f"at FPR {fpr} finds {percent(point.tpr.value)} of members, and chance less than {limit}"


def _thin(point: PointFinding) -> str:
    return "" if point.non_members_above > 1 else f"; that FPR rests on {_non_members(point)}"


def thin_notes(points: Sequence[PointFinding]) -> tuple[str, ...]:
    """Say which FPRs rest on one non-member or none."""
    return tuple(
        f"FPR {percent(point.asked_fpr)} rests on {_non_members(point)}"
        for point in points
        if point.non_members_above <= 1
    )


def _non_members(point: PointFinding) -> str:
    return "1 non-member" if point.non_members_above else "no non-member"


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
            f"or more would have been seen{_thin(point)}"
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
