"""Whether a model treats each record by itself, tried on made-up records; and what to replace.

A gradient is clipped record by record only if row i of every layer belongs to record i, from the
input to the output. These are demonstrations on made-up records, not proofs: they find BatchNorm,
centring, transposed and folded batches, weights used behind a layer's back, buffers that learn.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from tacit.core.errors import ConfigError
from tacit.privacy.dpsgd.book_keeping import unsupported_layers
from tacit.privacy.dpsgd.units import one_row_each

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tacit.privacy.dpsgd.engine import GradientSource

_HINT = "every layer takes and gives one row per record, records first, and reads no other row"


def batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that normalise over a batch."""
    return tuple(name for name, layer in model.named_modules() if isinstance(layer, _BATCH_NORMS))


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def without_batch_norm(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model without layers that mix records, and notes on what was replaced.

    BatchNorm becomes GroupNorm with one group; what else Opacus knows a private form of (LSTM,
    attention), it replaces.
    """
    names = batch_norms(model)
    notes = tuple(f"{name}: BatchNorm replaced by GroupNorm" for name in names)
    if names:
        model = copy.deepcopy(model)
        _replace_batch_norm(model)
    if not unsupported_layers(model):
        return model, notes
    opacus = importlib.import_module("tacit.privacy.dpsgd.opacus_gradients")
    fixed, more = opacus.replaced_by_opacus(model)
    return fixed, (*notes, *more)


def _replace_batch_norm(model: nn.Module) -> None:
    # Not left to Opacus: it takes one group per channel up to 32 channels, and on records without
    # a spatial extent such a group is one number, which normalises to zero.
    for name, child in model.named_children():
        if isinstance(child, _BATCH_NORMS):
            replacement = nn.GroupNorm(1, child.num_features, eps=child.eps, affine=child.affine)
            setattr(model, name, replacement)
        else:
            _replace_batch_norm(child)


def verify_records_do_not_mix(model: nn.Module, *, shape: tuple[int, ...]) -> None:
    """Refuse a model in which one record's values change with the other records of a batch.

    Tried on made-up records of this shape, in training and in evaluation mode.

    Raises:
        ConfigError: records influence one another (``E-MODEL-NOT-DP``).
    """
    _verify_rows_apart(model, _made_up(4, shape, torch.zeros(0)))


def verify_model(
    source: GradientSource, *, like: torch.Tensor, sums: Sequence[torch.Tensor]
) -> None:
    """Try a model and its per-example gradients on made-up records.

    Args:
        source: the model and where its gradients come from.
        like: real records, of which only shape and dtype are looked at.
        sums: float64, one per parameter, to work in; their content is lost.

    Raises:
        ConfigError: records influence one another, a layer's rows are not records, a buffer
            changes, or the gradients are not the model's (``E-MODEL-NOT-DP``).
    """
    shape = tuple(like.shape[1:])
    _verify_rows_apart(source.model, _made_up(4, shape, like))
    for records in (3, 5):  # a fixed number of rows cannot equal both
        _verify_gradients(source, _made_up(records, shape, like), sums)


def _made_up(records: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((records, *shape), generator=generator)
    return values if like.is_floating_point() else (values * 2.0).to(like.dtype)


def _verify_rows_apart(model: nn.Module, batch: torch.Tensor) -> None:
    changed = batch.clone()
    changed[0] = 1 - changed[0]
    for training in (True, False):
        with _quietly(model, training=training):
            one, other = _values_within(model, batch), _values_within(model, changed)
        same = len(one) == len(other) and all(
            a.shape == b.shape
            and torch.allclose(a[1:], b[1:], rtol=1e-4, atol=1e-5, equal_nan=True)
            for a, b in zip(one, other, strict=True)
        )
        if not same:
            raise ConfigError(
                "E-MODEL-NOT-DP",
                "expected each record's values to depend on that record alone, "
                "got values that change with the rest of the batch",
                hint=_HINT,
            )


def _values_within(model: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    """Return every tensor that a layer with parameters gives, and the model's output."""
    found: list[torch.Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            found.append(output.detach().clone())

    layers = [
        layer
        for layer in model.modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    torch.manual_seed(0)  # the same dropout each time; the caller restores the generator
    try:
        found.append(model(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextlib.contextmanager
def _quietly(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Run a model without gradients, and leave no trace in it or in the global generator."""
    modes = {layer: layer.training for layer in model.modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.train(training)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
        learnt = not all(map(torch.equal, buffers, model.buffers()))
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        model.load_state_dict(before)
    if learnt:
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected buffers that stay as they are, the forward pass changes one",
            hint="what a buffer learns from records carries no noise: remove running statistics",
        )


def _verify_gradients(
    source: GradientSource, batch: torch.Tensor, sums: Sequence[torch.Tensor]
) -> None:
    """Compare the sum over records with autograd's gradient: nothing is missed, nothing twice."""
    labels = torch.zeros(len(batch), dtype=torch.int64)
    weights = torch.ones(len(batch), dtype=torch.float64)
    for total in sums:
        total.zero_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in source.contributions(batch, labels, one_row_each(len(batch))):
            part.add_to(sums[part.parameter], weights)
        torch.manual_seed(0)
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(source.model(batch), labels, reduction="sum")
            gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(
                loss, source.parameters, allow_unused=True
            )
    # A gradient that is zero but for rounding (a bias before a norm) has no scale of its own.
    floor = 1e-5 * max(_largest(gradient) for gradient in gradients)
    near = (_is_near(*pair, floor=floor) for pair in zip(sums, gradients, strict=True))
    if not all(near):
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected the layers' gradients to add up to the model's, they do not",
            hint="use a parameter through its own layer's forward pass only",
        )


def _largest(gradient: torch.Tensor | None) -> float:
    """Return the largest absolute value; what is not finite becomes zero."""
    if gradient is None or gradient.numel() == 0:
        return 0.0
    gradient.nan_to_num_(0.0, 0.0, 0.0)
    return float(torch.linalg.vector_norm(gradient, ord=float("inf")))


def _is_near(total: torch.Tensor, gradient: torch.Tensor | None, *, floor: float) -> bool:
    """Whether a sum is a gradient, as far as float32 tells; the sum is used up."""
    scale = _largest(gradient)
    total.nan_to_num_(0.0, 0.0, 0.0)
    if gradient is not None:
        np.subtract(total.numpy(), gradient.numpy(), out=total.numpy())
    return _largest(total) <= 1e-3 * scale + floor
