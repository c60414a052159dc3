"""Epsilon agrees with the literature, with three accountants, and with itself in limits."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.accounting import (
    epsilon_of,
    gaussian_epsilon,
    gaussian_mu,
    noise_for,
)

# noise multiplier, sample rate, steps, delta, PLD epsilon, RDP epsilon
REFERENCE = [
    (1.1, 256 / 60000, 14040, 1e-5, 2.3796, 2.5944),
    (1.0, 0.01, 1000, 1e-5, 1.8282, 2.1014),
    (0.8, 0.02, 500, 1e-5, 4.6680, 5.3719),
    (4.0, 0.1, 200, 1e-6, 1.6243, 1.7550),
    (0.6, 64 / 48842, 7630, 1e-5, 2.8070, 3.6615),
    (10.0, 1.0, 100, 1e-5, 4.3772, 4.7285),
    (1.5, 0.5, 30, 1e-5, 10.4895, 11.4584),
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
