"""A picture of a ledger: epsilon over time, one line per data set, with its budget."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

from tacit.core.errors import UnavailableError
from tacit.core.files import replacing
from tacit.privacy.ledger_entries import Entry, Reserve, Settle

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008


def plot_ledger(entries: Sequence[Entry], *, budgets: Mapping[str, float], path: Path) -> None:
    """Draw epsilon at each data set's own delta over time, as a PNG.

    Args:
        entries: of one ledger, in order.
        budgets: by data set, in the order of the legend.
        path: the file to write.

    Raises:
        UnavailableError: matplotlib is missing (``E-EXTRA-MISSING``), or the file cannot be
            written.
    """
    try:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UnavailableError(
            "E-EXTRA-MISSING",
            "expected matplotlib for a plot, and it is not installed",
            hint="Install the extra: pip install 'tacit[audit]'; or export without --plot.",
        ) from error
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = _points(entries)
    ends = [at for line in points.values() for at, _ in line]
    for place, (name, budget) in enumerate(budgets.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        line = points.get(name, [])
        if line:
            line = [*line, (max(ends), line[-1][1])]
            times, epsilons = zip(*line, strict=True)
            axes.step(times, epsilons, where="post", color=colour, label=name, marker=".")
        axes.axhline(budget, color=colour, linestyle="--", linewidth=1.0, label=f"{name}: budget")
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("epsilon over all runs, at the data set's delta")
    axes.set_xlabel("time (UTC)")
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.grid(visible=True, alpha=0.3)
    if budgets:
        figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _points(entries: Sequence[Entry]) -> dict[str, list[tuple[dt.datetime, float]]]:
    """Return when each data set came to which epsilon."""
    points: dict[str, list[tuple[dt.datetime, float]]] = {}
    for entry in entries:
        body = entry.body
        if isinstance(body, Reserve):
            name = body.charge.data_set
        elif isinstance(body, Settle):
            name = body.data_set
        else:
            continue
        at = dt.datetime.fromtimestamp(entry.at_s, dt.UTC)
        points.setdefault(name, []).append((at, body.cost.total))
    return points
