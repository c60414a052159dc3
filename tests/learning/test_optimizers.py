from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tacit.core.specification import TrainingSpec
from tacit.learning.optimizers import forget_gradients, make_optimizer

STEPS = 12

TRAIN = """
import sys
import numpy as np
from tacit.core.specification import TrainingSpec
from torch import nn
import torch
from tacit.learning.optimizers import make_optimizer
import tacit.learning.training
parameter = nn.Parameter(torch.ones(3))
parameter.grad = torch.ones(3)
for name in ("sgd", "adam"):
    make_optimizer([parameter], TrainingSpec(learning_rate=0.1, optimizer=name)).step()
print(sorted({"torch._dynamo", "pandas", "opacus"} & set(sys.modules)))
"""


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    shapes = [(5, 3), (3,), (2, 2, 2), (4,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step: int) -> list[torch.Tensor | None]:
    """Other ones in each step; the last parameter has none at first, and is skipped."""
    generator = torch.Generator().manual_seed(step)
    made: list[torch.Tensor | None] = [
        torch.randn(p.shape, generator=generator) for p in parameters()
    ]
    return [*made[:-1], made[-1] if step >= 3 else None]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"optimizer": "sgd"}, {}),
        ({"optimizer": "sgd", "momentum": 0.9}, {"momentum": 0.9}),
        ({"optimizer": "sgd", "weight_decay": 0.01}, {"weight_decay": 0.01}),
        (
            {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1},
            {"momentum": 0.5, "weight_decay": 0.1},
        ),
        ({"optimizer": "adam"}, {}),
        ({"optimizer": "adam", "weight_decay": 0.01}, {"weight_decay": 0.01}),
    ],
)
def test_weights_are_those_of_torch_optim_to_the_last_bit(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Every operation is the same, in the same order, over steps with and without a gradient."""
    mine, reference = parameters(), parameters()
    optimizer = make_optimizer(mine, TrainingSpec(learning_rate=0.05, **ours))
    make = torch.optim.Adam if ours["optimizer"] == "adam" else torch.optim.SGD
    expected: torch.optim.Optimizer = make(reference, lr=0.05, **theirs)
    for step in range(STEPS):
        for one, other, gradient in zip(mine, reference, gradients(step), strict=True):
            one.grad = None if gradient is None else gradient.clone()
            other.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        expected.step()
    for one, other in zip(mine, reference, strict=True):
        assert one.detach().numpy().tobytes() == other.detach().numpy().tobytes()
    forget_gradients(mine)
    assert [parameter.grad for parameter in mine] == [None] * len(mine)


@pytest.mark.slow
def test_training_loads_no_compiler_and_no_tables() -> None:
    """What a worker does not use costs it seconds: torch's compiler, pandas, Opacus."""
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
