"""The built-in models, and any ``torch.nn.Module`` that a factory installed at the owner returns.

Promises: a model maps ``(n, *input_shape)`` to ``(n, classes)`` logits; its initial weights follow
from the specification alone; every built-in layer treats each record by itself (no BatchNorm), so
that any of them can be trained record by record under differential privacy.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tacit.core.errors import AppError, ConfigError
from tacit.core.logs import NOTE
from tacit.core.specification import DataSpec, ModelKind, ModelSpec, RunSpec
from tacit.learning.features import input_shape
from tacit.privacy.dpsgd.engine import gradient_notes
from tacit.privacy.dpsgd.validation import verify_records_do_not_mix, without_batch_norm

logger = logging.getLogger("tacit.learning.models")

_GROUPS = 4  # of GroupNorm; widths that it does not divide use one group

Arrays = dict[str, np.ndarray]


def build_model(spec: ModelSpec, data: DataSpec, *, private: bool = False) -> nn.Module:
    """Return the run's model with its initial weights.

    Args:
        spec: which model.
        data: the contract that fixes its inputs and outputs.
        private: replace layers that mix records (BatchNorm) by ones that do not.

    Raises:
        ConfigError: the model does not fit the data contract (``E-MODEL-CONTRACT``), or cannot be
            trained record by record (``E-MODEL-NOT-DP``).
        AppError: the factory is not installed or failed (``E-MODEL-FACTORY``).
    """
    model, notes = _built(spec, data, private=private)
    for note in notes:  # the factory's author learns what is trained in the place of their layer
        logger.info("%s%s", NOTE, note)
    return model


def _built(spec: ModelSpec, data: DataSpec, *, private: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model, and notes on what was replaced in it."""
    notes: tuple[str, ...] = ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = _make(spec, data)
        if private and spec.kind is ModelKind.MODULE:
            model, notes = without_batch_norm(model)
            verify_records_do_not_mix(model, shape=input_shape(data))
    check_model_fits(model, data)
    return model, notes


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What will be trained, in words for people.

    Attributes:
        kind: of the specification.
        parameters: numbers in its state.
        replaced: layers that stand in the place of others; empty where nothing is noised in
            training.
        gradients: where per-example gradients come from; empty in the same case.
    """

    kind: ModelKind
    parameters: int
    replaced: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()


def model_facts(spec: ModelSpec, data: DataSpec, *, private: bool) -> ModelFacts:
    """Build the model once, and say what would be trained.

    Args:
        spec: which model.
        data: the contract that fixes its inputs and outputs.
        private: whether the training clips and noises each record.

    Raises:
        ConfigError, AppError: as :func:`build_model`; a model that has layers without per-example
            gradients is one that cannot be trained record by record.
    """
    model, replaced = _built(spec, data, private=private)
    return ModelFacts(
        kind=spec.kind,
        parameters=sum(value.numel() for value in model.state_dict().values()),
        replaced=replaced,
        gradients=gradient_notes(model) if private else (),
    )


def initial_arrays(spec: RunSpec) -> Arrays:
    """Return the initial weights of a built-in run by name, as the server stores and sends them.

    Raises:
        ConfigError, AppError: as :func:`build_model`.
        ValueError: the run brings its own app.
    """
    if spec.model is None or spec.data is None:
        raise ValueError("expected a run with [data] and [model]: an app brings its own weights")
    model = build_model(spec.model, spec.data, private=spec.privacy.trains_with_noise)
    return model_arrays(model)


def model_arrays(model: nn.Module) -> Arrays:
    """Return copies of a model's parameters and buffers by name."""
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def load_model_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Put weights into a model; names, shapes and dtypes must be the model's own.

    Raises:
        ConfigError: they are not (``E-MODEL-WEIGHTS``).
    """
    expected = model.state_dict()
    problems = [f"{name}: missing" for name in expected if name not in arrays]
    problems += [f"{name}: not part of the model" for name in arrays if name not in expected]
    for name in expected.keys() & arrays.keys():
        wanted = expected[name].numpy()
        if (wanted.shape, wanted.dtype) != (arrays[name].shape, arrays[name].dtype):
            problems.append(
                f"{name}: expected {wanted.dtype} {wanted.shape}, "
                f"got {arrays[name].dtype} {arrays[name].shape}"
            )
    if problems:
        raise ConfigError(
            "E-MODEL-WEIGHTS",
            "expected the weights of the run's model, got others",
            problems=tuple(sorted(problems)),
        )
    model.load_state_dict(
        {
            name: torch.from_numpy(array if array.flags.writeable else array.copy())
            for name, array in arrays.items()
        }
    )


def check_model_fits(model: nn.Module, data: DataSpec) -> None:
    """Try the model on two empty records of the contract's shape.

    Raises:
        ConfigError: it fails, or does not give one logit per class (``E-MODEL-CONTRACT``).
    """
    shape, classes = input_shape(data), len(data.classes)
    hint = f"a model takes (n, {', '.join(map(str, shape))}) and gives (n, {classes}) logits"
    training = model.training
    try:
        with torch.no_grad():
            output: Any = model.eval()(torch.zeros((2, *shape)))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            "E-MODEL-CONTRACT",
            f"the model fails on records of shape {shape}: {type(error).__name__}",
            problems=(str(error).splitlines()[0] if str(error) else type(error).__name__,),
            hint=hint,
        ) from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (2, classes):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(
            "E-MODEL-CONTRACT", f"expected outputs of shape (2, {classes}), got {got}", hint=hint
        )


def _make(spec: ModelSpec, data: DataSpec) -> nn.Module:
    shape, classes = input_shape(data), len(data.classes)
    if spec.kind is ModelKind.LOGISTIC:
        return _logistic(math.prod(shape), classes)
    if spec.kind is ModelKind.MLP:
        return _mlp(math.prod(shape), spec.hidden, classes)
    if spec.kind is ModelKind.CNN:
        return _cnn(shape, spec.hidden, classes)
    return _from_factory(spec)


def _logistic(features: int, classes: int) -> nn.Module:
    linear = nn.Linear(features, classes)
    # The loss is convex, so zero is as good a start as any, and it is the same for every seed.
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=linear))


def _mlp(features: int, hidden: tuple[int, ...], classes: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = features
    for index, next_width in enumerate(hidden):
        layers[f"hidden{index}"] = nn.Linear(width, next_width)
        # Bounded activations keep per-record gradients small
        # (Papernot et al. 2021, arXiv 2007.14191).
        layers[f"tanh{index}"] = nn.Tanh()
        width = next_width
    layers["linear"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def _cnn(shape: tuple[int, ...], hidden: tuple[int, ...], classes: int) -> nn.Module:
    if len(shape) != 3 or min(shape[1:]) < 2 ** len(hidden):
        raise ConfigError(
            "E-MODEL-CONTRACT",
            f"expected images of at least {2 ** len(hidden)} pixels a side for "
            f"{len(hidden)} convolutions, got records of shape {shape}",
            hint='a table takes kind = "logistic" or "mlp"; fewer hidden channels halve less often',
        )
    channels, height, width = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, next_channels in enumerate(hidden):
        groups = _GROUPS if next_channels % _GROUPS == 0 else 1
        layers[f"conv{index}"] = nn.Conv2d(channels, next_channels, kernel_size=3, padding=1)
        layers[f"norm{index}"] = nn.GroupNorm(groups, next_channels)
        layers[f"tanh{index}"] = nn.Tanh()
        layers[f"pool{index}"] = nn.MaxPool2d(2)
        channels, height, width = next_channels, height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels * height * width, classes)
    return nn.Sequential(layers)


def _from_factory(spec: ModelSpec) -> nn.Module:
    if spec.factory is None:
        raise ValueError("expected a factory")
    module_name, _, function_name = spec.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise AppError(
            "E-MODEL-FACTORY",
            f"expected the model factory {spec.factory} to be installed here, it is not",
            hint="install its package into the environment that runs tacit",
        ) from error
    model = factory(**spec.parameters)
    if not isinstance(model, nn.Module):
        raise AppError(
            "E-MODEL-FACTORY",
            f"expected {spec.factory} to return a torch.nn.Module, got {type(model).__name__}",
        )
    return model
