"""What people see of canaries: the verdict in words, then each owner's figures and ceilings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tacit.cli.output import visible

if TYPE_CHECKING:
    from rich.console import Console

Json = Mapping[str, Any]


def show_canaries(report: Json) -> None:
    """Print the canary part of a report."""
    console = _console()
    console.print(visible(report["line"]), style="bold")
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


def _show_bounds(console: Console, report: Json) -> None:
    from rich.table import Table  # noqa: PLC0415 - 50 ms, only where somebody looks

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("owner", "canaries", "method", "epsilon at least", "ceiling", "estimate"):
        table.add_column(column, no_wrap=True)
    for owner in report["owners"]:
        for kind in owner["kinds"]:
            for bound in kind["bounds"]:
                table.add_row(
                    visible(owner["member"]),
                    f"{kind['included']} of {kind['canaries']} {visible(kind['kind'])}",
                    visible(bound["method"]) + ("*" if bound["method"] == "one-run" else ""),
                    _number(bound["epsilon"]),
                    _number(bound["ceiling"]),
                    _number(bound["estimate"]),
                )
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - see _show_bounds

    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)
