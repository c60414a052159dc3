"""The usual mistakes of DP-SGD, each made on purpose, each caught by record and replay."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.specification import PrivacyUnit
from tacit.privacy.dpsgd.book_keeping import BookKeeping
from tacit.privacy.dpsgd.engine import Engine
from tacit.privacy.dpsgd.mechanism import GaussianMechanism
from tacit.privacy.dpsgd.units import Subjects
from tests.privacy.dpsgd_models import KEY, QUIET
from tests.privacy.recorder import Declared, Leak, Recorder, verify, verify_noise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tacit.privacy.dpsgd.mechanism import Mechanism
    from tacit.privacy.plan import PrivacyPlan

STEPS = 12
RECORDS = 96
FULL = dataclasses.replace(
    QUIET, noise_multiplier=1.5, clip=0.5, normaliser=64.0, local_steps=STEPS
)
POISSON = dataclasses.replace(FULL, sample_rate=0.25)


class NoClip(GaussianMechanism):
    """Sums gradients as they are."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return torch.isfinite(norms).double()


class StaleClip(GaussianMechanism):
    """Clips at a norm that has grown since the noise was scaled."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return super().factors(norms / 1.2)


class StaleNorms(GaussianMechanism):
    """Clips each chunk by the norms of the chunk before."""

    _before: torch.Tensor | None = None

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        before, self._before = self._before, norms
        stale = torch.full_like(norms, 0.1)
        if before is not None:
            stale[: len(before)] = before[: len(norms)]
        return super().factors(stale)


class NoiseOverBatch(GaussianMechanism):
    """Divides the noise by the batch twice."""

    def __init__(self, plan: PrivacyPlan, noise_key: bytes) -> None:
        smaller = plan.noise_multiplier / plan.normaliser
        super().__init__(dataclasses.replace(plan, noise_multiplier=smaller), noise_key)


class TenthOfNoise(GaussianMechanism):
    """Adds a tenth of the noise."""

    def __init__(self, plan: PrivacyPlan, noise_key: bytes) -> None:
        smaller = plan.noise_multiplier * 0.1
        super().__init__(dataclasses.replace(plan, noise_multiplier=smaller), noise_key)


class NoNoise(GaussianMechanism):
    """Adds none."""

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        del step
        return [(total / self._plan.normaliser).float() for total in sums]


class ReusedSeed(GaussianMechanism):
    """Draws every step's noise from the same stream."""

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        del step
        return super().release(sums, step=0)


class NoiseFromData(GaussianMechanism):
    """Scales the noise with the sums."""

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        extra = float(sum(total.abs().sum() for total in sums))
        released = super().release(sums, step=step)
        return [value * (1 + 0.01 * extra) for value in released]


