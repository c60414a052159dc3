"""A member's share is its clipped sum and its noise, once per step, and of every unit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import RefusedError
from tacit.core.specification import Relation
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.distributed.encoding import decode
from tacit.privacy.distributed.plan import DistributedPlan, distributed_plan_of
from tacit.privacy.dpsgd.engine import Engine, source_for
from tacit.privacy.dpsgd.share import ShareMechanism, make_share_engine
from tacit.privacy.spec import (
    ClientDistributed,
    GivenNoise,
    Record,
    RecordDistributed,
    Subject,
    Unit,
)
from tests.privacy.recorder import Declared, Recorder, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = bytes(range(32))
MEMBERS = 4
FEATURES, CLASSES = 5, 3
DIMENSION = FEATURES * CLASSES + CLASSES


def plan_of(unit: Unit, *, noise_multiplier: float = 0.2) -> DistributedPlan:
    return distributed_plan_of(
        RecordDistributed(
            unit=unit,
            clip=0.5,
            calibration=GivenNoise(noise_multiplier=noise_multiplier),
            delta=1e-4,
            relation=Relation.ADD_REMOVE,
            releases=1,
            steps_per_round=2,
            most_owner_records=100,
            normaliser=100.0,
            cohort=Cohort(members=MEMBERS, threshold=3, colluders=1),
            bound=50.0,
            dimension=DIMENSION,
        )
    )


PLAN = plan_of(Record())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def records(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, generator=generator)
    return features, torch.randint(0, CLASSES, (count,), generator=generator)


def clipped_sum(features: torch.Tensor, labels: torch.Tensor, groups: list[int]) -> np.ndarray:
    """Return the sum of clipped gradients, one unit at a time, by autograd alone."""
    total = np.zeros(DIMENSION)
    for unit in sorted(set(groups)):
        rows = [row for row, group in enumerate(groups) if group == unit]
        net = model()
        nn.functional.cross_entropy(net(features[rows]), labels[rows], reduction="sum").backward()
        parts = [p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]
        gradient = torch.cat(parts).double().numpy()
        total += gradient * min(1.0, PLAN.clip / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("unit", [Record(), Subject(most_records=3)], ids=["record", "subject"])
def test_the_members_shares_add_up_to_the_pooled_sum(unit: Unit) -> None:
    """The ring's sum is that of all units, each clipped once, up to the noise."""
    ring = np.zeros(DIMENSION, dtype=np.uint32)
    expected = np.zeros(DIMENSION)
    plan = plan_of(unit)
    for member in range(MEMBERS):
        features, labels = records(60 + member, seed=member)
        groups = [row // 3 for row in range(len(labels))]
        if isinstance(unit, Record):
            groups = list(range(len(labels)))
        subjects = np.array(groups) if isinstance(unit, Subject) else None
        key = KEY[member:] + KEY[:member]
        engine = make_share_engine(model(), plan=plan, noise_key=key, subjects=subjects)
        ring += engine.share(features, labels)
        expected += clipped_sum(features, labels, groups)
    assert np.abs(decode(ring, plan.noise) - expected).max() < 6 * plan.noise.released_deviation(4)
    assert np.abs(expected).max() > 20 * plan.noise.released_deviation(4)


def test_each_step_has_noise_of_its_own_and_a_restart_the_same() -> None:
    """Two steps on equal weights differ; the same key gives the same bytes again."""
    features, labels = records(20, seed=1)
    one, other = (make_share_engine(model(), plan=PLAN, noise_key=KEY) for _ in range(2))
    first, second = one.share(features, labels), one.share(features, labels)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, other.share(features, labels))
    with pytest.raises(RefusedError, match="E-STEPS-SPENT"):
        one.share(features, labels)


class Decoded(ShareMechanism):
    """A member's share as numbers again, so that a recorder sees what noise is in it."""

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        (ring,) = super().release(sums, step=step)
        return [torch.from_numpy(decode(ring.numpy().view(np.uint32), self._plan.noise))]


def test_a_share_does_what_its_account_says() -> None:
    """Replayed without one record: the sum moves by C at most, the noise is the same and new."""
    plan = plan_of(Record(), noise_multiplier=5.0)
    features, labels = records(40, seed=3)
    recorders = []
    for count in (40, 39):
        recorder = Recorder(Decoded(plan, KEY))
        engine = Engine(source_for(model())[0], recorder, steps=2)
        for _ in range(2):
            engine.gradient(features[:count], labels[:count])
        recorders.append(recorder)
    deviation = plan.noise.local_deviation / plan.noise.scale
    declared = Declared(sensitivity=plan.clip, deviation=deviation, normaliser=1.0, sample_rate=1.0)
    verify(*recorders, declared)


def test_an_owner_without_records_sends_noise() -> None:
    """How many records there are is not seen: none is a share like any other."""
    features, labels = records(0, seed=1)
    loud = plan_of(Record(), noise_multiplier=5.0)
    share = make_share_engine(model(), plan=loud, noise_key=KEY).share(features, labels)
    deviation = loud.noise.local_deviation
    assert 0.2 * deviation < share.view(np.int32).astype(np.float64).std() < 2 * deviation


def test_a_model_of_another_size_is_refused() -> None:
    """A vector longer than the plan's would have a sensitivity of its own."""
    short = dataclasses.replace(
        PLAN, noise=dataclasses.replace(PLAN.noise, dimension=DIMENSION - 1)
    )
    with pytest.raises(ValueError, match="float64"):
        make_share_engine(model(), plan=short, noise_key=KEY).share(*records(4, seed=1))


def test_other_plans_have_no_share() -> None:
    """Whole updates are not clipped by record, and subjects must be told apart."""
    whole = distributed_plan_of(
        ClientDistributed(
            clip=0.5,
            calibration=GivenNoise(noise_multiplier=1.0),
            delta=1e-4,
            relation=Relation.REPLACE_ONE,
            releases=1,
            most_owner_records=100,
            cohort=Cohort(members=MEMBERS, threshold=3, colluders=1),
            dimension=DIMENSION,
        )
    )
    with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
        make_share_engine(model(), plan=whole, noise_key=KEY)
    by_subject = plan_of(Subject(most_records=3))
    with pytest.raises(RefusedError, match="E-SUBJECTS-MISSING"):
        make_share_engine(model(), plan=by_subject, noise_key=KEY)
