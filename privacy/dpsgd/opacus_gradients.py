"""Opacus' per-example gradients: for layers without a book-keeping rule, and as the tests' oracle.

Every record's gradient is written out, parameter by parameter: by Opacus' own rule for a layer, or
by functorch where Opacus has none. That costs memory and time that book-keeping does not, and the
import alone takes seconds: this module is loaded only where a model needs it.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from tacit.core.errors import ConfigError
from tacit.privacy.dpsgd.contributions import Contribution, Written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.privacy.dpsgd.units import Grouping

_MOST_RECORDS = 256
_CHUNK_NUMBERS = 1 << 24  # of a chunk's per-example gradients: 64 MB


class OpacusGradients:
    """Contributions of all units of a chunk, from Opacus' hooks."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model; it is not copied.

        Raises:
            ConfigError: it has layers without a per-example gradient (``E-MODEL-NOT-DP``).
        """
        self.model = model
        self._module = _wrapped(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        numbers = sum(parameter.numel() for parameter in self.parameters)
        self.chunk_records = max(1, min(_MOST_RECORDS, _CHUNK_NUMBERS // max(1, numbers)))

    @property
    def note(self) -> str:
        """Which layers this serves, in words for people."""
        return "per-example gradients by Opacus, functorch where it has no rule: the whole model"

    def contributions(
        self, features: torch.Tensor, labels: torch.Tensor, grouping: Grouping
    ) -> list[Contribution]:
        """Return what each unit of a chunk adds to each parameter; see ``BookKeeping``."""
        # Opacus' backward hooks fire reliably only where the input takes a gradient as well.
        inputs = features.clone().requires_grad_() if features.is_floating_point() else features
        with self._hooked():
            loss = nn.functional.cross_entropy(self._module(inputs), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            samples = [_gradient_sample(p, rows=len(labels)) for p in self.parameters]
        return [
            Written(index, grouping.summed(sample))
            for index, sample in enumerate(samples)
            if sample is not None
        ]

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        for parameter in self.parameters:
            _forget(parameter)
        self._module.add_hooks(loss_reduction="sum", batch_first=True)
        try:
            with warnings.catch_warnings():
                # where records are indices, no input takes a gradient, which the hooks survive
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                yield
        finally:
            self._module.remove_hooks()
            for parameter in self.parameters:
                _forget(parameter)


def replaced_by_opacus(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a model with Opacus' private forms of layers (LSTM, attention), and notes."""
    notes = tuple(str(problem) for problem in ModuleValidator.validate(model, strict=False))
    fixed: nn.Module = ModuleValidator.fix(model) if notes else model
    return fixed, notes


def _forget(parameter: nn.Parameter) -> None:
    parameter.grad = None
    setattr(parameter, "grad_sample", None)  # noqa: B010 - Opacus' attribute, unknown to the type


def _gradient_sample(parameter: nn.Parameter, *, rows: int) -> torch.Tensor | None:
    """Return one parameter's per-example gradients, records first; None where it was not used."""
    sample: object = getattr(parameter, "grad_sample", None)
    if sample is None:
        return None
    if not isinstance(sample, torch.Tensor) or sample.shape[0] != rows:
        # A list holds several batches; another length means that rows are not records. Either way
        # a clip per row would not be a clip per record.
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected one gradient per record and parameter, got another number of them",
            hint="every layer takes and gives one row per record, records first",
        )
    return sample.detach()


def _wrapped(model: nn.Module) -> GradSampleModule:
    problems = ModuleValidator.validate(model, strict=False)
    try:
        wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        problems.append(error)
    if problems:
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "the model has layers without a per-example gradient",
            problems=tuple(str(problem) for problem in problems),
            hint="replace BatchNorm by GroupNorm or LayerNorm, and remove buffers",
        )
    wrapped.remove_hooks()  # they stand only while gradients are taken
    return wrapped
