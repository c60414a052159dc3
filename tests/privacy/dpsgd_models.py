"""Small models and plans for tests of the DP-SGD engine, and the definition that it must equal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from tacit.core.specification import PrivacyMode, PrivacyUnit
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEY = bytes(range(32))
QUIET = PrivacyPlan(
    mode=PrivacyMode.RECORD_LOCAL,
    releases=1,
    local_steps=100,
    sample_rate=1.0,
    noise_multiplier=1e-12,  # below what a plan may hold: shows the sums themselves
    clip=1.0,
    normaliser=1.0,
    epsilon=math.inf,
    delta=1e-5,
    unit=PrivacyUnit.RECORD,
)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


def gradient_of_unit(
    model: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """The gradient of some records' summed loss, by autograd, in float64."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(model(features), labels, reduction="sum")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros(p.shape, dtype=torch.float64) if g is None else g.double()
        for p, g in zip(parameters, gradients, strict=True)
    ]


def clipped_sum(
    model: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    clip: float,
    units: Iterable[Sequence[int]] | None = None,
) -> list[torch.Tensor]:
    """The definition, one unit at a time."""
    sums = [
        torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters() if p.requires_grad
    ]
    for rows in units if units is not None else [[row] for row in range(len(labels))]:
        gradients = gradient_of_unit(model, features[list(rows)], labels[list(rows)])
        norm = norm_of(gradients)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient, alpha=min(1.0, clip / max(norm, 1e-300)))
    return sums


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    """The L2 norm over all tensors together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def distance(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The L2 distance over all tensors together."""
    return norm_of(one.double() - other.double() for one, other in zip(ones, others, strict=True))
