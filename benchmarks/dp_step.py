"""``python -m benchmarks.dp_step``: what a DP-SGD step costs, as a ratio to a plain SGD step.

Four models at batch 256, one thread; our engine beside Opacus' per-example hooks and Opacus' ghost
clipping. A step is everything from the batch to the new weights: gradients, clipping, noise
(ours from AES-CTR, Opacus' from torch's generator), optimiser. All engines of a model are timed
in turns in one process; memory is measured in a fresh process each, as the high-water mark of
resident memory above what it held before the first step.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import memory_of
from benchmarks.report import machine
from tacit.core.specification import PrivacyMode, PrivacyUnit
from tacit.privacy.dpsgd.engine import make_engine
from tacit.privacy.noise import fresh_key
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], None]

BATCH, CLIP, NOISE = 256, 1.0, 1.0
ENGINES = ("plain", "tacit", "ghost", "hooks")
ROOT = Path(__file__).resolve().parent.parent


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "mlp-203k":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 10))
    if name == "mlp-1.86M":
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in ((784, 1024), (1024, 1024)):
            layers += [nn.Linear(width, following), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(1024, 10))
    if name == "cnn-26k":  # the network of Opacus' MNIST example
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


MODELS = ("mlp-203k", "mlp-1.86M", "cnn-26k", "cnn-422k")


def make_step(engine: str, model: nn.Module, batch: int) -> Step:
    """Return a function that makes one optimiser step on a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    features = torch.rand((batch, 1, 28, 28), generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    if engine == "plain":
        return _plain_step(model, sgd, nn.CrossEntropyLoss(), features, labels)
    if engine == "tacit":
        return _tacit_step(model, sgd, features, labels)
    return _opacus_step(engine, model, sgd, features, labels)


def _plain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    labels: torch.Tensor,
) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        criterion(model(features), labels).backward()
        optimizer.step()

    return step


def _tacit_step(
    model: nn.Module, sgd: torch.optim.Optimizer, features: torch.Tensor, labels: torch.Tensor
) -> Step:
    engine = make_engine(model, plan=plan_of(len(labels)), noise_key=fresh_key())

    def step() -> None:
        sgd.zero_grad()
        gradients = engine.gradient(features, labels)
        for parameter, gradient in zip(engine.parameters, gradients, strict=True):
            parameter.grad = gradient
        sgd.step()

    return step


def _opacus_step(
    mode: str,
    model: nn.Module,
    sgd: torch.optim.Optimizer,
    features: torch.Tensor,
    labels: torch.Tensor,
) -> Step:
    from opacus import PrivacyEngine  # noqa: PLC0415 - must not weigh on the other measurements

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(features, labels), batch_size=len(labels)
    )
    options: dict[str, Any] = {"noise_multiplier": NOISE, "max_grad_norm": CLIP}
    options |= {"data_loader": loader, "poisson_sampling": False, "grad_sample_mode": mode}
    criterion: Any = nn.CrossEntropyLoss()
    if mode == "ghost":
        private, optimizer, criterion, _ = PrivacyEngine().make_private(
            module=model, optimizer=sgd, criterion=criterion, **options
        )
    else:
        private, optimizer, _ = PrivacyEngine().make_private(module=model, optimizer=sgd, **options)
    return _plain_step(private, optimizer, criterion, features, labels)


def plan_of(batch: int) -> PrivacyPlan:
    return PrivacyPlan(
        mode=PrivacyMode.RECORD_LOCAL,
        releases=1,
        local_steps=1_000_000,
        sample_rate=1.0,
        noise_multiplier=NOISE,
        clip=CLIP,
        normaliser=float(batch),
        epsilon=math.inf,
        delta=1e-5,
        unit=PrivacyUnit.RECORD,
    )


def measure_times(model: str, *, batch: int, turns: int) -> dict[str, float]:
    """Return the median CPU seconds of a step of each engine, taken in turns."""
    steps = {engine: make_step(engine, make_model(model), batch) for engine in ENGINES}
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for turn in range(turns + 1):
        for engine, step in steps.items():
            for _ in range(1 if engine == "hooks" else 5):
                began = time.process_time()
                step()
                if turn:  # the first is a warm-up
                    seconds[engine].append(time.process_time() - began)
    return {engine: statistics.median(taken) for engine, taken in seconds.items()}


def measure_memory(model: str, engine: str, *, batch: int) -> float:
    """Return the megabytes that three steps need at most, beyond model, data and libraries."""
    network = make_model(model)
    step = make_step(engine, network, batch)
    functional.relu(torch.zeros(1))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
    before, _ = memory_of(_own_pid())
    for _ in range(3):
        step()
    _, peak = memory_of(_own_pid())
    return (peak - before) / 1e6


def _own_pid() -> int:
    return int(Path("/proc/self").resolve().name)


def run_child(arguments: list[str]) -> Any:  # noqa: ANN401 - JSON
    command = [sys.executable, "-m", "benchmarks.dp_step", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(model: str, *, batch: int, turns: int) -> list[dict[str, Any]]:
    """Return one row per engine: seconds, ratio to plain, megabytes."""
    common = ["--model", model, "--batch", str(batch), "--turns", str(turns)]
    seconds = run_child([*common, "--child", "times"])
    return [
        {
            "model": model,
            "engine": engine,
            "seconds": seconds[engine],
            "ratio": seconds[engine] / seconds["plain"],
            "megabytes": run_child([*common, "--child", engine]),
        }
        for engine in ENGINES
    ]


def render(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'model':>10}  {'engine':<6}  {'ms/step':>9}  {'x plain':>8}  {'peak MB':>8}"]
    lines.append("-" * len(lines[0]))
    lines += [
        f"{row['model']:>10}  {row['engine']:<6}  {row['seconds'] * 1e3:9.2f}"
        f"  {row['ratio']:8.2f}  {row['megabytes']:8.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dp_step", description=__doc__)
    parser.add_argument("--model", choices=MODELS, action="append", help="may be repeated")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--turns", type=int, default=9, help="timed turns of all engines")
    parser.add_argument("--short", action="store_true", help="8 records, 1 turn: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--child", choices=("times", *ENGINES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    batch, turns = (8, 1) if given.short else (given.batch, given.turns)
    models = given.model or MODELS
    if given.child:
        warnings.simplefilter("ignore")  # Opacus' own
        result = (
            measure_times(models[0], batch=batch, turns=turns)
            if given.child == "times"
            else measure_memory(models[0], given.child, batch=batch)
        )
        print(json.dumps(result))
        return 0
    rows = [row for model in models for row in measure(model, batch=batch, turns=turns)]
    facts = machine()
    print("; ".join(f"{key} {value}" for key, value in facts.items()))
    print(render(rows))
    if given.json is not None:
        content = {"machine": facts, "results": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
