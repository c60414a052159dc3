"""References are the target's recipe on known halves; a file of theirs is never trusted blindly."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.design import Design
from tacit.attacks.probe import References
from tacit.attacks.recipe_check import check_recipe
from tacit.attacks.reference_cache import ReferenceCache
from tacit.attacks.reference_workers import trained_by_workers
from tacit.attacks.references import Material, train_references
from tacit.attacks.subject import record_keys
from tacit.attacks.target import Outputs
from tacit.core.errors import AppError, UnavailableError
from tacit.core.specification import TrainingSpec
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import ShadowRecipe, derived_seed, round_seed
from tacit.learning.training import Recipe, train_model
from tests.learning.plans import open_plan

if TYPE_CHECKING:
    from pathlib import Path

OPEN = open_plan(local_steps=5)
RECIPE = ShadowRecipe(
    training=TrainingSpec(learning_rate=0.5, local_steps=30, batch_size=8), plan=OPEN, rounds=2
)
DESIGN = Design(models=36, seed=7)  # three chunks, the last of two pairs
STEPS = DESIGN.models * RECIPE.steps


def examples(count: int, seed: int) -> Examples:
    generator = np.random.default_rng(seed)
    return Examples(
        features=generator.normal(size=(count, 6)).astype(np.float32),
        labels=generator.integers(0, 3, size=count),
    )


MATERIAL = Material(audited=examples(40, 1), always=examples(10, 2), population=examples(15, 3))
IS_IN = DESIGN.is_in(record_keys(MATERIAL.audited))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def cache(tmp_path: Path) -> ReferenceCache:
    return ReferenceCache(folder=tmp_path / "cache")


def trained(model: nn.Module, material: Material = MATERIAL, **options: Any) -> References:
    values = {"recipe": RECIPE, "design": DESIGN, **options}
    return train_references(material, model=model, **values)


def cached_steps(model: nn.Module, material: Material = MATERIAL, **options: Any) -> int:
    """Return how many steps came from the cache: the first report, if it is of whole models."""
    told: list[int] = []
    trained(model, material, progress=lambda done, _total: told.append(done), **options)
    return told[0] if told[0] % RECIPE.steps == 0 else 0  # training tells every 50 steps


def by_key(records: Examples) -> Examples:
    order = np.argsort(record_keys(records))
    return Examples(features=records.features[order], labels=records.labels[order])


def with_another_in_place(records: Examples, row: int) -> Examples:
    """Put another record in the place of one, whose key has the same rank."""
    places = np.argsort(record_keys(records))
    for draw in range(10_000):
        features = records.features.copy()
        features[row] = np.random.default_rng(draw).normal(size=6)
        changed = dataclasses.replace(records, features=features)
        if np.array_equal(np.argsort(record_keys(changed)), places):
            return changed
    raise AssertionError("no record has a key in that place")


def in_order(records: Examples | None, order: np.ndarray) -> Examples:
    assert records is not None
    return Examples(features=records.features[order], labels=records.labels[order])


def assert_equal(one: References, other: References) -> None:
    for field in dataclasses.fields(References):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_reference_is_what_the_recipe_trains(model: nn.Module) -> None:
    """Model 5, trained alone as an owner would on its half and the records of all, answers so."""
    references = trained(model)
    rows = np.flatnonzero(IS_IN[5])
    audited, always = MATERIAL.audited, MATERIAL.always
    assert always is not None
    own = by_key(
        Examples(
            features=np.concatenate([audited.features[rows], always.features]),
            labels=np.concatenate([audited.labels[rows], always.labels]),
        )
    )
    alone = copy.deepcopy(model)
    for number in range(RECIPE.rounds):
        seed = round_seed(derived_seed(DESIGN.seed, "model 5"), number)
        train_model(alone, own, Recipe(training=RECIPE.training, plan=OPEN, batch_seed=seed))
    expected = alone(torch.from_numpy(audited.features)).detach().numpy()
    np.testing.assert_allclose(references.logits[5], expected, atol=1e-3)
    assert references.population_logits.shape == (36, 15, 3)


def test_only_records_of_its_half_move_a_reference(model: nn.Module) -> None:
    """Another record in its place changes the models that it is in, and no other.

    The population changes none.
    """
    audited = MATERIAL.audited
    changed = dataclasses.replace(MATERIAL, audited=with_another_in_place(audited, 11))
    before, after = trained(model), trained(model, changed)
    others = np.arange(40) != 11
    moved = (before.logits[:, others] != after.logits[:, others]).any(axis=(1, 2))
    np.testing.assert_array_equal(moved, IS_IN[:, 11])
    elsewhere = trained(model, dataclasses.replace(MATERIAL, population=examples(15, 9)))
    np.testing.assert_array_equal(elsewhere.logits, before.logits)


def test_the_order_of_records_moves_no_answer(model: nn.Module, cache: ReferenceCache) -> None:
    """Audited records, those of all models and the population, permuted: the same per record."""
    shuffled = [
        np.random.default_rng(seed).permutation(count) for seed, count in enumerate((40, 10, 15))
    ]
    material = Material(
        audited=in_order(MATERIAL.audited, shuffled[0]),
        always=in_order(MATERIAL.always, shuffled[1]),
        population=in_order(MATERIAL.population, shuffled[2]),
    )
    before, after = trained(model, cache=cache), trained(model, material)
    np.testing.assert_array_equal(after.is_in, before.is_in[:, shuffled[0]])
    np.testing.assert_allclose(after.logits, before.logits[:, shuffled[0]], atol=1e-5)
    np.testing.assert_allclose(
        after.population_logits, before.population_logits[:, shuffled[2]], atol=1e-5
    )
    always = dataclasses.replace(MATERIAL, always=material.always)
    assert cached_steps(model, always, cache=cache) == STEPS  # nothing is answered in their order


def test_without_a_population_there_is_nothing_to_ask(model: nn.Module) -> None:
    """The array is there, and empty."""
    references = trained(model, Material(audited=MATERIAL.audited))
    assert references.population_logits.shape == (36, 0, 3)


def test_what_is_cached_is_not_trained_again(model: nn.Module, cache: ReferenceCache) -> None:
    """The second call trains nothing and returns the same bits; more models train only those."""
    once = trained(model, cache=cache)
    assert cached_steps(model, cache=cache) == STEPS
    assert_equal(trained(model, cache=cache), once)
    more = dataclasses.replace(DESIGN, models=44)
    assert cached_steps(model, cache=cache, design=more) == 32 * RECIPE.steps


def test_an_interruption_keeps_finished_chunks(model: nn.Module, cache: ReferenceCache) -> None:
    """Ctrl-C in the second chunk costs the second chunk."""

    def interrupt(done: int, _total: int) -> None:
        if done > 16 * RECIPE.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, cache=cache, progress=interrupt)
    assert cached_steps(model, cache=cache) == 16 * RECIPE.steps
    assert_equal(trained(model, cache=cache), trained(model))


@pytest.mark.parametrize("damage", ["flip", "cut", "note", "swap"])
def test_a_damaged_chunk_is_trained_again(
    damage: str, model: nn.Module, cache: ReferenceCache
) -> None:
    """A changed byte, a cut file, a note that is no JSON, another chunk's file: the same result."""
    once = trained(model, cache=cache)
    (folder,) = cache.folder.iterdir()
    first, second, _ = sorted(folder.glob("*.safetensors"))
    content = bytearray(first.read_bytes())
    if damage == "flip":
        content[-7] ^= 1
        first.write_bytes(content)
    elif damage == "cut":
        first.write_bytes(content[:-50])
    elif damage == "note":
        first.with_suffix(".json").write_text("{", encoding="ascii")
    else:
        first.write_bytes(second.read_bytes())
        first.with_suffix(".json").write_bytes(second.with_suffix(".json").read_bytes())
    assert cached_steps(model, cache=cache) == 20 * RECIPE.steps
    assert_equal(trained(model, cache=cache), once)


