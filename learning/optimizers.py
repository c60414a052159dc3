"""SGD and Adam, as torch.optim computes them, without what torch.optim loads.

The first optimizer of torch.optim in a process imports the whole of torch's compiler: 1.8 s of CPU
time in every worker, more than torch itself, for arithmetic of three lines. The steps here are
those of torch 2's ``_single_tensor_sgd`` and ``_single_tensor_adam``, operation by operation, so
that weights are equal to the last bit (tests/learning/test_optimizers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

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
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._velocities: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            change = _decayed(parameter, parameter.grad, self._weight_decay)
            if self._momentum != 0.0:
                velocity = self._velocities.get(index)
                if velocity is None:
                    velocity = self._velocities[index] = change.clone()
                else:
                    velocity.mul_(self._momentum).add_(change)
                change = velocity
            parameter.add_(change, alpha=-self._learning_rate)


class Adam:
    """Adam with weight decay as a part of the gradient, if it is not 0."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float
    ) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._steps: dict[int, int] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            gradient = _decayed(parameter, parameter.grad, self._weight_decay)
            steps = self._steps[index] = self._steps.get(index, 0) + 1
            if steps == 1:
                self._moments[index] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            first, second = self._moments[index]
            first.lerp_(gradient, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            size = self._learning_rate / (1 - _BETA1**steps)
            spread = (second.sqrt() / (1 - _BETA2**steps) ** 0.5).add_(_EPSILON)
            parameter.addcdiv_(first, spread, value=-size)


def _decayed(parameter: nn.Parameter, gradient: torch.Tensor, weight_decay: float) -> torch.Tensor:
    return gradient if weight_decay == 0.0 else gradient.add(parameter, alpha=weight_decay)
