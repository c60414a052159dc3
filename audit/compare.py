"""Two reports side by side: what each probe found in either, and how sure the difference is.

Trusts: that both reports are of the same question. Promises: what differs beside the target
(records, plan, number of references) is said first; a difference is called clear only where both
are of the same records, as far as owners, hashes and counts tell, and neither calls the probe
inconclusive; what stands in one report only is listed, not guessed. The interval of a difference
treats both audits as independent; of the same records they are not, and the interval is then wider
than it need be.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.attacks.findings import Outcome
from tacit.attacks.wording import Counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tacit.audit.report import Report

_INCONCLUSIVE = Outcome.INCONCLUSIVE.value
_COUNT_DEVIATIONS = 3.0  # by which noise on two sums may set equal counts apart


class Standing(enum.Enum):
    """What a difference between two reports is."""

    NOT_APART = "not apart"
    CLEAR = "clear"
    OTHER_RECORDS = "apart, but on other records"
    PERHAPS_OTHER_RECORDS = "apart, but perhaps on other records"
    INCONCLUSIVE = "apart, but inconclusive"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure in two reports.

    Attributes:
        probe: whose.
        metric: ``AUC``, or ``TPR at FPR 1 %``.
        first, second: value, low and high in each.
        change: second minus first, with its 95 % interval (Newcombe 1998, method 10: from the two
            intervals).
        standing: whether that interval leaves out zero, both are of the same records, and the
            probe is inconclusive in neither.
        is_clear: whether all of that holds: that the target makes the difference.
    """

    probe: str
    metric: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    change: tuple[float, float, float]
    standing: Standing
    is_clear: bool


@dataclass(frozen=True, kw_only=True)
class ReportComparison:
    """Two reports side by side.

    Attributes:
        lines: what each comes to.
        caveats: what differs beside the target.
        differences: of what both measured.
        not_comparable: what stands in one only, and why nothing else could be compared.
    """

    lines: tuple[str, str]
    caveats: tuple[str, ...]
    differences: tuple[Difference, ...]
    not_comparable: tuple[str, ...]


def compare_reports(first: Report, second: Report) -> ReportComparison:
    """Compare two reports, each as :func:`tacit.audit.report.read_report` returns it."""
    probes = [{each["probe"]: each for each in report["probes"]} for report in (first, second)]
    shared = [name for name in probes[0] if name in probes[1]]
    differences: list[Difference] = []
    missing = list(_missing(probes, (first, second)))
    apart, counts = _if_apart(first, second), dict(_other_counts(first, second))
    for name in shared:
        pair = probes[0][name], probes[1][name]
        areas, points = [each["auc"]["area"] for each in pair], [_points(each) for each in pair]
        figures = {"AUC": (areas[0], areas[1])}
        for fpr in sorted(points[0].keys() & points[1].keys(), reverse=True):
            figures[f"TPR at FPR {100.0 * fpr:.3g} %"] = (points[0][fpr], points[1][fpr])
        standing = Standing.OTHER_RECORDS if name in counts else apart
        if any(each["outcome"] == _INCONCLUSIVE for each in pair):
            standing = Standing.INCONCLUSIVE
        differences += [
            _difference(name, metric, *both, if_apart=standing) for metric, both in figures.items()
        ]
        missing += [
            f"{name}: TPR at FPR {100.0 * fpr:.3g} % cannot be resolved in both"
            for fpr in sorted(points[0].keys() ^ points[1].keys(), reverse=True)
        ]
    return ReportComparison(
        lines=(first["line"], second["line"]),
        caveats=tuple(_caveats(first, second)),
        differences=tuple(differences),
        not_comparable=tuple(missing),
    )


def _points(probe: Mapping[str, Any]) -> dict[float, Mapping[str, float]]:
    """Return TPRs by FPR, of those that the records resolve."""
    return {
        point["asked_fpr"]: point["tpr"]
        for point in probe["points"]
        if point["threshold"] == "optimistic" and point["is_resolvable"]
    }


def _difference(
    name: str,
    metric: str,
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    if_apart: Standing,
) -> Difference:
    change = second["value"] - first["value"]
    low = change - math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    high = change + math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    standing = if_apart if low > 0 or high < 0 else Standing.NOT_APART
    return Difference(
        probe=name,
        metric=metric,
        first=(first["value"], first["low"], first["high"]),
        second=(second["value"], second["low"], second["high"]),
        change=(change, low, high),
        standing=standing,
        is_clear=standing is Standing.CLEAR,
    )