def test_whatever_answers_follow_from_is_in_the_key(
    model: nn.Module, cache: ReferenceCache
) -> None:
    """Other records, weights, recipe or seed: nothing is taken from the cache."""
    trained(model, cache=cache)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[0, 0] += 1e-3
    features = MATERIAL.audited.features.copy()
    features[0, 0] += 1e-3
    audited = dataclasses.replace(MATERIAL.audited, features=features)
    training = dataclasses.replace(RECIPE.training, momentum=0.1)
    assert cached_steps(other, cache=cache) == 0
    assert cached_steps(model, dataclasses.replace(MATERIAL, audited=audited), cache=cache) == 0
    assert cached_steps(model, dataclasses.replace(MATERIAL, always=None), cache=cache) == 0
    recipe = dataclasses.replace(RECIPE, training=training)
    assert cached_steps(model, cache=cache, recipe=recipe) == 0
    assert cached_steps(model, cache=cache, design=dataclasses.replace(DESIGN, seed=8)) == 0
    assert cached_steps(model, cache=cache) == STEPS


def test_the_cache_stays_below_its_limit(model: nn.Module, cache: ReferenceCache) -> None:
    """What was not used for longest goes; what does not fit alone is not kept."""
    trained(model, cache=cache)
    size = sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file())
    small = dataclasses.replace(cache, max_bytes=size + 2000)
    trained(model, cache=small, design=dataclasses.replace(DESIGN, seed=8))
    assert len(list(cache.folder.iterdir())) == 1
    assert cached_steps(model, cache=cache) == 0
    tiny = dataclasses.replace(cache, folder=cache.folder / "tiny", max_bytes=100)
    assert_equal(trained(model, cache=tiny), trained(model))
    assert not list(tiny.folder.rglob("chunk-*"))


