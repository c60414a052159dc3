"""A small run to audit at a desk: a recipe, records, and models that leak and that cannot."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.plans import PLANS
from tacit.attacks.subject import Subject, subject_of_model
from tacit.core.artifacts import save_arrays
from tacit.core.configuration import parse_toml
from tacit.core.specification import RunSpec
from tacit.learning.models import build_model, model_arrays
from tacit.learning.prepared import Examples
from tacit.learning.training import Recipe, train_model
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

FEATURES, SIDE, ROUNDS = 20, 200, 2
COLUMNS = "\n".join(
    f'[data.columns.x{index:02}]\ntype = "number"\nrange = [-1, 1]' for index in range(FEATURES)
)
RUN_TOML = f"""\
name = "desk"

[data]
label = "y"
classes = ["no", "yes"]

{COLUMNS}

[model]
kind = "mlp"
hidden = [64]

[training]
local_steps = 150
optimizer = "adam"
learning_rate = 0.05
validation_fraction = 0.0

[privacy]
mode = "none"

[participation]
rounds = {ROUNDS}
min_clients = 1
"""
SPEC = parse_toml(RUN_TOML, RunSpec, source="run.toml").value
TINY = dataclasses.replace(PLANS["quick"], name="tiny", references=8, permutations=100)


def drawn(records: int, *, seed: int) -> Examples:
    """Labels that features hardly tell: whoever knows them has learnt them by heart."""
    rng = np.random.default_rng([7, seed])
    raw = rng.uniform(-1, 1, size=(records, FEATURES))
    labels = (raw[:, 0] + rng.normal(size=records) > 0).astype(np.int64)
    return Examples(features=((raw + 1) / 2).astype(np.float32), labels=labels)


MEMBERS, NON_MEMBERS, POPULATION = (drawn(SIDE, seed=seed) for seed in range(3))


def untrained() -> nn.Module:
    if SPEC.model is None or SPEC.data is None:
        raise ValueError("expected a model")
    return build_model(SPEC.model, SPEC.data).eval()


@functools.cache
def trained() -> nn.Module:
    """Return a model that knows the members by heart; not to be changed."""
    if SPEC.training is None:
        raise ValueError("expected a training")
    model = untrained()
    plan = privacy_plan(SPEC, records=SIDE)
    for number in range(ROUNDS):
        recipe = Recipe(training=SPEC.training, plan=plan, batch_seed=number)
        train_model(model, MEMBERS, recipe)
    return model.eval()


def subject(model: nn.Module, *, recipe: RunSpec | None = SPEC) -> Subject:
    return subject_of_model(
        model, members=MEMBERS, non_members=NON_MEMBERS, population=POPULATION, recipe=recipe
    )


def write_files(folder: Path) -> None:
    """Write the run and its records as files, and the weights of either model."""
    (folder / "run.toml").write_text(RUN_TOML)
    for name, examples in (
        ("members", MEMBERS),
        ("nonmembers", NON_MEMBERS),
        ("population", POPULATION),
    ):
        np.savez(folder / f"{name}.npz", features=examples.features, labels=examples.labels)
        (folder / f"{name}.csv").write_text(csv_of(examples))
    save_arrays(folder / "model.safetensors", model_arrays(trained()))
    save_arrays(folder / "fresh.safetensors", model_arrays(untrained()))


def csv_of(examples: Examples) -> str:
    """Return records as the data contract has them, with a column beyond it for slices."""
    names = [f"x{index:02}" for index in range(FEATURES)]
    lines = [",".join([*names, "y"])]
    for row, label in zip(examples.features.astype(float) * 2 - 1, examples.labels, strict=True):
        lines.append(",".join([*map(repr, row.tolist()), ("no", "yes")[label]]))
    return "\n".join(lines) + "\n"
