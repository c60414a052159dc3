"""What the owners' histograms say together: one audit of records that nobody pooled.

Trusts: each owner's word on their histogram, which nobody can check from outside: an owner who
reports others hides a leak, or invents one. The noise is public, and every interval includes it.

Promises, in order:

1. Histograms are added up before anything is derived from them.
2. Evidence is held to one level over all tests of the audit, fixed by its probes before anything
   was seen (Bonferroni). An area is evidence where its interval at that level lies above one half,
   a TPR where its interval lies above that of the FPR.
3. Finding nothing is said with its power: the least that would have been evidence, with the noise,
   and however the scores lie within their bins.
4. A probe of which most scores are in one bin finds evidence or is inconclusive, never nothing.
5. A probe of which noise hides that there are records at all is listed as not scored.

Loads no torch: a server's worker runs this.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.binned import BinnedRoc, roc_of_histograms
from tacit.attacks.findings import (
    AucFinding,
    AuditedFinding,
    AuditResult,
    Correction,
    Estimate,
    Outcome,
    PointFinding,
    PrecisionFinding,
    ProbeFinding,
    Skipped,
    Threshold,
    strongest_of,
    strongest_point,
)
from tacit.attacks.histograms import ScoreHistogram
from tacit.attacks.merged_null import null_test
from tacit.attacks.plans import PRIORS, AuditPlan
from tacit.attacks.score_bins import SCALES
from tacit.attacks.significance import LEVEL
from tacit.attacks.wording import (
    ALL_NOISE,
    LIMITS,
    ONE_BIN,
    VOID,
    Counted,
    evidence_line,
    inconclusive_line,
    one_bin_line,
    overall_line,
    power_line,
    thin_notes,
)
from tacit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.attacks.binned import BinnedPoint
    from tacit.attacks.points import Interval
    from tacit.core.audit_spec import AuditSpec

FPRS = (0.1, 0.05, 0.01)
PERMUTATIONS = 200

_HALVINGS = 30
_ONE_BIN = 0.5  # of the pairs of a member and a non-member: more are one score, and tell nothing
_MERGED_LIMITS = (
    "Only probes without reference models are merged; each owner's own report has stronger ones.",
    "Each owner's node says what its records show; nobody can check that from outside.",
)


@dataclass(frozen=True, kw_only=True)
class MergedAudit:
    """What is merged, and under which terms.

    Attributes:
        audit: as the owners approved it.
        classes: of the model.
        owners: how many owners' histograms were added up.
    """

    audit: AuditSpec
    classes: int
    owners: int

    @property
    def plan(self) -> AuditPlan:
        """Return what was to be run, as every report has it."""
        return AuditPlan(
            name="federated",
            probes=self.audit.probes,
            references=0,
            references_if_large=0,
            stand_ins=0,
            permutations=PERMUTATIONS,
            query_records=0,
            queries=0,
            fprs=FPRS,
            priors=PRIORS,
        )

    @property
    def correction(self) -> Correction:
        """Return how the tests share the chance of being wrong: each AUC, each TPR."""
        tests = len(self.audit.probes) * (1 + len(FPRS))
        return Correction(
            method="Bonferroni over every probe's AUC and every FPR asked for",
            level=LEVEL,
            tests=tests,
            level_each=LEVEL / tests,
        )


def merged_result(merged: MergedAudit, histograms: Mapping[str, ScoreHistogram]) -> AuditResult:
    """Return what the owners' histograms come to.

    Args:
        merged: the terms.
        histograms: the sums over owners, by probe.
    """
    level = merged.correction.level_each
    rocs, skipped = _curves(histograms)
    counted = _counted(histograms)
    found = [_finding(name, roc, merged, counted) for name, roc in rocs.items()]
    tested = null_test(
        [roc.histogram for roc in rocs.values()],
        is_evidence=lambda roc: is_evidence(roc, level=level),
        permutations=PERMUTATIONS,
        seed=merged.audit.seed,
    )
    void = tested is not None and not tested.passed
    blind = bool(found) and all(each.outcome is Outcome.INCONCLUSIVE for each in found)
    every = ((VOID, void), (ALL_NOISE, not found), (ONE_BIN, blind and not void))
    doubts = tuple(doubt for doubt, holds in every if holds)
    if void:
        found = [_voided(finding, VOID.why) for finding in found]
    strongest = strongest_of(found)
    if doubts:
        outcome, line = Outcome.INCONCLUSIVE, inconclusive_line(doubts, ())
    else:
        outcome = Outcome.NO_EVIDENCE if strongest is None else Outcome.EVIDENCE
        line = overall_line(found, strongest)
    return AuditResult(
        outcome=outcome,
        line=line,
        strongest=None if strongest is None else strongest.probe,
        is_conclusive=not doubts,
        reasons=tuple(doubt.why for doubt in doubts),
        interrupted=False,
        plan=merged.plan,
        seed=merged.audit.seed,
        audited=_audited(merged, counted),
        probes=tuple(found),
        skipped=skipped,
        self_test=tested,
        references=None,
        correction=merged.correction,
        limits=(*LIMITS, *_MERGED_LIMITS),
    )


def is_evidence(roc: BinnedRoc, *, level: float) -> bool:
    """Whether the area, or the TPR at any FPR asked for, is more than chance at this level."""
    return _area_is_evidence(roc, level) or any(
        _is_apart(roc.tpr_at(fpr, confidence=1.0 - level))
        for fpr in FPRS
        if _is_resolvable(fpr, roc.non_members)
    )


def _curves(
    histograms: Mapping[str, ScoreHistogram],
) -> tuple[dict[str, BinnedRoc], tuple[Skipped, ...]]:
    rocs: dict[str, BinnedRoc] = {}
    skipped = []
    for name, histogram in histograms.items():
        try:
            rocs[name] = roc_of_histograms(histogram)
        except DataError as error:
            skipped.append(Skipped(probe=name, reason=f"{error.message} [{error.code}]"))
    return rocs, tuple(skipped)


def _finding(name: str, roc: BinnedRoc, merged: MergedAudit, counted: Counted) -> ProbeFinding:
    level, tests = merged.correction.level_each, merged.correction.tests
    auc = _auc_finding(roc, level)
    points = tuple(_point(roc, fpr, level=level, others=counted.others) for fpr in FPRS)
    best = strongest_point(points)
    evident = auc.is_evidence or best is not None
    if evident:
        outcome, line = Outcome.EVIDENCE, evidence_line(auc, best, counted, tests=tests)
    elif roc.tied > _ONE_BIN:
        outcome, line = Outcome.INCONCLUSIVE, one_bin_line(roc.tied)
    else:
        outcome = Outcome.NO_EVIDENCE
        least = max(roc.least_fpr, 1.0 / max(1, counted.others))
        line = power_line(auc, points, counted, least_fpr=least)
    return ProbeFinding(
        probe=name,
        source=SCALES[name].source,
        outcome=outcome,
        line=line,
        members=counted.members,
        non_members=counted.others,
        auc=auc,
        balanced_accuracy=_balanced_accuracy(roc),
        points=points,
        curve=_curve(roc),
        notes=(_note(roc, merged), *thin_notes(points, counted)),
    )


def _note(roc: BinnedRoc, merged: MergedAudit) -> str:
    noise = roc.histogram.noise_sd
    counts = f"noise of standard deviation {noise:.3g} on each sum" if noise else "exact counts"
    low, high = roc.auc_bounds
    return (
        f"run by the nodes of {merged.owners} owners, each on its owner's own records; merged as "
        f"sums; {counts}; {merged.audit.bins} bins a side, within which the AUC of unbinned scores "
        f"lies between {low:.3f} and {high:.3f}"
    )


def _auc_finding(roc: BinnedRoc, level: float) -> AucFinding:
    interval = roc.auc_interval()
    return AucFinding(
        area=_estimate(roc.auc, interval),
        corrected=_estimate(roc.auc, _area_at_level(roc, level)),
        chance=_chance_of_area(roc),
        is_evidence=_area_is_evidence(roc, level),
        # what bins hide may have lowered the area by half of the pairs that are in one
        least_evident=_null_curve(roc).auc_interval(confidence=1.0 - 2.0 * level).high
        + roc.tied / 2.0,
    )


def _area_is_evidence(roc: BinnedRoc, level: float) -> bool:
    return _area_at_level(roc, level).low > 0.5


def _area_at_level(roc: BinnedRoc, level: float) -> Interval:
    return roc.auc_interval(confidence=1.0 - 2.0 * level)  # one of its ends makes the test


def _chance_of_area(roc: BinnedRoc) -> float:
    """Return the level at which the area would just be evidence, by halving; above a half: 1/2."""
    low, high = 0.0, 0.5
    if roc.auc <= 0.5:
        return 0.5
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if _area_is_evidence(roc, middle) else (middle, high)
    return high


def _null_curve(roc: BinnedRoc) -> BinnedRoc:
    """Return the curve of as many records whose scores tell nothing, under the same noise."""
    shares = pooled_shares(roc.histogram)
    flat = ScoreHistogram(
        edges=roc.histogram.edges,
        members=roc.members * shares,
        non_members=roc.non_members * shares,
        noise_sd=roc.histogram.noise_sd,
    )
    return BinnedRoc(histogram=flat)


def pooled_shares(histogram: ScoreHistogram) -> np.ndarray:
    """Return the share of all records in each bin, ``(bins,)``, none negative."""
    counts = np.maximum(histogram.members + histogram.non_members, 0.0)
    shares: np.ndarray = counts / max(counts.sum(), 1e-300)
    return shares


def _point(roc: BinnedRoc, fpr: float, *, level: float, others: int) -> PointFinding:
    point = roc.tpr_at(fpr)
    for_precision = roc.tpr_at(fpr, confidence=0.975)
    precisions = []
    for prior in PRIORS:
        each = for_precision.precision(prior)
        value = None if each.value is None else _estimate(each.value, each.interval)
        precisions.append(PrecisionFinding(prior=prior, precision=value))
    resolvable, tested = _is_resolvable(fpr, others), roc.tpr_at(fpr, confidence=1.0 - level)
    decided = [each for each in FPRS if _is_resolvable(each, others)]
    least = roc.least_tpr_seen(fpr, tested=decided, confidence=1.0 - level)
    return PointFinding(
        threshold=Threshold.OPTIMISTIC,
        asked_fpr=fpr,
        fpr=_estimate(fpr, point.fpr_interval),
        tpr=_at_fpr(point.tpr, roc.tpr_interval_at(fpr)),
        precisions=tuple(precisions),
        is_resolvable=resolvable,
        supports_gate=point.supports_gate,
        non_members_above=math.floor(fpr * others + 1e-9),
        is_evidence=resolvable and _is_apart(tested),
        least_evident_tpr=least if resolvable else None,
        corrected_tpr=_at_fpr(tested.tpr, tested.tpr_interval) if resolvable else None,
        corrected_fpr=_at_fpr(fpr, tested.fpr_interval) if resolvable else None,
    )


def _is_apart(point: BinnedPoint) -> bool:
    """Whether the intervals of TPR and FPR are apart: each is wrong there half of the level."""
    return point.tpr_interval.low > point.fpr_interval.high


def _is_resolvable(fpr: float, others: float) -> bool:
    return fpr * others >= 1.0 - 1e-9


def _balanced_accuracy(roc: BinnedRoc) -> float:
    rates = _curve(roc)
    return max((1.0 + tpr - fpr) / 2.0 for fpr, tpr in rates)


def _curve(roc: BinnedRoc) -> tuple[tuple[float, float], ...]:
    """Return (FPR, TPR) at every edge, highest first, both rising: noise alone would let them fall.

    The last is (1, 1).
    """
    sides = (roc.histogram.non_members, roc.histogram.members)
    rates = [
        np.maximum.accumulate(np.clip(np.cumsum(side[::-1]) / side.sum(), 0.0, 1.0))
        for side in sides
    ]
    pairs = [(0.0, 0.0), *zip(rates[0].tolist(), rates[1].tolist(), strict=True)]
    return (*pairs[:-1], (1.0, 1.0))


def _voided(finding: ProbeFinding, reason: str) -> ProbeFinding:
    line = f"{Outcome.INCONCLUSIVE.value}: {reason}"
    return dataclasses.replace(finding, outcome=Outcome.INCONCLUSIVE, line=line)


def _counted(histograms: Mapping[str, ScoreHistogram]) -> Counted:
    """Return how many records there are: each is in every histogram, so the mean of their sums.

    One number for the whole report: the sums differ by noise alone.
    """
    sides = [
        max(0, round(float(np.mean([getattr(each, side).sum() for each in histograms.values()]))))
        for side in ("members", "non_members")
    ]
    variances = [len(each.members) * each.noise_sd**2 for each in histograms.values()]
    return Counted(
        members=sides[0],
        others=sides[1],
        standard_error=math.sqrt(sum(variances)) / len(variances),
    )


def _audited(merged: MergedAudit, counted: Counted) -> AuditedFinding:
    """Return whose records."""
    return AuditedFinding(
        form="model",
        given_members=counted.members,
        given_non_members=counted.others,
        members=counted.members,
        non_members=counted.others,
        population=0,
        classes=merged.classes,
        member_accuracy=None,
        non_member_accuracy=None,
        standard_error=counted.standard_error,
    )


def _at_fpr(value: float, interval: Interval) -> Estimate:
    """Return an estimate within its interval: noise can carry it out of what is plausible."""
    inside = min(max(value, interval.low), interval.high)
    return _estimate(inside, interval)


def _estimate(value: float, interval: Interval) -> Estimate:
    return Estimate(value=value, low=interval.low, high=interval.high)