def test_what_lies_in_the_cache_is_private(model: nn.Module, cache: ReferenceCache) -> None:
    """Answers about records are as sensitive as the model: folders 0700, files 0600."""
    trained(model, cache=cache)
    modes = {
        path.stat().st_mode & 0o777: path.is_dir()
        for path in (cache.folder, *cache.folder.rglob("*"))
    }
    assert modes == {0o700: True, 0o600: False}


def test_a_recipe_that_runs_away_is_an_error(model: nn.Module, cache: ReferenceCache) -> None:
    """No references from weights that are not numbers, and nothing of them is kept."""
    wild = dataclasses.replace(RECIPE.training, learning_rate=1e38, weight_decay=10.0)
    with pytest.raises(AppError) as caught:
        trained(model, cache=cache, recipe=dataclasses.replace(RECIPE, training=wild))
    assert caught.value.code == "E-TRAINING-DIVERGED"
    assert not cache.folder.exists()


def test_accuracies_are_compared_on_the_same_records() -> None:
    """Members when in, non-members when out; more than two points apart do not reproduce."""
    labels = np.zeros(4, dtype=np.int64)
    is_member = np.array([True, True, False, False])
    is_in = np.array([[True, False, True, False], [False, True, False, True]])
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    logits = np.array(
        [[right, wrong, wrong, right], [wrong, right, wrong, wrong]], dtype=np.float32
    )
    nothing = np.zeros((2, 0, 2), dtype=np.float32)
    references = References(logits=logits, is_in=is_in, population_logits=nothing)
    target = Outputs(logits=np.array([right, right, right, wrong]), labels=labels)
    check = check_recipe(references, target, is_member)
    assert (check.train_accuracy, check.target_train_accuracy) == (1.0, 1.0)
    assert (check.test_accuracy, check.target_test_accuracy) == (0.5, 0.5)
    assert (check.test_deviation, check.points_apart, check.reproduces) == (0.5, 0.0, True)
    better = Outputs(logits=np.array([right, right, right, right]), labels=labels)
    assert not check_recipe(references, better, is_member).reproduces
    with pytest.raises(ValueError, match="non-members"):
        check_recipe(references, target, np.ones(4, dtype=np.bool_))


@pytest.mark.slow
def test_workers_train_the_same_models(model: nn.Module, cache: ReferenceCache) -> None:
    """Two processes give the bits of one, report every step and fill the cache."""
    told: list[int] = []
    by_two = trained(model, cache=cache, workers=2, progress=lambda done, _: told.append(done))
    assert_equal(by_two, trained(model))
    assert (told, told[-1]) == (sorted(told), STEPS)
    assert cached_steps(model, cache=cache) == STEPS


@pytest.mark.slow
def test_an_error_of_a_worker_is_what_it_was(model: nn.Module) -> None:
    """Weights that run away in another process are the same error here."""
    wild = dataclasses.replace(RECIPE.training, learning_rate=1e38, weight_decay=10.0)
    with pytest.raises(AppError) as caught:
        trained(model, workers=2, recipe=dataclasses.replace(RECIPE, training=wild))
    assert caught.value.code == "E-TRAINING-DIVERGED"
    assert not multiprocessing.active_children()


class Ending:
    """Work whose process ends in the middle."""

    def train(self, chunk: range) -> dict[str, np.ndarray]:
        if chunk.start:
            os._exit(9)
        return {"models": np.arange(len(chunk))}


@pytest.mark.slow
def test_a_worker_that_ends_is_no_missing_chunk() -> None:
    """What it had made arrives; then an error says what happened, and nothing is left."""
    chunks = [range(2), range(2, 4)]
    crew = trained_by_workers(Ending(), chunks, workers=1)
    first, arrays = next(crew)
    assert (first, arrays["models"].tolist()) == (chunks[0], [0, 1])
    with pytest.raises(UnavailableError) as caught:
        next(crew)
    assert caught.value.code == "E-AUDIT-WORKERS"
    assert not multiprocessing.active_children()
