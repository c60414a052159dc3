"""Runs of the quick app: their specification, their first weights, and what they must end in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.artifacts import save_arrays
from tacit.core.specification import (
    AppSpec,
    MetricSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 3
Arrays = dict[str, np.ndarray[Any, Any]]


def quick_spec(**config: str) -> RunSpec:
    """Return a run of the quick app: three rounds of FedAvg over two owners."""
    return RunSpec(
        name="quick",
        privacy=PrivacySpec(mode=PrivacyMode.NONE),
        participation=ParticipationSpec(rounds=ROUNDS, min_clients=2),
        app=AppSpec(client="quick_app:app", config=config),
        initial="initial.safetensors",
        results={"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(0.0, 10.0))})},
    )


PRIVACY = PrivacySpec(mode=PrivacyMode.CLIENT_LOCAL, clip=1.0, noise_multiplier=100.0, delta=1e-3)
DATA_SET = """\
[data_sets.default]
path = "data.csv"
records = 500
budget = 100
"""


def private_spec(**config: str) -> RunSpec:
    """Return a run of the quick app whose updates the node clips and noises: each is charged."""
    results = {"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(0.0, 10.0))})}
    return replace(quick_spec(**config), name="private", privacy=PRIVACY, results=results)


def with_clients(run: RunSpec, min_clients: int, **participation: Any) -> RunSpec:
    """Return the run with another participation."""
    people = replace(run.participation, min_clients=min_clients, **participation)
    return replace(run, participation=people)


def initial_arrays(rows: int = 31) -> Arrays:
    """Return the weights before round 1."""
    rng = np.random.default_rng(3)
    return {
        "layer.weight": rng.normal(size=(rows, 7)).astype(np.float32),
        "layer.bias": rng.normal(size=7).astype(np.float32),
    }


def initial_file(folder: Path, rows: int = 31) -> Path:
    """Write the first weights."""
    path = folder / "initial.safetensors"
    save_arrays(path, initial_arrays(rows))
    return path


def assert_same_bits(expected: Arrays, got: Arrays) -> None:
    """Compare names, order, dtypes and every bit."""
    assert list(expected) == list(got)
    for name, array in expected.items():
        assert array.dtype == got[name].dtype
        assert array.tobytes() == got[name].tobytes(), f"{name} differs"
