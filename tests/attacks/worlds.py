"""A world for attacks: records, models trained together on known halves, and what each says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from tacit.attacks.probe import Evidence, References
from tacit.attacks.target import BoolArray, Float64Array, ModelTarget, Outputs

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.learning.prepared import Examples


@dataclass(frozen=True, kw_only=True)
class World:
    """A target with its evidence, and the truth that no probe is told."""

    evidence: Evidence
    is_in: BoolArray


@dataclass(frozen=True, kw_only=True)
class Training:
    """How all models of a world are trained: full-batch Adam on one hidden layer."""

    hidden: int = 32
    steps: int = 150
    learning_rate: float = 0.02


def paired_halves(pairs: int, records: int, rng: Generator) -> BoolArray:
    """Draw halves; each is followed by its complement. ``(2 pairs, records)``."""
    rows = []
    for _ in range(pairs):
        half = np.zeros(records, dtype=np.bool_)
        half[rng.permutation(records)[: records // 2]] = True
        rows += [half, ~half]
    return np.stack(rows)


def trained_together(
    examples: Examples, is_in: BoolArray, classes: int, training: Training
) -> list[nn.Module]:
    """Train one model per row of ``is_in``, all of one size, by batched matrix products."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.from_numpy(np.stack([np.flatnonzero(row) for row in is_in]))
    inputs = torch.from_numpy(examples.features)[rows]
    labels = torch.from_numpy(examples.labels)[rows]
    weights = _initial(len(is_in), examples.features.shape[1], training.hidden, classes, generator)
    optimizer = torch.optim.Adam(weights, lr=training.learning_rate)
    for _ in range(training.steps):
        optimizer.zero_grad()
        first, shift, last, offset = weights
        logits = torch.baddbmm(
            offset, torch.tanh(torch.baddbmm(shift, inputs, first)), last
        ).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        (loss / labels.shape[1]).backward()
        optimizer.step()
    return [_model(*(w[k].detach() for w in weights)) for k in range(len(is_in))]


def untrained(features: int, hidden: int, classes: int, *, seed: int) -> nn.Module:
    """Return a model with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return _model(*(w[0].detach() for w in _initial(1, features, hidden, classes, generator)))


def _initial(
    models: int, features: int, hidden: int, classes: int, generator: torch.Generator
) -> list[torch.Tensor]:
    def drawn(inputs: int, outputs: int) -> torch.Tensor:
        values = torch.randn((models, inputs, outputs), generator=generator) / inputs**0.5
        return values.requires_grad_()

    return [
        drawn(features, hidden),
        torch.zeros((models, 1, hidden), requires_grad=True),
        drawn(hidden, classes),
        torch.zeros((models, 1, classes), requires_grad=True),
    ]


def _model(
    first: torch.Tensor, shift: torch.Tensor, last: torch.Tensor, offset: torch.Tensor
) -> nn.Module:
    hidden = nn.Linear(*first.shape)
    linear = nn.Linear(*last.shape)
    for layer, weight, bias in ((hidden, first, shift), (linear, last, offset)):
        layer.weight.data, layer.bias.data = weight.T.contiguous(), bias[0].clone()
    return nn.Sequential(hidden, nn.Tanh(), linear).eval()


def world_of(
    model: nn.Module,
    references: list[nn.Module],
    is_in: BoolArray,
    audited: Examples,
    population: Examples,
) -> World:
    """Put together what an attacker sees of ``model``.

    Args:
        model: the target; trained on the first row of ``is_in``.
        references: in pairs, trained on the other rows of it.
        is_in: bool ``(1 + models, n)``.
        audited: ``n`` records.
        population: others.
    """
    target = ModelTarget(model=model)
    tables = [ModelTarget(model=reference) for reference in references]
    evidence = Evidence(
        outputs=Outputs(logits=target.logits(audited.features), labels=audited.labels),
        examples=audited,
        target=target,
        references=References(
            logits=np.stack([t.logits(audited.features) for t in tables]).astype(np.float32),
            is_in=is_in[1:],
            population_logits=np.stack([t.logits(population.features) for t in tables]).astype(
                np.float32
            ),
        ),
        population=Outputs(logits=target.logits(population.features), labels=population.labels),
        population_examples=population,
    )
    return World(evidence=evidence, is_in=is_in[0])


def with_target(world: World, model: nn.Module) -> World:
    """Return the world with another model in the place of the target."""
    target = ModelTarget(model=model)
    evidence = world.evidence
    assert evidence.examples is not None
    assert evidence.population_examples is not None
    outputs = Outputs(
        logits=target.logits(evidence.examples.features), labels=evidence.examples.labels
    )
    population = Outputs(
        logits=target.logits(evidence.population_examples.features),
        labels=evidence.population_examples.labels,
    )
    changed = replace(evidence, outputs=outputs, target=target, population=population)
    return World(evidence=changed, is_in=world.is_in)


def auc(scores: Float64Array, is_in: BoolArray) -> float:
    """Return the share of (member, non-member) pairs in the right order, ties half."""
    wins = np.searchsorted(np.sort(scores[~is_in]), scores[is_in], side="left")
    half = np.searchsorted(np.sort(scores[~is_in]), scores[is_in], side="right")
    return float((wins + half).mean() / (2 * (~is_in).sum()))


def auc_error(is_in: BoolArray) -> float:
    """Return the standard error of an AUC of one half (Mann & Whitney 1947)."""
    inside, outside = int(is_in.sum()), int((~is_in).sum())
    return float(np.sqrt((inside + outside + 1) / (12 * inside * outside)))
