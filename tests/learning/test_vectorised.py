"""Models trained together are those that would have been trained one by one."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import AppError, ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, StrategySpec, TrainingSpec
from tacit.learning.optimizers import make_optimizer
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import Draws, ShadowRecipe, Step, round_seed, shadow_recipe
from tacit.learning.stacked_dense import DenseGradients
from tacit.learning.stacked_gradients import GeneralGradients, Pool, pool_for, stacked_gradients
from tacit.learning.training import Recipe, train_model
from tacit.learning.vectorised import Shadow, StackedModels, train_together
from tacit.privacy.dpsgd.book_keeping import BookKeeping
from tacit.privacy.dpsgd.engine import Engine
from tacit.privacy.dpsgd.mechanism import GaussianMechanism
from tests.learning.plans import open_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.core.specification import RunSpec
    from tacit.privacy.plan import PrivacyPlan

OPEN = open_plan(local_steps=4)
PRIVATE = dataclasses.replace(
    OPEN,
    mode=PrivacyMode.RECORD_LOCAL,
    noise_multiplier=0.3,
    clip=0.4,
    normaliser=60.0,
    epsilon=5.0,
    delta=1e-5,
)
CLASSES, SIZES = 3, (40, 64, 90)


@pytest.fixture
def pool() -> Examples:
    """A hundred and twenty made-up records of a small image with three classes."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(120, 1, 4, 4)).astype(np.float32)
    return Examples(features=features, labels=generator.integers(0, CLASSES, size=120))


def chain(kind: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 7),
        kind(),
        nn.Linear(7, 5),
        kind(),
        nn.Linear(5, CLASSES),
    )


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "logistic": logistic,
    "tanh": chain,
    "relu": lambda: chain(nn.ReLU),
    "cnn": cnn,
}


def shadows_of(make: Callable[[], nn.Module], sizes: Sequence[int] = SIZES) -> list[Shadow]:
    """Return shadows of their own first weights, records and seeds."""
    generator = np.random.default_rng(2)
    found = []
    for seed, size in enumerate(sizes):
        torch.manual_seed(seed)
        rows = generator.permutation(120)[:size].astype(np.int64)
        found.append(Shadow(start=make(), rows=rows, seed=seed))
    return found


def recipe_of(plan: PrivacyPlan = OPEN, *, rounds: int = 2, **training: Any) -> ShadowRecipe:
    values = {"learning_rate": 0.3, "local_steps": plan.local_steps, **training}
    return ShadowRecipe(training=TrainingSpec(**values), plan=plan, rounds=rounds)


def records_of(pool: Examples, rows: np.ndarray) -> Examples:
    return Examples(features=pool.features[rows], labels=pool.labels[rows])


def one_by_one(shadow: Shadow, pool: Examples, recipe: ShadowRecipe) -> nn.Module:
    """Train a shadow as an owner would, round by round."""
    model = copy.deepcopy(shadow.start)
    for number in range(recipe.rounds):
        single = Recipe(
            training=recipe.training,
            plan=recipe.plan,
            proximal_mu=recipe.training.proximal_mu,
            batch_seed=round_seed(shadow.seed, number),
        )
        train_model(model, records_of(pool, shadow.rows), single)
    return model


