"""White-box canaries are units like any other, and cost nothing where they are not."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyUnit
from tacit.privacy.dpsgd.book_keeping import BookKeeping
from tacit.privacy.dpsgd.canaries import Canaries, CanaryScores, CanaryUnits
from tacit.privacy.dpsgd.engine import Engine, make_engine
from tacit.privacy.dpsgd.mechanism import GaussianMechanism
from tacit.privacy.plan import plan_of
from tacit.privacy.spec import NonPrivate
from tests.privacy.dpsgd_models import KEY, QUIET, norm_of
from tests.privacy.recorder import Declared, Leak, Recorder, verify

if TYPE_CHECKING:
    import numpy.typing as npt

    from tacit.privacy.plan import PrivacyPlan

    BoolArray = npt.NDArray[np.bool_]

SEED = bytes(reversed(range(32)))
STEPS = 12
FULL = dataclasses.replace(
    QUIET, noise_multiplier=1.5, clip=0.5, normaliser=64.0, local_steps=STEPS
)
POISSON = dataclasses.replace(FULL, sample_rate=0.25)
NOBODY = (torch.zeros((0, 30)), torch.zeros(0, dtype=torch.int64))


class Scale(nn.Module):
    """A layer that has no book-keeping rule: Opacus serves it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class NoClip(GaussianMechanism):
    """Sums gradients as they are."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return torch.isfinite(norms).double()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 10))


def records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.rand((50, 30), generator=generator)
    return features[:count], torch.randint(0, 10, (50,), generator=generator)[:count]


def bits(canaries: int, *, out: int | None = None) -> BoolArray:
    included = np.arange(canaries) % 3 != 1
    if out is not None:
        included[out] = False
    return included


def recorded(
    plan: PrivacyPlan,
    included: BoolArray,
    *,
    kind: type[GaussianMechanism] = GaussianMechanism,
    count: int = 20,
) -> Recorder:
    """Run all steps with these canaries beside so many records."""
    source = BookKeeping(model())
    recorder = Recorder(kind(plan, KEY), normaliser=plan.normaliser)
    units = CanaryUnits(Canaries(seed=SEED, included=included), source.parameters, clip=plan.clip)
    engine = Engine(source, recorder, steps=plan.local_steps, canaries=units)
    for _ in range(plan.local_steps):
        engine.gradient(*records(count))
    return recorder


def declared(plan: PrivacyPlan) -> Declared:
    return Declared(plan.clip, plan.noise_deviation, plan.normaliser, plan.sample_rate)


@pytest.mark.parametrize("plan", [FULL, POISSON], ids=["full", "poisson"])
@pytest.mark.parametrize("out", [0, 11, 29])
def test_a_canary_is_a_unit(plan: PrivacyPlan, out: int) -> None:
    """In or out: same flow, coins and noise; where drawn, the sum moves by the clip."""
    included = bits(30)
    included[out] = True
    one, neighbour = recorded(plan, included), recorded(plan, bits(30, out=out))
    verify(one, neighbour, declared(plan))
    pairs = zip(one.sums, neighbour.sums, one.samples, strict=True)
    for here, there, chosen in pairs:
        moved = plan.clip if out in chosen else 0.0
        assert float((here - there).norm()) == pytest.approx(moved, abs=1e-6)


@pytest.mark.parametrize("plan", [FULL, POISSON], ids=["full", "poisson"])
def test_a_record_beside_canaries_is_a_unit_as_before(plan: PrivacyPlan) -> None:
    """Neighbours that differ in a record keep the canaries' coins and contributions."""
    verify(recorded(plan, bits(30)), recorded(plan, bits(30), count=19), declared(plan))


def test_a_canary_shows_a_clip_that_is_missing() -> None:
    """It comes with more than the clip, and record and replay sees that."""
    with pytest.raises(Leak, match="sensitivity"):
        verify(
            recorded(FULL, bits(30), kind=NoClip),
            recorded(FULL, bits(30, out=0), kind=NoClip),
            declared(FULL),
        )


