"""Shared noise costs what the paper says, at the worst that was reserved and as it was settled."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import RefusedError
from tacit.core.privacy_spec import Relation
from tacit.privacy.accounting import SampledGaussian, ZeroConcentrated, epsilon_of_events
from tacit.privacy.distributed.account import (
    DistributedNoise,
    Rounding,
    convolution_error,
    noise_multiplier_for,
    norm_bound,
    renyi_divergence,
)
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.ledger_account import verify_lower

COHORT = Cohort(members=10, threshold=7, colluders=1)
NOISE = DistributedNoise(
    cohort=COHORT,
    dimension=1000,
    clip=1.0,
    bound=100.0,
    rounding=Rounding.NEAREST,
    relation=Relation.ADD_REMOVE,
    noise_multiplier=20.0,
)


def test_the_reference_of_the_literature() -> None:
    """1000 members, 2^20 coordinates, z 4.4, 10 sums, delta 1e-5: epsilon 3.248 (RDP)."""
    noise = dataclasses.replace(
        NOISE,
        cohort=Cohort(members=1000, threshold=1000, colluders=0),
        dimension=2**20,
        bound=1.0,
        rounding=Rounding.CONDITIONAL,
        noise_multiplier=4.4,
    )
    assert abs(epsilon_of_events((noise.reserve(10),), 1e-5) - 3.248) <= 1e-3
    central = ZeroConcentrated(rho=1 / (2 * 4.4**2), steps=10)
    assert abs(epsilon_of_events((central,), 1e-5) - 3.2479) <= 1e-4


def masses(deviation: float, reach: int) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    return weights / weights.sum()


@pytest.mark.parametrize(("honest", "deviation"), [(2, 0.5), (2, 0.7), (3, 0.6), (5, 1.0)])
@pytest.mark.parametrize("order", [2.0, 8.0])
def test_the_bound_holds_for_sums_of_discrete_gaussians(
    honest: int, deviation: float, order: float
) -> None:
    """The Renyi divergence of a sum and the same sum moved by one is below rho order + tau."""
    reach = math.ceil(14 * deviation)
    one = masses(deviation, reach)
    total = one
    for _ in range(honest - 1):
        total = np.convolve(total, one)
    logs = np.log(np.maximum(total, 1e-300))
    exact = math.log(np.exp(order * logs[1:] + (1 - order) * logs[:-1]).sum()) / (order - 1)
    rho = 1 / (2 * honest * deviation**2)
    assert 0.5 * order * rho < exact <= order * rho + convolution_error(honest, deviation)


@given(
    members=st.integers(min_value=3, max_value=500),
    short=st.integers(min_value=0, max_value=100),
    colluders=st.integers(min_value=1, max_value=20),
    dimension=st.integers(min_value=1, max_value=10**6),
    bound=st.floats(min_value=1.0, max_value=1e3),
    rounding=st.sampled_from(Rounding),
    relation=st.sampled_from(Relation),
)
def test_settling_never_costs_more_than_the_reserve(
    *,
    members: int,
    short: int,
    colluders: int,
    dimension: int,
    bound: float,
    rounding: Rounding,
    relation: Relation,
) -> None:
    """With any survivors the ledger accepts what is settled; the fewest cost all of the reserve."""
    threshold = max(members - short, 2 * members // 3 + 1)
    cohort = Cohort(members=members, threshold=threshold, colluders=min(colluders, threshold - 1))
    noise = dataclasses.replace(
        NOISE,
        cohort=cohort,
        dimension=dimension,
        bound=bound,
        rounding=rounding,
        relation=relation,
    )
    reserve = noise.reserve(3)
    assert reserve.rho == pytest.approx(1 / (2 * noise.noise_multiplier**2))
    for survivors in {threshold, (threshold + members) // 2, members}:
        settled = noise.settled(3, survivors=survivors)
        verify_lower(settled, than=reserve)
        deviation = math.sqrt(survivors - cohort.colluders) * noise.local_deviation
        assert settled.rho == pytest.approx(0.5 * (noise.sensitivity / deviation) ** 2)
        bound_of_paper = renyi_divergence(noise, 8.0, survivors=survivors)
        assert bound_of_paper == pytest.approx(8.0 * settled.rho + settled.xi)


def test_a_reserve_covers_the_tau_of_all_members() -> None:
    """Tau grows with the survivors, so the reserve has it for all of them, not for the fewest."""
    assert convolution_error(9, 0.6) > convolution_error(6, 0.6) > 0
    assert convolution_error(1, 0.6) == 0
    small = dataclasses.replace(NOISE, dimension=1, noise_multiplier=0.5, bound=1e7)
    assert small.local_deviation < 10
    assert small.reserve(1).xi == convolution_error(9, small.local_deviation) > 0


@pytest.mark.parametrize("relation", list(Relation))
def test_the_sensitivity_is_that_of_the_papers(relation: Relation) -> None:
    """D2 = sC + sqrt d by record, the kept norm by update; 2C, or two updates, when replaced."""
    records = dataclasses.replace(NOISE, relation=relation)
    updates = dataclasses.replace(records, rounding=Rounding.CONDITIONAL, bound=1.0)
    times = 1 if relation is Relation.ADD_REMOVE else 2
    reach, root = records.scale, math.sqrt(1000)
    assert records.sensitivity == pytest.approx(times * reach + root, rel=1.1e-5)
    reach = updates.scale
    bounded = math.sqrt(reach**2 + 250 + reach + root / 2)
    assert updates.sensitivity == pytest.approx(times * bounded, rel=1.1e-5)
    assert norm_bound(3.0, 1) == math.sqrt(9 + 0.25 + 3 + 0.5)
    assert norm_bound(1e-9, 1) < 1.0
    deviation = 20.0 * updates.sensitivity / math.sqrt(6)
    assert updates.local_deviation == pytest.approx(deviation)
    assert records.sensitivity_l1 == pytest.approx(root * records.sensitivity)


def test_the_scale_is_that_of_the_facts() -> None:
    """s = (2^31 - 1 - n - 10 z kappa sqrt d) / (n R + 10 z C kappa)."""
    kappa = math.sqrt(10 / 6)
    room = 2**31 - 1 - 10 - 10 * 20 * kappa * math.sqrt(1000)
    assert NOISE.scale == pytest.approx(room / (10 * 100 + 10 * 20 * kappa), rel=1e-5)
    assert NOISE.rounding_overhead == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bound": 1e8, "dimension": 10**6}, "E-SCALE-TOO-SMALL"),
        ({"noise_multiplier": 1e9}, "E-SCALE-TOO-SMALL"),
        ({"noise_multiplier": 1e-6}, "E-NOISE-TOO-SMALL"),
    ],
)
def test_a_ring_without_room_is_refused(changes: dict[str, float], code: str) -> None:
    """Rounding that outweighs a unit, and noise without an account, have no mechanism."""
    with pytest.raises(RefusedError) as caught:
        dataclasses.replace(NOISE, **changes)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "fields",
    [
        {"members": 3, "threshold": 4, "colluders": 1},
        {"members": 3, "threshold": 3, "colluders": 3},
        {"members": 3, "threshold": 3, "colluders": -1},
    ],
)
def test_a_cohort_without_honest_survivors_is_refused(fields: dict[str, int]) -> None:
    """At least one member's noise counts, and no more survive than there are."""
    with pytest.raises(ValueError, match="colluders"):
        Cohort(**fields)


