"""SGD and Adam of torch.optim, by its functional form.

The first optimizer object of torch.optim in a process imports the whole of torch's compiler: 1.8 s
of CPU time in every worker, more than torch itself. The functions underneath do not, and are the
same arithmetic (tests/learning/test_optimizers.py); what is here is the state between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from tacit.core.specification import TrainingSpec

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, arXiv 1412.6980, algorithm 1


class Optimizer(Protocol):
    """Changes parameters by their gradients."""

    def step(self) -> None:
        """Take one step; a parameter without a gradient stays as it is."""


def make_optimizer(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> Optimizer:
    """Return the optimizer that a run names."""
    if training.optimizer == "adam":
        return Adam(
            parameters, learning_rate=training.learning_rate, weight_decay=training.weight_decay
        )
    return Sgd(
        parameters,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )


def forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Drop the gradients, and the memory that they hold."""
    for parameter in parameters:
        parameter.grad = None


@dataclass
class _Slot:
    """One parameter and what is kept for it between two steps."""

    parameter: nn.Parameter
    velocity: torch.Tensor | None = None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    steps: torch.Tensor = field(default_factory=lambda: torch.tensor(0.0))


class Sgd:
    """Stochastic gradient descent, with momentum and weight decay if they are not 0."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        self._slots = [_Slot(parameter) for parameter in parameters]
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        slots, gradients = _due(self._slots)
        velocities = [slot.velocity for slot in slots]
        sgd(
            [slot.parameter for slot in slots],
            gradients,
            velocities,
            foreach=False,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self._learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for slot, velocity in zip(slots, velocities, strict=True):
            slot.velocity = velocity


class Adam:
    """Adam with weight decay as a part of the gradient, if it is not 0."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float
    ) -> None:
        self._slots = [
            _Slot(parameter, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
            for parameter in parameters
        ]
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        slots, gradients = _due(self._slots)
        adam(
            [slot.parameter for slot in slots],
            gradients,
            [slot.first for slot in slots if slot.first is not None],
            [slot.second for slot in slots if slot.second is not None],
            [],
            [slot.steps for slot in slots],
            foreach=False,
            amsgrad=False,
            beta1=_BETA1,
            beta2=_BETA2,
            lr=self._learning_rate,
            weight_decay=self._weight_decay,
            eps=_EPSILON,
            maximize=False,
        )


def _due(slots: Sequence[_Slot]) -> tuple[list[_Slot], list[torch.Tensor]]:
    """Return the parameters that have a gradient, and their gradients."""
    due = [slot for slot in slots if slot.parameter.grad is not None]
    return due, [slot.parameter.grad for slot in due if slot.parameter.grad is not None]
