"""The comparison table: what it scores, against what, and what it shows."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tacit.core.artifacts import RunFolder
from tacit.core.errors import UnavailableError
from tacit.learning.baselines import Score
from tacit.learning.comparison import Row
from tacit.simulation.comparison import (
    Comparison,
    compare,
    comparison_table,
    save_comparison,
)
from tacit.simulation.federation import simulate
from tacit.simulation.owners import owner_sets
from tacit.simulation.plot import draw, round_ticks, save_plot
from tests.simulation.test_federation import make_owners, tiny

if TYPE_CHECKING:
    from pathlib import Path


def test_the_table_holds_every_model_and_every_owner(tmp_path: Path) -> None:
    """Federated, pooled, each owner alone and the guess, each on everybody's held-out records."""
    run, owners = tiny(), make_owners(tmp_path)
    done = simulate(run, owners, tmp_path / "run")
    sets = {owner.name: owner_sets(run, owner) for owner in owners}
    comparison = compare(run, sets, done.folder)
    kinds = [row.kind for row in comparison.rows]
    assert kinds == ["federated", "pooled", "alone", "alone", "alone", "trivial"]
    held_out = sum(len(item.validation) for item in sets.values())
    assert {row.overall.examples for row in comparison.rows} == {held_out}
    assert sorted(comparison.by_round) == [0, 1, 2, 3]
    assert comparison.by_round[3] == comparison.row("federated").overall.accuracy
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table(comparison))
    shown = console.export_text()
    assert "owner-2 alone" in shown
    assert "owner-3" in shown.splitlines()[1]
    narrow = Console(width=40, record=True, file=io.StringIO())
    narrow.print(comparison_table(comparison, by_owner=False))
    assert "owner-2 alone" in narrow.export_text(clear=False)
    assert "owner-3" not in narrow.export_text().splitlines()[1]
    save_comparison(tmp_path / "comparison.json", run, comparison)
    plain = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["kind"] for row in plain["models"]] == kinds


def test_a_run_without_a_model_is_named(tmp_path: Path) -> None:
    """A run that failed cannot be compared."""
    with pytest.raises(UnavailableError, match="E-NO-MODEL"):
        compare(tiny(), {}, RunFolder(tmp_path))


@pytest.mark.slow
def test_the_plot_is_an_image(tmp_path: Path) -> None:
    """The plot is written as PNG without a display."""
    run, owners = tiny(), make_owners(tmp_path)
    done = simulate(run, owners, tmp_path / "run")
    sets = {owner.name: owner_sets(run, owner) for owner in owners}
    save_plot(tmp_path / "plot.png", run, compare(run, sets, done.folder))
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("last", "ticks"),
    [
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (20, [*range(0, 20, 2), 20]),
        (21, [*range(0, 20, 2), 21]),
        (103, [*range(0, 100, 10), 103]),
        (250, [*range(0, 241, 50), 250]),
    ],
)
def test_ticks_are_whole_rounds_up_to_the_last(last: int, ticks: list[int]) -> None:
    """The last round has a tick of its own, and none stands too close to it."""
    assert round_ticks(last) == ticks


def test_nothing_is_drawn_outside_the_axes() -> None:
    """Curve, standard error and every line lie within the limits, with room to spare."""
    figures = pytest.importorskip("matplotlib.figure")
    accuracies = {"federated": 1.0, "pooled": 0.98, "alone": 0.1, "trivial": 0.5}
    rows = [
        Row(
            model=kind,
            kind=kind,
            epsilon=None,
            overall=Score(loss=1.0, accuracy=accuracy, examples=25),
            by_owner={},
        )
        for kind, accuracy in accuracies.items()
    ]
    by_round = {0: 0.0, 1: 0.5, 2: 0.95, 3: 1.0}
    axes = figures.Figure().subplots()
    draw(axes, Comparison(rows=rows, by_round=by_round, delta=None))
    low, high = axes.get_ylim()
    assert low < 0.0
    assert high > 0.95 + (0.95 * 0.05 / 25) ** 0.5
    left, right = axes.get_xlim()
    assert left < 0
    assert right > 3
    assert list(axes.get_xticks()) == [0, 1, 2, 3]