def assert_same(models: StackedModels, expected: Sequence[nn.Module], *, atol: float) -> None:
    for index, model in enumerate(expected):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(
                models.state[name][index], value, atol=atol, rtol=0.0, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("logistic", 0), ("tanh", 16), ("tanh", 64), ("relu", 0), ("cnn", 64)],
)
def test_equals_training_one_by_one(name: str, batch_size: int, pool: Examples) -> None:
    """Unequal subsets, whole or in batches that some of them do not fill: the same weights."""
    recipe = recipe_of(batch_size=batch_size, momentum=0.9, weight_decay=1e-3)
    shadows = shadows_of(MAKERS[name])
    expected = [one_by_one(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.1},
        {"proximal_mu": 0.5, "momentum": 0.5},
        {},
    ],
    ids=["adam", "fedprox", "plain"],
)
def test_every_optimiser_equals_its_own(training: dict[str, Any], pool: Examples) -> None:
    """Adam with weight decay, FedProx's pull, plain SGD: as train_model has them."""
    recipe = recipe_of(batch_size=16, **training)
    shadows = shadows_of(chain)
    expected = [one_by_one(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)


class SeededMechanism(GaussianMechanism):
    """The engine's own clip and scale, with a shadow's samples and noise."""

    def __init__(self, plan: PrivacyPlan, draws: Draws, order: Callable[[list[Any]], None]) -> None:
        super().__init__(plan, bytes(32))
        self._draws, self._order = draws, order

    def sample(self, units: int, *, step: int) -> np.ndarray:  # noqa: ARG002 - in order
        if self._plan.sample_rate >= 1.0:
            return np.arange(units)
        taken = self._draws.sample()
        return np.flatnonzero(np.isin(self._draws.members.numpy(), taken.numpy()))

    def release(
        self,
        sums: Sequence[torch.Tensor],
        *,
        step: int,  # noqa: ARG002 - in order
    ) -> list[torch.Tensor]:
        noise = [torch.zeros(total.shape) for total in sums]
        self._order(noise)
        return [
            ((total + self._plan.noise_deviation * part) / self._plan.normaliser).float()
            for total, part in zip(sums, noise, strict=True)
        ]


def privately(shadow: Shadow, pool: Examples, recipe: ShadowRecipe) -> nn.Module:
    """Train one shadow through the node's own engine, with the shadow's draws."""
    model = copy.deepcopy(shadow.start)
    draws = Draws(torch.from_numpy(shadow.rows), recipe, seed=shadow.seed)

    def draw(noise: list[torch.Tensor]) -> None:
        if isinstance(model[0], nn.Flatten):  # a dense layer's bias is its last column
            for weight, bias in zip(noise[::2], noise[1::2], strict=True):
                both = torch.empty(weight.shape[0], weight.shape[1] + 1)
                draws.fill_noise(both)
                weight.copy_(both[:, :-1])
                bias.copy_(both[:, -1])
        else:
            for part in noise:
                draws.fill_noise(part)

    examples = records_of(pool, shadow.rows)
    features, labels = torch.from_numpy(examples.features), torch.from_numpy(examples.labels)
    for _ in range(recipe.rounds):
        mechanism = SeededMechanism(recipe.plan, draws, draw)
        engine = Engine(BookKeeping(model), mechanism, steps=recipe.plan.local_steps)
        optimizer = make_optimizer(engine.parameters, recipe.training)
        for _ in range(recipe.plan.local_steps):
            gradients = engine.gradient(features, labels)
            for parameter, gradient in zip(engine.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return model


@pytest.mark.parametrize(("name", "rate"), [("tanh", 1.0), ("logistic", 0.3), ("cnn", 0.3)])
def test_private_training_equals_the_engine(name: str, rate: float, pool: Examples) -> None:
    """The same samples and noise through the node's engine give the same weights."""
    plan = dataclasses.replace(PRIVATE, sample_rate=rate)
    recipe = recipe_of(plan, rounds=2, momentum=0.5)
    shadows = shadows_of(MAKERS[name])
    expected = [privately(shadow, pool, recipe) for shadow in shadows]
    assert_same(train_together(shadows, pool, recipe), expected, atol=2e-5)


def test_both_ways_give_the_same_gradient(pool: Examples) -> None:
    """On a chain that both can take: plain, and clipped with records that weigh nothing."""
    models = [shadow.start for shadow in shadows_of(chain)]
    features, labels = torch.from_numpy(pool.features), torch.from_numpy(pool.labels)
    dense = stacked_gradients(models, pool_for(models[0], features, labels))
    general = stacked_gradients(models, Pool(features, labels, dense=False))
    assert isinstance(dense, DenseGradients)
    assert isinstance(general, GeneralGradients)
    rows = torch.from_numpy(np.random.default_rng(3).integers(0, 120, size=(3, 30)))
    weights = torch.rand(3, 30, generator=torch.Generator().manual_seed(4))
    weights[:, :5] = 0.0
    for clip in (math.inf, 0.2):
        for source in (dense, general):
            source.compute(Step(rows, weights), clip=clip)
        for model in range(3):
            theirs = iter(general.of_model(general.gradient, model))
            for layer in dense.of_model(dense.gradient, model):
                expected = torch.cat([next(theirs), next(theirs)[:, None]], dim=1)
                torch.testing.assert_close(layer, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("plan", [OPEN, dataclasses.replace(PRIVATE, sample_rate=0.5)])
@pytest.mark.parametrize("name", ["tanh", "cnn"])
def test_a_model_does_not_depend_on_its_company(
    name: str, plan: PrivacyPlan, pool: Examples
) -> None:
    """Trained alone, or beside others of other sizes: the same numbers up to rounding."""
    shadows = shadows_of(MAKERS[name])
    recipe = recipe_of(plan, batch_size=16)
    together = train_together(shadows, pool, recipe)
    alone = train_together(shadows[2:], pool, recipe)
    assert_same(alone, [together.model(2)], atol=1e-5)


def test_models_beyond_the_cache_are_trained_in_groups(
    pool: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two models at a time changes nothing, and the order stays."""
    shadows, recipe = shadows_of(chain, (40, 50, 60, 70, 80)), recipe_of(batch_size=16)
    at_once = train_together(shadows, pool, recipe)
    monkeypatch.setattr("tacit.learning.stacked_gradients._CACHE_NUMBERS", 2 * 16 * 62)
    in_groups = train_together(shadows, pool, recipe)
    assert_same(in_groups, [at_once.model(index) for index in range(5)], atol=1e-5)


def test_what_it_answers_is_what_each_model_answers(pool: Examples) -> None:
    """Stacked logits equal those of the single models, as float32."""
    models = train_together(shadows_of(cnn), pool, recipe_of())
    logits = models.logits(pool.features)
    assert (logits.shape, logits.dtype) == ((3, 120, CLASSES), np.float32)
    for index in range(len(models)):
        with torch.no_grad():
            expected = models.model(index)(torch.from_numpy(pool.features)).numpy()
        np.testing.assert_allclose(logits[index], expected, atol=1e-5)


def test_noise_has_the_deviation_of_the_plan(pool: Examples) -> None:
    """With next to nothing to learn from, one step spreads the weights as the plan says."""
    plan = dataclasses.replace(PRIVATE, clip=1e-3, noise_multiplier=50.0, local_steps=1)
    one = recipe_of(plan, rounds=1, learning_rate=1.0)
    for recipe, scale in ((one, 1.0), (dataclasses.replace(one, owners=4), 2.0)):
        shadows = shadows_of(chain, (60,) * 40)
        models = train_together(shadows, pool, recipe)
        changes = torch.stack(
            [
                models.state["1.weight"][index] - shadow.start.state_dict()["1.weight"]
                for index, shadow in enumerate(shadows)
            ]
        )
        expected = scale * plan.noise_deviation / plan.normaliser
        assert float(changes.std()) == pytest.approx(expected, rel=0.05)


def test_an_update_is_clipped_and_noised_as_a_node_does(pool: Examples) -> None:
    """Client-local: the round's change has norm C at most, before noise of the plan's deviation."""
    plan = dataclasses.replace(
        OPEN,
        mode=PrivacyMode.CLIENT_LOCAL,
        local_steps=1,
        clip=0.05,
        noise_multiplier=1e-9,
        delta=1e-5,
        unit=PrivacyUnit.CLIENT,
        relation=Relation.REPLACE_ONE,
    )
    shadows = shadows_of(logistic)
    still = train_together(shadows, pool, recipe_of(plan, rounds=1))
    for index, shadow in enumerate(shadows):
        change = torch.cat(
            [
                (still.state[name][index] - value).flatten()
                for name, value in shadow.start.state_dict().items()
            ]
        )
        assert float(change.norm()) == pytest.approx(0.05, rel=1e-4)
    loud = dataclasses.replace(plan, noise_multiplier=20.0)
    noised = train_together(shadows, pool, recipe_of(loud, rounds=1))
    spread = (noised.state["1.weight"] - still.state["1.weight"]).std()
    assert float(spread) == pytest.approx(20.0 * 2 * 0.05, rel=0.2)


def test_progress_counts_every_step_of_every_model(pool: Examples) -> None:
    """The last report is all steps of all models, and reports only grow."""
    told: list[tuple[int, int]] = []
    recipe = recipe_of(rounds=30)
    train_together(
        shadows_of(logistic), pool, recipe, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (3 * recipe.steps, 3 * recipe.steps)
    assert told == sorted(set(told))
    assert len(told) > 1


def test_records_that_mix_are_refused(pool: Examples) -> None:
    """Filled-up batches would leak into BatchNorm's statistics."""

    def mixing() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))

    with pytest.raises(ConfigError) as caught:
        train_together(shadows_of(mixing), pool, recipe_of())
    assert caught.value.code == "E-MODEL-NOT-DP"


def test_weights_that_run_away_are_an_error(pool: Examples) -> None:
    """As for one model: no scores from models that are not numbers."""
    recipe = recipe_of(learning_rate=1e30, local_steps=20)
    with pytest.raises(AppError) as caught:
        train_together(shadows_of(lambda: chain(nn.ReLU)), pool, recipe)
    assert caught.value.code == "E-TRAINING-DIVERGED"


def test_a_recipe_follows_from_the_run(make_run: Callable[..., RunSpec]) -> None:
    """Rounds, FedProx's weight from the strategy, and a normaliser for a shadow's records."""
    run = make_run(
        training={"learning_rate": 0.5, "local_steps": 4, "validation_fraction": 0.0},
        strategy={"name": "FedProx", "parameters": {"proximal_mu": 0.25}},
        privacy={
            "mode": "record-local",
            "clip": 1.0,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "normaliser": 4000.0,
        },
    )
    recipe = shadow_recipe(run, records=500, owners=2)
    assert (recipe.steps, recipe.training.proximal_mu, recipe.plan.normaliser) == (12, 0.25, 500.0)
    assert len(recipe.notes) == 1
    other = dataclasses.replace(run, strategy=StrategySpec(name="FedAdam"))
    assert "FedAdam" in " ".join(shadow_recipe(other, records=500).notes)


def test_what_no_shadow_can_reproduce_is_refused(make_run: Callable[..., RunSpec]) -> None:
    """A run with its own app has no recipe, and shadows do not know subjects."""
    run = make_run()
    with pytest.raises(ConfigError) as caught:
        shadow_recipe(dataclasses.replace(run, model=None), records=100)
    assert caught.value.code == "E-SHADOW-APP"
    with pytest.raises(RefusedError) as refused:
        recipe_of(dataclasses.replace(PRIVATE, unit=PrivacyUnit.SUBJECT))
    assert refused.value.code == "E-SHADOW-UNIT"


def test_an_empty_sample_is_a_step_of_noise_alone(pool: Examples) -> None:
    """Nobody is drawn: the step is as if there were no records, and is made all the same."""
    plan = dataclasses.replace(PRIVATE, sample_rate=1e-12, local_steps=1)
    recipe = recipe_of(plan, rounds=1, learning_rate=1.0)
    shadow = shadows_of(logistic, (60,))[0]
    noise = torch.empty(CLASSES, 17)
    Draws(torch.from_numpy(shadow.rows), recipe, seed=shadow.seed).fill_noise(noise)
    expected = -noise * plan.noise_deviation / plan.normaliser
    start = shadow.start.state_dict()["1.weight"]
    change = train_together([shadow], pool, recipe).state["1.weight"][0] - start
    torch.testing.assert_close(change, expected[:, :-1], atol=1e-6, rtol=0.0)
