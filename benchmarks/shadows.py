"""``python -m benchmarks.shadows``: 64 shadow models trained together, against one after the other.

One MLP on the letter records (16 features, 26 classes), each model on its own half of the pool,
by the same recipe: trained together; by a tensor loop, which gathers batches by index and leaves
the rest to autograd and torch's SGD; and by a loop over a DataLoader. All on one thread, in turns
in one process, in CPU time. The loops train a few of the models, scaled to all of them. Before a
ratio is printed, the accuracies on records that no model saw must agree.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.report import machine
from tacit.core.specification import PrivacyMode, PrivacyUnit, TrainingSpec
from tacit.learning.evaluation import evaluate_model
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import ShadowRecipe, round_seed
from tacit.learning.training import batches
from tacit.learning.vectorised import Shadow, train_together
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Train = Callable[[Sequence[Shadow]], list[nn.Module]]

LETTERS = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "letter" / "letter-recognition.data"
)
BATCH, RATE, MOMENTUM = 256, 0.1, 0.9
FEATURES, CLASSES = 16, 26
HIDDEN = (32, 128)
GOALS = {32: {"tensor loop": 2.5, "DataLoader loop": 5.0}}
SAME_BATCHES_POINTS = 0.2  # rounding alone: a record or two at the boundary


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained.

    Attributes:
        models: trained together.
        looped: of them, by each loop.
        epochs: passes over a model's records.
        turns: of all three ways; the first is a warm-up.
        noise_points: what other batches may change a mean accuracy by.
    """

    models: int = 64
    looped: int = 4
    epochs: int = 10
    turns: int = 4
    noise_points: float = 1.5


SHORT = Size(models=4, looped=2, epochs=10, turns=2, noise_points=8.0)


def load_letters(path: Path) -> Examples:
    """Return the 20,000 letters, features in [0, 1]."""
    with path.open(newline="", encoding="ascii") as file:
        rows = list(csv.reader(file))
    features = np.array([row[1:] for row in rows], dtype=np.float32) / 15.0
    labels = np.array([ord(row[0]) - ord("A") for row in rows], dtype=np.int64)
    return Examples(features=features, labels=labels)


