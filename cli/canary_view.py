"""What people see of canaries: the verdict in words, then each owner's figures and ceilings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tacit.cli.output import visible

if TYPE_CHECKING:
    from rich.console import Console

    from tacit.audit.canary_compare import CanaryComparison

Json = Mapping[str, Any]

_INCONCLUSIVE = "inconclusive"
_ESTIMATE = "fl-canaries"  # decides nothing, and has no ceiling worth the name


def show_canaries(report: Json) -> None:
    """Print the canary part of a report."""
    console = _console()
    console.print(visible(headline(report)), style="bold")
    _show_audits(console, report)
    where = f"in {report['canary_run']}"
    if report["run"] != report["canary_run"]:
        where += f", a twin of {report['run']}"
    where += ", whose model was discarded" if report["twin"] else ", whose model is released"
    console.print(
        f"Canaries {where}; each owner had committed to who is in before the run started. A claim "
        "above a ceiling was not tested; only a one-run bound (*) can fail one."
    )
    for owner in report["owners"]:
        claim = owner["claim"]
        console.print(
            f"{visible(owner['member'])}: {owner['verdict']}; claims epsilon "
            f"{claim['epsilon']:.4g} at delta {claim['delta']:g} per {visible(claim['unit'])}"
        )
        console.print(f"  committed to {owner['commitment']}")
        for reason in owner["reasons"]:
            console.print(f"  {visible(reason)}")
    _show_bounds(console, report)
    _show_left(console, report)
    for each in report["unopened"]:
        console.print(f"not opened: {visible(each['member'])}: {visible(each['why'])}")
    for member in report["absent"]:
        console.print(f"not tested: {visible(member)} had committed, and took part in no round")
    for limit in report["limits"]:
        console.print(f"beware: {visible(limit)}")


def _show_audits(console: Console, report: Json) -> None:
    """List every audit of the run by canaries; a report by itself knows of no others."""
    audits = report.get("audits", ())
    if not audits:
        return
    console.print(
        f"{len(audits)} audits by canaries, each with its own chance of 5 % to fail a claim that "
        f"is true; the worst verdict counts, and {report['canary_run']} is shown:"
    )
    for each in audits:
        verdict = "no report" if each["verdict"] == "none" else visible(each["verdict"])
        console.print(f"  {each['canary_run']}: {verdict}: {visible(each['line'])}")


def _show_left(console: Console, report: Json) -> None:
    """Say what each owner opened: of no record, and paid for with the rounds."""
    if report["owners"]:
        console.print("What left each owner for the opening, at no further cost:")
    for owner in report["owners"]:
        left = owner["left"]
        sums = f", {left['sums']} sums over released gradients" if left["sums"] else ""
        console.print(
            f"  {visible(owner['member'])}: {left['bits']} bits, a salt of {left['salt_bytes']} "
            f"bytes{sums}: {left['bytes']} bytes"
        )


def show_canary_comparison(comparison: CanaryComparison) -> None:
    """Print two canary reports side by side."""
    from rich.table import Table  # noqa: PLC0415 - see _show_bounds

    console = _console()
    for name, line in zip(("first", "second"), comparison.lines, strict=True):
        console.print(f"{name}: {visible(line)}")
    for caveat in comparison.caveats:
        console.print(f"beware: {visible(caveat)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("owner", "canaries", "method", "first", "ceiling", "second", "ceiling"):
        table.add_column(column, no_wrap=True)
    for pair in comparison.bounds:
        figures = [_number(value) for value in (*pair.first, *pair.second)]
        table.add_row(visible(pair.owner), visible(pair.canaries), visible(pair.method), *figures)
    console.print(table)
    for line in comparison.not_comparable:
        console.print(f"not comparable: {visible(line)}")


def headline(report: Json) -> str:
    """Return the report's line; of an inconclusive one with the reason first."""
    line = str(report["line"])
    if report["verdict"] != _INCONCLUSIVE:
        return line
    by_reason: dict[str, list[str]] = {}
    for owner in report["owners"]:
        for reason in owner["reasons"]:
            by_reason.setdefault(reason, []).append(owner["member"])
    why = [f"{reason} ({', '.join(members)})" for reason, members in by_reason.items()]
    if report["unopened"]:
        names = ", ".join(each["member"] for each in report["unopened"])
        why.insert(0, f"not every owner opened ({names})")
    if not why:
        return line
    rest = line.removeprefix("Canaries: ").removeprefix(f"{_INCONCLUSIVE}: ")
    return f"Canaries: {_INCONCLUSIVE.upper()}: {'; '.join(why)}. {rest[:1].upper()}{rest[1:]}"


def _show_bounds(console: Console, report: Json) -> None:
    from rich.table import Table  # noqa: PLC0415 - 50 ms, only where somebody looks

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("owner", "canaries", "method", "epsilon at least", "ceiling", "alpha", "right")
    for column in (*columns, "estimate"):
        table.add_column(column, no_wrap=True)
    for owner in report["owners"]:
        for kind in owner["kinds"]:
            for bound in kind["bounds"]:
                table.add_row(
                    visible(owner["member"]),
                    f"{kind['included']} of {kind['canaries']} {visible(kind['kind'])}",
                    visible(bound["method"]) + ("*" if bound["method"] == "one-run" else ""),
                    _number(bound["epsilon"]),
                    _number(None if bound["method"] == _ESTIMATE else bound["ceiling"]),
                    f"{bound['alpha']:.2g}",
                    _right(bound),
                    _number(bound["estimate"]),
                )
    console.print(table)
    console.print(
        "alpha: the chance that this figure is wrong, by itself; right: of the guesses, whose "
        "number was fixed beforehand."
    )
    for line in _self_tests(report):
        console.print(line)


def _self_tests(report: Json) -> Iterator[str]:
    """Yield for which canaries the null self-test held, and for which it did not."""
    passed: dict[bool, list[str]] = {}
    for owner in report["owners"]:
        for kind in owner["kinds"]:
            named = f"{visible(kind['kind'])} of {visible(owner['member'])}"
            passed.setdefault(kind["self_test_passed"], []).append(named)
    if passed and False not in passed:
        yield "Null self-test, with the bits permuted: held for all of them."
    elif passed:
        yield f"Null self-test FAILED, figures are void: {', '.join(passed[False])}."


def _right(bound: Json) -> str:
    return "-" if bound["guesses"] is None else f"{bound['correct']} of {bound['guesses']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - see _show_bounds

    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)
