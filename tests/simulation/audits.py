"""Runs to be audited among four simulated owners: records with labels that nothing explains."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.artifacts import load_arrays, weights_sha256
from tacit.core.audit_spec import AuditSpec
from tacit.core.configuration import parse_toml
from tacit.core.specification import RunSpec, audit_of
from tacit.simulation.federation import Trial, make_folder, open_trial
from tacit.simulation.owners import Owner, owners_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRAINED, AUDITED = "r-00000001", "r-00000002"
OWNERS = 4
RECORDS = 640
FEATURES = 80  # as many as one owner has members: what fits them is memory

_RUN = """
name = "world"
[data]
label = "y"
classes = ["no", "yes"]
{columns}
[model]
kind = "mlp"
hidden = [64]
[training]
optimizer = "adam"
learning_rate = 0.01
local_steps = {steps}
validation_fraction = 0.5
[privacy]
{privacy}
[participation]
rounds = {rounds}
min_clients = 4
"""
OPEN = 'mode = "none"'
PRIVATE = 'mode = "record-local"\nclip = 1.0\nepsilon = 1.0\ndelta = 1e-4'


def run_spec(*, steps: int, rounds: int, privacy: str = OPEN) -> RunSpec:
    """Return a run on the world's records."""
    columns = "\n".join(
        f'columns.a{i} = {{ type = "number", range = [0, 1] }}' for i in range(FEATURES)
    )
    text = _RUN.format(columns=columns, steps=steps, rounds=rounds, privacy=privacy)
    return parse_toml(text, RunSpec, source="run.toml").value


def write_world(path: Path, seed: int = 0) -> Path:
    """Write records whose label is a coin: what a model knows of one it has seen."""
    rng = np.random.default_rng(seed)
    names = ",".join(f"a{i}" for i in range(FEATURES))
    rows = rng.uniform(0, 1, size=(RECORDS, FEATURES)).round(3)
    labels = rng.choice(["no", "yes"], size=RECORDS)
    lines = [",".join([*map(str, row), label]) for row, label in zip(rows, labels, strict=True)]
    path.write_text("\n".join([f"{names},y", *lines]) + "\n")
    return path


@dataclass
class World:
    """A finished run whose owners are still there."""

    trial: Trial
    run: RunSpec
    folder: Path
    model: Path

    def spec(self, **terms: Any) -> RunSpec:
        """Return an audit of the run."""
        sha256 = weights_sha256(load_arrays(self.model))
        rounds = self.run.participation.rounds
        audit = AuditSpec(run=TRAINED, model_sha256=sha256, rounds=rounds, owners=OWNERS, **terms)
        return audit_of(self.run, audit, min_clients=OWNERS, round_deadline_s=600.0)

    def audit(self, run_id: str = AUDITED, **terms: Any) -> dict[str, Any]:
        """Audit the run; return the merged report."""
        spec = self.spec(**terms)
        folder = make_folder(self.folder / run_id, spec, "", self.model)
        self.trial.play(spec, folder, run_id=run_id)
        report: dict[str, Any] = json.loads(folder.report.read_bytes())
        return report


@contextlib.contextmanager
def world(folder: Path, run: RunSpec, *, budget: float = 0.0) -> Iterator[World]:
    """Train among four owners, and give what is to be audited."""
    data = write_world(folder / "world.csv")
    owners: list[Owner] = owners_in(data, run, clients=OWNERS, scratch=folder / "shares")
    if budget:
        owners = [
            dataclasses.replace(o, data_set=dataclasses.replace(o.data_set, budget=budget))
            for o in owners
        ]
    with open_trial(run, owners, folder / "run") as trial:
        made = make_folder(folder / "run", run, "", None)
        trial.play(run, made, run_id=TRAINED)
        yield World(trial=trial, run=run, folder=folder, model=made.model)