def test_fewer_or_more_survivors_than_possible_are_refused() -> None:
    """Nothing is settled below the threshold, or with more than all members."""
    for survivors in (6, 11):
        with pytest.raises(ValueError, match="7 to 10 survivors"):
            NOISE.settled(1, survivors=survivors)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["clip", "bound", "noise_multiplier"])
def test_values_outside_their_domain_are_refused(name: str, value: float) -> None:
    """No clip, bound or noise that a mechanism could not use."""
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(NOISE, **{name: value})


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("steps", [1, 150])
def test_noise_and_epsilon_are_inverse(epsilon: float, steps: int) -> None:
    """The noise for a target costs the target at the reserve, and less would cost more."""
    multiplier = noise_multiplier_for(
        epsilon, delta=1e-5, steps=steps, dimension=1000, cohort=COHORT
    )
    noise = dataclasses.replace(NOISE, noise_multiplier=multiplier)
    cost = epsilon_of_events((noise.reserve(steps),), 1e-5)
    assert epsilon * (1 - 2e-4) < cost <= epsilon
    assert float(f"{multiplier:.5g}") == multiplier  # the same at every member
    gaussian = SampledGaussian(noise_multiplier=multiplier, steps=steps)
    assert epsilon_of_events((gaussian,), 1e-5) < cost  # the exact value is not claimed


def test_draws_are_taken_from_delta() -> None:
    """Numbers that are not exact raise epsilon, by delta (1 + e^epsilon) error, or void it."""
    exact = ZeroConcentrated(rho=0.01, steps=10)
    rough = dataclasses.replace(exact, inexact=1e-8)
    epsilon = epsilon_of_events((rough,), 1e-5)
    assert epsilon > epsilon_of_events((exact,), 1e-5)
    left = 1e-5 - (1 + math.exp(epsilon)) * 1e-7
    assert epsilon == pytest.approx(epsilon_of_events((exact,), left), rel=1e-2)
    assert epsilon >= epsilon_of_events((exact,), left)
    with pytest.raises(RefusedError) as caught:
        epsilon_of_events((dataclasses.replace(exact, inexact=1e-6),), 1e-5)
    assert caught.value.code == "E-EPSILON-UNBOUNDED"


def test_a_delta_below_the_draws_has_no_noise() -> None:
    """A target at a delta that the sampler's error fills is refused, not searched for ever."""
    with pytest.raises(RefusedError) as caught:
        noise_multiplier_for(1.0, delta=1e-33, steps=1000, dimension=10**6, cohort=COHORT)
    assert caught.value.code == "E-EPSILON-UNBOUNDED"


@pytest.mark.parametrize(("deviation", "exact"), [(5.0, 0.72664), (20.0, 0.16011)])
def test_the_account_is_above_the_exact_loss_of_one_release(deviation: float, exact: float) -> None:
    """One discrete Gaussian, sensitivity 1: its own loss distribution costs a little less."""
    losses = privacy_loss_distribution.from_discrete_gaussian_mechanism(deviation)
    assert losses.get_epsilon_for_delta(1e-5) == pytest.approx(exact, abs=1e-5)
    ours = epsilon_of_events((ZeroConcentrated(rho=0.5 / deviation**2),), 1e-5)
    assert exact < ours < 1.15 * exact