def made_up(records: int) -> Examples:
    """Return records of the letters' shape around one centre a class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, size=records)
    centres = generator.uniform(size=(CLASSES, FEATURES))
    values = centres[labels] + generator.normal(scale=0.3, size=(records, FEATURES))
    return Examples(features=values.astype(np.float32), labels=labels)


def divided(records: Examples) -> tuple[Examples, Examples]:
    """Return the pool and a fifth of the records that no model sees."""
    order = np.random.default_rng(1).permutation(len(records))
    cut = len(order) // 5
    test, pool = (
        Examples(features=records.features[rows], labels=records.labels[rows])
        for rows in (order[:cut], order[cut:])
    )
    return pool, test


def make_shadows(pool: Examples, *, hidden: int, models: int) -> list[Shadow]:
    shadows = []
    for seed in range(models):
        torch.manual_seed(seed)
        start = nn.Sequential(
            nn.Flatten(), nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)
        )
        rows = np.random.default_rng([2, seed]).permutation(len(pool))[: len(pool) // 2]
        shadows.append(Shadow(start=start, rows=rows.astype(np.int64), seed=seed))
    return shadows


def recipe_of(*, steps: int) -> ShadowRecipe:
    plan = PrivacyPlan(
        mode=PrivacyMode.NONE,
        releases=1,
        local_steps=steps,
        sample_rate=1.0,
        noise_multiplier=0.0,
        clip=math.inf,
        normaliser=1.0,
        epsilon=math.inf,
        delta=0.0,
        unit=PrivacyUnit.RECORD,
    )
    training = TrainingSpec(
        learning_rate=RATE, momentum=MOMENTUM, batch_size=BATCH, local_steps=steps
    )
    return ShadowRecipe(training=training, plan=plan, rounds=1)


def ways(pool: Examples, *, steps: int) -> dict[str, Train]:
    """Return the three ways to train some shadows."""
    recipe = recipe_of(steps=steps)
    features, labels = torch.from_numpy(pool.features), torch.from_numpy(pool.labels)

    def together(shadows: Sequence[Shadow]) -> list[nn.Module]:
        models = train_together(shadows, pool, recipe)
        return [models.model(index) for index in range(len(models))]

    def tensor_loop(shadows: Sequence[Shadow]) -> list[nn.Module]:
        return [_looped(shadow, features, labels, steps=steps) for shadow in shadows]

    def loader_loop(shadows: Sequence[Shadow]) -> list[nn.Module]:
        return [_loaded(shadow, features, labels, steps=steps) for shadow in shadows]

    return {"together": together, "tensor loop": tensor_loop, "DataLoader loop": loader_loop}


def _looped(
    shadow: Shadow, features: torch.Tensor, labels: torch.Tensor, *, steps: int
) -> nn.Module:
    rows = torch.from_numpy(shadow.rows)
    own_features, own_labels = features[rows], labels[rows]
    numbers = batches(len(rows), size=BATCH, seed=round_seed(shadow.seed, 0))
    model = copy.deepcopy(shadow.start)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    for _ in range(steps):
        batch = next(numbers)
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(model(own_features[batch]), own_labels[batch])
        loss.backward()
        sgd.step()
    return model


def _loaded(
    shadow: Shadow, features: torch.Tensor, labels: torch.Tensor, *, steps: int
) -> nn.Module:
    rows = torch.from_numpy(shadow.rows)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(features[rows], labels[rows]),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(shadow.seed),
    )
    model = copy.deepcopy(shadow.start)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    for _ in range(steps // len(loader)):
        for batch, classes in loader:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(batch), classes).backward()
            sgd.step()
    return model


def measure(records: Examples, *, hidden: int, size: Size) -> list[dict[str, Any]]:
    """Return one row per way: CPU seconds for all models, ratio, accuracy.

    Raises:
        ValueError: the accuracies do not agree.
    """
    pool, test = divided(records)
    steps = size.epochs * (len(pool) // 2 // BATCH)
    shadows = make_shadows(pool, hidden=hidden, models=size.models)
    seconds: dict[str, list[float]] = {}
    accuracy: dict[str, float] = {}
    for turn in range(size.turns):
        for name, train in ways(pool, steps=steps).items():
            some = shadows if name == "together" else shadows[: size.looped]
            began = time.process_time()
            models = train(some)
            taken = (time.process_time() - began) / len(some) * size.models
            if turn:
                seconds.setdefault(name, []).append(taken)
                continue
            scores = [evaluate_model(m, test)["accuracy"] for m in models[: size.looped]]
            accuracy[name] = statistics.mean(scores)
    _verify_same(accuracy, size)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        {
            "hidden": hidden,
            "way": name,
            "seconds": taken,
            "microseconds_a_step": taken / size.models / steps * 1e6,
            "ratio": taken / median["together"],
            "accuracy": accuracy[name],
        }
        for name, taken in median.items()
    ]


def _verify_same(accuracy: dict[str, float], size: Size) -> None:
    """Raise unless the loops' models are as good as those trained together."""
    for name, most in (
        ("tensor loop", SAME_BATCHES_POINTS),
        ("DataLoader loop", size.noise_points),  # it draws other batches
    ):
        if not 100.0 * abs(accuracy[name] - accuracy["together"]) <= most:
            raise ValueError(f"expected accuracies within {most} points, got {accuracy}")


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Return which goals are missed, in words for people."""
    return [
        f"{row['hidden']} hidden units: {row['ratio']:.1f} times the {row['way']}, goal {goal}"
        for row in rows
        for goal in (GOALS.get(row["hidden"], {}).get(row["way"], 0.0),)
        if row["ratio"] < goal
    ]


def render(rows: list[dict[str, Any]]) -> str:
    headings = f"{'hidden':>6}  {'way':<15}  {'CPU s':>7}  {'us/step':>7}"
    lines = [f"{headings}  {'x together':>10}  {'accuracy':>8}"]
    lines.append("-" * len(lines[0]))
    lines += [
        f"{row['hidden']:>6}  {row['way']:<15}  {row['seconds']:7.2f}"
        f"  {row['microseconds_a_step']:7.0f}  {row['ratio']:10.1f}  {row['accuracy']:8.1%}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shadows", description=__doc__)
    parser.add_argument("--hidden", type=int, action="append", help="may be repeated (32, 128)")
    parser.add_argument("--data", type=Path, default=LETTERS, metavar="FILE", help="the letters")
    parser.add_argument("--short", action="store_true", help="4 models, few records: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = SHORT if given.short else Size()
    if given.short or not given.data.is_file():
        records, shown = made_up(4000 if given.short else 20_000), "made-up records"
    else:
        records, shown = load_letters(given.data), "letters"
    facts = machine()
    print("; ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{size.models} models, each on half of {len(records) * 4 // 5} {shown}, {size.epochs} "
        f"epochs, batch {BATCH}; loops measured on {size.looped} models and scaled"
    )
    rows = [
        row
        for hidden in given.hidden or HIDDEN
        for row in measure(records, hidden=hidden, size=size)
    ]
    print(render(rows))
    if given.json is not None:
        content = {"machine": facts, "results": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    problems = [] if given.short else missed(rows)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
