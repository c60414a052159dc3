"""White-box: the norm of a record's own gradient (Nasr et al. 2019, arXiv 1812.00910, section III).

Training ends where the gradients of its records are small, so members have small ones.
"""

from __future__ import annotations

import enum
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from tacit.attacks.membership.signals import needed, softplus, true_log_odds
from tacit.attacks.probe import Need
from tacit.attacks.target import ModelTarget

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import nn

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import Float64Array

_CHUNK_NUMBERS = 1 << 22  # of gradients written out at a time: 16 MB
_MOST_RECORDS = 1024
_LEAST_NORM = 1e-30


class Layers(enum.Enum):
    """Whose weights the gradient is taken by."""

    ALL = "all"
    LAST = "last"


@dataclass(frozen=True, kw_only=True)
class GradientNorm:
    """Score: minus the logarithm of the loss gradient's L2 norm.

    The loss is log(1 + e^-phi), so its gradient is that of phi times p_y - 1, and its norm in
    logarithms is log|grad phi| - softplus(phi): exact where p_y rounds to one.
    """

    layers: Layers = Layers.ALL
    source: ClassVar[str] = "Nasr et al. 2019, arXiv 1812.00910"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.WEIGHTS})

    @property
    def name(self) -> str:
        """``gradient-norm-all`` or ``gradient-norm-last``."""
        return f"gradient-norm-{self.layers.value}"

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the score per record."""
        examples = needed(evidence.examples, "the audited records")
        if not isinstance(evidence.target, ModelTarget):
            raise TypeError("expected a target whose weights can be read")
        model = evidence.target.model
        norms = _log_odds_gradient_norms(
            model,
            torch.from_numpy(examples.features),
            torch.from_numpy(examples.labels),
            by=_last_layer(model) if self.layers is Layers.LAST else None,
        )
        phi = true_log_odds(evidence.outputs.logits, evidence.outputs.labels)
        return softplus(phi) - np.log(np.maximum(norms, _LEAST_NORM))


def _last_layer(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights of the layer that holds weights and comes last."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layer = names[-1].rpartition(".")[0]
    return frozenset(name for name in names if name.rpartition(".")[0] == layer)


def _log_odds_gradient_norms(
    model: nn.Module, features: torch.Tensor, labels: torch.Tensor, *, by: frozenset[str] | None
) -> Float64Array:
    """Return the norm of each record's gradient of phi by the named weights, float64 ``(n,)``."""
    state = {name: value.detach() for name, value in model.named_buffers()}
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        wanted = parameter.requires_grad and (by is None or name in by)
        (weights if wanted else state)[name] = parameter.detach()

    def log_odds(
        chosen: dict[str, torch.Tensor], record: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(model, {**state, **chosen}, (record[None],))[0]
        is_true = torch.arange(len(logits)) == label
        others = torch.logsumexp(logits.masked_fill(is_true, -torch.inf), dim=0)
        return torch.where(is_true, logits, 0.0).sum() - others

    def squared_norm(record: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        gradients = grad(log_odds)(weights, record, label)
        return torch.stack([g.double().square().sum() for g in gradients.values()]).sum()

    numbers = sum(weight.numel() for weight in weights.values())
    chunk = max(1, min(_MOST_RECORDS, _CHUNK_NUMBERS // max(1, numbers)))
    with warnings.catch_warnings():
        # Layers without a batching rule (an LSTM) go record by record: slower, and the same.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        parts = [
            vmap(squared_norm)(some, theirs)
            for some, theirs in zip(
                torch.split(features, chunk), torch.split(labels, chunk), strict=True
            )
        ]
    return np.sqrt(np.asarray(torch.cat(parts).numpy(), dtype=np.float64))
