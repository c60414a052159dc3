"""Epsilon agrees with the literature, with three accountants, and with itself in limits."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from tacit.core.errors import RefusedError
from tacit.privacy.accounting import (
    Mechanism,
    SampledGaussian,
    ZeroConcentrated,
    _renyi_epsilon,
    adaptive_epsilon,
    epsilon_of,
    epsilon_of_events,
    gaussian_epsilon,
    gaussian_mu,
    noise_for,
    selection_epsilon,
)

# noise multiplier, sample rate, steps, delta; PLD, PRV and RDP epsilon
TABLE = [
    (1.1, 256 / 60000, 14040, 1e-5, 2.3796, 2.3897, 2.5944),
    (1.0, 0.01, 1000, 1e-5, 1.8282, 1.8384, 2.1014),
    (0.8, 0.02, 500, 1e-5, 4.6680, 4.6784, 5.3719),
    (4.0, 0.1, 200, 1e-6, 1.6243, 1.6343, 1.7550),
    (0.6, 64 / 48842, 7630, 1e-5, 2.8070, 2.8173, 3.6615),
    (10.0, 1.0, 100, 1e-5, 4.3772, 4.3874, 4.7285),
    (1.5, 0.5, 30, 1e-5, 10.4895, 10.5000, 11.4584),
]
REFERENCE = [(*row[:5], row[6]) for row in TABLE]
RUNS = [
    SampledGaussian(noise_multiplier=1.0, sample_rate=0.01, steps=1000),
    SampledGaussian(noise_multiplier=0.8, sample_rate=0.02, steps=500),
    SampledGaussian(noise_multiplier=10.0, steps=100),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "expected", "_rdp"), REFERENCE)
def test_reference_values(
    noise: float, rate: float, steps: int, delta: float, expected: float, _rdp: float
) -> None:
    """Known mechanisms cost what the reference table says."""
    assert abs(epsilon_of(noise, rate, steps, delta) - expected) < 2e-3


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "_pld", "expected"), REFERENCE)
def test_renyi_accounting_is_never_below_ours(
    noise: float, rate: float, steps: int, delta: float, _pld: float, expected: float
) -> None:
    """A looser, independent accountant agrees with its own reference, and bounds ours."""
    accountant = rdp.RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(step, steps)
    assert abs(accountant.get_epsilon(delta) - expected) < 2e-3
    assert epsilon_of(noise, rate, steps, delta) <= expected


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # theirs, at rate 1
@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "_pld", "expected", "_rdp"), TABLE)
def test_a_second_accountant_agrees(
    noise: float, rate: float, steps: int, delta: float, _pld: float, expected: float, _rdp: float
) -> None:
    """Opacus' PRV accountant, whose upper bound adds its error of 0.01, agrees to 0.012."""
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    theirs = accountant.get_epsilon(delta)
    assert abs(theirs - expected) < 2e-3
    assert abs(theirs - epsilon_of(noise, rate, steps, delta)) <= 0.012


@pytest.mark.parametrize(
    ("noise", "steps", "delta"), [(10.0, 100, 1e-5), (1.0, 1, 1e-6), (40.0, 20, 1e-3)]
)
def test_the_closed_form_agrees_with_loss_distributions(
    noise: float, steps: int, delta: float
) -> None:
    """Full participation: Balle and Wang's formula and the PLD accountant are equal to 2e-3."""
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(noise), steps)
    ours = epsilon_of(noise, 1.0, steps, delta)
    assert abs(ours - accountant.get_epsilon(delta)) < 2e-3


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(0.5, 7.0318), (1.0, 3.7306), (3.0, 1.3906), (8.0, 0.6002)]
)
def test_noise_for_one_release(epsilon: float, expected: float) -> None:
    """The multiplier of a single release at delta 1e-5 is the analytic Gaussian's."""
    assert abs(noise_for(epsilon, 1e-5, 1.0, 1) - expected) < 1e-4


