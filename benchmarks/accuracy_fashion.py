"""``python -m benchmarks.accuracy_fashion``: Fashion-MNIST under DP-SGD, epsilon 3, delta 1e-5.

One owner, 60,000 records, each protected for itself under add/remove: Poisson samples, a public
normaliser, noise from the cryptographic stream, all as the plan says that the accountant made.
Models and settings: Tramer and Boneh 2021, arXiv 2011.11660 (a CNN on pixels; a linear model on
scattering features), whose search for settings nobody charges here either.

A seed fixes a model's first weights. Samples and noise come from a fresh key each time, so
accuracies repeat only within their spread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from benchmarks.report import machine
from benchmarks.scattering import CHANNELS, WINDOW, normalised, scattering
from tacit.privacy.dpsgd.engine import make_engine
from tacit.privacy.noise import fresh_key
from tacit.privacy.plan import plan_of
from tacit.privacy.spec import Poisson, Record, RecordLocal, TargetEpsilon

if TYPE_CHECKING:
    from tacit.privacy.plan import PrivacyPlan

EPSILON, DELTA = 3.0, 1e-5
RECORDS, SIDE, CLASSES = 60_000, 28, 10  # of the public description of the data set
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion_mnist"
IDX_HEADER = {"images": 16, "labels": 8}  # bytes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one kind of features is trained on.

    Attributes:
        batch: expected records per step.
        epochs: expected number of times that a record is drawn.
        clip: L2 bound of a record's gradient.
        learning_rate, momentum: of SGD on the noised mean.
        goal: accuracy to reach, percent.
    """

    batch: int
    epochs: int
    clip: float
    learning_rate: float
    momentum: float
    goal: float


SETTINGS = {
    "pixels": Settings(batch=2048, epochs=40, clip=0.1, learning_rate=4.0, momentum=0.9, goal=85.5),
    "scattering": Settings(
        batch=8192,
        epochs=40,
        clip=0.1,
        learning_rate=16.0,
        momentum=0.9,
        goal=89.0,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Features float32, records first; labels int64."""

    features: torch.Tensor
    labels: torch.Tensor


def load_examples(folder: Path, part: str) -> Examples:
    """Read one part (``train`` or ``t10k``) of the published files; pixels in [0, 1]."""
    pixels = _load_idx(folder / f"{part}-images-idx3-ubyte.gz", IDX_HEADER["images"])
    labels = _load_idx(folder / f"{part}-labels-idx1-ubyte.gz", IDX_HEADER["labels"])
    images = pixels.reshape(len(labels), SIDE, SIDE).astype(np.float32) / 255.0
    return Examples(
        features=torch.from_numpy(images), labels=torch.from_numpy(labels.astype(np.int64))
    )


def _load_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def featurise(kind: str, images: torch.Tensor) -> torch.Tensor:
    """Return ``(n, 1, 28, 28)`` pixels or ``(n, 81, 7, 7)`` features; each row of its own image."""
    return normalised(scattering(images)) if kind == "scattering" else images[:, None]


def make_model(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "scattering":
        return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * (SIDE // WINDOW) ** 2, CLASSES))
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, CLASSES),
    )


def make_plan(settings: Settings, *, records: int = RECORDS) -> PrivacyPlan:
    """Return the mechanism of one run: one release at its end, the whole epsilon for it."""
    rate = min(1.0, settings.batch / records)
    return plan_of(
        RecordLocal(
            unit=Record(),
            clip=settings.clip,
            calibration=TargetEpsilon(epsilon=EPSILON),
            delta=DELTA,
            sampling=Poisson(rate=rate),
            releases=1,
            local_steps=max(1, round(settings.epochs / rate)),
            most_owner_records=records,
            normaliser=rate * records,
        )
    )


def train(model: nn.Module, examples: Examples, plan: PrivacyPlan, settings: Settings) -> None:
    """Train in place by SGD on noised gradients, and nothing else of the records."""
    model.train()
    engine = make_engine(model, plan=plan, noise_key=fresh_key())
    optimizer = torch.optim.SGD(
        engine.parameters, lr=settings.learning_rate, momentum=settings.momentum
    )
    began = time.monotonic()
    for step in range(1, plan.local_steps + 1):
        gradients = engine.gradient(examples.features, examples.labels)
        for parameter, gradient in zip(engine.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if step % 50 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"step {step} of {plan.local_steps}, {minutes:.1f} min", file=sys.stderr)


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Return the share of right answers, percent."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(features).argmax(dim=1) == labels).sum())
            for features, labels in zip(
                examples.features.split(1000), examples.labels.split(1000), strict=True
            )
        )
    return 100.0 * right / len(examples.labels)


def measure_seed(
    kind: str, seed: int, parts: tuple[Examples, Examples], plan: PrivacyPlan
) -> dict[str, float]:
    """Return one training's accuracy on the test part, its epsilon and its minutes."""
    learnt, held_out = parts
    model = make_model(kind, seed)
    began, worked = time.monotonic(), time.process_time()
    train(model, learnt, plan, SETTINGS[kind])
    return {
        "seed": seed,
        "accuracy": accuracy(model, held_out),
        "epsilon": plan.epsilon_after(1),
        "minutes": (time.monotonic() - began) / 60,
        "cpu_minutes": (time.process_time() - worked) / 60,
    }


def describe(kind: str, plan: PrivacyPlan) -> str:
    return (
        f"{kind}: record level, {plan.relation.value}, delta {plan.delta:g}; "
        f"{plan.local_steps} steps, sample rate {plan.sample_rate:.4f}, clip {plan.clip}, "
        f"noise multiplier {plan.noise_multiplier:.3f}, normaliser {plan.normaliser:g}"
    )


def load_parts(kind: str, folder: Path) -> tuple[Examples, Examples]:
    """Return training and test part with their features, made once and kept in memory."""
    began = time.monotonic()
    raw = [load_examples(folder, part) for part in ("train", "t10k")]
    learnt, held_out = (
        Examples(features=featurise(kind, part.features), labels=part.labels) for part in raw
    )
    print(f"features {tuple(learnt.features.shape)}, {(time.monotonic() - began) / 60:.1f} min")
    return learnt, held_out


def run(kind: str, seeds: list[int], folder: Path) -> dict[str, object]:
    """Measure the seeds one after the other, and print each as it ends."""
    settings = SETTINGS[kind]
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    plan = make_plan(settings)
    print(describe(kind, plan))
    parts = load_parts(kind, folder)
    rows = []
    for seed in seeds:
        row = measure_seed(kind, seed, parts, plan)
        rows.append(row)
        print(
            f"seed {seed}: accuracy {row['accuracy']:.2f} %, epsilon {row['epsilon']:.3f}, "
            f"{row['minutes']:.1f} min ({row['cpu_minutes']:.1f} of processor)",
            flush=True,
        )
    mean = statistics.mean(row["accuracy"] for row in rows)
    reached = mean >= settings.goal
    print(
        f"mean of {len(rows)}: {mean:.2f} %, epsilon {max(row['epsilon'] for row in rows):.3f}; "
        f"goal {settings.goal} %: {'reached' if reached else 'MISSED'}"
    )
    return {"features": kind, "seeds": rows, "mean": mean, "reached": reached}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy_fashion")
    parser.add_argument("--features", choices=tuple(SETTINGS), default="pixels")
    parser.add_argument("--seeds", default="0,1,2", help="of the first weights")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.data.is_dir():
        print(f"skipped: no Fashion-MNIST under {given.data}")
        return 0
    result = run(given.features, [int(seed) for seed in given.seeds.split(",")], given.data)
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
