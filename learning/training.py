"""What an owner does between two messages: a few optimiser steps on their own records.

Promises: without differential privacy, batches follow from the seed; with it, every gradient that
an optimiser sees comes noised from the engine, and everything after that (momentum, Adam, weight
decay, FedProx's pull towards the received weights) works on noised gradients and public weights
alone: post-processing, which costs nothing.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tacit.core.errors import AppError, ConfigError, RefusedError
from tacit.core.logs import NOTE
from tacit.core.results import MAX_LOSS
from tacit.learning.optimizers import forget_gradients, make_optimizer
from tacit.privacy.dpsgd.engine import make_engine
from tacit.privacy.dpsgd.share import make_share_engine
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from tacit.core.specification import TrainingSpec
    from tacit.learning.prepared import Examples
    from tacit.privacy.distributed.plan import DistributedPlan, RunPlan
    from tacit.privacy.dpsgd.canaries import Canaries, CanaryScores
    from tacit.privacy.dpsgd.engine import Engine

logger = logging.getLogger("tacit.learning.training")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train for one message.

    Attributes:
        training: steps, optimiser, batches.
        plan: the mechanism.
        proximal_mu: weight of FedProx's proximal term; 0 is none.
        batch_seed: names the batches without differential privacy; never noise.
    """

    training: TrainingSpec
    plan: RunPlan
    proximal_mu: float = 0.0
    batch_seed: int = 0


def train_model(
    model: nn.Module, examples: Examples, recipe: Recipe, *, noise_key: bytes | None = None
) -> float:
    """Train ``model`` in place; return the mean training loss before each step.

    Under differential privacy the loss is not computed (it is a function of the records) and the
    result is NaN.

    Raises:
        RefusedError: the plan needs a noise key and none was handed over (``E-NOISE-KEY-MISSING``).
        AppError: the weights are no longer finite (``E-TRAINING-DIVERGED``).
    """
    if not recipe.plan.trains_with_noise:
        loss = _train_plain(model, examples, recipe)
    elif noise_key is None:
        raise _without_key()
    else:
        _train_private(model, examples, recipe, noise_key)
        loss = math.nan
    _verify_finite(model)
    return loss


def train_with_canaries(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    noise_key: bytes | None,
    canaries: Canaries,
) -> CanaryScores:
    """Train as :func:`train_model` does, with directions in; return what this release says of them.

    Raises:
        RefusedError: there is no noise key (``E-NOISE-KEY-MISSING``), or the plan adds no noise
            (``E-MODE-NOT-BUILT``).
        AppError: the weights are no longer finite (``E-TRAINING-DIVERGED``).
    """
    if noise_key is None:
        raise _without_key()
    engine = _train_private(model, examples, recipe, noise_key, canaries=canaries)
    _verify_finite(model)
    return engine.canary_scores()


def gradient_share(
    model: nn.Module, examples: Examples, plan: DistributedPlan, *, noise_key: bytes | None
) -> npt.NDArray[np.uint32]:
    """Return this owner's share of one noised sum of clipped gradients (uint32, ``(d,)``).

    Args:
        model: at the weights that were sent.
        examples: all training records.
        plan: of mode ``record-distributed``.
        noise_key: 32 bytes, for this one sum.

    Raises:
        RefusedError: there is no noise key (``E-NOISE-KEY-MISSING``).
        ConfigError: the model has real numbers that are not trained (``E-MODEL-FROZEN``), or
            layers without per-example gradients (``E-MODEL-NOT-DP``).
    """
    if noise_key is None:
        raise _without_key()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    held = [name for name, t in model.state_dict().items() if t.is_floating_point()]
    if trained != held:
        frozen = sorted(set(held) - set(trained))
        raise ConfigError(
            "E-MODEL-FROZEN",
            f"expected a model whose real numbers are all trained, got others: {frozen[:5]}",
            hint='mode "record-local" trains a part of a model.',
        )
    model.train()
    engine = make_share_engine(model, plan=plan, noise_key=noise_key, subjects=examples.subjects)
    features, labels = _tensors(examples)
    return engine.share(features, labels)


def _without_key() -> RefusedError:
    return RefusedError(
        "E-NOISE-KEY-MISSING",
        "expected a noise key from the node, got none: without noise nothing may be trained",
    )


def _verify_finite(model: nn.Module) -> None:
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise AppError(
            "E-TRAINING-DIVERGED",
            "expected finite weights after training, got others",
            hint="lower training.learning_rate",
        )


def _train_private(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    noise_key: bytes,
    *,
    canaries: Canaries | None = None,
) -> Engine:
    model.train()
    if not isinstance(recipe.plan, PrivacyPlan):
        raise RefusedError("E-MODE-NOT-BUILT", "expected a plan whose noise is the owner's own")
    engine = make_engine(
        model,
        plan=recipe.plan,
        noise_key=noise_key,
        subjects=examples.subjects,
        canaries=canaries,
    )
    for note in engine.notes:
        logger.info("%s%s", NOTE, note)
    features, labels = _tensors(examples)
    optimizer = make_optimizer(engine.parameters, recipe.training)
    received = [p.detach().clone() for p in engine.parameters]
    for _ in range(recipe.plan.local_steps):
        forget_gradients(engine.parameters)  # or two sets of them stand in memory
        gradients = engine.gradient(features, labels)
        for parameter, gradient in zip(engine.parameters, gradients, strict=True):
            parameter.grad = gradient
        _add_proximal(engine.parameters, received, recipe.proximal_mu)
        optimizer.step()
    return engine


def _train_plain(model: nn.Module, examples: Examples, recipe: Recipe) -> float:
    model.train()
    features, labels = _tensors(examples)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, recipe.training)
    received = [p.detach().clone() for p in parameters]
    losses = []
    numbers = batches(len(examples), size=recipe.training.batch_size, seed=recipe.batch_seed)
    for _ in range(recipe.training.local_steps):
        batch = next(numbers)
        forget_gradients(parameters)
        loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        _add_proximal(parameters, received, recipe.proximal_mu)
        optimizer.step()
        losses.append(loss.item())
    mean = sum(losses) / len(losses)
    return min(mean, MAX_LOSS) if not math.isnan(mean) else MAX_LOSS


def batches(records: int, *, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches for ever: shuffled passes over the records, each cut into whole batches.

    Each is int64 ``(size,)`` of positions, or all of them where ``size`` is 0 or not below
    ``records``.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        if size == 0 or size >= records:
            yield torch.arange(records)
            continue
        order = torch.randperm(records, generator=generator)
        for start in range(0, records - size + 1, size):
            yield order[start : start + size]


def _tensors(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(examples.features), torch.from_numpy(examples.labels)


def _add_proximal(
    parameters: list[nn.Parameter], received: list[torch.Tensor], proximal_mu: float
) -> None:
    """Add the gradient of mu/2 |w - w_received|^2 (Li et al. 2020, arXiv 1812.06127, eq. 2)."""
    if proximal_mu == 0.0:
        return
    for parameter, start in zip(parameters, received, strict=True):
        if parameter.grad is not None:
            parameter.grad += proximal_mu * (parameter.detach() - start)