@given(
    epsilon=st.floats(min_value=1e-3, max_value=50),
    log_delta=st.floats(min_value=-12, max_value=-1),
    steps=st.integers(min_value=1, max_value=100_000),
)
def test_noise_and_epsilon_are_inverse_under_full_participation(
    epsilon: float, log_delta: float, steps: int
) -> None:
    """The multiplier for a target costs the target, and never more than the rounding."""
    delta = 10.0**log_delta
    cost = epsilon_of(noise_for(epsilon, delta, 1.0, steps), 1.0, steps, delta)
    assert cost == pytest.approx(epsilon, rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(1.0, 1e-5, 0.02, 500), (0.1, 1e-5, 0.001, 500), (8.0, 1e-6, 0.5, 50)],
)
def test_calibration_under_sampling_keeps_the_target(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    """A sampled run costs at most the target, and leaves at most a thousandth of it unused."""
    cost = epsilon_of(noise_for(epsilon, delta, rate, steps), rate, steps, delta)
    assert 0.998 * epsilon < cost <= epsilon


def test_more_noise_costs_less_and_more_steps_cost_more() -> None:
    """Epsilon moves the right way with each parameter."""
    base = epsilon_of(1.0, 0.01, 100, 1e-5)
    assert epsilon_of(2.0, 0.01, 100, 1e-5) < base
    assert epsilon_of(1.0, 0.01, 200, 1e-5) > base
    assert epsilon_of(1.0, 0.02, 100, 1e-5) > base
    assert epsilon_of(1.0, 0.01, 100, 1e-4) < base


def test_no_step_costs_nothing() -> None:
    """Before the first release nothing is spent."""
    assert epsilon_of(1.0, 1.0, 0, 1e-5) == 0.0


@pytest.mark.parametrize("delta", [1e-300, 1e-30, 0.3])
def test_extreme_deltas_stay_finite(delta: float) -> None:
    """The closed form works far below the smallest probability that erfc can hold."""
    assert 0 < gaussian_epsilon(1.0, delta) < 1e3
    assert gaussian_epsilon(gaussian_mu(5.0, delta), delta) == pytest.approx(5.0, rel=1e-6)


def test_tiny_sensitivity_costs_nothing_at_a_large_delta() -> None:
    """When delta alone covers the difference, epsilon is zero."""
    assert gaussian_epsilon(1e-6, 0.1) == 0.0


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (0.0, 1.0, 1, 1e-05),
        (1.0, 0.0, 1, 1e-05),
        (1.0, 1.1, 1, 1e-05),
        (1.0, 1.0, -1, 1e-05),
        (1.0, 1.0, 1, 0.0),
        (1.0, 1.0, 1, 1.0),
        (math.nan, 1.0, 1, 1e-05),
    ],
)
def test_parameters_outside_their_domain_are_misuse(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    """No nonsense gets an epsilon."""
    with pytest.raises(ValueError, match="expected"):
        epsilon_of(noise, rate, steps, delta)


@pytest.mark.parametrize(("epsilon", "steps"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_targets_outside_their_domain_are_misuse(epsilon: float, steps: int) -> None:
    """No nonsense gets a multiplier."""
    with pytest.raises(ValueError, match="expected"):
        noise_for(epsilon, 1e-5, 1.0, steps)


def test_runs_compose_in_one_accountant() -> None:
    """Three runs cost 6.8411 together, not the 10.87 that their epsilons add up to."""
    alone = [epsilon_of_events([run], 1e-5) for run in RUNS]
    assert alone == pytest.approx([1.8282, 4.6680, 4.3772], abs=2e-3)
    assert epsilon_of_events(RUNS, 1e-5) == pytest.approx(6.8411, abs=2e-3)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # theirs, at rate 1
def test_a_mixed_composition_agrees_with_a_second_accountant() -> None:
    """Opacus' PRV accountant composes the same three runs to the same epsilon."""
    accountant = PRVAccountant()
    accountant.history = [(run.noise_multiplier, run.sample_rate, run.steps) for run in RUNS]
    assert abs(accountant.get_epsilon(1e-5) - epsilon_of_events(RUNS, 1e-5)) <= 0.012


def test_neither_order_nor_grouping_matters() -> None:
    """The same events cost the same, told in any order and in pieces."""
    pieces = [
        SampledGaussian(noise_multiplier=1.0, sample_rate=0.01, steps=400),
        *RUNS[1:],
        SampledGaussian(noise_multiplier=1.0, sample_rate=0.01, steps=600),
    ]
    assert epsilon_of_events(pieces, 1e-5) == epsilon_of_events(RUNS, 1e-5)


def test_nothing_released_costs_nothing() -> None:
    """An account without a charge is at zero."""
    assert epsilon_of_events([], 1e-5) == adaptive_epsilon([], 1e-5) == 0.0


@given(noises=st.lists(st.floats(min_value=0.5, max_value=50), min_size=1, max_size=6))
def test_full_participation_is_one_gaussian(noises: list[float]) -> None:
    """Squares of sensitivity / sigma add up, exactly (Dong, Roth & Su)."""
    events = [SampledGaussian(noise_multiplier=noise) for noise in noises]
    mu = math.sqrt(sum(noise**-2 for noise in noises))
    assert epsilon_of_events(events, 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-8)
    assert adaptive_epsilon(events, 1e-5) == epsilon_of_events(events, 1e-5)


def test_discrete_noise_is_accounted_by_renyi() -> None:
    """1000 members, 2^20 coordinates, z = 4.4, 10 steps cost 3.248, as published for RDP."""
    event = ZeroConcentrated(rho=1 / (2 * 4.4**2), xi=0.0, steps=10)
    assert epsilon_of_events([event], 1e-5) == pytest.approx(3.248, abs=1e-3)
    worse = ZeroConcentrated(rho=1 / (2 * 4.4**2), xi=1e-3, steps=10)
    assert epsilon_of_events([worse], 1e-5) > epsilon_of_events([event], 1e-5)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-12, 0.5])
@pytest.mark.parametrize(
    "events",
    [
        [ZeroConcentrated(rho=1e-9, xi=1e-12)],
        [ZeroConcentrated(rho=0.003, xi=1e-7, steps=20), ZeroConcentrated(rho=0.002, steps=3)],
        [SampledGaussian(noise_multiplier=2.0, steps=7), ZeroConcentrated(rho=0.1, steps=100)],
        [ZeroConcentrated(rho=400.0)],
    ],
)
def test_lines_have_the_bound_of_the_renyi_accountant(
    events: list[Mechanism], delta: float
) -> None:
    """Without its import, the bound on zCDP and full Gaussian events is that of dp_accounting."""
    oracle = rdp.RdpAccountant()
    for event in events:
        one = (
            dp_accounting.ZCDpEvent(event.rho, event.xi)
            if isinstance(event, ZeroConcentrated)
            else dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
        oracle.compose(one, event.steps)
    found = _renyi_epsilon(tuple(events), delta)
    assert found == pytest.approx(oracle.get_epsilon(delta), rel=1e-12, abs=1e-15)


def test_with_discrete_noise_the_better_of_two_bounds_counts() -> None:
    """Renyi for all, or loss distributions at a part of delta and Renyi at the rest."""
    discrete = ZeroConcentrated(rho=1e-6)
    events: list[Mechanism] = [RUNS[1], discrete]
    split = epsilon_of_events([RUNS[1]], 0.9e-5) + epsilon_of_events([discrete], 1e-6)
    together = epsilon_of_events(events, 1e-5)
    assert epsilon_of_events([RUNS[1]], 1e-5) < together <= split
    assert together < adaptive_epsilon(events, 1e-5)
    heavy: list[Mechanism] = [RUNS[1], ZeroConcentrated(rho=0.5)]
    assert epsilon_of_events(heavy, 1e-5) == adaptive_epsilon(heavy, 1e-5)


def test_the_adaptive_bound_is_never_below() -> None:
    """What holds for runs that were chosen on the way costs more than for fixed ones."""
    assert adaptive_epsilon(RUNS, 1e-5) > epsilon_of_events(RUNS, 1e-5)
    assert adaptive_epsilon(RUNS[:1], 1e-5) == epsilon_of_events(RUNS[:1], 1e-5)


def test_absurd_noise_is_answered_without_a_huge_distribution() -> None:
    """Far beyond any budget the looser bound is good enough, and cheap."""
    event = SampledGaussian(noise_multiplier=0.05, sample_rate=0.5, steps=1000)
    assert epsilon_of_events([event], 1e-5) > 1000.0


def test_an_extreme_delta_falls_back_to_renyi() -> None:
    """Below the cut-off tails of a loss distribution there is still a bound."""
    assert epsilon_of(1.0, 0.01, 10, 1e-25) < 100.0


def test_selection_costs_more_than_one_trial_and_less_than_all() -> None:
    """Publishing the best of about 20 trials is no free choice, and not 20 releases either."""
    trial = [SampledGaussian(noise_multiplier=10.0, steps=20)]
    chosen = selection_epsilon(trial, mean_trials=20.0, shape=1.0, delta=1e-5)
    every = [SampledGaussian(noise_multiplier=10.0, steps=20 * 20)]
    assert epsilon_of_events(trial, 1e-5) < chosen < epsilon_of_events(every, 1e-5)
    for mean, shape in ((1.0, 1.0), (20.0, -1.0)):
        with pytest.raises(ValueError, match="expected mean"):
            selection_epsilon(trial, mean_trials=mean, shape=shape, delta=1e-5)


@pytest.mark.parametrize("fields", [{"rho": 0.0}, {"rho": 1.0, "xi": -1.0}, {"rho": math.inf}])
def test_discrete_noise_outside_its_domain_is_misuse(fields: dict[str, float]) -> None:
    """No nonsense gets a charge."""
    with pytest.raises(ValueError, match="expected"):
        ZeroConcentrated(**fields)


def test_what_has_no_finite_epsilon_refuses() -> None:
    """Noise next to nothing is refused by name, not reported as infinity."""
    for rate in (0.5, 1.0):
        with pytest.raises(RefusedError, match="E-EPSILON-UNBOUNDED"):
            epsilon_of(1e-100, rate, 1, 1e-5)
