"""What each unit adds to one parameter's gradient, in three forms: norms now, a weighted sum later.

The form decides what is held in memory. :class:`Written` has every unit's gradient written out.
:class:`Factors` and :class:`Lookups` have a layer's inputs and output gradients, whose product it
is, and never write it out (Bu et al. 2022, arXiv 2210.00038, section 3: ghost norm and
book-keeping).

Promises: a norm is at least that of what :meth:`add_to` adds for that unit at weight one. This
must hold for weights that a hostile server chose, too, so squares are taken in float64 (in float32
the square of 1e-25 is zero, while 1e-25 times an output gradient of 1e30 is not), and the ghost
norm, a sum in which almost everything may cancel, is raised by the error of that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

# Products of this many units are added in float32; between them, in float64. At 1e5 records an
# accumulation in float32 alone moves a sum by 1e-3 of the clip.
FLOAT32_UNITS = 64
_ROUNDING = 2.0**-52
_BLOCK = 128
_CAST_NUMBERS = 1 << 15
_PRODUCT_NUMBERS = 1 << 18  # of a product made at a time: it stays in the cache


class Contribution(Protocol):
    """Each unit's gradient of one parameter.

    Attributes:
        parameter: its position among the trained parameters.
    """

    @property
    def parameter(self) -> int: ...

    @property
    def numbers(self) -> int:
        """How many numbers are held."""

    def squared_norms(self) -> torch.Tensor:
        """Return each unit's squared L2 norm, float64 ``(units,)``; not finite where it is not."""

    def add_to(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the units' gradients times their weights.

        Args:
            total: the parameter's sum, float64, of its shape.
            weights: float64 ``(units,)``; a unit of weight zero adds nothing, finite or not.
        """


@dataclass(frozen=True)
class Written:
    """Gradients written out: float ``(units, ...)``."""

    parameter: int
    gradients: torch.Tensor

    @property
    def numbers(self) -> int:
        return self.gradients.numel()

    def squared_norms(self) -> torch.Tensor:
        rows = self.gradients.flatten(1)
        if rows.shape[1] % _BLOCK == 0:
            # Four times as fast. What float32 loses below 1e-22 is lost from the sum's bound too.
            rows = torch.linalg.vector_norm(rows.view(len(rows), -1, _BLOCK), dim=2)
        return _row_squares(rows)

    def add_to(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        rows = _without_idle(self.gradients.flatten(1), weights)
        factors = weights.to(rows.dtype)
        flat = total.view(-1)
        for start in range(0, len(rows), FLOAT32_UNITS):
            part = slice(start, start + FLOAT32_UNITS)
            flat.add_(factors[part] @ rows[part])


@dataclass(frozen=True)
class Factors:
    """A unit's gradient is the sum over positions of output gradient x input.

    Attributes:
        inputs: float ``(units, positions, in)``.
        errors: the loss's gradient by the layer's outputs, float ``(units, positions, out)``.
    """

    parameter: int
    inputs: torch.Tensor
    errors: torch.Tensor

    @property
    def numbers(self) -> int:
        units, positions, _ = self.inputs.shape
        gram = positions * positions * units if positions > 1 else 0
        return 2 * (self.inputs.numel() + self.errors.numel() + gram)

    def squared_norms(self) -> torch.Tensor:
        sizes = _row_squares(self.inputs.flatten(1)) * _row_squares(self.errors.flatten(1))
        positions = self.inputs.shape[1]
        if positions == 1:
            return sizes
        gram = (_gram(self.inputs) * _gram(self.errors)).sum(dim=(1, 2))
        terms = self.inputs.shape[2] + self.errors.shape[2] + positions * positions
        return gram.clamp(min=0.0) + terms * _ROUNDING * sizes

    def add_to(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        inputs = _without_idle(self.inputs, weights)
        errors = _without_idle(self.errors, weights).double() * weights[:, None, None]
        matrix = total.view(errors.shape[2], inputs.shape[2])
        if inputs.shape[1] == 1:
            _add_product(matrix, errors[:, 0].to(inputs.dtype), inputs[:, 0])
        else:  # a unit's positions may cancel, which float32 would not do well enough
            matrix.addmm_(errors.flatten(0, 1).T, inputs.flatten(0, 1).double())


@dataclass(frozen=True)
class Lookups:
    """A unit's gradient adds each position's output gradient to the row that was looked up there.

    Attributes:
        indices: int64 ``(units, positions)``.
        errors: float ``(units, positions, width)``.
    """

    parameter: int
    indices: torch.Tensor
    errors: torch.Tensor

    @property
    def numbers(self) -> int:
        units, positions = self.indices.shape
        return 2 * (self.errors.numel() + positions * positions * units)

    def squared_norms(self) -> torch.Tensor:
        same = self.indices[:, :, None] == self.indices[:, None, :]
        gram = torch.where(same, _gram(self.errors), 0.0).sum(dim=(1, 2))
        # Where a row is looked up often, its gradients may cancel.
        terms = self.errors.shape[2] + self.indices.shape[1] ** 2
        sizes = _row_squares(self.errors.flatten(1)) * self.indices.shape[1]
        return gram.clamp(min=0.0) + terms * _ROUNDING * sizes

    def add_to(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        errors = _without_idle(self.errors, weights).double() * weights[:, None, None]
        total.index_add_(0, self.indices.flatten(), errors.flatten(0, 1))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right to a float64 matrix, from float32 products of ``FLOAT32_UNITS`` rows."""
    rows, columns = total.shape
    step = max(1, _PRODUCT_NUMBERS // max(1, columns))
    # One scratch block and numpy's buffered cast: no fresh memory, whose page faults cost more
    # than the product.
    scratch = right.new_empty((min(step, rows), columns))
    for start in range(0, len(left), FLOAT32_UNITS):
        part = slice(start, start + FLOAT32_UNITS)
        for row in range(0, rows, step):
            block = total[row : row + step].numpy()
            product = torch.mm(
                left[part, row : row + step].T, right[part], out=scratch[: len(block)]
            )
            np.add(block, product.numpy(), out=block)


def _row_squares(rows: torch.Tensor) -> torch.Tensor:
    step = max(1, _CAST_NUMBERS // max(1, rows.shape[1]))  # the cast copies: let it be small
    norms = [
        torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in torch.split(rows, step)
    ]
    return torch.cat(norms).square()


def _gram(values: torch.Tensor) -> torch.Tensor:
    exact = values.double()
    return torch.bmm(exact, exact.transpose(1, 2))


def _without_idle(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the values with zeros at units of weight zero: zero times infinity is not zero."""
    idle = weights == 0.0
    if not bool(idle.any()):
        return values
    return values.masked_fill(idle.view(-1, *[1] * (values.dim() - 1)), 0.0)
