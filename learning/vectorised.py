"""Many models trained at once: shadow models of an attack, each on its own records of one pool.

Promises: the models equal those of :func:`tacit.learning.training.train_model`, called once a round
with the same batches and first weights, up to float rounding; a model depends on its own records
and seed, not on which models are trained beside it. Trains on one thread: more of them slow down
models this small, and more processes do not.
"""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, vmap

from tacit.core.errors import AppError
from tacit.learning.shadow_recipe import Draws, ShadowRecipe, steps_of_round
from tacit.learning.stacked_gradients import (
    StackedGradients,
    models_at_once,
    pool_for,
    stacked_gradients,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tacit.learning.prepared import Examples
    from tacit.learning.stacked_dense import Tensors

    Progress = Callable[[int, int], None]

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_ANSWERED_NUMBERS = 1 << 20  # of one pass: models x records x the widest layer
_REPORTED_STEPS = 50
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's, as torch's defaults


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """One model to be trained.

    Attributes:
        start: its first weights; read, never changed.
        rows: int64 ``(n,)``, positions of its records in the pool.
        seed: of its batches, samples and noise.
    """

    start: nn.Module
    rows: Int64Array
    seed: int


@dataclass(frozen=True, eq=False)
class StackedModels:
    """Models of one architecture, their weights stacked.

    Attributes:
        state: parameters and buffers by name, models first.
        template: the architecture; its own weights mean nothing.
    """

    state: Tensors
    template: nn.Module

    def __len__(self) -> int:
        return len(next(iter(self.state.values())))

    def model(self, index: int) -> nn.Module:
        """Return one of the models, in evaluation mode."""
        model = copy.deepcopy(self.template)
        model.load_state_dict({name: value[index] for name, value in self.state.items()})
        return model.eval()

    def logits(self, features: Float32Array) -> Float32Array:
        """Return float32 ``(models, n, classes)`` for features ``(n, ...)``."""
        template = copy.deepcopy(self.template).eval()

        def answer(state: Tensors, records: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = functional_call(template, state, (records,))
            return logits

        widths = [value.shape[1] for value in self.state.values() if value.ndim > 1]
        width = max(math.prod(features.shape[1:]), *widths)
        size = max(1, _ANSWERED_NUMBERS // (len(self) * width))
        with torch.no_grad(), _one_thread():
            parts = [
                vmap(answer, in_dims=(0, None))(self.state, part).numpy()
                for part in torch.split(torch.from_numpy(features), size)
            ]
        return np.concatenate(parts, axis=1, dtype=np.float32)


def train_together(
    shadows: Sequence[Shadow],
    pool: Examples,
    recipe: ShadowRecipe,
    *,
    progress: Progress | None = None,
) -> StackedModels:
    """Train models of one architecture, each on its own records of the pool.

    Args:
        shadows: at least one, each with at least one record.
        pool: what their rows count in.
        recipe: the same for all.
        progress: called now and then with steps done and steps in all, of all models together.

    Raises:
        AppError: weights are no longer finite (``E-TRAINING-DIVERGED``).
        ConfigError: the model mixes records or its buffers learn (``E-MODEL-NOT-DP``).
        ValueError: there is no shadow, or one without records.
    """
    if not shadows or any(len(shadow.rows) == 0 for shadow in shadows):
        raise ValueError("expected at least one model, and records for each")
    with _one_thread():
        state = _trained(shadows, pool, recipe, progress)
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise AppError(
            "E-TRAINING-DIVERGED",
            "expected finite weights after training shadow models, got others",
            hint="the recipe's learning rate is too high for this many records",
        )
    return StackedModels(state=state, template=copy.deepcopy(shadows[0].start))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _trained(
    shadows: Sequence[Shadow], pool: Examples, recipe: ShadowRecipe, progress: Progress | None
) -> Tensors:
    features, labels = torch.from_numpy(pool.features), torch.from_numpy(pool.labels)
    first = shadows[0].start
    prepared = pool_for(first, features, labels)
    rows = max(_rows_at_once(shadow, recipe) for shadow in shadows)
    size = models_at_once(first, prepared, rows=max(1, rows))
    count = _Count(total=len(shadows) * recipe.steps, progress=progress)
    states = []
    for start in range(0, len(shadows), size):
        group = shadows[start : start + size]
        source = stacked_gradients([shadow.start for shadow in group], prepared)
        draws = [Draws(torch.from_numpy(s.rows), recipe, seed=s.seed) for s in group]
        for round_number in range(recipe.rounds):
            _train_round(source, draws, recipe, round_number, count)
        states.append(source.state())
    return {name: torch.cat([part[name] for part in states]) for name in states[0]}


def _rows_at_once(shadow: Shadow, recipe: ShadowRecipe) -> int:
    records = len(shadow.rows)
    if recipe.plan.trains_with_noise:
        return math.ceil(records * recipe.plan.sample_rate)
    return min(recipe.training.batch_size or records, records)


class _Count:
    """Steps done, told now and then."""

    def __init__(self, *, total: int, progress: Progress | None) -> None:
        self._done, self._told, self._total, self._progress = 0, 0, total, progress

    def add(self, steps: int) -> None:
        self._done += steps
        due = self._done - self._told >= _REPORTED_STEPS * steps or self._done == self._total
        if self._progress is not None and due:
            self._told = self._done
            self._progress(self._done, self._total)


def _train_round(
    source: StackedGradients,
    draws: Sequence[Draws],
    recipe: ShadowRecipe,
    round_number: int,
    count: _Count,
) -> None:
    received = source.parameters.clone()
    optimiser = _Optimiser(source, recipe)
    clip = recipe.plan.clip if recipe.plan.trains_with_noise else math.inf
    noise = torch.zeros_like(received) if recipe.plan.is_private else received[:0]
    for step in steps_of_round(draws, recipe, round_number):
        source.compute(step, clip=clip)
        if recipe.plan.trains_with_noise:
            _draw(source, draws, noise)
            source.gradient.add_(noise, alpha=recipe.step_noise).div_(recipe.plan.normaliser)
        if recipe.training.proximal_mu:
            source.gradient.add_(source.parameters - received, alpha=recipe.training.proximal_mu)
        optimiser.step()
        count.add(len(draws))
    if recipe.update_noise:
        _draw(source, draws, noise)
        _noise_updates(source, received, noise, recipe, models=len(draws))


def _draw(source: StackedGradients, draws: Sequence[Draws], noise: torch.Tensor) -> None:
    for index, model in enumerate(draws):
        for part in source.of_model(noise, index):
            model.fill_noise(part)


def _noise_updates(
    source: StackedGradients,
    received: torch.Tensor,
    noise: torch.Tensor,
    recipe: ShadowRecipe,
    *,
    models: int,
) -> None:
    """Clip and noise each model's change over a round, as ``privacy/update.py`` does a reply's."""
    change = source.parameters - received
    for index in range(models):
        parts = source.of_model(change, index)
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
        factor = min(1.0, recipe.plan.clip / norm) if 0 < norm < math.inf else 0.0
        for part in parts:
            part.mul_(factor)
    torch.add(received, change, out=source.parameters)
    source.parameters.add_(noise, alpha=recipe.update_noise)


class _Optimiser:
    """SGD with momentum or Adam, as ``torch.optim`` has them, on all models' numbers at once."""

    def __init__(self, source: StackedGradients, recipe: ShadowRecipe) -> None:
        self._source, self._training = source, recipe.training
        self._steps = 0
        adam = self._training.optimizer == "adam"
        moments = 2 if adam else int(self._training.momentum > 0)
        self._moments = [torch.zeros_like(source.parameters) for _ in range(moments)]

    def step(self) -> None:
        """Change the parameters by the gradient, which is used up."""
        self._steps += 1
        gradient, parameters = self._source.gradient, self._source.parameters
        if self._training.weight_decay:
            gradient.add_(parameters, alpha=self._training.weight_decay)
        if self._training.optimizer == "adam":
            self._adam(parameters, gradient)
            return
        if self._moments:
            gradient = self._moments[0].mul_(self._training.momentum).add_(gradient)
        parameters.add_(gradient, alpha=-self._training.learning_rate)

    def _adam(self, parameters: torch.Tensor, gradient: torch.Tensor) -> None:
        """Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1."""
        (first, second), (beta1, beta2) = self._moments, _BETAS
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        root = (second / (1.0 - beta2**self._steps)).sqrt_().add_(_EPSILON)
        rate = self._training.learning_rate / (1.0 - beta1**self._steps)
        parameters.addcdiv_(first, root, value=-rate)
