"""The comparison as a picture: accuracy by round, beside the alternatives, as PNG."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tacit.core.errors import UnavailableError
from tacit.learning.comparison import FEDERATED, standard_error

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.specification import RunSpec
    from tacit.simulation.comparison import Comparison

_MOST_TICKS = 12
_STYLES = {"pooled": ("tab:green", "--"), "alone": ("tab:gray", ":"), "trivial": ("k", "-.")}


def save_plot(path: Path, specification: RunSpec, comparison: Comparison) -> None:
    """Draw a comparison into a PNG file.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra

        mpl.use("Agg")  # no display
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            "E-EXTRA-MISSING",
            "expected matplotlib, for the plot",
            hint="install it: pip install matplotlib",
        ) from error
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    draw(axes, comparison)
    axes.set_title(_title(specification, comparison), fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(axes: Any, comparison: Comparison) -> None:  # noqa: ANN401 - matplotlib's axes
    """Draw the federated model's accuracy by round, with its standard error, and the others'."""
    rounds = sorted(comparison.by_round)
    accuracies = [comparison.by_round[number] for number in rounds]
    overall = comparison.row("federated").overall
    errors = [standard_error(replace(overall, accuracy=each)) for each in accuracies]
    low = [each - error for each, error in zip(accuracies, errors, strict=True)]
    high = [each + error for each, error in zip(accuracies, errors, strict=True)]
    axes.plot(rounds, accuracies, marker="o", ms=3, label=FEDERATED)
    axes.fill_between(rounds, low, high, alpha=0.15, lw=0, label="one standard error")
    named = False
    for row in comparison.rows[1:]:
        colour, line = _STYLES[row.kind]
        label = row.model if row.kind != "alone" else ("_" if named else "each owner alone")
        named = named or row.kind == "alone"
        axes.axhline(row.overall.accuracy, color=colour, linestyle=line, lw=1.2, label=label)
    axes.margins(x=0.02, y=0.08)
    axes.set_xticks(round_ticks(rounds[-1]))
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on all held-out records")
    axes.legend(loc="best", fontsize=8)
    axes.grid(visible=True, alpha=0.3)


def round_ticks(last: int) -> list[int]:
    """Return whole rounds in even steps for an axis, the first and the last among them."""
    steps = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    step = next(step for step in steps if last / step < _MOST_TICKS)
    return [*(tick for tick in range(0, last, step) if 2 * (last - tick) > step), last]


def _title(specification: RunSpec, comparison: Comparison) -> str:
    epsilon = comparison.row("federated").epsilon
    if epsilon is None:
        return f"{specification.name}: no differential privacy"
    return (
        f"{specification.name}: ({epsilon:.2g}, {comparison.delta:g})-DP per record "
        f"at each owner (add/remove)"
    )
