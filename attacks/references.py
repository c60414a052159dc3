"""Reference models: how they are trained and kept.

Promises: references are trained on audited records and on those named for all of them; nothing of
the population, and nothing else, ever goes into one. They come in pairs, and of a pair each
audited record is in exactly one (``design.py``). Who was in the target is known to
``choose_audited`` alone, which no probe sees. Each is trained on its records in the order of their
keys: in whatever order they came, they get the same answers.

A reference of a pair is trained on half of the audited records. For it to be as large as the
target, ``choose_audited`` takes as many members as non-members, and puts the other members into
every reference: with m members and k <= m non-members, (m - k) + 2k / 2 = m.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.probe import References
from tacit.attacks.reference_cache import Arrays, ReferenceCache, cache_key
from tacit.attacks.reference_workers import trained_by_workers
from tacit.attacks.subject import record_keys
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import derived_seed
from tacit.learning.vectorised import Shadow, train_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from tacit.attacks.design import Design
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
        design: how many, and the seed.
        cache: keeps every finished chunk, also when the rest is interrupted.
        workers: processes, of one thread each; with 1 this one trains.
        progress: called now and then with steps done and in all, of all models together.

    Raises:
        AppError: the recipe does not lead to finite weights (``E-TRAINING-DIVERGED``).
        ConfigError: the model mixes records (``E-MODEL-NOT-DP``).
        UnavailableError: the cache cannot be written, or a worker ended (``E-AUDIT-WORKERS``).
        ValueError: all audited records are equal.
    """
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
        is_in=work.is_in,
        population_logits=np.concatenate([arrays["population_logits"] for arrays in ordered]),
    )


def _chunks(model: nn.Module, models: int) -> list[range]:
    numbers = sum(parameter.numel() for parameter in model.parameters())
    size = _CHUNK_SMALL if numbers <= _SMALL_NUMBERS else _CHUNK_LARGE
    return [range(start, min(models, start + size)) for start in range(0, models, size)]


@dataclass(kw_only=True)
class _Work:
    """What every chunk needs, also in another process.

    Attributes:
        pool: what is trained on: audited records, then those of every model.
        by_key: int64, its positions in the order of the records' keys.
        is_in: bool ``(models, n)``, of the audited records.
    """

    material: Material
    model: nn.Module
    recipe: ShadowRecipe
    design: Design
    pool: Examples = field(init=False)
    by_key: Int64Array = field(init=False)
    is_in: BoolArray = field(init=False)

    def __post_init__(self) -> None:
        audited, always = self.material.audited, self.material.always
        self.pool = audited if always is None else _joined(audited, always)
        keys = record_keys(self.pool)
        self.by_key = np.argsort(keys, kind="stable")
        self.is_in = self.design.is_in(keys[: len(audited)])

    def key(self) -> str:
        asked = (self.material.audited, self.material.population)  # answers are in their order
        trained = Examples(
            features=self.pool.features[self.by_key], labels=self.pool.labels[self.by_key]
        )
        nothing = np.zeros(0)
        data = [
            array
            for side in (trained, *asked)
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
        return np.array_equal(arrays["is_in"], self.is_in[chunk.start : chunk.stop]) and all(
            answer.dtype == np.float32
            and answer.ndim == 3
            and answer.shape[:2] == (len(chunk), count)
            and bool(np.isfinite(answer).all())
            for answer, count in zip(answers, records, strict=True)
        )

    def train(self, chunk: range, progress: Progress | None = None) -> Arrays:
        audited, population = self.material.audited, self.material.population
        is_in = self.is_in[chunk.start : chunk.stop]
        trained_on = np.ones((len(chunk), len(self.pool)), dtype=np.bool_)
        trained_on[:, : len(audited)] = is_in
        shadows = [
            Shadow(
                start=self.model,
                rows=self.by_key[row[self.by_key]],
                seed=derived_seed(self.design.seed, f"model {number}"),
            )
            for number, row in zip(chunk, trained_on, strict=True)
        ]
        models = train_together(shadows, self.pool, self.recipe, progress=progress)
        logits = models.logits(audited.features)
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
