"""From scores and membership to a finding: the step that knows who is a member.

Trusts: the scores were made without membership. Promises: nothing here feeds back into a probe;
each test is held to the level that it is handed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.breakdown import SliceRow, most_exposed, slice_table
from tacit.attacks.findings import (
    AucFinding,
    Correction,
    Estimate,
    ExposedFinding,
    Outcome,
    PointFinding,
    PrecisionFinding,
    ProbeFinding,
    SliceFinding,
    Threshold,
    strongest_point,
)
from tacit.attacks.significance import (
    chance_of_auc,
    chance_of_finding,
    least_evident_auc,
    least_evident_tpr,
)
from tacit.attacks.statistics import realised, roc_of, thresholds_from_references
from tacit.attacks.wording import Counted, evidence_line, power_line, thin_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.attacks.plans import AuditPlan
    from tacit.attacks.points import Interval, OperatingPoint
    from tacit.attacks.statistics import Roc
    from tacit.attacks.target import BoolArray, Float64Array, Int64Array

_CURVE_POINTS = 60
_SLICES_FPR = 0.1  # slices are small: a lower rate would rest on a record or two


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What one probe said, before anybody looked who is a member.

    Attributes:
        probe, source: its name and paper.
        rows: int64 ``(n,)``: which audited records it scored.
        scores: float64 ``(n,)``.
        stand_in_scores: float64 ``(models, n)``: of references taken for the target; models may
            be 0.
        stand_in_is_in: bool ``(models, n)``.
    """

    probe: str
    source: str
    rows: Int64Array
    scores: Float64Array
    stand_in_scores: Float64Array
    stand_in_is_in: BoolArray

    def without_stand_ins(self) -> Scored:
        """Return the same scores, without references that stand for the target."""
        return replace(
            self,
            stand_in_scores=self.stand_in_scores[:0],
            stand_in_is_in=self.stand_in_is_in[:0],
        )


def is_evidence(roc: Roc, fprs: Sequence[float], *, level: float) -> bool:
    """Return whether anything about a curve would be called evidence, each test at ``level``."""
    if chance_of_auc(roc.auc, members=roc.members, non_members=roc.non_members) <= level:
        return True
    points = (roc.tpr_at(fpr) for fpr in fprs)
    return any(_chance(point) <= level for point in points if point.is_resolvable)


def finding_of(
    scored: Scored,
    is_member: BoolArray,
    slices: Mapping[str, np.ndarray],
    *,
    plan: AuditPlan,
    correction: Correction,
) -> ProbeFinding:
    """Return what one probe found.

    Args:
        scored: what it said.
        is_member: bool ``(n,)``, of all audited records.
        slices: texts ``(n,)`` by column, of all audited records.
        plan: which rates, priors and slices.
        correction: how many tests the plan makes, and the level of each.

    Raises:
        DataError: a score is no number (``E-AUDIT-SCORES``).
    """
    membership, level = is_member[scored.rows], correction.level_each
    roc = roc_of(scored.scores, membership)
    auc = _auc_finding(roc, level)
    optimistic = tuple(_optimistic(roc, fpr, plan, level) for fpr in plan.fprs)
    realistic, thresholds = _realistic(scored, membership, plan)
    points = (*optimistic, *realistic)
    fpr = max(plan.fprs, key=lambda rate: -abs(rate - _SLICES_FPR))
    shared = thresholds.get(fpr, roc.tpr_at(fpr).threshold)
    best = strongest_point(optimistic)
    evident = best is not None or auc.is_evidence
    counted = Counted(members=roc.members, others=roc.non_members)
    line = (
        evidence_line(auc, best, counted, tests=correction.tests)
        if evident
        else power_line(auc, optimistic, counted)
    )
    return ProbeFinding(
        probe=scored.probe,
        source=scored.source,
        outcome=Outcome.EVIDENCE if evident else Outcome.NO_EVIDENCE,
        line=line,
        members=roc.members,
        non_members=roc.non_members,
        auc=auc,
        balanced_accuracy=roc.balanced_accuracy,
        points=points,
        curve=_curve(roc),
        slices=_slices(scored, membership, slices, threshold=shared, least=plan.least_slice),
        slices_fpr=fpr,
        slices_threshold=Threshold.REALISTIC if fpr in thresholds else Threshold.OPTIMISTIC,
        notes=(*_notes(roc, level), *thin_notes(optimistic, counted)),
    )


def exposed_of(
    scored: Scored,
    is_member: BoolArray,
    replicates: Sequence[Float64Array],
    *,
    rows: Int64Array,
    labels: Sequence[str],
    count: int,
) -> tuple[ExposedFinding, ...]:
    """Return the members with the highest scores.

    Args:
        scored: of the strongest probe.
        is_member: bool ``(n,)``, of all audited records.
        replicates: float64 ``(n,)`` each: scores with a part of the references; may be none.
        rows: int64 ``(n,)``: each audited record's number in its file.
        labels: each audited record's class.
        count: how many to name.
    """
    membership = is_member[scored.rows]
    again = np.stack(replicates) if replicates else scored.scores[None]
    top = most_exposed(scored.scores, membership, again, count=count)
    places = scored.rows[top.rows]
    return tuple(
        ExposedFinding(
            row=int(rows[place]),
            label=labels[place],
            recurrence=float(share) if replicates else None,
        )
        for place, share in zip(places, top.recurrence, strict=True)
    )


