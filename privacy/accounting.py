"""What noise costs, and what noise a target asks for: (epsilon, delta) of everything that left.

Trusts: ``dp_accounting``'s privacy loss distributions (PLD, rounded pessimistically) and its Renyi
accountant; it is imported when first needed, since that takes a second.
Promises: every epsilon that leaves this module is an upper bound, for noise added to sums of
contributions bounded by the clipping norm. The rules, in order:

1. All events on one data set go into one accountant: epsilons are never added up.
2. Full participation only: Gaussian events are one event, and the bound is the exact closed form.
3. With Poisson samples: the PLD accountant. Equal events are grouped, so that another round of the
   same run costs one convolution.
4. With distributed discrete noise: the least of the Renyi bound on everything, and PLD at a part of
   delta plus Renyi at the rest. How far the drawn numbers lie from exact ones is taken from delta
   first.
5. Rules 3 and 4 take parameters as fixed beforehand. Where a later event was chosen after seeing
   what an earlier one released, :func:`adaptive_epsilon` is the bound to stop by.

Fixed-size and shuffled batches have no account here, and central limit approximations never will.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import dp_accounting
    import numpy as np
    from dp_accounting.pld import privacy_loss_distribution

PLD_INTERVAL = 1e-4  # losses are rounded up to multiples of this, once for each distinct event
PLD_ERROR = 2e-3  # PLD against PRV's lower bound and the closed form on the reference table
_PLD_LIMIT = 64.0  # beyond it a loss distribution has millions of points, and no meaning
_DELTA_SHARES = (0.1, 0.5, 0.9)  # for rule 4; each share gives a bound, so their least is one
_MAX_EXPONENT = 700.0  # of e, in a double
_MAX_MU = 1e3  # epsilon above 5e5: nobody means that
_RELATIVE_TOLERANCE = 1e-10
_ORDERS: tuple[float, ...] = (
    *(order / 10.0 for order in range(11, 110)),
    *range(11, 64),
    128,
    256,
    512,
    1024,
)
_CALIBRATION_SLACK = 1e-3  # share of epsilon that a calibrated multiplier may leave unused


def _log_normal_cdf(x: float) -> float:
    """Return log Phi(x), also where Phi(x) is far below the smallest double."""
    if x > -30.0:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    # Mills ratio, upper bound: Phi(x) <= phi(x) / -x. The error is below 1/900 relative, and the
    # term enters the formula below with a minus sign only where it is negligible.
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2.0 * math.pi)


def _log_delta(epsilon: float, mu: float) -> float:
    """Return log delta of one Gaussian release with sensitivity / sigma = ``mu``.

    Balle & Wang 2018 (arXiv 1805.06530), theorem 8:
    delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).
    """
    first = _log_normal_cdf(mu / 2.0 - epsilon / mu)
    second = epsilon + _log_normal_cdf(-mu / 2.0 - epsilon / mu)
    if second >= first:
        return first
    return first + math.log1p(-math.exp(second - first))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon at ``delta`` of Gaussian noise with sensitivity / sigma = ``mu``."""
    target = math.log(delta)
    low, high = 0.0, 1.0
    if _log_delta(low, mu) <= target:
        return 0.0
    while _log_delta(high, mu) > target:
        high *= 2.0
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = 0.5 * (low + high)
        if _log_delta(middle, mu) > target:
            low = middle
        else:
            high = middle
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest sensitivity / sigma whose Gaussian release is (epsilon, delta)-DP."""
    target = math.log(delta)
    low, high = 0.0, 1.0
    while _log_delta(epsilon, high) <= target and high < _MAX_MU:
        low, high = high, 2.0 * high
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = 0.5 * (low + high)
        if _log_delta(epsilon, middle) <= target:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """Gaussian noise on sums over Poisson samples of the records, one sum per step.

    Attributes:
        noise_multiplier: sigma / sensitivity under the relation of the one who charges it.
        sample_rate: each unit takes part in a step with this probability; 1.0 takes every one.
        steps: how many noised sums.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"expected a positive noise multiplier, got {self.noise_multiplier}")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"expected 0 < sample_rate <= 1, got {self.sample_rate}")
        _check_steps(self.steps)