class ShuffledBatches(GaussianMechanism):
    """Goes through shuffled batches of a fixed size, and calls that Poisson sampling."""

    def sample(self, units: int, *, step: int) -> npt.NDArray[np.int64]:
        batches = round(1 / self._plan.sample_rate)
        order = np.random.default_rng(step // batches).permutation(units)
        return np.sort(np.array_split(order, batches)[step % batches]).astype(np.int64)


class RateFromLength(GaussianMechanism):
    """Samples so that the expected batch is fixed, whatever the number of units."""

    def sample(self, units: int, *, step: int) -> npt.NDArray[np.int64]:
        del step
        generator = np.random.default_rng(units)
        return np.flatnonzero(generator.random(units) < self._plan.sample_rate).astype(np.int64)


def declared(plan: PrivacyPlan) -> Declared:
    return Declared(plan.clip, plan.noise_deviation, plan.normaliser, plan.sample_rate)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Records of which the last is far out, and the others do not reach the clip."""
    generator = torch.Generator().manual_seed(3)
    features = torch.rand((RECORDS, 30), generator=generator) * 0.05
    features[-1] = 20.0
    labels = torch.randint(0, 10, (RECORDS,), generator=generator)
    labels[-1] = 0
    return features, labels


def recorded(
    make: Callable[[PrivacyPlan, bytes], Mechanism],
    plan: PrivacyPlan,
    *,
    records: int = RECORDS,
    subjects: npt.NDArray[np.int64] | None = None,
) -> Recorder:
    """Run all steps on the first so many records."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 10))
    recorder = Recorder(make(plan, KEY), normaliser=plan.normaliser)
    grouped = None if subjects is None else Subjects(subjects[:records], most_records=99)
    engine = Engine(BookKeeping(model), recorder, steps=plan.local_steps, subjects=grouped)
    features, labels = data()
    for _ in range(plan.local_steps):
        engine.gradient(features[:records], labels[:records])
    return recorder


def replay(make: Callable[[PrivacyPlan, bytes], Mechanism], plan: PrivacyPlan) -> None:
    verify(recorded(make, plan), recorded(make, plan, records=RECORDS - 1), declared(plan))


@pytest.mark.parametrize("plan", [FULL, POISSON], ids=["full", "poisson"])
def test_the_engine_does_what_its_account_says(plan: PrivacyPlan) -> None:
    """On neighbours: same flow, sums within the clip, declared noise, independent coins."""
    replay(GaussianMechanism, plan)


@pytest.mark.parametrize(
    ("mutant", "plan", "found"),
    [
        (NoClip, FULL, "sensitivity"),
        (StaleClip, FULL, "sensitivity"),
        (StaleNorms, FULL, "sensitivity"),
        (NoiseOverBatch, FULL, "noise: deviation"),
        (TenthOfNoise, FULL, "noise: deviation"),
        (NoNoise, FULL, "noise: deviation"),
        (ReusedSeed, FULL, "used twice"),
        (NoiseFromData, FULL, "noise depends on the data"),
        (ShuffledBatches, POISSON, "sensitivity|coins|fixed"),
        (RateFromLength, POISSON, "sensitivity|coins"),
    ],
)
def test_a_mutant_is_caught(mutant: type[GaussianMechanism], plan: PrivacyPlan, found: str) -> None:
    """Each usual mistake breaks one of the comparisons."""
    with pytest.raises(Leak, match=found):
        replay(mutant, plan)


def test_fixed_sizes_are_caught_by_themselves() -> None:
    """Shuffled batches of one size fail as samples, whatever they do to the sums."""
    wide = dataclasses.replace(POISSON, clip=1e9, noise_multiplier=1e-2)
    record = recorded(ShuffledBatches, wide)
    with pytest.raises(Leak, match="sizes are fixed"):
        verify(record, record, declared(wide))


def test_a_double_release_under_one_key_is_caught() -> None:
    """Two data sets under one key carry the same noise: their difference is exact."""
    one, two = recorded(GaussianMechanism, FULL), recorded(GaussianMechanism, FULL, records=40)
    verify_noise(one.noises, declared(FULL))
    with pytest.raises(Leak, match="used twice"):
        verify_noise(one.noises + two.noises, declared(FULL))


@pytest.mark.parametrize("plan", [FULL, POISSON], ids=["full", "poisson"])
def test_a_subject_with_many_records_moves_the_sum_by_one_clip(plan: PrivacyPlan) -> None:
    """Twenty rows far out, one subject: the sum moves by at most C, coins are per subject."""
    by_subject = dataclasses.replace(plan, unit=PrivacyUnit.SUBJECT)
    subjects = np.minimum(np.arange(RECORDS), RECORDS - 20).astype(np.int64)
    one = recorded(GaussianMechanism, by_subject, subjects=subjects)
    neighbour = recorded(GaussianMechanism, by_subject, records=RECORDS - 20, subjects=subjects)
    verify(one, neighbour, declared(plan))
    with pytest.raises(Leak, match=r"sensitivity|coins"):
        verify(
            recorded(GaussianMechanism, plan),
            recorded(GaussianMechanism, plan, records=RECORDS - 20),
            declared(plan),
        )
