"""The engine's gradient is what its module says: clipped per record, noised, publicly scaled."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from tacit.core.errors import ConfigError, RefusedError
from tacit.privacy.dpsgd.engine import Engine, make_engine
from tacit.privacy.dpsgd.validation import verify_records_do_not_mix, without_batch_norm
from tacit.privacy.plan import plan_of
from tacit.privacy.spec import ClientLocal, GivenNoise, NonPrivate
from tests.privacy.dpsgd_models import KEY, QUIET, clipped_sum

if TYPE_CHECKING:
    from tacit.privacy.plan import PrivacyPlan

ROOT = Path(__file__).resolve().parents[2]


class Shared(nn.Module):
    """Two layers that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Halved(nn.Module):
    """Folds two records into one before its layer, and unfolds them after it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(-1, 8)).reshape(-1, 3)


class Scale(nn.Module):
    """A layer that Opacus has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Centre(nn.Module):
    """A layer without parameters that mixes the records of a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Scale5(), nn.Linear(5, 3))


class Scale5(nn.Module):
    """As Scale, for five features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def records(count: int, *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((count, 4), generator=generator) * 3.0
    return features, torch.randint(0, 3, (count,), generator=generator)


def engine(model: nn.Module, plan: PrivacyPlan = QUIET, *, key: bytes = KEY) -> Engine:
    return make_engine(model, plan=plan, noise_key=key)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_the_sum_is_that_of_records_clipped_one_by_one(clip: float) -> None:
    """Equal to autograd over single records, across a chunk boundary, for any layer."""
    features, labels = records(263)
    expected = clipped_sum(small_model(), features, labels, clip)
    plan = dataclasses.replace(QUIET, clip=clip, noise_multiplier=1e-12 / clip)
    actual = engine(small_model(), plan).gradient(features, labels)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_the_step_is_that_of_opacus_own_optimiser() -> None:
    """Without noise, our gradient is DPOptimizer's, whose expected batch is the normaliser."""
    features, labels = records(40)
    wrapped = GradSampleModule(small_model(), loss_reduction="sum")
    sgd = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    theirs = DPOptimizer(
        sgd, noise_multiplier=0.0, max_grad_norm=0.7, expected_batch_size=25, loss_reduction="mean"
    )
    logits = wrapped(features.requires_grad_())
    nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    theirs.pre_step()
    plan = dataclasses.replace(QUIET, clip=0.7, normaliser=25.0)
    actual = engine(small_model(), plan).gradient(features.detach(), labels)
    for ours, parameter in zip(actual, wrapped.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-6)


def test_one_record_moves_the_sum_by_at_most_the_clip() -> None:
    """Add/remove sensitivity: the distance between neighbours is within C (1 + 1e-5)."""
    features, labels = records(64)
    features[-1] *= 1e6
    plan = dataclasses.replace(QUIET, clip=0.3)
    with_it = engine(small_model(), plan).gradient(features, labels)
    without = engine(small_model(), plan).gradient(features[:-1], labels[:-1])
    squares = sum(float((a - b).square().sum()) for a, b in zip(with_it, without, strict=True))
    assert math.sqrt(squares) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
def test_a_record_that_breaks_the_gradient_counts_as_zero(poison: float) -> None:
    """One NaN or infinite record leaves the others' sum as it was."""
    features, labels = records(10)
    expected = engine(small_model()).gradient(features[:-1], labels[:-1])
    features[-1] = poison
    actual = engine(small_model()).gradient(features, labels)
    distance = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(actual, expected, strict=True))
    )
    assert distance <= QUIET.clip * (1 + 1e-5)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in actual)


def test_noise_has_the_declared_deviation_also_without_records() -> None:
    """An empty data set gives pure noise of sigma C / normaliser, and no error."""
    plan = dataclasses.replace(QUIET, noise_multiplier=2.0, clip=3.0, normaliser=4.0)
    model = nn.Linear(200, 100)
    features, labels = torch.zeros((0, 200)), torch.zeros(0, dtype=torch.int64)
    noise = torch.cat([g.flatten() for g in engine(model, plan).gradient(features, labels)])
    assert abs(float(noise.std()) - 1.5) < 5 * 1.5 / math.sqrt(2 * len(noise))


def test_steps_and_keys_have_noises_of_their_own() -> None:
    """The same step under the same key repeats; another step or key does not."""
    plan = dataclasses.replace(QUIET, noise_multiplier=1.0)
    features, labels = records(8)
    first = engine(small_model(), plan)
    one, two = first.gradient(features, labels)[0], first.gradient(features, labels)[0]
    again = engine(small_model(), plan).gradient(features, labels)[0]
    other = engine(small_model(), plan, key=bytes(32)).gradient(features, labels)[0]
    assert torch.equal(one, again)
    assert not torch.isclose(one, two).any()
    assert not torch.isclose(one, other).any()


def test_no_global_seed_reaches_the_noise() -> None:
    """torch.manual_seed everywhere, the usual mistake, changes nothing."""
    plan = dataclasses.replace(QUIET, noise_multiplier=1.0)
    features, labels = records(8)
    model = small_model()
    torch.manual_seed(1)
    one = engine(small_model(), plan).gradient(features, labels)[0]
    torch.manual_seed(2)
    two = engine(model, plan).gradient(features, labels)[0]
    assert torch.equal(one, two)


