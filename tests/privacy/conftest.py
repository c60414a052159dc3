"""A small run to derive plans from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tacit.core.configuration import from_plain
from tacit.core.specification import RunSpec

MakeRun = Callable[..., RunSpec]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Train as the app does; more threads than cores make tiny models slow."""
    torch.set_num_threads(1)


@pytest.fixture
def make_run() -> MakeRun:
    """Return a maker of runs under DP; keywords replace whole sections."""

    def make(**sections: Any) -> RunSpec:
        plain: dict[str, Any] = {
            "name": "test",
            "data": {
                "classes": ["a", "b"],
                "columns": {"x": {"type": "number", "range": [0.0, 1.0]}},
            },
            "model": {"kind": "logistic"},
            "training": {"learning_rate": 1.0, "local_steps": 2, "validation_fraction": 0.25},
            "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
            "participation": {"rounds": 10},
        }
        plain.update(sections)
        return from_plain(
            {key: value for key, value in plain.items() if value is not None}, RunSpec
        )

    return make
