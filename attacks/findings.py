"""What an audit found, as frozen values that become plain JSON.

Promises: every figure stands with its interval; an outcome is ``evidence``, ``no evidence at this
power`` or ``inconclusive``, with what the power was, and nothing is ever called safe. Whoever reads
a finding as JSON reads the same numbers: six digits, no clock, no path, no value of a record.
Nothing here loads torch.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.core.plain import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.attacks.plans import AuditPlan

_DIGITS = 6  # of a figure in JSON: more would say where it was computed


class Outcome(enum.Enum):
    """What a probe, or a whole audit, comes to."""

    EVIDENCE = "evidence"
    NO_EVIDENCE = "no evidence at this power"
    INCONCLUSIVE = "inconclusive"


class Threshold(enum.Enum):
    """Where a threshold comes from."""

    OPTIMISTIC = "optimistic"  # the curve of the audited records themselves
    REALISTIC = "realistic"  # reference models taken for the target


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PrecisionFinding:
    """How many of those called members are members, at a declared prior; None: nobody is called."""

    prior: float
    precision: Estimate | None


@dataclass(frozen=True, kw_only=True)
class PointFinding:
    """Members found at one false-positive rate.

    Attributes:
        threshold: where the threshold comes from.
        asked_fpr: what it was chosen for.
        fpr: what came of it, at this threshold.
        tpr: what came of it: at a realistic threshold, there; at an optimistic one, at the FPR
            asked for, whichever threshold has it.
        non_members_above: how many the threshold lets pass: what the point rests on.
        precisions: one per prior of the plan.
        is_resolvable: whether one non-member or more is expected above the threshold.
        supports_gate: whether ten or more are.
        chance: of as many members or more, if the score told nothing (optimistic, resolvable).
        is_evidence: whether that is below the corrected level.
        least_evident_tpr: what would have been called evidence here; None: nothing would.
        corrected_tpr: where the TPR lies, at the corrected level; None: the point was not tested.
        corrected_fpr: where the FPR does, if the two being apart is the test; None: another is, and
            ``corrected_tpr`` is at the FPR asked for.
    """

    threshold: Threshold
    asked_fpr: float
    fpr: Estimate
    tpr: Estimate
    precisions: tuple[PrecisionFinding, ...]
    is_resolvable: bool
    supports_gate: bool
    non_members_above: int
    chance: float | None = None
    is_evidence: bool = False
    least_evident_tpr: float | None = None
    corrected_tpr: Estimate | None = None
    corrected_fpr: Estimate | None = None

    @property
    def strength(self) -> tuple[float, float]:
        """By what factor the TPR surely exceeds the FPR (1: none is sure), and what was needed."""
        if self.corrected_tpr is None:
            return 1.0, 0.0
        fpr = self.asked_fpr if self.corrected_fpr is None else self.corrected_fpr.high
        sure = max(1.0, self.corrected_tpr.low / fpr)
        return sure, self.tpr.value / (self.least_evident_tpr or 1.0)


@dataclass(frozen=True, kw_only=True)
class AucFinding:
    """The area under the curve.

    Attributes:
        area: with its interval.
        corrected: the same at the corrected level.
        chance: of that area or more, if the score told nothing.
        is_evidence: whether that is below the corrected level.
        least_evident: the smallest area that would have been called evidence.
    """

    area: Estimate
    corrected: Estimate
    chance: float
    is_evidence: bool
    least_evident: float


@dataclass(frozen=True, kw_only=True)
class SliceFinding:
    """What a probe makes of one slice, at the threshold of all records.

    Attributes:
        column, value: what the slice is of.
        members, non_members: in it.
        auc, tpr, fpr: None where a side has fewer records than the plan asks for.
    """

    column: str
    value: str
    members: int
    non_members: int
    auc: Estimate | None
    tpr: Estimate | None
    fpr: Estimate | None


@dataclass(frozen=True, kw_only=True)
class ExposedFinding:
    """One of the members with the highest scores.

    Attributes:
        row: its number in the members' file, from 1.
        label: its class.
        recurrence: share of the halves of the references that name it too; None without.
    """

    row: int
    label: str
    recurrence: float | None


@dataclass(frozen=True, kw_only=True)
class ProbeFinding:
    """What one probe found.

    Attributes:
        probe, source: the attack and its paper.
        outcome: in one word.
        line: in one sentence.
        members, non_members: how many were scored: fewer where queries are dear.
        auc: the area under the curve.
        balanced_accuracy: the best on the curve, for comparison with older papers only.
        points: members found, per rate and kind of threshold.
        curve: (FPR, TPR) pairs of the curve, for a plot on log-log axes.
        slices: at the threshold of ``slices_fpr``.
        slices_fpr, slices_threshold: which threshold the slices share.
        exposed: of the strongest probe; empty for the others.
        notes: what a reader should know.
    """

    probe: str
    source: str
    outcome: Outcome
    line: str
    members: int
    non_members: int
    auc: AucFinding
    balanced_accuracy: float
    points: tuple[PointFinding, ...]
    curve: tuple[tuple[float, float], ...]
    slices: tuple[SliceFinding, ...] = ()
    slices_fpr: float | None = None
    slices_threshold: Threshold | None = None
    exposed: tuple[ExposedFinding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> PointFinding | None:
        """The point of evidence that exceeds chance by the largest factor, as far as is sure."""
        return strongest_point(self.points)


def strongest_point(points: Sequence[PointFinding]) -> PointFinding | None:
    """Return the point of evidence of the largest :attr:`PointFinding.strength`; None: none is."""
    found = [point for point in points if point.is_evidence]
    return max(found, key=lambda point: point.strength, default=None)


def strongest_of(found: Sequence[ProbeFinding]) -> ProbeFinding | None:
    """Return the evidence that exceeds chance by the largest factor; AUC alone comes last."""

    def strength(finding: ProbeFinding) -> tuple[float, ...]:
        best = finding.best
        return (*((1.0, 0.0) if best is None else best.strength), finding.auc.corrected.low)

    evident = [finding for finding in found if finding.outcome is Outcome.EVIDENCE]
    return max(evident, key=strength, default=None)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A probe that was planned and not run, and why."""

    probe: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SelfTestFinding:
    """What the audit's own functions make of permuted membership.

    Attributes:
        permutations: how many.
        mean_auc: of the probe that strays furthest from 0.5.
        deviations: how many standard errors that is.
        allowed_deviations: three for one probe, more for several.
        false_evidence: share of permutations in which anything was called evidence.
        allowed_false_evidence: the level and two standard errors.
        passed: a report whose self-test failed is void.
    """

    permutations: int
    mean_auc: float
    deviations: float
    allowed_deviations: float
    false_evidence: float
    allowed_false_evidence: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ReferenceFinding:
    """The reference models, and whether they are like the target.

    Attributes:
        models: how many.
        train_accuracy, test_accuracy: their means, on audited records that each was trained on and
            was not trained on.
        target_train_accuracy, target_test_accuracy: the target's, on members and non-members.
        test_deviation: standard deviation of the references' test accuracies.
        points_apart: the larger difference, in percentage points.
        allowed_points: beyond it, the recipe does not reproduce the target: two points, or two
            standard deviations of the references' own accuracies where those are wider.
        agrees: whether it does.
        notes: what of the run the recipe leaves out.
    """

    models: int
    train_accuracy: float
    test_accuracy: float
    target_train_accuracy: float
    target_test_accuracy: float
    test_deviation: float
    points_apart: float
    allowed_points: float
    agrees: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditedFinding:
    """Who was audited.

    Attributes:
        form: ``model``, ``function`` or ``predictions``.
        given_members, given_non_members: how many records were handed in.
        members, non_members: how many of them are audited: where reference models are trained, as
            many of one as of the other, so that a reference is as large as the target.
        population: records that are neither.
        classes: how many.
        member_accuracy, non_member_accuracy: of the target; None where nobody counted.
        standard_error: of the numbers of records, from the noise on counts; 0 where these are
            exact.
    """

    form: str
    given_members: int
    given_non_members: int
    members: int
    non_members: int
    population: int
    classes: int
    member_accuracy: Estimate | None
    non_member_accuracy: Estimate | None
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How many tests share the chance of being wrong.

    Attributes:
        method: how they share it.
        level: of all together.
        tests: how many the plan makes, whether or not they were run.
        level_each: of one.
    """

    method: str
    level: float
    tests: int
    level_each: float


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """A whole audit.

    Attributes:
        outcome, line: the strongest finding, in a word and in a sentence; ``inconclusive``, with
            what would change it, where there is a reason for that.
        strongest: of the probes whose evidence stands; None where none does. Evidence that does
            not rest on what is in doubt stands in an inconclusive report too.
        is_conclusive: False where a reason stands in ``reasons``.
        reasons: why the whole is inconclusive.
        interrupted: whether it was stopped before its end.
        probes: in the plan's order.
        limits: what no such audit can tell.
    """

    outcome: Outcome
    line: str
    strongest: str | None
    is_conclusive: bool
    reasons: tuple[str, ...]
    interrupted: bool
    plan: AuditPlan
    seed: int
    audited: AuditedFinding
    probes: tuple[ProbeFinding, ...]
    skipped: tuple[Skipped, ...]
    self_test: SelfTestFinding | None
    references: ReferenceFinding | None
    correction: Correction
    limits: tuple[str, ...]


def to_json(result: AuditResult) -> dict[str, Any]:
    """Return a result in terms that JSON has, figures rounded to six digits."""
    rounded: dict[str, Any] = _rounded(plain(result))
    return rounded


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def percent(share: float) -> str:
    """Return a share as people read it: three digits, no more."""
    return f"{100.0 * share:.3g} %"
