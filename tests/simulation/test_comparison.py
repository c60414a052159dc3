"""The comparison table: what it scores, against what, and what it shows."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tacit.core.artifacts import RunFolder
from tacit.core.errors import UnavailableError
from tacit.simulation.comparison import compare, comparison_table, save_comparison, save_plot
from tacit.simulation.federation import simulate
from tacit.simulation.owners import owner_sets
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
    assert "owner-2 alone" in console.export_text()
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
