"""What federation brought: one table of the federated model, each owner alone, all pooled, a guess.

Only somebody who holds everybody's records can make this table: the simulator and the demo, never a
real run, where each owner compares at home (``tacit client compare``). Every model is trained with
the run's own recipe and privacy and scored on records that nobody trained on. The numbers are exact
and carry no noise.

Records are split by their content, so an owner alone, the pool and the federation hold out the same
ones.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from tacit.core.artifacts import RunFolder, load_arrays, write_atomic
from tacit.core.errors import UnavailableError
from tacit.core.specification import PrivacyMode, RunSpec, to_plain
from tacit.learning.baselines import score_arrays, union
from tacit.learning.comparison import (
    POOLED,
    Row,
    federated_row,
    standard_error,
    trained_row,
    trivial_row,
)
from tacit.privacy.noise import derive_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

    from tacit.learning.prepared import PreparedSets

SHOWN_OWNERS = 6  # columns and rows for more would fit no terminal; the JSON file has them all


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table, and how the federated model got there.

    Attributes:
        rows: the models.
        by_round: accuracy on all held-out records after each kept round; round 0 is the start.
        delta: the probability beside epsilon; None without noise.
    """

    rows: Sequence[Row]
    by_round: Mapping[int, float]
    delta: float | None

    def row(self, kind: str) -> Row:
        """Return the first row of a kind."""
        return next(row for row in self.rows if row.kind == kind)


def compare(
    specification: RunSpec, sets: Mapping[str, PreparedSets], folder: RunFolder
) -> Comparison:
    """Score the run's model against its alternatives.

    Args:
        specification: the run, of a built-in model.
        sets: every owner's records, by name.
        folder: the run folder, with its model and the rounds' weights.

    Raises:
        UnavailableError: the run left no model, or nobody held out a record.
    """
    if not folder.model.exists():
        raise UnavailableError("E-NO-MODEL", f"expected the run's model at {folder.model}")
    if not any(len(owner.validation) for owner in sets.values()):
        raise UnavailableError(
            "E-NO-VALIDATION",
            "expected held-out records to compare models on, got none",
            hint="raise training.validation_fraction",
        )
    torch.set_num_threads(1)  # as in an owner's worker; several would wait for each other
    secret = os.urandom(32)
    private = specification.privacy.mode is not PrivacyMode.NONE

    def key(name: str) -> bytes | None:
        return derive_key(secret, purpose=f"comparison {name}") if private else None

    rows = [
        federated_row(specification, sets, load_arrays(folder.model)),
        trained_row(specification, sets, noise_key=key(POOLED)),
        *(trained_row(specification, sets, of=name, noise_key=key(name)) for name in sets),
        trivial_row(specification, sets),
    ]
    return Comparison(
        rows=rows,
        by_round=accuracy_by_round(specification, sets, folder),
        delta=specification.privacy.delta if private else None,
    )


def accuracy_by_round(
    specification: RunSpec, sets: Mapping[str, PreparedSets], folder: RunFolder
) -> dict[int, float]:
    """Return the accuracy of every round's kept weights on all held-out records."""
    held_out = union([owner.validation for owner in sets.values()])
    files = {0: folder.initial}
    files |= {number: folder.round(number) for number in folder.round_numbers()}
    return {
        number: score_arrays(specification, load_arrays(path), held_out).accuracy
        for number, path in files.items()
    }


def comparison_table(comparison: Comparison, *, by_owner: bool = True) -> Table:
    """Return the table for a terminal; of many owners it shows the extremes.

    Args:
        comparison: what it shows.
        by_owner: with a column for each owner, unless there are many.
    """
    from rich import box  # noqa: PLC0415 - rich loads in 50 ms, and scripts ask for JSON
    from rich.table import Table  # noqa: PLC0415

    sizes = comparison.rows[0].by_owner
    owners = list(sizes) if by_owner and len(sizes) <= SHOWN_OWNERS else []
    error = standard_error(comparison.row("federated").overall)
    table = Table(
        title="Accuracy on held-out records",
        caption=f"one standard error: {error:.3f}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("model\nheld-out records", no_wrap=True)
    if comparison.delta is not None:
        table.add_column("epsilon", justify="right")
    table.add_column(f"all\n{comparison.rows[0].overall.examples}", justify="right")
    for owner in owners:
        table.add_column(f"{owner}\n{sizes[owner].examples}", justify="right")
    for label, row in _shown_rows(comparison):
        cells = [label]
        if comparison.delta is not None:
            cells.append("-" if row.epsilon is None else f"{row.epsilon:.2f}")
        cells.append(f"{row.overall.accuracy:.3f}")
        cells += [f"{row.by_owner[owner].accuracy:.3f}" for owner in owners]
        table.add_row(*cells, style="bold" if row.kind == "federated" else None)
    return table


def _shown_rows(comparison: Comparison) -> list[tuple[str, Row]]:
    """Return the rows of the table, with at most three of many owners who train alone."""
    alone = [row for row in comparison.rows if row.kind == "alone"]
    labels = {id(row): row.model for row in comparison.rows}
    if len(alone) > SHOWN_OWNERS:
        ranked = sorted(alone, key=lambda row: row.overall.accuracy)
        places = {"worst": 0, "median": len(ranked) // 2, "best": -1}
        picked = {id(ranked[place]): f"{word} owner alone" for word, place in places.items()}
        labels = {id(row): row.model for row in comparison.rows if row.kind != "alone"} | picked
    return [(labels[id(row)], row) for row in comparison.rows if id(row) in labels]


def save_comparison(path: Path, specification: RunSpec, comparison: Comparison) -> None:
    """Write ``comparison.json``."""
    plain: dict[str, Any] = {
        "run": specification.name,
        "privacy": to_plain(specification.privacy),
        "delta": comparison.delta,
        "note": "exact metrics on held-out records, made by somebody who holds all the data",
        "models": [asdict(row) for row in comparison.rows],
        "accuracy_by_round": {str(k): v for k, v in sorted(comparison.by_round.items())},
    }
    write_atomic(path, json.dumps(plain, indent=1, allow_nan=False).encode() + b"\n")
