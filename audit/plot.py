"""The curves of a report on log-log axes, as SVG: what stands at the left end is what matters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tacit.audit.claims import said, weakest
from tacit.core.errors import UnavailableError
from tacit.core.files import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tacit.audit.report import Report

PLOT_NAME = "roc.svg"

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
_MOST_CURVES = len(_COLOURS)
_BASELINE = "loss"  # what other attacks must beat
_CLAIM_POINTS = 100  # of a line that log-log axes bend


def save_roc(path: Path, report: Report) -> None:
    """Draw the strongest curves of a report, the first with its 95 % band, and the chance line.

    Where the model claims an epsilon, also the line that no attack surely exceeds if it holds.

    The same report gives the same bytes.

    Raises:
        UnavailableError: matplotlib is missing (``E-EXTRA-MISSING``), or the file cannot be
            written.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            "E-EXTRA-MISSING",
            "expected matplotlib for a plot, and it is not installed",
            hint="Install the extra: pip install 'tacit[audit]'",
        ) from error
    with mpl.rc_context({"svg.hashsalt": "tacit", "svg.fonttype": "path"}):
        figure = Figure(figsize=(6.5, 6.0), layout="constrained")
        draw(figure.add_subplot(), report)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def draw(axes: Any, report: Report) -> None:  # noqa: ANN401 - matplotlib's axes
    """Draw into one pair of axes; see :func:`save_roc`."""
    others = max(
        (probe["non_members"] for probe in report["probes"]),
        default=report["audited"]["non_members"],
    )
    least = 0.5 / max(1, others)
    for place, probe in enumerate(_drawn(report)):
        rates = [(fpr, tpr) for fpr, tpr in probe["curve"] if fpr > 0]
        label = f"{probe['probe']}: AUC {probe['auc']['area']['value']:.3f}"
        style = {"color": _COLOURS[place], "lw": 1.0 if place else 1.8, "zorder": 3 - place / 10}
        axes.plot(*zip(*rates, strict=True), label=label, **style)
        if place == 0:
            _intervals(axes, probe, least)
    axes.plot([least, 1.0], [least, 1.0], color="k", lw=1.0, linestyle="--", label="chance")
    _claim(axes, report, least)
    axes.axvline(1.0 / max(1, others), color="0.6", lw=0.8, linestyle=":", label="1 non-member")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(least, 1.0)
    axes.set_ylim(least, 1.05)
    axes.set_xlabel("false-positive rate: non-members that are called members")
    axes.set_ylabel("true-positive rate: members that are found")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)


def _drawn(report: Report) -> list[Mapping[str, Any]]:
    """Return the probes to draw: the strongest, those with the largest AUC, and the baseline."""
    strongest = report["strongest"]
    ranked = sorted(
        report["probes"],
        key=lambda each: (each["probe"] != strongest, -each["auc"]["area"]["value"]),
    )
    baseline = [each for each in ranked[_MOST_CURVES - 1 :] if each["probe"] == _BASELINE]
    return [*ranked[: _MOST_CURVES - len(baseline)], *baseline]


def _claim(axes: Any, report: Report, least: float) -> None:  # noqa: ANN401
    """Draw TPR = e^epsilon FPR + delta, the most that any attack has where the claim holds.

    Wasserman & Zhou 2010, theorem 2.4; Kairouz, Oh & Viswanath 2015, theorem 2.1.
    """
    claims = report.get("claims", [])
    claim = weakest(claims)
    if claim is None:
        return
    span = -math.log(least)
    fpr = [math.exp(span * (step / _CLAIM_POINTS - 1.0)) for step in range(_CLAIM_POINTS + 1)]
    factor = math.exp(min(claim["epsilon"], span))  # beyond that it is 1 from the left end on
    tpr = [min(1.0, factor * rate + claim["delta"]) for rate in fpr]
    label = f"claim: TPR \u2264 e^epsilon FPR + delta,\n{said(claims)}".replace(", the", ",\nthe")
    axes.plot(fpr, tpr, color="k", lw=1.4, linestyle="-.", label=label)


def _intervals(axes: Any, probe: Mapping[str, Any], least: float) -> None:  # noqa: ANN401
    """Draw the TPR's 95 % interval as a band through the rates that the report states."""
    points = sorted(
        (point["asked_fpr"], max(point["tpr"]["low"], least), point["tpr"]["high"])
        for point in probe["points"]
        if point["threshold"] == "optimistic" and point["is_resolvable"]
    )
    if not points:
        return
    fpr, low, high = zip(*points, strict=True)
    label = f"{probe['probe']}: 95 % interval"
    axes.fill_between(fpr, low, high, color=_COLOURS[0], alpha=0.15, lw=0, label=label)
    axes.vlines(fpr, low, high, color=_COLOURS[0], lw=1.2, alpha=0.7)