@dataclass(frozen=True, kw_only=True)
class ZeroConcentrated:
    """Distributed discrete noise: RDP(alpha) <= rho alpha + xi per step.

    Kairouz, Liu & Steinke 2021 (arXiv 2102.06387), corollary 12 and proposition 14.

    Attributes:
        rho: squared sensitivity / (2 x variance of the noise that honest members added).
        xi: what a sum of discrete Gaussians differs from one, over all coordinates.
        steps: how many noised sums.
        inexact: how far the numbers that were drawn for one sum lie from exact ones, all together,
            in total variation.
    """

    rho: float
    xi: float = 0.0
    steps: int = 1
    inexact: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"expected a positive rho, got {self.rho}")
        if not (math.isfinite(self.xi) and self.xi >= 0):
            raise ValueError(f"expected xi >= 0, got {self.xi}")
        if not 0 <= self.inexact < 1:
            raise ValueError(f"expected 0 <= inexact < 1, got {self.inexact}")
        _check_steps(self.steps)


Mechanism = SampledGaussian | ZeroConcentrated


def accountant_name() -> str:
    """Return the accountant and its version, as a ledger entry names them."""
    version = importlib.metadata.version("dp-accounting")
    return f"tacit 1: closed form, else dp-accounting {version} PLD and RDP"


def epsilon_of_events(events: Sequence[Mechanism], delta: float) -> float:
    """Return epsilon at ``delta`` of everything that was released, in one accountant.

    Args:
        events: in any order; none of them costs nothing.
        delta: of the whole.

    Raises:
        RefusedError: no finite epsilon holds at this delta (``E-EPSILON-UNBOUNDED``).
        ValueError: delta is not between 0 and 1.
    """
    groups = _grouped(events)
    return _finite(_with_errors(_epsilon_of_groups, groups, _checked_delta(delta)), delta)


def adaptive_epsilon(events: Sequence[Mechanism], delta: float) -> float:
    """Return a bound to stop by when each event may be chosen after seeing the earlier ones.

    One kind of event, or Gaussian events with full participation: the same as
    :func:`epsilon_of_events`, since their compositions are totally ordered (Smith & Thakurta 2022,
    arXiv 2210.17520, for the Gaussian). All else: the Renyi total (Feldman & Zrnic 2021,
    arXiv 2008.11193; Lecuyer 2021, arXiv 2103.01379, for all orders at once).

    Raises:
        RefusedError: no finite epsilon holds at this delta (``E-EPSILON-UNBOUNDED``).
        ValueError: delta is not between 0 and 1.
    """
    groups = _grouped(events)
    _checked_delta(delta)
    if len(groups) == 1 or all(_takes_every_record(event) for event in groups):
        return _finite(_with_errors(_epsilon_of_groups, groups, delta), delta)
    return _finite(_with_errors(_renyi_epsilon, groups, delta), delta)


def selection_epsilon(
    trial: Sequence[Mechanism], *, mean_trials: float, shape: float, delta: float
) -> float:
    """Return epsilon of publishing only the best of a random number of trials.

    The number of trials must be drawn from a truncated negative binomial distribution, whatever
    the trials show (Papernot & Steinke 2022, arXiv 2110.03620, theorem 2); a fixed number of
    trials has no such account: charge each of them.

    Args:
        trial: what one trial releases, the score that it is chosen by included.
        mean_trials: mean of the distribution, more than 1.
        shape: of the distribution; 1 is geometric, 0 logarithmic.
        delta: of the whole.

    Raises:
        RefusedError: no finite epsilon holds at this delta (``E-EPSILON-UNBOUNDED``).
        ValueError: a parameter lies outside its domain.
    """
    from dp_accounting import dp_event, rdp  # noqa: PLC0415 - see the module's docstring

    _checked_delta(delta)
    if not (mean_trials > 1 and shape > -1):
        raise ValueError(f"expected mean > 1 and shape > -1, got {mean_trials} and {shape}")
    if any(isinstance(event, ZeroConcentrated) and event.inexact for event in trial):
        raise ValueError("expected exact noise: nothing here adds errors up over trials")
    composed = dp_event.ComposedDpEvent([_event(event) for event in trial])
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_event.RepeatAndSelectDpEvent(composed, mean_trials, shape))
    return _finite(float(accountant.get_epsilon(delta)), delta)


def _event(event: Mechanism) -> dp_accounting.DpEvent:
    import dp_accounting  # noqa: PLC0415 - see the module's docstring

    if isinstance(event, ZeroConcentrated):
        step = dp_accounting.ZCDpEvent(event.rho, event.xi)
    else:
        step = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if event.sample_rate < 1.0:
            step = dp_accounting.PoissonSampledDpEvent(event.sample_rate, step)
    return dp_accounting.SelfComposedDpEvent(step, event.steps)


