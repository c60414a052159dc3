"""``python -m benchmarks.accuracy_adult --data DIR``: Adult at epsilon 1, by Tacit's own parts.

Loader, data contract, plan, model and engine are those of a run; the 14 columns' ranges and
categories are those that adult.names publishes. Trained on the 32,561 records of adult.data,
scored on the 16,281 of adult.test. Noise keys follow from the seed here, so that the figure can be
repeated; a real run draws them from the operating system.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tacit.core.configuration import from_plain
from tacit.core.specification import RunSpec
from tacit.learning.contract import encode
from tacit.learning.evaluation import evaluate_model
from tacit.learning.loaders import Source, load_raw
from tacit.learning.models import build_model
from tacit.learning.prepared import Examples
from tacit.learning.training import Recipe, train_model
from tacit.privacy.noise import derive_key
from tacit.privacy.plan import privacy_plan

AIM = 0.844
TRAINING_RECORDS = 32_561  # public: adult.names
NUMBERS = {
    "age": (0.0, 100.0),
    "education-num": (1.0, 16.0),
    "capital-gain": (0.0, 99_999.0),
    "capital-loss": (0.0, 5_000.0),
    "hours-per-week": (0.0, 100.0),
}
COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "label",
)


def categories(names: Path) -> dict[str, tuple[str, ...]]:
    """Return the categories that adult.names lists, by column."""
    found = {}
    for line in names.read_text(encoding="utf-8").splitlines():
        name, colon, values = line.partition(":")
        if colon and name in COLUMNS and "continuous" not in values:
            found[name] = tuple(value.strip() for value in values.strip(" .").split(","))
    return found


def make_run(names: Path, *, learning_rate: float, clip: float, momentum: float) -> RunSpec:
    columns: dict[str, Any] = {
        name: {"type": "number", "range": list(bounds)} for name, bounds in NUMBERS.items()
    }
    for name, values in categories(names).items():
        columns[name] = {"type": "category", "values": [*values, "?"], "missing": "?"}
    plain = {
        "name": "adult",
        "data": {
            "classes": ["<=50K", ">50K"],
            "label_map": {"<=50K.": "<=50K", ">50K.": ">50K"},
            "columns": columns,
        },
        "model": {"kind": "logistic"},
        "training": {
            "learning_rate": learning_rate,
            "momentum": momentum,
            "local_steps": 150,
            "validation_fraction": 0.0,
        },
        "privacy": {"mode": "record-local", "clip": clip, "epsilon": 1.0, "delta": 1e-5},
        "participation": {"rounds": 1},
    }
    return from_plain(plain, RunSpec)


def load(run: RunSpec, path: Path) -> Examples:
    assert run.data is not None
    with tempfile.TemporaryDirectory() as folder:
        # adult.test begins with a comment
        copy = Path(folder) / "adult.csv"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line for line in file if not line.startswith("|")]
        copy.write_text("".join(lines), encoding="utf-8")
        source = Source(path=copy, header=False, columns=COLUMNS)
        prepared = encode(run.data, load_raw(source, run.data))
    return Examples(features=prepared.features, labels=prepared.labels)


def accuracy_of(run: RunSpec, training: Examples, test: Examples, *, seed: int) -> float:
    assert run.model is not None
    assert run.data is not None
    assert run.training is not None
    plan = privacy_plan(run, records=TRAINING_RECORDS)
    model = build_model(run.model, run.data, private=True)
    key = derive_key(bytes(32), purpose=f"benchmark seed {seed}")
    train_model(model, training, Recipe(training=run.training, plan=plan), noise_key=key)
    return evaluate_model(model, test)["accuracy"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy_adult")
    parser.add_argument("--data", type=Path, required=True, help="folder of adult.*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=16.0)
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--momentum", type=float, default=0.9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    run = make_run(
        given.data / "adult.names",
        learning_rate=given.learning_rate,
        clip=given.clip,
        momentum=given.momentum,
    )
    training, test = (load(run, given.data / name) for name in ("adult.data.gz", "adult.test.gz"))
    found = [accuracy_of(run, training, test, seed=seed) for seed in range(given.seeds)]
    plan = privacy_plan(run, records=TRAINING_RECORDS)
    mean = statistics.mean(found)
    print(f"epsilon {plan.epsilon:.4f} at delta {plan.delta:g}, {plan.steps} steps")
    print("accuracy " + " ".join(f"{value:.4f}" for value in found))
    print(f"mean {mean:.4f} (aim {AIM}), {(time.monotonic() - began) / 60:.1f} minutes")
    return 0 if mean >= AIM else 1


if __name__ == "__main__":
    raise SystemExit(main())
