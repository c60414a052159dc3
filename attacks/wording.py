"""The sentences of a report: what was found, or how little would have been seen.

Promises: "no evidence" never stands without its power, "inconclusive" never without its reason and
what would change it, and no sentence says that a model is safe. Evidence stands with the interval,
or the limit, of the very test that made it so: what was picked among many tests is stated at the
level of one of them. A number that noise has blurred never looks exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.attacks.findings import Outcome, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.attacks.findings import (
        AucFinding,
        Estimate,
        PointFinding,
        ProbeFinding,
        ReferenceFinding,
    )

LIMITS = (
    "Members and non-members are taken to be of one source: a probe may find what else differs.",
    "A stronger attack may find what these did not: nothing here bounds what can be learned.",
    "Scores concern records as they were handed in; changed or partial records were not tried.",
)

_FEW = 10  # non-members above a threshold: below it an FPR is said to rest on so many

_THE_RUNS_RECIPE = (
    "audit with the run.toml that made this model, on the records of all owners who trained it"
)


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why a whole audit is inconclusive, and what would change that.

    Attributes:
        why: the reason.
        remedy: what to do, beginning with a verb.
    """

    why: str
    remedy: str


VOID = Doubt(
    why="the null self-test failed: this report is void",
    remedy="audit again with another seed, and report a second failure as a fault of the audit",
)
INTERRUPTED = Doubt(
    why="the audit was interrupted before its end",
    remedy="run it to its end (--cache keeps reference models that are finished)",
)
NOTHING_RUN = Doubt(
    why="no probe was run to its end", remedy="hand in what the skipped probes lacked"
)
ALL_NOISE = Doubt(
    why="noise hides how many records there are",
    remedy="ask fewer probes (--probe), more owners, or at a larger --epsilon",
)


ONE_BIN = Doubt(
    why="the scores of every probe fall in one bin, which tells nothing of what is within",
    remedy="ask for more bins (--bins)",
)


def one_bin_line(tied: float) -> str:
    """Say that a histogram shows nothing, since nearly all scores are in one of its bins."""
    return (
        f"{Outcome.INCONCLUSIVE.value}: scores fall in one bin: of the pairs of a member and a "
        f"non-member, {percent(tied)} are in the same, and cannot be told apart; ask for more bins "
        "(--bins)"
    )


def unlike(references: ReferenceFinding) -> Doubt:
    """Doubt an audit of which the reference models are not like the target."""
    return Doubt(
        why=f"the recipe does not reproduce the target: accuracies are "
        f"{references.points_apart:.1f} points apart, "
        f"at most {references.allowed_points:.2g} expected",
        remedy=_THE_RUNS_RECIPE,
    )


def untrainable(message: str) -> Doubt:
    """Doubt an audit of which the recipe makes no model at all."""
    return Doubt(
        why=f"the recipe does not reproduce the target: {message}", remedy=_THE_RUNS_RECIPE
    )


def evidence_line(
    auc: AucFinding, best: PointFinding | None, counted: Counted, *, tests: int
) -> str:
    """Say what was found, corrected for all the tests that it was picked from.

    Where the exact test sees what the interval at the FPR asked for leaves open, since few
    non-members say where that FPR is, the test's own limit is told in place of the interval.
    """
    corrected = f"(corrected for {tests} tests)"
    if best is not None:
        return f"evidence: {_found(best)} {corrected}{_thin(best, counted)}"
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


def _thin(point: PointFinding, counted: Counted) -> str:
    if point.non_members_above >= _FEW:
        return ""
    return f"; that FPR rests on {_non_members(point, counted)}"


def thin_notes(points: Sequence[PointFinding], counted: Counted) -> tuple[str, ...]:
    """Say which FPRs rest on a few non-members, or on none."""
    return tuple(
        f"FPR {percent(point.asked_fpr)} rests on {_non_members(point, counted)}"
        for point in points
        if point.non_members_above < _FEW
    )