def _grouped(events: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Return equal mechanisms once, with their steps added up, in a fixed order."""
    counts: Counter[Mechanism] = Counter()
    for event, times in Counter(events).items():  # thousands of charges, few kinds
        counts[replace(event, steps=1)] += event.steps * times
    groups = [replace(event, steps=steps) for event, steps in counts.items() if steps]
    return tuple(sorted(groups, key=repr))


def _with_errors(
    bound: Callable[[tuple[Mechanism, ...], float], float],
    groups: tuple[Mechanism, ...],
    delta: float,
) -> float:
    """Return a bound on numbers as they were drawn, from one on exact numbers.

    Outputs within ``error`` of exact ones, in total variation, on either of two neighbouring data
    sets keep epsilon if delta grows by (1 + e^epsilon) error.
    """
    error = math.fsum(
        event.steps * event.inexact for event in groups if isinstance(event, ZeroConcentrated)
    )
    if error == 0.0:
        return bound(groups, delta)
    taken = 2.0 * error
    while taken < delta:
        epsilon = bound(groups, delta - taken)
        if epsilon > _MAX_EXPONENT:
            break
        needed = (1.0 + math.exp(epsilon)) * error
        if needed <= taken:
            return epsilon
        taken = 1.01 * needed  # a little more, since the next epsilon is a little larger
    return math.inf


def _takes_every_record(event: Mechanism) -> bool:
    return isinstance(event, SampledGaussian) and event.sample_rate == 1.0


def _mu_of(groups: Iterable[Mechanism]) -> float:
    """Return sensitivity / sigma of the one release that all full-participation events are.

    Dong, Roth & Su 2019 (arXiv 1905.02383), corollary 3.3.
    """
    return math.sqrt(
        math.fsum(
            event.steps / event.noise_multiplier**2
            for event in groups
            if isinstance(event, SampledGaussian) and event.sample_rate == 1.0
        )
    )


@functools.lru_cache(maxsize=1024)
def _epsilon_of_groups(groups: tuple[Mechanism, ...], delta: float) -> float:
    if not groups:
        return 0.0
    if _mu_of(groups) > _MAX_MU:
        return math.inf
    if all(_takes_every_record(event) for event in groups):
        return gaussian_epsilon(_mu_of(groups), delta)
    renyi = _renyi_epsilon(groups, delta)
    if renyi > _PLD_LIMIT:
        return renyi
    discrete = tuple(event for event in groups if isinstance(event, ZeroConcentrated))
    others = tuple(event for event in groups if isinstance(event, SampledGaussian))
    if not discrete:
        bound = _loss_epsilon(others, delta)
        return bound if math.isfinite(bound) else renyi  # delta below the cut-off tails
    parts = (
        _epsilon_of_groups(others, share * delta) + _renyi_epsilon(discrete, (1.0 - share) * delta)
        for share in _DELTA_SHARES
        if others
    )
    return min((renyi, *parts))


def _loss_epsilon(groups: tuple[SampledGaussian, ...], delta: float) -> float:
    full = _mu_of(groups)
    sampled = [event for event in groups if event.sample_rate < 1.0]
    composed = _losses(sampled[0])
    for event in sampled[1:]:
        composed = composed.compose(_losses(event))
    if full > 0:
        composed = composed.compose(_one_step_losses(1.0 / full, 1.0))
    return float(composed.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=8)  # up to some 20 MB each
def _losses(event: SampledGaussian) -> privacy_loss_distribution.PrivacyLossDistribution:
    return _one_step_losses(event.noise_multiplier, event.sample_rate).self_compose(event.steps)


@functools.lru_cache(maxsize=8)
def _one_step_losses(
    noise_multiplier: float, sample_rate: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415 - see the docstring

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=PLD_INTERVAL,
    )


def _renyi_epsilon(groups: tuple[Mechanism, ...], delta: float) -> float:
    if not groups:
        return 0.0
    if all(_is_concentrated(event) for event in groups):
        return _concentrated_epsilon(groups, delta)
    from dp_accounting import rdp  # noqa: PLC0415 - see the module's docstring

    total = sum(event.steps * _renyi_curve(replace(event, steps=1)) for event in groups)
    return float(rdp.compute_epsilon(rdp.RdpAccountant().orders, total, delta)[0])


def _is_concentrated(event: Mechanism) -> bool:
    """Whether an event's Renyi curve is a line."""
    if isinstance(event, ZeroConcentrated):
        return True
    return _takes_every_record(event) and event.noise_multiplier * _MAX_MU >= 1.0


def _concentrated_epsilon(groups: tuple[Mechanism, ...], delta: float) -> float:
    """Return the Renyi bound on events whose curves are lines, without the accountant's import.

    The curve of rho-zCDP with error xi is xi + rho alpha, and a Gaussian release has
    rho = 1 / (2 z^2) (Bun & Steinke 2016, arXiv 1605.02065, definition 1.3 and proposition 1.6).
    From curve to epsilon: Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), proposition 12, and
    epsilon 0 where delta^2 >= 1 - exp(-KL). Orders as the accountant's.
    """
    rho = math.fsum(
        event.steps
        * (event.rho if isinstance(event, ZeroConcentrated) else 0.5 / event.noise_multiplier**2)
        for event in groups
    )
    xi = math.fsum(
        event.steps * event.xi for event in groups if isinstance(event, ZeroConcentrated)
    )
    bounds: list[float] = []
    for order in _ORDERS:
        curve = xi + rho * order
        if delta**2 + math.expm1(-curve) > 0:
            return 0.0
        bounds.append(curve + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0))
    return max(0.0, min(bounds))