def test_canaries_that_are_all_out_change_nothing() -> None:
    """The release is that of an engine without canaries, to the last bit: same divisor, noise."""
    features, labels = records(20)
    without = make_engine(model(), plan=FULL, noise_key=KEY)
    nobody = Canaries(seed=SEED, included=np.zeros(9, dtype=np.bool_))
    beside = make_engine(model(), plan=FULL, noise_key=KEY, canaries=nobody)
    for _ in range(3):
        pairs = zip(
            without.gradient(features, labels), beside.gradient(features, labels), strict=True
        )
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("unit", [PrivacyUnit.RECORD, PrivacyUnit.SUBJECT])
def test_scores_are_products_with_the_release(unit: PrivacyUnit) -> None:
    """Without noise or records: steps x clip / normaliser where in, nothing much where out."""
    plan = dataclasses.replace(QUIET, clip=2.0, normaliser=5.0, unit=unit, local_steps=6)
    subjects = np.zeros(0, dtype=np.int64)
    included = np.zeros(8, dtype=np.bool_)
    included[3] = True
    engine = make_engine(
        model(),
        plan=plan,
        noise_key=KEY,
        subjects=subjects,
        canaries=Canaries(seed=SEED, included=included),
    )
    released = [engine.gradient(*NOBODY) for _ in range(6)]
    scores = engine.canary_scores()
    assert scores.products[3] == pytest.approx(6 * 2.0 / 5.0, rel=1e-5)
    assert np.abs(np.delete(scores.products, 3)).max() < 5 * 2.4 / math.sqrt(scores.parameters)
    assert scores.cosines()[3] == pytest.approx(1.0, rel=1e-5)
    size = math.hypot(*(norm_of(gradients) for gradients in released))
    assert scores.squared_norm == pytest.approx(size**2, rel=1e-5)
    assert scores.dimension == 6 * sum(p.numel() for p in model().parameters())


def test_canaries_stand_beside_gradients_from_anywhere() -> None:
    """Where Opacus gives the records' gradients, canaries are what they are elsewhere."""
    plan = dataclasses.replace(QUIET, clip=2.0)
    engine = make_engine(
        nn.Sequential(Scale(), nn.Linear(30, 100)),
        plan=plan,
        noise_key=KEY,
        canaries=Canaries(seed=SEED, included=np.array([True, False])),
    )
    for _ in range(4):
        engine.gradient(*records(3))
    assert any("Opacus" in note for note in engine.notes)
    inside, outside = engine.canary_scores().products
    assert inside == pytest.approx(4 * 2.0, rel=0.1)
    assert abs(outside) < 0.8


def test_directions_turn_round_within_a_pair_and_are_new_after_it() -> None:
    """What is the same in two steps leaves no score; nor do pairs know each other."""
    plan = dataclasses.replace(QUIET, local_steps=4)
    one = Canaries(seed=SEED, included=np.ones(1, dtype=np.bool_))
    engine = make_engine(model(), plan=plan, noise_key=KEY, canaries=one)
    steps = [torch.cat([g.flatten() for g in engine.gradient(*NOBODY)]) for _ in range(4)]
    torch.testing.assert_close(steps[0], -steps[1])
    torch.testing.assert_close(steps[2], -steps[3])
    assert abs(float(steps[0] @ steps[2])) < 5 / math.sqrt(len(steps[0]))


def test_scores_come_from_released_values_alone() -> None:
    """With noise: the product of each release and the direction, which a quiet run shows."""
    included = np.ones(1, dtype=np.bool_)
    plan = dataclasses.replace(QUIET, local_steps=5)
    quiet = make_engine(
        model(), plan=plan, noise_key=KEY, canaries=Canaries(seed=SEED, included=included)
    )
    noised = make_engine(
        model(),
        plan=dataclasses.replace(plan, noise_multiplier=3.0, normaliser=7.0),
        noise_key=KEY,
        canaries=Canaries(seed=SEED, included=~included),
    )
    expected = 0.0
    for _ in range(5):
        direction = torch.cat([g.flatten() for g in quiet.gradient(*NOBODY)]).double()
        released = torch.cat([g.flatten() for g in noised.gradient(*records(10))]).double()
        expected += float(direction @ released)
    assert noised.canary_scores().products == pytest.approx(expected, rel=1e-4)


