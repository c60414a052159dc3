"""Two reports side by side: what each probe found in either, and how sure the difference is.

Trusts: that both reports are of the same question. Promises: what differs beside the target
(records, plan, number of references) is said first; what stands in one report only is listed, not
guessed. The interval of a difference treats both audits as independent; of the same records they
are not, and the interval is then wider than it need be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tacit.audit.report import Report


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure in two reports.

    Attributes:
        probe: whose.
        metric: ``AUC``, or ``TPR at FPR 1 %``.
        first, second: value, low and high in each.
        change: second minus first, with its 95 % interval (Newcombe 1998, method 10: from the two
            intervals).
        is_clear: whether that interval leaves out zero.
    """

    probe: str
    metric: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    change: tuple[float, float, float]
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
    for name in shared:
        pair = probes[0][name], probes[1][name]
        differences.append(_difference(name, "AUC", pair[0]["auc"]["area"], pair[1]["auc"]["area"]))
        points = [_points(each) for each in pair]
        for fpr in sorted(points[0].keys() & points[1].keys(), reverse=True):
            metric = f"TPR at FPR {100.0 * fpr:.3g} %"
            differences.append(_difference(name, metric, points[0][fpr], points[1][fpr]))
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
    name: str, metric: str, first: Mapping[str, float], second: Mapping[str, float]
) -> Difference:
    change = second["value"] - first["value"]
    low = change - math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    high = change + math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return Difference(
        probe=name,
        metric=metric,
        first=(first["value"], first["low"], first["high"]),
        second=(second["value"], second["low"], second["high"]),
        change=(change, low, high),
        is_clear=low > 0 or high < 0,
    )


def _missing(probes: list[dict[str, Any]], reports: tuple[Report, Report]) -> Iterator[str]:
    for here, there, number in ((0, 1, "second"), (1, 0, "first")):
        reasons = {each["probe"]: each["reason"] for each in reports[there]["skipped"]}
        for name in probes[here]:
            if name not in probes[there]:
                yield f"{name}: not in the {number}: {reasons.get(name, 'not in its plan')}"


def _caveats(first: Report, second: Report) -> Iterator[str]:
    files = first["provenance"]["files"], second["provenance"]["files"]
    for what in ("members", "non-members", "population", "predictions"):
        if files[0].get(what) != files[1].get(what):
            yield f"other {what}: records differ as well as the target"
    owners = [_owners(each) for each in (first, second)]
    if owners[0] != owners[1]:
        yield f"other owners: {owners[0] or 'none'} and {owners[1] or 'none'}"
    yield from _other_sizes(first, second)
    if first["provenance"]["plan_sha256"] != second["provenance"]["plan_sha256"]:
        yield f"other plans: {first['plan']['name']} and {second['plan']['name']}"
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


def _owners(report: Report) -> str:
    """Name the owners whose answers were merged."""
    told = report.get("federation") or {}
    return ", ".join(sorted(each["member"] for each in told.get("sent", ())))


def _other_sizes(first: Report, second: Report) -> Iterator[str]:
    """Name the probes that did not score as many records in both."""
    sizes = [
        {each["probe"]: (each["members"], each["non_members"]) for each in report["probes"]}
        for report in (first, second)
    ]
    for name, (members, others) in sizes[0].items():
        if name in sizes[1] and sizes[1][name] != (members, others):
            there = sizes[1][name]
            yield (
                f"{name}: {members} members and {others} non-members were scored in the first, "
                f"{there[0]} and {there[1]} in the second"
            )