def _if_apart(first: Report, second: Report) -> Standing:
    """Return what to call figures that lie apart, by whose records both reports are.

    Saved predictions of two models are two files, also where the records are the same: nobody can
    tell.
    """
    files = first["provenance"]["files"], second["provenance"]["files"]
    audited = ("members", "non-members", "split")
    if any(files[0].get(what) != files[1].get(what) for what in audited):
        return Standing.OTHER_RECORDS
    if first["scope"]["records"] != second["scope"]["records"] or _owners(first) != _owners(second):
        return Standing.OTHER_RECORDS
    if files[0].get("predictions") != files[1].get("predictions"):
        return Standing.PERHAPS_OTHER_RECORDS
    return Standing.CLEAR


def _missing(probes: list[dict[str, Any]], reports: tuple[Report, Report]) -> Iterator[str]:
    for here, there, number in ((0, 1, "second"), (1, 0, "first")):
        reasons = {each["probe"]: each["reason"] for each in reports[there]["skipped"]}
        for name in probes[here]:
            if name not in probes[there]:
                yield f"{name}: not in the {number}: {reasons.get(name, 'not in its plan')}"


def _caveats(first: Report, second: Report) -> Iterator[str]:
    yield from _other_records(first, second)
    by_counts: dict[str, list[str]] = {}
    for name, said in _other_counts(first, second):
        by_counts.setdefault(said, []).append(name)
    yield from (f"{', '.join(names)}: {said}" for said, names in by_counts.items())
    yield from _other_terms(first, second)


def _other_records(first: Report, second: Report) -> Iterator[str]:
    files = first["provenance"]["files"], second["provenance"]["files"]
    for what in ("members", "non-members", "population", "split"):
        if files[0].get(what) != files[1].get(what):
            yield f"other {what}: records differ as well as the target"
    if files[0].get("predictions") != files[1].get("predictions"):
        yield "other predictions: records may differ as well as the target"
    places = [each["scope"]["records"] for each in (first, second)]
    if places[0] != places[1]:
        yield f"other records: {places[0]} and {places[1]}"
    owners = [_owners(each) for each in (first, second)]
    if owners[0] != owners[1]:
        yield f"other owners: {owners[0] or 'none'} and {owners[1] or 'none'}"


def _other_terms(first: Report, second: Report) -> Iterator[str]:
    if first["provenance"]["plan_sha256"] != second["provenance"]["plan_sha256"]:
        yield _other_plans(first["plan"], second["plan"])
    asked = [(each.get("federation") or {}).get("epsilon", 0.0) for each in (first, second)]
    if asked[0] != asked[1]:
        said = ["exact counts" if each is None else f"epsilon {each:g}" for each in asked]
        yield f"other noise on the answers: {said[0]} and {said[1]}"
    models = [
        0 if each["references"] is None else each["references"]["models"]
        for each in (first, second)
    ]
    if models[0] != models[1]:
        yield f"other numbers of reference models: {models[0]} and {models[1]}"
    if first["seed"] != second["seed"]:
        yield f"other seeds: {first['seed']} and {second['seed']}"
    for number, report in (("first", first), ("second", second)):
        for reason in report["reasons"]:
            yield f"the {number} is not conclusive: {reason}"


def _other_plans(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Name two plans; where they have one name, what of them differs."""
    if first["name"] != second["name"]:
        return f"other plans: {first['name']} and {second['name']}"
    other = [key for key in first if first[key] != second.get(key)]
    said = []
    for key in other:
        values = [
            ", ".join(map(str, plan[key])) if isinstance(plan[key], list) else str(plan[key])
            for plan in (first, second)
        ]
        said.append(f"{key} {values[0]} and {values[1]}")
    return f"other terms of the plan {first['name']}: {'; '.join(said)}"


def _owners(report: Report) -> str:
    """Name the owners whose answers were merged."""
    told = report.get("federation") or {}
    return ", ".join(sorted(each["member"] for each in told.get("sent", ())))


def _other_counts(first: Report, second: Report) -> Iterator[tuple[str, str]]:
    """Yield the probes that did not score as many records in both, noise aside, and how many."""
    errors = [each["audited"].get("standard_error", 0.0) for each in (first, second)]
    noise = _COUNT_DEVIATIONS * math.hypot(*errors)
    sizes = [
        {
            each["probe"]: Counted(
                members=each["members"], others=each["non_members"], standard_error=error
            )
            for each in report["probes"]
        }
        for report, error in zip((first, second), errors, strict=True)
    ]
    for name, here in sizes[0].items():
        there = sizes[1].get(name, here)
        if max(abs(here.members - there.members), abs(here.others - there.others)) > noise:
            yield name, f"{here} were scored in the first, {there} in the second"
