"""How shadow models are trained: the target's own recipe, and what each of them draws.

A shadow is trained in one place, as if one owner held all of its records: the rounds, the
optimiser that starts anew with each of them, the batches, FedProx's pull and the mechanism are the
run's; what a server does beyond averaging is not, and the recipe says so.

Trusts: nobody with the noise of a shadow. It comes from torch's seeded generator, so that a shadow
can be made again bit by bit, and it protects nothing: a shadow shares its records' exposure, is
never released, and moves nothing but findings that stay where the records are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, RunSpec, TrainingSpec
from tacit.learning.training import batches
from tacit.privacy.plan import PrivacyPlan, privacy_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tacit.core.specification import StrategySpec

_AVERAGING = ("FedAvg", "FedProx")
_LIMIT_NUMBERS = 1 << 20  # row numbers of the coming steps that are held at once: 8 MB


@dataclass(frozen=True, kw_only=True)
class ShadowRecipe:
    """Everything public about how a shadow is trained.

    Attributes:
        training: optimiser and batches, for the local steps of one round.
        plan: the mechanism; its normaliser belongs to a shadow's number of records.
        rounds: how often the optimiser starts anew.
        owners: how many owners' updates the target's server averages: each adds noise of its own,
            and the mean has a share of it.
        notes: what of the run the recipe leaves out, in words for people.
    """

    training: TrainingSpec
    plan: PrivacyPlan
    rounds: int
    owners: int = 1
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.owners < 1:
            raise ValueError("expected at least one round and one owner")
        if self.plan.unit is PrivacyUnit.SUBJECT:
            raise RefusedError(
                "E-SHADOW-UNIT",
                "expected a recipe whose unit is the record or the client, got the subject",
                hint="probes without reference models can still be run",
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of one shadow."""
        return self.rounds * self.training.local_steps

    @property
    def step_noise(self) -> float:
        """Deviation of the noise on a step's sum of clipped gradients; 0 where none is added.

        Each of K owners adds the plan's deviation and divides by a normaliser for own records; of
        the mean, over a normaliser for all records, that leaves sqrt(K) times the deviation.
        """
        if not self.plan.trains_with_noise:
            return 0.0
        return self.plan.noise_deviation * math.sqrt(self.owners)

    @property
    def update_noise(self) -> float:
        """Deviation of the noise on a round's mean of clipped updates; 0 where none is added."""
        if self.plan.mode is not PrivacyMode.CLIENT_LOCAL:
            return 0.0
        return self.plan.noise_deviation / math.sqrt(self.owners)


def shadow_recipe(spec: RunSpec, *, records: int, owners: int = 1) -> ShadowRecipe:
    """Derive a shadow's recipe from a run's specification.

    Args:
        spec: a run of a built-in or factory model.
        records: what a data set of a shadow's size would be declared as, validation records
            included. The public divisor of noised sums follows from it, never from the run's own.
        owners: how many took part in a round of the target.

    Raises:
        ConfigError: the run brings its own app (``E-SHADOW-APP``).
        RefusedError: the unit of privacy is the subject (``E-SHADOW-UNIT``), or no mechanism is
            built for the run's mode, as :func:`tacit.privacy.plan.privacy_plan`.
    """
    if spec.model is None or spec.data is None or spec.training is None:
        raise ConfigError(
            "E-SHADOW-APP",
            "expected a run with [data], [model] and [training], got one that brings its own app",
            hint="probes without reference models can still be run",
        )
    local = dataclasses.replace(spec, privacy=dataclasses.replace(spec.privacy, normaliser=0.0))
    pull = spec.training.proximal_mu
    if spec.strategy.name == "FedProx":
        pull = float(spec.strategy.parameters.get("proximal_mu", pull))
    return ShadowRecipe(
        training=dataclasses.replace(spec.training, proximal_mu=pull),
        plan=privacy_plan(local, records=records),
        rounds=spec.participation.rounds,
        owners=owners,
        notes=_notes(spec.strategy, owners=owners, local_steps=spec.training.local_steps),
    )