def _non_members(point: PointFinding, counted: Counted) -> str:
    count = point.non_members_above
    many = "1 non-member" if count == 1 else f"{count} non-members"
    if counted.standard_error:
        return f"about {many if count else '1 non-member'} at most"
    return many if count else "no non-member"


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many records were scored.

    Attributes:
        members, others: on either side.
        standard_error: of either number, from the noise on the counts; 0: they are exact.
    """

    members: int
    others: int
    standard_error: float = 0.0

    def __str__(self) -> str:
        sides = f"{self.members} members and {self.others} non-members"
        if not self.standard_error:
            return sides
        return f"about {sides} (standard error {self.standard_error:.2g} each, from noise)"


def power_line(
    auc: AucFinding,
    points: Sequence[PointFinding],
    counted: Counted,
    *,
    least_fpr: float | None = None,
) -> str:
    """Say that nothing was found, how many records there were, and what would have been seen.

    Args:
        auc: what was tested of the area.
        points: and at FPRs.
        counted: the records.
        least_fpr: the smallest that scores resolve; None: what one non-member is of all.
    """
    return f"{Outcome.NO_EVIDENCE.value} ({_power(auc, points, counted, least_fpr)})"


def _power(
    auc: AucFinding, points: Sequence[PointFinding], counted: Counted, least_fpr: float | None
) -> str:
    said = [f"n = {counted}"]
    resolved = 1.0 / max(1, counted.others) if least_fpr is None else least_fpr
    said.append(f"smallest resolvable FPR {percent(resolved)}")
    visible = [
        point
        for point in points
        if point.least_evident_tpr is not None and point.asked_fpr >= resolved
    ]
    if visible:
        point = min(visible, key=lambda point: point.asked_fpr)
        said.append(
            f"at FPR {percent(point.asked_fpr)} a TPR of {percent(point.least_evident_tpr or 0.0)} "
            f"or more would have been seen{_thin(point, counted)}"
        )
    else:
        said.append("no TPR at an FPR asked for could have been seen")
    if auc.least_evident <= 1.0:
        said.append(f"an AUC of {auc.least_evident:.3g} or more as well")
    return "; ".join(said)


def _least_of(probe: ProbeFinding) -> float:
    """Return how much a probe needs to see at least: of several the one that sees least speaks."""
    needed = [point.least_evident_tpr for point in probe.points]
    return max((least for least in needed if least is not None), default=1.0)


def overall_line(probes: Sequence[ProbeFinding], strongest: ProbeFinding | None) -> str:
    """Say what a conclusive audit comes to: its strongest finding, or its power without any.

    Args:
        probes: at least one that could have found something.
        strongest: of them, with evidence; None where none has any.
    """
    if strongest is not None:
        return f"{strongest.probe}: {strongest.line}"
    able = [probe for probe in probes if probe.outcome is Outcome.NO_EVIDENCE]
    widest = max(able, key=lambda probe: (probe.members + probe.non_members, _least_of(probe)))
    said = widest.line.removeprefix(Outcome.NO_EVIDENCE.value)
    count = "1 probe" if len(able) == 1 else f"any of {len(able)} probes"
    unable = ", ".join(probe.probe for probe in probes if probe not in able)
    rest = f"; inconclusive: {unable}" if unable else ""
    return f"no evidence by {count} at this power{said}{rest}"


def probe_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what each probe of a report says; where several say the same, once for all of them.

    A power that the report's own line has said already is not said again.
    """
    by_line: dict[str, list[str]] = {}
    for probe in report["probes"]:
        by_line.setdefault(probe["line"], []).append(probe["probe"])
    nothing = Outcome.NO_EVIDENCE.value
    lines = []
    for line, probes in by_line.items():
        known = line.startswith(nothing) and line.removeprefix(nothing) in report["line"]
        said = f"{nothing}, as said above" if known else line
        lines.append(f"{', '.join(probes)}: {said}")
    return lines


def selection_line(audited: Mapping[str, Any]) -> str:
    """Say why fewer records are audited than were handed in; empty where all are."""
    given = audited["given_members"], audited["given_non_members"]
    used = audited["members"], audited["non_members"]
    if given == used:
        return ""
    return (
        f"Of {given[0]} members and {given[1]} non-members handed in, {used[0]} and {used[1]} are "
        "audited, by lot, as many of each: a reference model learns half of these and all other "
        "members, and so is trained on as many records as the target."
    )


def inconclusive_line(doubts: Sequence[Doubt], standing: Sequence[ProbeFinding]) -> str:
    """Say that nothing follows from the whole, why, what would change it, and what stands.

    Args:
        doubts: at least one.
        standing: probes of which the evidence does not rest on what is in doubt.
    """
    why = "; ".join(doubt.why for doubt in doubts)
    remedies = "; ".join(dict.fromkeys(doubt.remedy for doubt in doubts))
    line = f"{Outcome.INCONCLUSIVE.value.upper()}: {why}. What would change it: {remedies}."
    if not standing:
        return line
    names = ", ".join(finding.probe for finding in standing)
    return f"{line} Evidence that stands by itself, below: {names}."


def _interval(estimate: Estimate) -> str:
    low, high = 100.0 * estimate.low, 100.0 * estimate.high
    return f"{percent(estimate.value)} [{low:.3g}, {high:.3g}]"


def _area(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
