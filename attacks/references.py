"""Reference models: who is in which, and how they are trained and kept.

Promises: references are trained on audited records and on those named for all of them; nothing of
the population, and nothing else, ever goes into one. They come in pairs, and of a pair each
audited record is in exactly one. Who was in the target is known to ``choose_audited`` alone, which
no probe sees.

A reference of a pair is trained on half of the audited records. For it to be as large as the
target, ``choose_audited`` takes as many members as non-members, and puts the other members into
every reference: with m members and k <= m non-members, (m - k) + 2k / 2 = m.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.probe import References
from tacit.attacks.reference_cache import Arrays, ReferenceCache, cache_key
from tacit.attacks.reference_workers import trained_by_workers
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import derived_seed
from tacit.learning.vectorised import Shadow, train_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.random import Generator
    from torch import nn

    from tacit.attacks.target import BoolArray, Int64Array
    from tacit.learning.shadow_recipe import ShadowRecipe

    Progress = Callable[[int, int], None]

# Models of one file, which an interruption loses. Small ones gain a fifth by sixteen at a time;
# large ones gain nothing by company, and a chunk of them takes long enough.
_CHUNK_SMALL, _CHUNK_LARGE = 16, 4
_SMALL_NUMBERS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Material:
    """What references are trained on and asked about.

    Attributes:
        audited: each is in half of the models.
        always: records that are not audited and are in every model; None for none.
        population: records that are in no model; None for none.
    """

    audited: Examples
    always: Examples | None = None
    population: Examples | None = None


@dataclass(frozen=True, kw_only=True)
class Design:
    """Who is in which reference.

    A pair follows from the seed and its number alone: more models leave the first ones as they
    are, and those that are trained already are used again.

    Attributes:
        models: an even number.
        records: audited ones, at least two.
        seed: of the pairs, the batches and the shadows' noise.
    """

    models: int
    records: int
    seed: int

    def __post_init__(self) -> None:
        if self.models < 2 or self.models % 2 or self.records < 2:
            raise ValueError("expected pairs of models, and at least two records")

    def is_in(self) -> BoolArray:
        """Return bool ``(models, records)``: model 2k + 1 has what model 2k has not."""
        halves = np.zeros((self.models // 2, self.records), dtype=np.bool_)
        for pair, half in enumerate(halves):
            order = np.random.default_rng([self.seed, pair]).permutation(self.records)
            half[order[: self.records // 2]] = True
        return np.stack([halves, ~halves], axis=1).reshape(self.models, self.records)


def choose_audited(is_member: BoolArray, *, rng: Generator) -> tuple[Int64Array, Int64Array]:
    """Choose whom to audit so that references are as large as the target.

    Args:
        is_member: bool ``(n,)``, of all records that may be audited.
        rng: chooses among the side that has more.

    Returns:
        Positions of the audited records, as many members as non-members, and of the members that
        are left, which belong into every reference. Both in ascending order.
    """
    members, others = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    size = min(len(members), len(others))
    chosen = [rng.permutation(side)[:size] for side in (members, others)]
    audited = np.sort(np.concatenate(chosen)).astype(np.int64)
    return audited, np.setdiff1d(members, chosen[0]).astype(np.int64)


def train_references(
    material: Material,
    *,
    model: nn.Module,
    recipe: ShadowRecipe,
    design: Design,
    cache: ReferenceCache | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> References:
    """Train reference models, or take them from the cache, and ask them.

    Args:
        material: the records.
        model: the target's architecture and first weights, from which every reference starts.
        recipe: the target's.
        design: who is in which.
        cache: keeps every finished chunk, also when the rest is interrupted.
        workers: processes, of one thread each; with 1 this one trains.
        progress: called now and then with steps done and in all, of all models together.

    Raises:
        AppError: the recipe does not lead to finite weights (``E-TRAINING-DIVERGED``).
        ConfigError: the model mixes records (``E-MODEL-NOT-DP``).
        UnavailableError: the cache cannot be written, or a worker ended (``E-AUDIT-WORKERS``).
        ValueError: the design is of another number of records.
    """
    if design.records != len(material.audited):
        raise ValueError(f"expected a design of {len(material.audited)} records")
    work = _Work(material=material, model=model, recipe=recipe, design=design)
    key = "" if cache is None else work.key()
    chunks = _chunks(model, design.models)
    found: dict[int, Arrays] = {}
    missing = []
    for chunk in chunks:
        arrays = None if cache is None else cache.load(key, chunk)
        if arrays is not None and work.accepts(chunk, arrays):
            found[chunk.start] = arrays
        else:
            missing.append(chunk)
    steps = _Steps(recipe.steps, total=design.models, progress=progress)
    steps.add(design.models - sum(map(len, missing)))
    for chunk, arrays in _made(work, missing, workers=workers, steps=steps):
        found[chunk.start] = arrays
        if cache is not None:
            cache.save(key, chunk, arrays)
    ordered = [found[chunk.start] for chunk in chunks]
    return References(
        logits=np.concatenate([arrays["logits"] for arrays in ordered]),
        is_in=np.concatenate([arrays["is_in"] for arrays in ordered]),
        population_logits=np.concatenate([arrays["population_logits"] for arrays in ordered]),
    )


def _chunks(model: nn.Module, models: int) -> list[range]:
    numbers = sum(parameter.numel() for parameter in model.parameters())
    size = _CHUNK_SMALL if numbers <= _SMALL_NUMBERS else _CHUNK_LARGE
    return [range(start, min(models, start + size)) for start in range(0, models, size)]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every chunk needs, also in another process."""

    material: Material
    model: nn.Module
    recipe: ShadowRecipe
    design: Design

    def key(self) -> str:
        sides = (self.material.audited, self.material.always, self.material.population)
        nothing = np.zeros(0)
        data = [
            array
            for side in sides
            for array in ((nothing, nothing) if side is None else (side.features, side.labels))
        ]
        return cache_key(
            model=self.model,
            recipe=self.recipe,
            seed=self.design.seed,
            data=data,
            code=Path(__file__),
        )

    def accepts(self, chunk: range, arrays: Arrays) -> bool:
        """Whether arrays from a file are what this work would have made."""
        if arrays.keys() != {"logits", "is_in", "population_logits"}:
            return False
        population = self.material.population
        records = len(self.material.audited), 0 if population is None else len(population)
        answers = arrays["logits"], arrays["population_logits"]
        return np.array_equal(
            arrays["is_in"], self.design.is_in()[chunk.start : chunk.stop]
        ) and all(
            answer.dtype == np.float32
            and answer.ndim == 3
            and answer.shape[:2] == (len(chunk), count)
            and bool(np.isfinite(answer).all())
            for answer, count in zip(answers, records, strict=True)
        )

    def train(self, chunk: range, progress: Progress | None = None) -> Arrays:
        audited, always = self.material.audited, self.material.always
        is_in = self.design.is_in()[chunk.start : chunk.stop]
        pool = audited if always is None else _joined(audited, always)
        beyond = np.arange(len(audited), len(pool), dtype=np.int64)
        shadows = [
            Shadow(
                start=self.model,
                rows=np.concatenate([np.flatnonzero(row), beyond]).astype(np.int64),
                seed=derived_seed(self.design.seed, f"model {number}"),
            )
            for number, row in zip(chunk, is_in, strict=True)
        ]
        models = train_together(shadows, pool, self.recipe, progress=progress)
        logits = models.logits(audited.features)
        population = self.material.population
        return {
            "logits": logits,
            "is_in": is_in,
            "population_logits": np.zeros((len(chunk), 0, logits.shape[2]), dtype=np.float32)
            if population is None
            else models.logits(population.features),
        }


def _joined(one: Examples, other: Examples) -> Examples:
    return Examples(
        features=np.concatenate([one.features, other.features]),
        labels=np.concatenate([one.labels, other.labels]),
    )


class _Steps:
    """Steps of all models, whichever chunk they belong to."""

    def __init__(self, steps: int, *, total: int, progress: Progress | None) -> None:
        self._steps, self._total, self._progress = steps, total * steps, progress
        self._done = self._told = 0

    def add(self, models: int) -> None:
        """Count whole models."""
        self._done += models * self._steps
        self.tell(0)

    def tell(self, more: int, _of: int = 0) -> None:
        """Tell what is done, with some steps of a chunk that is not."""
        if self._progress is not None and self._done + more > self._told:
            self._told = self._done + more
            self._progress(self._told, self._total)


def _made(
    work: _Work, chunks: Sequence[range], *, workers: int, steps: _Steps
) -> Iterator[tuple[range, Arrays]]:
    """Yield each chunk as soon as it is trained."""
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            arrays = work.train(chunk, steps.tell)
            yield chunk, arrays
            steps.add(len(chunk))
        return
    for chunk, arrays in trained_by_workers(work, chunks, workers=workers):
        yield chunk, arrays
        steps.add(len(chunk))