def test_releases_go_on_where_the_last_one_ended() -> None:
    """Two releases, told how many steps there were, score as one does."""
    features, labels = records(10)
    included = bits(6)
    whole = make_engine(
        model(), plan=QUIET, noise_key=KEY, canaries=Canaries(seed=SEED, included=included)
    )
    parts: list[CanaryScores] = []
    for first in (0, 3):
        canaries = Canaries(seed=SEED, included=included, first_step=first)
        engine = make_engine(model(), plan=QUIET, noise_key=KEY, canaries=canaries)
        for _ in range(3):
            engine.gradient(features, labels)
            whole.gradient(features, labels)
        parts.append(engine.canary_scores())
    total, expected = parts[0] + parts[1], whole.canary_scores()
    np.testing.assert_allclose(total.products, expected.products, atol=1e-5)
    assert (total.steps, total.dimension) == (6, expected.dimension)


def test_directions_are_the_same_in_any_number_of_chunks() -> None:
    """A wide model makes them in pieces; each included canary still adds its own clip."""
    wide = nn.Linear(1000, 100, bias=False)  # 41 directions at a time
    included = np.zeros(90, dtype=np.bool_)
    included[[0, 40, 41, 89]] = True
    plan = dataclasses.replace(QUIET, clip=3.0)
    engine = make_engine(
        wide, plan=plan, noise_key=KEY, canaries=Canaries(seed=SEED, included=included)
    )
    (released,) = engine.gradient(torch.zeros((0, 1000)), torch.zeros(0, dtype=torch.int64))
    assert float(released.norm()) == pytest.approx(3.0 * 2.0, rel=0.02)
    scores = engine.canary_scores().products
    assert scores[included] == pytest.approx(3.0, abs=0.1)
    assert np.abs(scores[~included]).max() < 0.1


def test_how_far_apart_scores_stand_is_the_claim() -> None:
    """Full batch: mean difference over deviation is sqrt(steps) / sigma, the claim's own mu."""
    plan = dataclasses.replace(FULL, local_steps=40, noise_multiplier=5.0)
    canaries = Canaries(seed=SEED, included=np.arange(1500) % 2 == 0)
    engine = make_engine(nn.Linear(99, 20), plan=plan, noise_key=KEY, canaries=canaries)
    for _ in range(40):
        engine.gradient(torch.zeros((0, 99)), torch.zeros(0, dtype=torch.int64))
    scores = engine.canary_scores().products
    inside, outside = scores[canaries.included], scores[~canaries.included]
    mu = (inside.mean() - outside.mean()) / outside.std()
    assert abs(mu - math.sqrt(40) / 5.0) < 4 * math.sqrt(4 / 1500)


def test_many_records_do_not_drown_the_canaries() -> None:
    """Two thousand that pull the same way, ten canaries: the scores still show half of mu."""
    plan = dataclasses.replace(FULL, local_steps=20, noise_multiplier=2.0)
    canaries = Canaries(seed=SEED, included=np.arange(200) % 20 == 0)
    engine = make_engine(nn.Linear(30, 10), plan=plan, noise_key=KEY, canaries=canaries)
    features, labels = torch.ones((2000, 30)), torch.zeros(2000, dtype=torch.int64)
    for _ in range(20):
        engine.gradient(features, labels)
    scores = engine.canary_scores().products
    inside, outside = scores[canaries.included], scores[~canaries.included]
    mu = (inside.mean() - outside.mean()) / outside.std()
    assert mu > 0.5 * math.sqrt(20) / 2.0


def test_what_is_not_trained_with_noise_has_no_canaries() -> None:
    """Under mode none there is no epsilon to audit: the engine refuses as it does without."""
    plan = plan_of(NonPrivate(releases=1, local_steps=1))
    canaries = Canaries(seed=SEED, included=bits(3))
    with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
        make_engine(model(), plan=plan, noise_key=KEY, canaries=canaries)


def test_misuse_is_an_error_and_bits_are_never_shown() -> None:
    """Seeds and bits of another form, scores of other canaries; a repr without bits."""
    good = Canaries(seed=SEED, included=bits(3))
    assert repr(good) == "Canaries(3, first_step=0)"
    for change in (
        {"seed": b"short"},
        {"included": np.ones(3)},
        {"included": np.ones(0, dtype=np.bool_)},
        {"first_step": -1},
    ):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(good, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected an engine with canaries"):
        make_engine(model(), plan=QUIET, noise_key=KEY).canary_scores()
    score = CanaryScores(products=np.zeros(2), squared_norm=0.0, steps=1, parameters=5)
    assert not score.cosines().any()
    with pytest.raises(ValueError, match="same canaries"):
        score + dataclasses.replace(score, products=np.zeros(3))
