"""From one layer's inputs and output gradients to what each unit adds to its parameters.

A layer may be used several times in one forward pass; a unit's gradient is the sum over its uses,
which for a product of inputs and output gradients means: put the uses end to end. The records of a
subject are put end to end in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from tacit.privacy.dpsgd.contributions import Contribution, Factors, Lookups, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tacit.privacy.dpsgd.units import Grouping

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.LayerNorm | nn.GroupNorm

# A weight's gradient is written out per unit below this many numbers: one pass then gives norm and
# sum. Above, or where positions are few (2 positions^2 numbers, Bu et al. 2022, section 3.2), the
# ghost norm holds less.
WRITTEN_NUMBERS = 1 << 16


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input and the loss's gradient by its output, rows first."""

    inputs: torch.Tensor
    errors: torch.Tensor


@dataclass(frozen=True)
class Slots:
    """Where a layer's trained parameters stand among the model's; None is frozen or absent."""

    weight: int | None
    bias: int | None


Rule: TypeAlias = "Callable[[nn.Module, Sequence[Use], Slots, Grouping], Iterator[Contribution]]"


def use_written(positions: int, numbers: int) -> bool:
    """Whether to write a weight's gradient out, of so many numbers per unit."""
    return positions > 1 and numbers <= max(WRITTEN_NUMBERS, 2 * positions * positions)


def _linear(
    layer: nn.Module, uses: Sequence[Use], slots: Slots, grouping: Grouping
) -> Iterator[Contribution]:
    del layer
    inputs = grouping.joined(_end_to_end([_positions(use.inputs) for use in uses]))
    errors = grouping.joined(_end_to_end([_positions(use.errors) for use in uses]))
    if slots.weight is not None:
        positions, numbers = inputs.shape[1], inputs.shape[2] * errors.shape[2]
        if use_written(positions, numbers):
            yield Written(slots.weight, torch.bmm(errors.transpose(1, 2), inputs))
        else:
            yield Factors(slots.weight, inputs, errors)
    if slots.bias is not None:
        yield Written(slots.bias, errors.sum(dim=1) if errors.shape[1] > 1 else errors[:, 0])


def _convolution(
    layer: nn.Module, uses: Sequence[Use], slots: Slots, grouping: Grouping
) -> Iterator[Contribution]:
    if not isinstance(layer, Convolution):
        raise TypeError(f"expected a convolution, got {type(layer).__name__}")
    if slots.weight is not None:
        positions = sum(math.prod(use.errors.shape[2:]) for use in uses) * grouping.slots
        if layer.groups > 1 or use_written(positions, layer.weight.numel()):
            gradients = _added([_convolution_gradients(layer, use) for use in uses])
            yield Written(slots.weight, grouping.summed(gradients))
        else:
            inputs = _end_to_end([_windows(layer, use.inputs) for use in uses])
            errors = _end_to_end([use.errors.flatten(2).transpose(1, 2) for use in uses])
            yield Factors(slots.weight, grouping.joined(inputs), grouping.joined(errors))
    if slots.bias is not None:
        sums = _added([use.errors.flatten(2).sum(dim=2) for use in uses])
        yield Written(slots.bias, grouping.summed(sums))


def _embedding(
    layer: nn.Module, uses: Sequence[Use], slots: Slots, grouping: Grouping
) -> Iterator[Contribution]:
    if not isinstance(layer, nn.Embedding):
        raise TypeError(f"expected an embedding, got {type(layer).__name__}")
    if slots.weight is None:
        return
    indices = _end_to_end([use.inputs.reshape(len(use.inputs), -1) for use in uses])
    errors = _end_to_end([_positions(use.errors) for use in uses])
    if layer.padding_idx is not None:
        errors = errors.masked_fill((indices == layer.padding_idx)[:, :, None], 0.0)
    joined = grouping.joined(indices[:, :, None]).squeeze(2)
    yield Lookups(slots.weight, joined, grouping.joined(errors))


def _norm(
    layer: nn.Module, uses: Sequence[Use], slots: Slots, grouping: Grouping
) -> Iterator[Contribution]:
    if not isinstance(layer, Norm):
        raise TypeError(f"expected LayerNorm or GroupNorm, got {type(layer).__name__}")
    if slots.weight is not None:
        products = [_by_channel(layer, use.errors * _normalised(layer, use.inputs)) for use in uses]
        yield Written(slots.weight, grouping.summed(_added(products)))
    if slots.bias is not None:
        sums = _added([_by_channel(layer, use.errors) for use in uses])
        yield Written(slots.bias, grouping.summed(sums))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.GroupNorm: _norm,
}


def _positions(values: torch.Tensor) -> torch.Tensor:
    """Return ``(rows, ..., width)`` as ``(rows, positions, width)``."""
    return values.reshape(len(values), -1, values.shape[-1])


def _end_to_end(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


def _padded(layer: Convolution, inputs: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return the inputs, and how many zeros the convolution still has to put on each side."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return inputs, list(layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    amounts = list(layer._reversed_padding_repeated_twice)  # noqa: SLF001 - what its forward uses
    return functional.pad(inputs, amounts, mode=mode), [0] * len(layer.kernel_size)


def _convolution_gradients(layer: Convolution, use: Use) -> torch.Tensor:
    """Return each row's gradient of the kernel, ``(rows, *weight.shape)``.

    The rows of a batch become the groups of one record's convolution, whose kernel's gradient then
    keeps them apart (Rochette et al. 2019, arXiv 1912.06015).
    """
    inputs, padding = _padded(layer, use.inputs)
    rows, kernel = len(inputs), layer.weight.shape
    unused = layer.weight.detach().expand(rows, *kernel).reshape(rows * kernel[0], *kernel[1:])
    gradients: torch.Tensor = torch.ops.aten.convolution_backward(
        use.errors.reshape(1, rows * kernel[0], *use.errors.shape[2:]),
        inputs.reshape(1, -1, *inputs.shape[2:]),
        unused,  # gives its shape only: the gradient of a kernel does not depend on the kernel
        None,
        list(layer.stride),
        padding,
        list(layer.dilation),
        False,  # noqa: FBT003 - not transposed
        [0] * len(padding),
        rows * layer.groups,
        (False, True, False),
    )[1]
    return gradients.reshape(rows, *kernel)


def _windows(layer: Convolution, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the kernel sees at each position, ``(rows, positions, kernel numbers)``."""
    values, padding = _padded(layer, inputs)
    values = functional.pad(values, [amount for p in reversed(padding) for amount in (p, p)])
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    for axis, (span, stride) in enumerate(zip(spans, layer.stride, strict=True), start=2):
        values = values.unfold(axis, span, stride)
    inside: tuple[Any, ...] = (..., *(slice(None, None, step) for step in layer.dilation))
    values = values[inside]  # (rows, channels, *positions, *kernel)
    axes = len(spans)
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    return values.permute(order).flatten(1, axes).flatten(2)


def _normalised(layer: Norm, inputs: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)


def _by_channel(layer: Norm, values: torch.Tensor) -> torch.Tensor:
    """Sum over everything that one number of the layer's weight scales."""
    if isinstance(layer, nn.LayerNorm):
        axes = len(layer.normalized_shape)
        return values.reshape(len(values), -1, *values.shape[values.dim() - axes :]).sum(dim=1)
    return values.flatten(2).sum(dim=2) if values.dim() > 2 else values
