"""Quantile regression (Bertran et al. 2023, arXiv 2307.03694): how sure a model of strangers is.

One model, no shadows: on records that the target was not trained on, learn the quantiles of phi
given what a record holds, by the pinball loss (section 3). A record whose phi lies above its own
upper quantile is called a member at the false-positive rate of that quantile.

Two quantiles are learnt, and all other thresholds lie on the line through them, so that each
false-positive rate has its threshold without a regression of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from tacit.attacks.membership.signals import needed, true_log_odds
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import Float64Array
    from tacit.learning.prepared import Examples

_HELD_OUT = 4  # one in so many of the population decides when to stop
_PATIENCE = 30  # steps without a better held-out loss
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """Score: (phi - median) / (upper quantile - median), both as predicted for the record.

    Attributes:
        upper: level of the upper quantile.
        hidden: width of the network's one hidden layer.
        steps: of Adam, at most.
        learning_rate: of Adam.
    """

    upper: float = 0.9
    hidden: int = 64
    steps: int = 400
    learning_rate: float = 0.01
    name: ClassVar[str] = "quantile"
    source: ClassVar[str] = "Bertran et al. 2023, arXiv 2307.03694"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.POPULATION, Need.POPULATION_RECORDS})

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:
        """Return the score per record."""
        examples = needed(evidence.examples, "the audited records")
        strangers = needed(evidence.population_examples, "the population's records")
        outputs = needed(evidence.population, "a population")
        usual = true_log_odds(outputs.logits, outputs.labels)
        centre, scale = float(np.median(usual)), max(float(usual.std()), _LEAST_SCALE)
        encode = _encoder(strangers, classes=outputs.classes)
        network = self._fitted(encode(strangers), torch.from_numpy((usual - centre) / scale), rng)
        with torch.no_grad():
            median, spread = network(encode(examples)).unbind(dim=1)
        phi = true_log_odds(evidence.outputs.logits, evidence.outputs.labels)
        above = (phi - centre) / scale - np.asarray(median.numpy(), dtype=np.float64)
        return above / np.asarray(spread.numpy(), dtype=np.float64)

    def _fitted(self, rows: torch.Tensor, phi: torch.Tensor, rng: Generator) -> nn.Module:
        order = torch.from_numpy(rng.permutation(len(phi)))
        held, kept = order[: len(phi) // _HELD_OUT], order[len(phi) // _HELD_OUT :]
        network = _Network(rows.shape[1], self.hidden, rng)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        best, stale = np.inf, 0
        weights = _copied(network)
        for _ in range(self.steps):
            with torch.no_grad():
                loss = float(self._pinball(network(rows[held]), phi[held]))
            stale += 1
            if loss < best:
                best, stale, weights = loss, 0, _copied(network)
            if stale > _PATIENCE:
                break
            optimizer.zero_grad()
            self._pinball(network(rows[kept]), phi[kept]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.load_state_dict(weights)
        return network

    def _pinball(self, predicted: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        """Return the mean pinball loss of both quantiles (section 3)."""
        median, spread = predicted.unbind(dim=1)
        total = torch.zeros((), dtype=torch.float64)
        for level, quantile in ((0.5, median), (self.upper, median + spread)):
            miss = phi - quantile
            total = total + torch.maximum(level * miss, (level - 1.0) * miss).mean()
        return total


class _Network(nn.Module):
    """Median, and how far above it the upper quantile lies: the two never cross. float64."""

    def __init__(self, inputs: int, hidden: int, rng: Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden, dtype=torch.float64)
        self.last = nn.Linear(hidden, 2, dtype=torch.float64)
        for layer in (self.hidden, self.last):
            drawn = rng.normal(size=layer.weight.shape) / np.sqrt(layer.in_features)
            layer.weight.data = torch.from_numpy(drawn)
            nn.init.zeros_(layer.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        median, raw = self.last(torch.relu(self.hidden(rows))).unbind(dim=1)
        return torch.stack([median, nn.functional.softplus(raw) + _LEAST_SCALE], dim=1)


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _encoder(strangers: Examples, *, classes: int) -> Callable[[Examples], torch.Tensor]:
    """Return what turns records into rows, scaled as the population's are, with their class."""
    flat = strangers.features.reshape(len(strangers), -1).astype(np.float64)
    centre, spread = flat.mean(axis=0), flat.std(axis=0)
    scale = np.where(spread > _LEAST_SCALE, spread, 1.0)

    def encode(examples: Examples) -> torch.Tensor:
        rows = examples.features.reshape(len(examples), -1).astype(np.float64)
        return torch.from_numpy(
            np.concatenate([(rows - centre) / scale, np.eye(classes)[examples.labels]], axis=1)
        )

    return encode
