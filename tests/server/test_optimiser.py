"""The server's optimiser is torch's, step by step, and goes on from a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tacit.core.specification import TrainingSpec
from tacit.server.optimiser import Optimiser

TRAININGS = [
    TrainingSpec(learning_rate=0.1),
    TrainingSpec(learning_rate=0.1, momentum=0.9, weight_decay=0.01),
    TrainingSpec(learning_rate=0.01, optimizer="adam"),
    TrainingSpec(learning_rate=0.01, optimizer="adam", weight_decay=0.1),
]


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_steps_are_those_of_torch(training: TrainingSpec) -> None:
    """Ten steps on the same gradients end within float32's rounding of torch's own optimiser,
    also when the state went through a checkpoint half-way."""
    rng = np.random.default_rng(3)
    start = rng.normal(size=(3, 2)).astype("<f4")
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    if training.optimizer == "adam":
        theirs: torch.optim.Optimizer = torch.optim.Adam(
            [parameter], lr=training.learning_rate, weight_decay=training.weight_decay
        )
    else:
        theirs = torch.optim.SGD(
            [parameter],
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    ours = Optimiser(training)
    weights = {"w": start, "count": np.array(3, "<i8")}
    for number in range(10):
        gradient = rng.normal(size=(3, 2))
        parameter.grad = torch.from_numpy(gradient.astype("<f4"))
        theirs.step()
        weights = ours.step(weights, {"w": gradient})
        if number == 4:
            ours = Optimiser(training, {"other": np.ones(2)} | ours.state())
    np.testing.assert_allclose(weights["w"], parameter.detach().numpy(), rtol=2e-5, atol=2e-6)
    assert weights["w"].dtype == np.dtype("<f4")
    assert weights["count"] == 3
