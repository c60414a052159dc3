"""The summed gradient of many models at once, each by its own records, in one vector.

Two ways, with the same result up to rounding: chains of dense layers as ``stacked_dense.py`` has
them, and every other model by ``torch.func``.

Promises: a record's weight multiplies its gradient after the clip, so a record of weight 0, which
only fills up a batch, adds nothing. Sums are float32: nothing here is released, so nothing here
needs the engine's float64 sums (``privacy/dpsgd``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from tacit.learning.stacked_dense import (
    MOST_ROWS,
    DenseGradients,
    Tensors,
    clip_factors,
    dense_layers,
    pieces_of,
)
from tacit.privacy.dpsgd.validation import verify_records_do_not_mix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.learning.shadow_recipe import Step

# Numbers that one pass works on: 2 MB, which stay in the processor's cache. Sixteen MLPs of 32
# hidden units at batch 256 fill it, and are trained a tenth faster than 4 or 64 at a time.
_CACHE_NUMBERS = 1 << 19
# Input numbers of models that go through torch.func together. Beyond it the arithmetic outweighs
# the overhead that vmap shares out, and a convolution with a batch of weights is the slower one.
_GENERAL_NUMBERS = 1 << 16
_WRITTEN_NUMBERS = 1 << 22  # per-record gradients written out at once, where there is no other way


class StackedGradients(Protocol):
    """Many models of one architecture whose trained numbers lie in one vector.

    Attributes:
        parameters: float32 ``(numbers,)``, all models' trained parameters.
        gradient: float32 ``(numbers,)``, laid out the same.
    """

    @property
    def parameters(self) -> torch.Tensor: ...
    @property
    def gradient(self) -> torch.Tensor: ...

    def compute(self, step: Step, *, clip: float) -> None:
        """Overwrite ``gradient`` with each model's weighted sum over its records.

        Args:
            step: which records, with which weights.
            clip: L2 bound of one record's gradient over all parameters; infinite for none.
        """

    def of_model(self, vector: torch.Tensor, model: int) -> list[torch.Tensor]:
        """Return the parts of a vector laid out like ``parameters`` that belong to one model."""

    def state(self) -> Tensors:
        """Return parameters and buffers by name, models first, as copies."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Records as the chosen way reads them, the same for every group of models.

    Attributes:
        features: float32, records first; flat and with a last column of ones for dense chains.
        labels: int64.
        dense: which way.
    """

    features: torch.Tensor
    labels: torch.Tensor
    dense: bool


def pool_for(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Pool:
    """Choose the way for a model, and prepare the records for it.

    Raises:
        ConfigError: records influence one another, so that filled-up batches would change the
            result, or a buffer learns (``E-MODEL-NOT-DP``).
    """
    layers = dense_layers(model)
    if layers is not None and layers[0][1].in_features == math.prod(features.shape[1:]):
        ones = torch.ones(len(features), 1)
        return Pool(torch.cat([features.flatten(1), ones], dim=1), labels, dense=True)
    verify_records_do_not_mix(model, shape=tuple(features.shape[1:]))
    return Pool(features, labels, dense=False)


def stacked_gradients(models: Sequence[nn.Module], pool: Pool) -> StackedGradients:
    """Return the gradients of models of one architecture, at least one; weights are copied."""
    if pool.dense:
        return DenseGradients(models, pool.features, pool.labels)
    return GeneralGradients(models, pool.features, pool.labels)


def models_at_once(model: nn.Module, pool: Pool, *, rows: int) -> int:
    """Return how many models to train together, by what one pass of them works on.

    Args:
        model: one of them.
        pool: its records.
        rows: of one model in one step.
    """
    width = math.prod(pool.features.shape[1:])
    if not pool.dense:
        return max(1, _GENERAL_NUMBERS // max(1, rows * width))
    width += 3 * sum(layer.out_features for _, layer, _ in dense_layers(model) or [])
    return max(1, _CACHE_NUMBERS // (min(rows, MOST_ROWS) * width))


class GeneralGradients:
    """Any model that treats each record by itself, by ``torch.func``."""

    def __init__(
        self, models: Sequence[nn.Module], features: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self._features, self._labels = features, labels
        self._template = models[0]
        states = [
            {**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models
        ]
        stacked = {
            name: torch.stack([state[name].detach() for state in states]) for name in states[0]
        }
        self._names = [name for name, p in models[0].named_parameters() if p.requires_grad]
        self._shapes = [stacked[name].shape for name in self._names]
        self.parameters = torch.cat([stacked[name].flatten() for name in self._names])
        self.gradient = torch.zeros_like(self.parameters)
        self._constants = {
            name: value for name, value in stacked.items() if name not in self._names
        }
        self._trained = dict(zip(self._names, self._views(self.parameters), strict=True))

    def compute(self, step: Step, *, clip: float) -> None:
        """Overwrite ``gradient``; see :class:`StackedGradients`."""
        self.gradient.zero_()
        if math.isfinite(clip):
            size = max(1, _WRITTEN_NUMBERS // max(1, len(self.parameters)))
            sums: Callable[..., list[torch.Tensor]] = self._clipped_sums
        else:
            size, sums = MOST_ROWS, self._plain_sums
        modes = {module: module.training for module in self._template.modules()}
        self._template.train()
        try:
            for rows, weights in pieces_of(step, size):
                parts = sums(self._features[rows], self._labels[rows], weights, clip)
                for total, part in zip(self._views(self.gradient), parts, strict=True):
                    total.add_(part)
        finally:
            for module, mode in modes.items():
                module.training = mode

    def of_model(self, vector: torch.Tensor, model: int) -> list[torch.Tensor]:
        """Return one model's parts of a vector, parameter by parameter."""
        return [part[model] for part in self._views(vector)]

    def state(self) -> Tensors:
        """Return parameters and buffers by name."""
        return {name: value.clone() for name, value in {**self._trained, **self._constants}.items()}

    def _views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes]
        return [
            part.view(shape)
            for part, shape in zip(torch.split(vector, sizes), self._shapes, strict=True)
        ]

    def _each_model(self, function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        if self._shapes[0][0] > 1:
            return vmap(function, randomness="different")

        def of_one(trained: Tensors, constants: Tensors, *batch: torch.Tensor) -> Tensors:
            states = (
                {name: value[0].detach() for name, value in part.items()}
                for part in (trained, constants)
            )
            found = function(*states, *(part[0] for part in batch))
            return {name: value[None] for name, value in found.items()}

        return of_one

    def _by_autograd(self, trained: Tensors, constants: Tensors, *batch: torch.Tensor) -> Tensors:
        """Do what ``grad(self._loss)`` does, without torch.func's overhead."""
        leaves = {name: value.requires_grad_() for name, value in trained.items()}
        loss = self._loss(leaves, constants, *batch)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def _loss(self, trained: Tensors, constants: Tensors, *batch: torch.Tensor) -> torch.Tensor:
        features, labels, weights = batch
        logits: Any = functional_call(self._template, (trained, constants), (features,))
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (losses * weights).sum()

    def _plain_sums(
        self, features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, _clip: float
    ) -> list[torch.Tensor]:
        alone = self._shapes[0][0] == 1
        of_each = self._each_model(self._by_autograd if alone else grad(self._loss))
        gradients = of_each(self._trained, self._constants, features, labels, weights)
        return [gradients[name] for name in self._names]

    def _clipped_sums(
        self, features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, clip: float
    ) -> list[torch.Tensor]:
        one = vmap(grad(self._loss), in_dims=(None, None, 0, 0, 0), randomness="different")
        gradients = self._each_model(one)(
            self._trained,
            self._constants,
            features[:, :, None],
            labels[:, :, None],
            torch.ones_like(weights)[:, :, None],
        )
        written = [gradients[name].flatten(2) for name in self._names]
        norms = torch.stack([part.square().sum(dim=2) for part in written]).sum(dim=0).sqrt()
        factors = clip_factors(norms, clip) * weights
        # Zero times infinity is not zero: what does not count must not be there.
        counts = (factors > 0)[:, :, None]
        return [
            torch.bmm(factors[:, None], torch.where(counts, part, 0.0)).view(shape)
            for part, shape in zip(written, self._shapes, strict=True)
        ]