def test_poisson_samples_are_drawn_anew_each_step() -> None:
    """The mean over many steps is q times the whole sum; single steps differ."""
    features, labels = records(50)
    torch.manual_seed(0)
    whole = engine(nn.Linear(4, 3, bias=False)).gradient(features, labels)[0]
    plan = dataclasses.replace(QUIET, sample_rate=0.5, local_steps=100)
    torch.manual_seed(0)
    sampled = engine(nn.Linear(4, 3, bias=False), plan)
    steps = torch.stack([sampled.gradient(features, labels)[0] for _ in range(100)])
    assert not torch.equal(steps[0], steps[1])
    error = 5 * steps.std(dim=0).max() / math.sqrt(100)
    torch.testing.assert_close(steps.mean(dim=0), 0.5 * whole, rtol=0, atol=float(error))


def test_more_steps_than_the_plan_are_refused() -> None:
    """Each release is charged with its local steps; one more would be free."""
    short = engine(small_model(), dataclasses.replace(QUIET, local_steps=1))
    short.gradient(*records(4))
    with pytest.raises(RefusedError, match="E-STEPS-SPENT"):
        short.gradient(*records(4))


def test_a_plan_without_noise_is_refused() -> None:
    """Neither mode none nor a noise that only the node adds passes through the private engine."""
    by_node = ClientLocal(
        clip=1.0,
        calibration=GivenNoise(noise_multiplier=1.0),
        delta=1e-5,
        releases=1,
        most_owner_records=10,
    )
    for statement in (NonPrivate(releases=1, local_steps=1), by_node):
        with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
            engine(small_model(), plan_of(statement))


def test_batch_norm_is_refused_and_has_a_replacement() -> None:
    """Its statistics mix records: the engine refuses it, and GroupNorm takes its place."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ConfigError, match="E-MODEL-NOT-DP"):
        engine(model)
    fixed, notes = without_batch_norm(model)
    assert len(notes) == 1
    assert bool(fixed[1](torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]] * 2)).any())
    assert len(engine(fixed).gradient(*records(4))) == 6


def test_uses_of_a_shared_parameter_add_up_before_clipping() -> None:
    """A record's gradient of weights that two layers share is one gradient, clipped once."""
    features, labels = records(6)
    expected = clipped_sum(Shared(), features, labels, 0.1)
    actual = engine(Shared(), dataclasses.replace(QUIET, clip=0.1)).gradient(features, labels)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_a_lone_record_is_no_special_case() -> None:
    """torch's GroupNorm refuses a batch of one: a sample of one record must not stop a run."""
    features, labels = records(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    expected = engine(copy.deepcopy(model)).gradient(features.repeat(2, 1), labels.repeat(2))
    actual = engine(model).gradient(features, labels)
    for ours, doubled in zip(actual, expected, strict=True):
        torch.testing.assert_close(2 * ours, doubled, rtol=1e-5, atol=1e-6)


def test_layers_that_do_not_put_records_first_are_refused() -> None:
    """A layer that gives another number of gradients than there are records has no clip."""
    with pytest.raises(ConfigError, match="E-MODEL-NOT-DP"):
        engine(Halved()).gradient(*records(4))


def test_a_frozen_parameter_is_left_out() -> None:
    """Only trained parameters have a gradient, and only they are clipped together."""
    model = small_model()
    model[0].weight.requires_grad_(requires_grad=False)
    assert len(engine(model).gradient(*records(4))) == 4


def test_a_model_without_trained_parameters_is_refused() -> None:
    """There is nothing to make private."""
    with pytest.raises(ConfigError, match="every one is frozen"):
        engine(nn.Linear(4, 3).requires_grad_(requires_grad=False))


class Counting(nn.Module):
    """Writes what it sees into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.detach().sum(dim=0))
        return self.linear(x)


def test_a_buffer_that_learns_is_refused_and_left_as_it_was() -> None:
    """It would hold sums of records without noise; trying the model must not fill it either."""
    model = Counting()
    with pytest.raises(ConfigError, match="buffers"):
        engine(model).gradient(*records(4))
    assert not model.seen.any()


LAZY = """
import math, sys
import torch
import tacit.learning.training
from tests.privacy.dpsgd_models import KEY, QUIET
from tacit.privacy.dpsgd.engine import make_engine
for last in (torch.nn.Linear(4, 3), torch.nn.Bilinear(4, 4, 3)):
    if isinstance(last, torch.nn.Linear):
        engine = make_engine(last, plan=QUIET, noise_key=KEY)
        engine.gradient(torch.rand(3, 4), torch.zeros(3, dtype=torch.int64))
    else:
        make_engine(last, plan=QUIET, noise_key=KEY)
    print("opacus" in sys.modules)
"""


@pytest.mark.slow
def test_opacus_is_loaded_only_where_it_is_needed() -> None:
    """Its import takes seconds, which a run on common layers never pays."""
    done = subprocess.run(
        [sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_a_model_that_mixes_records_is_found() -> None:
    """Batch centring is refused, a layer by layer model is not."""
    verify_records_do_not_mix(nn.Sequential(Scale(), nn.Linear(4, 3)), shape=(4,))
    with pytest.raises(ConfigError, match="E-MODEL-NOT-DP"):
        verify_records_do_not_mix(nn.Sequential(Centre(), nn.Linear(4, 3)), shape=(4,))