def _auc_finding(roc: Roc, level: float) -> AucFinding:
    counts = {"members": roc.members, "non_members": roc.non_members}
    chance = chance_of_auc(roc.auc, **counts)
    return AucFinding(
        area=_estimate(roc.auc, roc.auc_interval()),
        corrected=_estimate(roc.auc, roc.auc_interval(confidence=1.0 - level)),
        chance=chance,
        is_evidence=chance <= level,
        least_evident=least_evident_auc(**counts, level=level),
    )


def _chance(point: OperatingPoint) -> float:
    # A tie that was crossed in part counts whole members only: on the safe side.
    return chance_of_finding(
        int(point.true_positives + 1e-9),
        allowed=int(point.false_positives + 1e-9),
        members=point.members,
        non_members=point.non_members,
    )


def _optimistic(roc: Roc, fpr: float, plan: AuditPlan, level: float) -> PointFinding:
    point = roc.tpr_at(fpr)
    found = replace(
        _point(point, Threshold.OPTIMISTIC, plan),
        tpr=_estimate(point.tpr, roc.tpr_interval_at(fpr)),
    )
    if not point.is_resolvable:
        return found
    chance = _chance(point)
    return replace(
        found,
        chance=chance,
        is_evidence=chance <= level,
        least_evident_tpr=least_evident_tpr(
            fpr, members=roc.members, non_members=roc.non_members, level=level
        ),
        corrected_tpr=_estimate(point.tpr, roc.tpr_interval_at(fpr, confidence=1.0 - level)),
    )


def _realistic(
    scored: Scored, membership: BoolArray, plan: AuditPlan
) -> tuple[list[PointFinding], dict[float, float]]:
    """Return the points at thresholds that references chose, and those thresholds by FPR."""
    if not len(scored.stand_in_scores):
        return [], {}
    chosen = thresholds_from_references(scored.stand_in_scores, scored.stand_in_is_in, plan.fprs)
    thresholds = dict(zip(plan.fprs, map(float, chosen), strict=True))
    points = [
        _point(
            realised(scored.scores, membership, threshold, asked_fpr=fpr),
            Threshold.REALISTIC,
            plan,
        )
        for fpr, threshold in thresholds.items()
    ]
    return points, thresholds


def _point(point: OperatingPoint, threshold: Threshold, plan: AuditPlan) -> PointFinding:
    asked = point.fpr if point.asked_fpr is None else point.asked_fpr
    precisions = [point.precision(prior) for prior in plan.priors]
    return PointFinding(
        threshold=threshold,
        asked_fpr=asked,
        fpr=_estimate(point.fpr, point.fpr_interval()),
        tpr=_estimate(point.tpr, point.tpr_interval()),
        precisions=tuple(
            PrecisionFinding(
                prior=each.prior,
                precision=None if each.value is None else _estimate(each.value, each.interval),
            )
            for each in precisions
        ),
        is_resolvable=point.is_resolvable,
        supports_gate=point.supports_gate,
        non_members_above=int(point.false_positives),
    )


def _slices(
    scored: Scored,
    membership: BoolArray,
    slices: Mapping[str, np.ndarray],
    *,
    threshold: float,
    least: int,
) -> tuple[SliceFinding, ...]:
    found = []
    for column, texts in slices.items():
        values = texts[scored.rows]
        rows = {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        table = slice_table(scored.scores, membership, rows, threshold=threshold)
        found += [_slice(column, row, least=least) for row in table]
    return tuple(found)


def _slice(column: str, row: SliceRow, *, least: int) -> SliceFinding:
    auc = tpr = fpr = None
    enough = min(row.members, row.non_members) >= least
    if enough and row.auc is not None and row.auc_interval is not None and row.point is not None:
        auc = _estimate(row.auc, row.auc_interval)
        tpr = _estimate(row.point.tpr, row.point.tpr_interval())
        fpr = _estimate(row.point.fpr, row.point.fpr_interval())
    return SliceFinding(
        column=column,
        value=row.name,
        members=row.members,
        non_members=row.non_members,
        auc=auc,
        tpr=tpr,
        fpr=fpr,
    )


def _curve(roc: Roc) -> tuple[tuple[float, float], ...]:
    """Return points of the curve, evenly apart in the logarithm of the FPR."""
    grid = np.unique(np.append(0.0, np.geomspace(roc.resolvable_fpr, 1.0, _CURVE_POINTS)))
    tpr = np.interp(grid, roc.fpr, roc.tpr)  # at equal FPR, numpy takes the last: the highest
    return tuple(zip(grid.tolist(), tpr.tolist(), strict=True))


def _notes(roc: Roc, level: float) -> tuple[str, ...]:
    reverse = chance_of_auc(1.0 - roc.auc, members=roc.members, non_members=roc.non_members)
    if reverse > level:
        return ()
    said = "the AUC is below 0.5 by more than chance: the two sides may not be of one source"
    return (said,)


def _estimate(value: float, interval: Interval) -> Estimate:
    return Estimate(value=value, low=interval.low, high=interval.high)