@functools.lru_cache(maxsize=256)
def _renyi_curve(event: Mechanism) -> np.ndarray:
    """Return the Renyi divergence bound of one step, at the accountant's own orders."""
    from dp_accounting import rdp  # noqa: PLC0415 - see the module's docstring

    accountant = rdp.RdpAccountant()
    curve: np.ndarray = accountant.rdp
    if isinstance(event, SampledGaussian) and event.noise_multiplier * _MAX_MU < 1.0:
        curve += math.inf  # their formulas overflow there
    else:
        accountant.compose(_event(event))
        curve = accountant.rdp
    curve.setflags(write=False)  # shared by all callers
    return curve


def epsilon_of(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return epsilon at ``delta`` after ``steps`` noised sums of Poisson samples.

    ``sample_rate`` 1 means that every record takes part in every step.

    Raises:
        RefusedError: no finite epsilon holds at this delta (``E-EPSILON-UNBOUNDED``).
        ValueError: a parameter lies outside its domain.
    """
    event = SampledGaussian(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    return epsilon_of_events((event,), delta)


@functools.lru_cache(maxsize=256)
def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier that keeps ``steps`` steps within (epsilon, delta).

    Raises:
        ValueError: a parameter lies outside its domain.
    """
    _check(sample_rate, steps, delta)
    if not epsilon > 0 or steps < 1:
        raise ValueError(f"expected epsilon > 0 and steps >= 1, got {epsilon} and {steps}")
    full = math.sqrt(steps) / gaussian_mu(epsilon, delta)
    if sample_rate == 1.0:
        return full
    return _sampled_noise(epsilon, delta, sample_rate, steps, enough=full)


def _sampled_noise(
    epsilon: float, delta: float, sample_rate: float, steps: int, *, enough: float
) -> float:
    """Search between a multiplier that keeps the target and one that does not; return the former.

    ``enough`` keeps it without sampling, and sampling only ever helps. The next point is
    interpolated on log-log axes, where epsilon is nearly a line: a query of the accountant costs
    up to a second, and the accountant is slowest where the noise is far too small.
    """
    high, high_cost = enough, epsilon_of(enough, sample_rate, steps, delta)
    low, low_cost = high, high_cost
    while low_cost <= epsilon:
        high, high_cost = low, low_cost
        low = high / 1.5
        low_cost = epsilon_of(low, sample_rate, steps, delta)
    while high_cost < epsilon * (1.0 - _CALIBRATION_SLACK) and high > low * (1.0 + 1e-6):
        share = math.log(low_cost / epsilon) / math.log(low_cost / max(high_cost, 1e-12))
        # A little towards more noise, so that the point mostly lands on the side that is kept.
        share = min(max(share + 0.02, 0.05), 0.95)
        middle = low * (high / low) ** share
        cost = epsilon_of(middle, sample_rate, steps, delta)
        if cost <= epsilon:
            high, high_cost = middle, cost
        else:
            low, low_cost = middle, cost
    return high


def _finite(epsilon: float, delta: float) -> float:
    if not math.isfinite(epsilon):
        raise RefusedError(
            "E-EPSILON-UNBOUNDED",
            f"no finite epsilon holds for this noise at delta {delta}",
            hint="use more noise, fewer steps, a smaller sample rate or a larger delta",
        )
    return epsilon


def _check(sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1:
        raise ValueError(f"expected 0 < sample_rate <= 1, got {sample_rate}")
    _check_steps(steps)
    _checked_delta(delta)


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"expected steps >= 0, got {steps}")


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    return delta
