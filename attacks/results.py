"""From everything that was scored to one result: outcomes, the strongest finding, the self-test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tacit.attacks.findings import (
    AuditedFinding,
    AuditResult,
    Correction,
    Estimate,
    Outcome,
    ProbeFinding,
    ReferenceFinding,
    SelfTestFinding,
    Skipped,
    strongest_of,
)
from tacit.attacks.null_check import self_test
from tacit.attacks.points import clopper_pearson
from tacit.attacks.probe import Need
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.scoring import Scored, exposed_of, finding_of
from tacit.attacks.significance import LEVEL, number_of_tests
from tacit.attacks.target import ModelTarget
from tacit.attacks.wording import (
    INTERRUPTED,
    LIMITS,
    NOTHING_RUN,
    VOID,
    inconclusive_line,
    overall_line,
    unlike,
    untrainable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.attacks.arrangement import Arrangement
    from tacit.attacks.plans import AuditPlan
    from tacit.attacks.subject import Subject
    from tacit.attacks.target import BoolArray, Float64Array
    from tacit.attacks.wording import Doubt


@dataclass(kw_only=True)
class AuditTrail:
    """What an audit has done so far.

    Attributes:
        subject, plan, arrangement: what it is about.
        scored: by probe.
        skipped: reasons by probe.
        references: None where none were trained.
        diverged: why the recipe makes no model at all; empty where it does.
    """

    subject: Subject
    plan: AuditPlan
    arrangement: Arrangement
    scored: dict[str, Scored] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    references: ReferenceFinding | None = None
    diverged: str = ""


def result_of(
    trail: AuditTrail,
    *,
    seed: int,
    interrupted: bool,
    replicates: Callable[[str], Sequence[Float64Array]],
) -> AuditResult:
    """Return what an audit comes to.

    Args:
        trail: what was done.
        seed: of the self-test's permutations.
        interrupted: whether it was stopped before its end.
        replicates: a probe's scores with parts of the references, for the strongest one.
    """
    plan, is_member = trail.plan, trail.arrangement.is_member
    others = int((~is_member).sum())
    correction = _correction(number_of_tests(len(plan.probes), plan.fprs, non_members=others))
    scored = [trail.scored[name] for name in plan.probes if name in trail.scored]
    if not _agrees(trail.references):
        scored = [each.without_stand_ins() for each in scored]
    tested = self_test(scored, is_member, plan=plan, level=correction.level_each, seed=seed)
    found = [
        finding_of(each, is_member, trail.arrangement.columns, plan=plan, correction=correction)
        for each in scored
    ]
    found = [_judged(finding, tested, trail.references) for finding in found]
    strongest = strongest_of(found)
    if strongest is not None:
        exposed = exposed_of(
            trail.scored[strongest.probe],
            is_member,
            replicates(strongest.probe),
            rows=trail.arrangement.rows,
            labels=trail.arrangement.columns["class"].tolist(),
            count=plan.most_exposed,
        )
        named = dataclasses.replace(strongest, exposed=exposed)
        found = [named if each.probe == named.probe else each for each in found]
    doubts = _doubts(trail, tested, interrupted=interrupted)
    outcome, line = _overall(found, strongest, doubts)
    return AuditResult(
        outcome=outcome,
        line=line,
        strongest=None if strongest is None else strongest.probe,
        is_conclusive=not doubts,
        reasons=tuple(doubt.why for doubt in doubts),
        interrupted=interrupted,
        plan=plan,
        seed=seed,
        audited=_audited(trail),
        probes=tuple(found),
        skipped=_skipped(trail, interrupted=interrupted),
        self_test=tested,
        references=trail.references,
        correction=correction,
        limits=LIMITS,
    )


def _correction(tests: int) -> Correction:
    return Correction(
        method="Bonferroni over every probe's AUC and every resolvable FPR of the plan",
        level=LEVEL,
        tests=tests,
        level_each=LEVEL / tests,
    )


def _judged(
    finding: ProbeFinding, tested: SelfTestFinding | None, references: ReferenceFinding | None
) -> ProbeFinding:
    """Call a finding inconclusive where what it rests on does not hold, whatever it found.

    What rests on reference models does not hold where these are not like the target. Everything
    else holds without the recipe.
    """
    if tested is not None and not tested.passed:
        reason = VOID.why
    elif Need.REFERENCES in MEMBERSHIP[finding.probe].needs and not _agrees(references):
        reason = "its reference models are not like the target"
    else:
        return finding
    return dataclasses.replace(
        finding,
        outcome=Outcome.INCONCLUSIVE,
        line=f"{Outcome.INCONCLUSIVE.value}: {reason}",
    )


def _agrees(references: ReferenceFinding | None) -> bool:
    return references is None or references.agrees


def _doubts(
    trail: AuditTrail, tested: SelfTestFinding | None, *, interrupted: bool
) -> tuple[Doubt, ...]:
    """Return why the whole is inconclusive; nothing where it is not."""
    doubts = []
    if tested is not None and not tested.passed:
        doubts.append(VOID)
    if trail.references is not None and not trail.references.agrees:
        doubts.append(unlike(trail.references))
    if trail.diverged:
        doubts.append(untrainable(trail.diverged))
    if interrupted:
        doubts.append(INTERRUPTED)
    if not trail.scored:
        doubts.append(NOTHING_RUN)
    return tuple(doubts)


def _overall(
    found: Sequence[ProbeFinding], strongest: ProbeFinding | None, doubts: Sequence[Doubt]
) -> tuple[Outcome, str]:
    if doubts:
        standing = [finding for finding in found if finding.outcome is Outcome.EVIDENCE]
        return Outcome.INCONCLUSIVE, inconclusive_line(doubts, standing)
    outcome = Outcome.NO_EVIDENCE if strongest is None else Outcome.EVIDENCE
    return outcome, overall_line(found, strongest)


def _skipped(trail: AuditTrail, *, interrupted: bool) -> tuple[Skipped, ...]:
    why = "the audit was interrupted before it" if interrupted else "it was not reached"
    return tuple(
        Skipped(probe=name, reason=trail.skipped.get(name, why))
        for name in trail.plan.probes
        if name not in trail.scored
    )


def _audited(trail: AuditTrail) -> AuditedFinding:
    evidence, is_member = trail.arrangement.evidence, trail.arrangement.is_member
    right = evidence.outputs.logits.argmax(axis=1) == evidence.outputs.labels
    form = "predictions"
    if trail.subject.target is not None:
        form = "model" if isinstance(trail.subject.target, ModelTarget) else "function"
    return AuditedFinding(
        form=form,
        given_members=len(trail.subject.members),
        given_non_members=len(trail.subject.non_members),
        members=int(is_member.sum()),
        non_members=int((~is_member).sum()),
        population=0 if evidence.population is None else len(evidence.population),
        classes=evidence.outputs.classes,
        member_accuracy=_accuracy(right, is_member),
        non_member_accuracy=_accuracy(right, ~is_member),
    )


def _accuracy(right: BoolArray, chosen: BoolArray) -> Estimate:
    hits, count = int((right & chosen).sum()), int(chosen.sum())
    interval = clopper_pearson(hits, count)
    return Estimate(value=hits / count, low=interval.low, high=interval.high)
