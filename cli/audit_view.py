"""What people see of a report: the strongest finding and its power first, then the rest."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from tacit.attacks.findings import Outcome
from tacit.attacks.wording import Counted, selection_line
from tacit.audit.claims import said
from tacit.audit.plot import PLOT_NAME, save_roc
from tacit.cli.canary_view import show_canaries
from tacit.cli.output import visible
from tacit.core.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from tacit.audit.compare import ReportComparison

Json = Mapping[str, Any]

_SHOWN_SLICES = 8


def show_report(report: Json) -> None:
    """Print a report."""
    console = _console()
    audited, plan = report["audited"], report["plan"]
    console.print(visible(report["line"]), style="bold")
    for line in _standing(report):
        console.print(line)
    counted = Counted(
        members=audited["members"],
        others=audited["non_members"],
        standard_error=audited.get("standard_error", 0.0),
    )
    console.print(
        f"Membership audit, plan {plan['name']}, seed {report['seed']}: {counted}, "
        f"{audited['classes']} classes{_accuracies(audited)}"
    )
    selection = selection_line(audited)
    if selection:
        console.print(selection)
    correction = report["correction"]
    console.print(
        f"Evidence: where nothing leaks, anything is called so with a chance of at most "
        f"{_percent(correction['level'])}, over all {correction['tests']} tests of the plan "
        f"({correction['level_each']:.2g} each)."
    )
    if report.get("claims"):
        console.print(
            f"Claim: {said(report['claims'])}; canaries test it, the plot shows its line."
        )
    for line in _skipped(report):
        console.print(line)
    if report["probes"]:
        console.print(_probe_table(report))
    for line in (*_checks(report), *_detail(report)):
        console.print(line)
    if "federation" in report:
        _show_federation(console, report["federation"])
    if "canaries" in report:
        show_canaries(report["canaries"])


def plot_report(folder: Path, report: Json) -> None:
    """Draw the curves of a report; without matplotlib, an extra, say so and go on."""
    if not report["probes"]:
        return
    try:
        save_roc(folder / PLOT_NAME, report)
    except UnavailableError as error:
        typer.echo(f"No plot: {error.message}; {error.hint}", err=True)


def _standing(report: Json) -> Iterator[str]:
    """Yield what was found all the same in a report that is inconclusive as a whole."""
    if report["is_conclusive"]:
        return
    for probe in report["probes"]:
        if probe["outcome"] == Outcome.EVIDENCE.value:
            yield f"  stands by itself: {visible(probe['probe'])}: {visible(probe['line'])}"


def _accuracies(audited: Json) -> str:
    found = [audited["member_accuracy"], audited["non_member_accuracy"]]
    if None in found:
        return ""
    return f"; accuracy {found[0]['value']:.3f} and {found[1]['value']:.3f}"


def _show_federation(console: Console, federation: Json) -> None:
    """Print what each owner sent, and who did not."""
    noise, owners = federation["noise_per_owner"], len(federation["sent"])
    counts = "exact counts"
    if noise:
        counts = (
            f"noise of standard deviation {noise:.3g} on each owner's count, and so of "
            f"{noise * math.sqrt(owners):.3g} on their sum: sqrt({owners}) times as much"
        )
    console.print(
        f"Merged in {federation['audit_run']} from {owners} owners of {federation['run']}, each "
        f"asked at their own node; {counts}."
    )
    console.print("What left each owner:")
    table = _table("owner", "lists", "bytes", "epsilon", "delta", "per", "ledger entry")
    for each in federation["sent"]:
        lists = ", ".join(f"{one['name']} ({one['length']})" for one in each["lists"])
        cost = "-" if each["epsilon"] is None else f"{each['epsilon']:.4g}"
        delta = "-" if each["delta"] is None else f"{each['delta']:g}"
        rest = (each["unit"] or "-", str(each["ledger_entry"] or "-"))
        table.add_row(
            visible(each["member"]), visible(lists), str(each["bytes"]), cost, delta, *rest
        )
    console.print(table)
    for each in federation["not_merged"]:
        console.print(
            f"not merged: {visible(each['member'])}: {visible(each['why'])} {visible(each['code'])}"
        )


def show_comparison(comparison: ReportComparison) -> None:
    """Print two reports side by side."""
    console = _console()
    for name, line in zip(("first", "second"), comparison.lines, strict=True):
        console.print(f"{name}: {visible(line)}")
    for caveat in comparison.caveats:
        console.print(f"beware: {visible(caveat)}")
    if comparison.differences:
        table = _table("probe", "figure", "first", "second", "second - first", "difference")
        for row in comparison.differences:
            value, low, high = row.change
            table.add_row(
                visible(row.probe),
                row.metric,
                _interval(*row.first),
                _interval(*row.second),
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
                "-" if row.standing is row.standing.NOT_APART else row.standing.value,
            )
        console.print(table)
    for line in comparison.not_comparable:
        console.print(f"not comparable: {visible(line)}")


def show_probes(rows: list[dict[str, str]]) -> None:
    """Print the registry."""
    table = _table("probe", "needs", "plans", "source")
    for row in rows:
        table.add_row(row["probe"], row["needs"] or "-", row["plans"], row["source"])
    _console().print(table)


def _skipped(report: Json) -> Iterator[str]:
    """Yield one line per reason, each with the probes that it kept from running."""
    by_reason: dict[str, list[str]] = {}
    for each in report["skipped"]:
        by_reason.setdefault(each["reason"], []).append(each["probe"])
    for reason, probes in by_reason.items():
        yield f"skipped: {visible(', '.join(probes))}: {visible(reason)}"


def _probe_table(report: Json) -> Table:
    fprs = report["plan"]["fprs"]
    table = _table("probe", "outcome", "AUC", *(f"TPR at {_percent(fpr)}" for fpr in fprs))
    for probe in report["probes"]:
        area = probe["auc"]["area"]
        style = "bold" if probe["probe"] == report["strongest"] else None
        outcome = "no evidence" if probe["outcome"].startswith("no ") else probe["outcome"]
        cells = [_tpr(probe, fpr, "optimistic") for fpr in fprs]
        table.add_row(
            visible(probe["probe"]),
            visible(outcome),
            _interval(area["value"], area["low"], area["high"])
            + ("*" if probe["auc"]["is_evidence"] and _counts(probe) else ""),
            *cells,
            style=style,
        )
        if any(point["threshold"] == "realistic" for point in probe["points"]):
            table.add_row(
                "", "  realistic", "", *(_realised(probe, fpr) for fpr in fprs), style="dim"
            )
    return table


def _tpr(probe: Json, fpr: float, threshold: str) -> str:
    point = _point(probe, fpr, threshold)
    if point is None or not point["is_resolvable"]:
        return "-"
    mark = "*" if point["is_evidence"] and _counts(probe) else ""
    return f"{_percent(point['tpr']['value'])} {_ends(point['tpr'])}{mark}"


def _counts(probe: Json) -> bool:
    """Return whether what a probe shows can be called evidence at all."""
    return bool(probe["outcome"] != Outcome.INCONCLUSIVE.value)


def _realised(probe: Json, fpr: float) -> str:
    """Return the TPR at a threshold that references chose, with the FPR that came of it."""
    point = _point(probe, fpr, "realistic")
    if point is None:
        return "-"
    return f"{_percent(point['tpr']['value'])} at {_percent(point['fpr']['value'])}"


def _point(probe: Json, fpr: float, threshold: str) -> Json | None:
    return next(
        (
            point
            for point in probe["points"]
            if point["asked_fpr"] == fpr and point["threshold"] == threshold
        ),
        None,
    )


def _checks(report: Json) -> Iterator[str]:
    yield (
        "*: evidence, by a test corrected for all of the plan; the intervals are of 95 %, each for "
        "itself. A dash: fewer than one non-member is expected there."
    )
    points = [point for probe in report["probes"] for point in probe["points"]]
    if any(point["threshold"] == "realistic" for point in points):
        yield (
            "realistic: at a threshold chosen on reference models, with the FPR that came of it."
        )
    test = report["self_test"]
    if test is not None:
        said = "held" if test["passed"] else "FAILED: this report is void"
        yield (
            f"Null self-test {said}: {test['permutations']} permutations of membership, mean AUC "
            f"{test['mean_auc']:.4f}, evidence in {_percent(test['false_evidence'])} of them."
        )
    references = report["references"]
    if references is not None:
        said = "" if references["agrees"] else ", NOT like the target (no threshold is theirs)"
        own, others = references["train_accuracy"], references["test_accuracy"]
        target = references["target_train_accuracy"], references["target_test_accuracy"]
        yield (
            f"{references['models']} reference models{said}: accuracy {own:.3f} on their own "
            f"records and {others:.3f} on others; the target {target[0]:.3f} and {target[1]:.3f}."
        )
        for note in references["notes"]:
            yield f"note: {visible(note)}"
    yield from _notes(report["probes"])


def _notes(probes: list[Json]) -> Iterator[str]:
    """Yield one line per note, with the probes that it is about where it is not about all."""
    by_note: dict[str, list[str]] = {}
    for probe in probes:
        for note in probe["notes"]:
            by_note.setdefault(note, []).append(probe["probe"])
    for note, names in by_note.items():
        whose = "" if len(names) == len(probes) else f"{', '.join(names)}: "
        yield f"note: {visible(whose + note)}"


def _detail(report: Json) -> Iterator[str]:
    strongest = next((p for p in report["probes"] if p["probe"] == report["strongest"]), None)
    if strongest is None:
        yield "Finding nothing is no proof: a stronger attack may find what these probes did not."
        return
    best = _best(strongest)
    priors = [
        f"{_percent(each['precision']['value'])} where {_percent(each['prior'])} are"
        for each in best["precisions"]
        if each["precision"] is not None
    ]
    if priors:
        yield (
            f"Of those that {strongest['probe']} calls members at FPR "
            f"{_percent(best['asked_fpr'])}, members are {', '.join(priors)}."
        )
    scored = [each for each in strongest["slices"] if each["tpr"] is not None]
    scored.sort(key=lambda each: -each["tpr"]["value"])
    for each in scored[:_SHOWN_SLICES]:
        tpr = each["tpr"]
        yield (
            f"  {visible(each['column'])} {visible(each['value'])}: finds "
            f"{_percent(tpr['value'])} {_ends(tpr)} of "
            f"{each['members']} members at FPR {_percent(each['fpr']['value'])}"
        )
    rows = ", ".join(str(each["row"]) for each in strongest["exposed"])
    if rows:
        yield f"Most exposed members, by row of their file: {rows}."


def _best(probe: Json) -> Json:
    points: list[Json] = [p for p in probe["points"] if p["threshold"] == "optimistic"]
    found = [point for point in points if point["is_evidence"]]
    return max(found or points[:1], key=_strength)


def _strength(point: Json) -> tuple[float, float]:
    """Return by which factors a point exceeds chance, as the report's own sentence weighs it."""
    low = (point.get("corrected_tpr") or point["tpr"])["low"]
    fpr = (point.get("corrected_fpr") or {"high": point["asked_fpr"]})["high"]
    return max(1.0, low / fpr), point["tpr"]["value"] / (point["least_evident_tpr"] or 1.0)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - 50 ms, only where somebody looks

    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415 - see _console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "probe")
    return table


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _ends(rate: Json) -> str:
    """Return the ends of a rate's interval, in per cent: two digits, no more."""
    ends = [f"{100.0 * rate[end]:.2g}".replace("1e+02", "100") for end in ("low", "high")]
    return f"[{', '.join(ends)}]"


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"
