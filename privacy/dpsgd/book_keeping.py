"""Book-keeping: per-unit gradients from one backward pass by the layers' outputs alone.

Forward hooks keep each layer's input; ``autograd.grad`` gives the loss's gradient by each layer's
output, and never a weight's; ``layers.py`` turns the two into contributions. Source: Bu, Wang, Zha
and Karypis 2022, "Differentially private optimization on large model at small cost",
arXiv 2210.00038, section 3.

Trusts: each supported layer's rows to be records, which ``validation.py`` tries out on made-up
records before the first real one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tacit.core.errors import ConfigError
from tacit.privacy.dpsgd.layers import RULES, Slots, Use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.privacy.dpsgd.contributions import Contribution
    from tacit.privacy.dpsgd.units import Grouping

_CHUNK_NUMBERS = 1 << 22  # activations, factors and written gradients held at once: 16 MB
_MOST_RECORDS = 256


@dataclass
class _Tape:
    """What one forward pass leaves behind, layer by layer."""

    layers: list[nn.Module] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)

    def keep(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        """Act as a forward hook."""
        if not (isinstance(output, torch.Tensor) and output.requires_grad):
            return
        value = (args[0] if args else kwargs["input"]).detach()
        self.layers.append(layer)
        self.inputs.append(value)
        self.versions.append(value._version)  # noqa: SLF001 - counts changes in place
        # The edge, not the tensor: an activation in place would turn the tensor into its result.
        self.edges.append(get_gradient_edge(output))

    def verify_unchanged(self) -> None:
        """Refuse inputs that were overwritten after the layer had read them."""
        for value, version in zip(self.inputs, self.versions, strict=True):
            if value._version != version:  # noqa: SLF001
                raise ConfigError(
                    "E-MODEL-NOT-DP",
                    "expected a layer's input to stay as it was, the model changed it in place",
                    hint="remove operations in place on tensors that another layer reads",
                )


class BookKeeping:
    """Contributions of all units of a chunk, for models whose trained layers all have a rule."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model for which :func:`unsupported_layers` found nothing."""
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        number = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        self._slots = {
            layer: Slots(
                number.get(id(getattr(layer, "weight", None))),
                number.get(id(getattr(layer, "bias", None))),
            )
            for layer in _trained_layers(model).values()
        }
        self.chunk_records = 0

    @property
    def note(self) -> str:
        """Which layers this serves, in words for people."""
        kinds = Counter(type(layer).__name__ for layer in self._slots)
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"per-example gradients by book-keeping: {listed}"

    def contributions(
        self, features: torch.Tensor, labels: torch.Tensor, grouping: Grouping
    ) -> list[Contribution]:
        """Return what each unit of a chunk adds to each parameter.

        The first call, which is on made-up records, also chooses ``chunk_records``.

        Args:
            features: the chunk's records, records first.
            labels: int64 class indices.
            grouping: which rows form a unit.

        Raises:
            ConfigError: a layer's rows are not records (``E-MODEL-NOT-DP``).
        """
        tape = _Tape()
        with self._recording(tape):
            logits = self.model(features)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        errors = torch.autograd.grad(loss, tape.edges, allow_unused=True)
        tape.verify_unchanged()
        uses: dict[nn.Module, list[Use]] = {}
        for layer, value, error in zip(tape.layers, tape.inputs, errors, strict=True):
            if error is not None:  # the loss does not depend on this use
                _verify_rows(value, error, rows=len(labels))
                uses.setdefault(layer, []).append(Use(value, error))
        with torch.no_grad():
            parts = [
                part
                for layer, of_layer in uses.items()
                for part in RULES[type(layer)](layer, of_layer, self._slots[layer], grouping)
            ]
        if not self.chunk_records:
            held = sum(2 * use.inputs.numel() for of_layer in uses.values() for use in of_layer)
            numbers = (held + sum(part.numbers for part in parts)) / len(labels)
            self.chunk_records = int(max(1, min(_MOST_RECORDS, _CHUNK_NUMBERS // max(1, numbers))))
        return parts

    @contextlib.contextmanager
    def _recording(self, tape: _Tape) -> Iterator[None]:
        hooks = [layer.register_forward_hook(tape.keep, with_kwargs=True) for layer in self._slots]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def unsupported_layers(model: nn.Module) -> tuple[str, ...]:
    """Return why book-keeping does not serve this model; nothing where it does."""
    found = [
        f"{name or 'the model'} ({type(layer).__name__}): {problem}"
        for name, layer in _trained_layers(model).items()
        for problem in _problems(layer)
    ]
    owners = Counter(
        id(parameter)
        for layer in _trained_layers(model).values()
        for parameter in layer.parameters(recurse=False)
        if parameter.requires_grad
    )
    if any(count > 1 for count in owners.values()):
        found.append("layers share a parameter")
    return tuple(found)


def _problems(layer: nn.Module) -> Iterator[str]:
    if type(layer) not in RULES:
        yield "no book-keeping rule for this kind of layer"
    elif layer._forward_pre_hooks or layer._forward_hooks:  # noqa: SLF001 - no public way to ask
        yield "it has hooks, which may change its weights or values"
    elif {name for name, _ in layer.named_parameters(recurse=False)} - {"weight", "bias"}:
        yield "its parameters are not weight and bias alone"
    if isinstance(layer, nn.Embedding) and (
        layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        yield "max_norm, scale_grad_by_freq and sparse have no book-keeping rule"


def _trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    }


def _verify_rows(value: torch.Tensor, error: torch.Tensor, *, rows: int) -> None:
    if value.shape[0] != rows or error.shape[0] != rows:
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected one row per record at every layer, got another number of rows",
            hint="every layer takes and gives one row per record, records first",
        )