def _notes(strategy: StrategySpec, *, owners: int, local_steps: int) -> tuple[str, ...]:
    notes = []
    if strategy.name not in _AVERAGING:
        notes.append(f"shadows average plainly: the server's {strategy.name} is left out")
    if strategy.wrapper:
        notes.append(f"shadows are trained without the server's {strategy.wrapper}")
    if owners > 1 and local_steps > 1:
        notes.append(
            f"a shadow's records are trained on together: the target averaged {owners} owners "
            f"after {local_steps} steps each"
        )
    return tuple(notes)


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose: no two purposes or seeds share a stream."""
    digest = hashlib.sha256(f"shadow|{seed}|{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def round_seed(seed: int, round_number: int) -> int:
    """Return the ``batch_seed`` of one model's round; rounds count from 0."""
    return derived_seed(seed, f"batches of round {round_number}")


@dataclass(frozen=True, eq=False)
class Step:
    """Which records every model trains on in one step.

    Attributes:
        rows: int64 ``(models, r)`` positions in the pool; models with fewer are filled up.
        weights: float32 ``(models, r)``: what each record's gradient counts; 0 where filled up.
    """

    rows: torch.Tensor
    weights: torch.Tensor


class Draws:
    """What one model draws, step by step: batches or Poisson samples, and noise.

    The draws follow from the model's own seed, whatever is trained beside it.
    """

    def __init__(self, members: torch.Tensor, recipe: ShadowRecipe, *, seed: int) -> None:
        """Take the positions in the pool of the model's records, int64 ``(n,)``."""
        self.members = members
        self._recipe = recipe
        self._seed = seed
        self._noise = torch.Generator().manual_seed(derived_seed(seed, "noise"))
        self._coins = torch.Generator().manual_seed(derived_seed(seed, "samples"))

    @property
    def batch_size(self) -> int:
        """Records per step, where no coin decides."""
        size, records = self._recipe.training.batch_size, len(self.members)
        full = size == 0 or size >= records or self._recipe.plan.trains_with_noise
        return records if full else size

    def rows_of(self, round_number: int, steps: range) -> torch.Tensor:
        """Return the positions of the records of some of a round's batches, end to end.

        A round's steps are asked for in order.
        """
        if self.batch_size == len(self.members):
            return self.members.repeat(len(steps))
        if steps.start == 0:
            seed = round_seed(self._seed, round_number)
            self._batches = batches(len(self.members), size=self.batch_size, seed=seed)
        return self.members[torch.cat([next(self._batches) for _ in steps])]

    def sample(self) -> torch.Tensor:
        """Return the positions of the records that the next Poisson sample takes."""
        coins = torch.rand(len(self.members), dtype=torch.float64, generator=self._coins)
        return self.members[coins < self._recipe.plan.sample_rate]

    def fill_noise(self, numbers: torch.Tensor) -> None:
        """Overwrite float32 numbers with the next standard normal ones."""
        torch.randn(numbers.shape, generator=self._noise, out=numbers)


def steps_of_round(
    draws: Sequence[Draws], recipe: ShadowRecipe, round_number: int
) -> Iterator[Step]:
    """Yield the steps of a round of models that are trained together."""
    total = recipe.training.local_steps
    if recipe.plan.trains_with_noise and recipe.plan.sample_rate < 1.0:
        for _ in range(total):
            yield _joined([model.sample() for model in draws], recipe)
        return
    sizes = [model.batch_size for model in draws]
    if sizes == [len(model.members) for model in draws]:  # all of its records, every time
        step = _joined([model.members for model in draws], recipe)
        for _ in range(total):
            yield step
        return
    held = max(1, _LIMIT_NUMBERS // sum(sizes))
    for start in range(0, total, held):
        steps = range(start, min(total, start + held))
        ahead = [model.rows_of(round_number, steps) for model in draws]
        if min(sizes) == max(sizes):  # the usual case: one tensor, cut into steps
            weights = torch.full((len(draws), sizes[0]), 1.0 / sizes[0])
            for rows in torch.split(torch.stack(ahead), sizes[0], dim=1):
                yield Step(rows, weights)
            continue
        cut = [torch.split(rows, size) for rows, size in zip(ahead, sizes, strict=True)]
        for parts in zip(*cut, strict=True):
            yield _joined(parts, recipe)


def _joined(rows: Sequence[torch.Tensor], recipe: ShadowRecipe) -> Step:
    """Return a step of unequal samples, filled up with a record that weighs nothing."""
    lengths = torch.tensor([part.shape[0] for part in rows])
    # A mean over the batch; under differential privacy a sum, which the normaliser divides.
    shares = torch.ones(len(rows)) if recipe.plan.trains_with_noise else 1.0 / lengths
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    real = torch.arange(padded.shape[1]) < lengths[:, None]
    return Step(padded, shares[:, None] * real)
