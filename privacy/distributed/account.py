"""How much noise each member of a cohort adds, at which integer scale, and what their sum costs.

Trusts: that members beyond ``colluders`` add the noise they were asked for; a member that colludes,
or adds none, is one of the ``colluders``.
Promises: scale, noise, sensitivity and cost belong together, and follow from public values alone.
The formulas are those of Kairouz, Liu & Steinke 2021 (arXiv 2102.06387), with neither rotation nor
subsampling:

1. Every member adds discrete Gaussian noise of variance (z D2)^2 / (t - a) to integers: any t - a
   members together add (z D2)^2. So the sum keeps its promise down to t survivors, a of whom tell
   the server what they added.
2. D2, the L2 distance by which one unit moves the sum of integers, counts the rounding: sC + sqrt d
   where a sum is rounded to nearest; the bound that is enforced where an update is rounded at
   random (theorem 1). A replaced unit moves it by 2C, or by two bounded updates.
3. The scale s leaves room in the ring for n vectors of coordinates within R and for ten deviations
   of the noise. A sum that wraps all the same costs accuracy, not privacy.
4. A sum of discrete Gaussians is nearly one (proposition 14): tau bounds the difference. It grows
   with the number of survivors, so what is reserved has the tau of all members beside the noise
   of the fewest; settling only lowers.
"""

from __future__ import annotations

import decimal
import enum
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError
from tacit.core.privacy_spec import Relation
from tacit.privacy.accounting import ZeroConcentrated, epsilon_of_events
from tacit.privacy.distributed.sampler import MAX_DEVIATION, draws_error

if TYPE_CHECKING:
    from tacit.privacy.distributed.cohort import Cohort

RING_BITS = 32
LARGEST = 2**31 - 1  # of a signed number in the ring

MIN_LOCAL_DEVIATION = 4.0  # from here on tau is below 1e-60 per member and coordinate

_TAIL = 10.0  # deviations of the noise that fit into the ring
_MARGIN = 1e-5  # of the clip, for sums of floats and their product with the scale
_AGREED = decimal.Context(prec=5, rounding=decimal.ROUND_CEILING)
_CALIBRATION = 1e-7  # relative width of the bracket at which a search for noise ends


class Rounding(enum.Enum):
    """How real coordinates become integers."""

    NEAREST = "nearest"  # once, never drawn again: sums over records
    CONDITIONAL = "conditional"  # at random, again until the norm is bounded: whole updates


@dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """One noised sum of integer vectors, as all members of a cohort know it beforehand.

    Attributes:
        cohort: who shares the noise.
        dimension: d, every coordinate of the vector, weights and metrics included.
        clip: C, L2 bound of one unit's contribution (a record's gradient, or a member's update).
        bound: R, largest size of a coordinate of one member's vector.
        rounding: how a vector becomes integers, and so whose contribution is bounded.
        relation: add/remove (for updates: a member's update or zeros), or replace-one.
        noise_multiplier: z, deviation of the noise that is counted on / D2.

    Raises:
        RefusedError: the ring has no room for the vectors at a scale of use (``E-SCALE-TOO-SMALL``)
            or for noise that an account holds for (``E-NOISE-TOO-SMALL``).
        ValueError: a value lies outside its domain.
    """

    cohort: Cohort
    dimension: int
    clip: float
    bound: float
    rounding: Rounding
    relation: Relation
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name in ("dimension", "clip", "bound", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"expected a positive {name}, got {value}")
        if self.scale * self.clip < math.sqrt(self.dimension):
            raise RefusedError(
                "E-SCALE-TOO-SMALL",
                f"expected clip x scale of at least sqrt(d) = {math.sqrt(self.dimension):.4g}, got "
                f"{self.scale * self.clip:.4g}: rounding would move the sum more than a unit does",
                hint="Give a smaller secure_aggregation.bound or max_records, fewer members, or a "
                "larger epsilon.",
            )
        if not MIN_LOCAL_DEVIATION <= self.local_deviation <= MAX_DEVIATION:
            raise RefusedError(
                "E-NOISE-TOO-SMALL",
                f"expected noise of at least {MIN_LOCAL_DEVIATION:g} integers from each member, "
                f"got {self.local_deviation:.3g}",
                hint="Ask for a smaller epsilon.",
            )

    @functools.cached_property
    def scale(self) -> float:
        """Integers per unit of a coordinate: s, from rule 3."""
        moved, rounded = self._units
        noise = _TAIL * self.noise_multiplier * self.cohort.inflation
        members = self.cohort.members
        room = LARGEST - members - noise * rounded * math.sqrt(self.dimension)
        needed = members * self.bound + noise * moved * self.clip * (1.0 + _MARGIN)
        return max(0.0, room) / needed

    @functools.cached_property
    def sensitivity(self) -> float:
        """L2 distance by which one unit moves the sum of integers: D2, from rule 2."""
        moved, rounded = self._units
        reach = self.scale * self.clip * (1.0 + _MARGIN)
        if self.rounding is Rounding.CONDITIONAL:
            return rounded * norm_bound(reach, self.dimension)
        return moved * reach + rounded * math.sqrt(self.dimension)

    @property
    def sensitivity_l1(self) -> float:
        """L1 distance by which one unit moves the sum: integers are no larger than their square."""
        return min(math.sqrt(self.dimension) * self.sensitivity, self.sensitivity**2)

    @property
    def rounding_overhead(self) -> float:
        """D2 against what one unit would move an unrounded sum by; noise is so much larger."""
        return self.sensitivity / (self._units[0] * self.scale * self.clip)

    @functools.cached_property
    def local_deviation(self) -> float:
        """Deviation of the integer noise that each member adds on each coordinate."""
        return self.noise_multiplier * self.sensitivity / math.sqrt(self.cohort.fewest_honest)

    @property
    def norm_limit(self) -> float:
        """L2 norm up to which an update that was rounded at random is accepted."""
        return norm_bound(self.scale * self.clip, self.dimension)

    def released_deviation(self, survivors: int) -> float:
        """Return the deviation of the noise on each coordinate of a decoded sum.

        It counts what all survivors add: for intervals, not for claims.

        Raises:
            ValueError: so few, or so many, cannot survive.
        """
        self.cohort.honest(survivors)
        return math.sqrt(survivors) * self.local_deviation / self.scale

    def reserve(self, steps: int) -> ZeroConcentrated:
        """Return what so many sums cost at the worst: the fewest survivors, all colluders."""
        honest = self.cohort.fewest_honest
        return self._event(honest, self.cohort.members - self.cohort.colluders, steps)

    def settled(self, steps: int, *, survivors: int) -> ZeroConcentrated:
        """Return what so many sums cost with the survivors that are proved; never more than before.

        Raises:
            ValueError: so few, or so many, cannot survive.
        """
        honest = self.cohort.honest(survivors)
        return self._event(honest, honest, steps)

    @property
    def _units(self) -> tuple[int, int]:
        """Return how many clips, and how many roundings, one unit moves the sum by."""
        if self.relation is Relation.ADD_REMOVE:
            return 1, 1
        return 2, 2 if self.rounding is Rounding.CONDITIONAL else 1

    def _event(self, honest: int, most_honest: int, steps: int) -> ZeroConcentrated:
        share = self.cohort.fewest_honest / honest
        return ZeroConcentrated(
            rho=share / (2.0 * self.noise_multiplier**2),
            xi=convolution_error(most_honest, self.local_deviation) * self.dimension,
            steps=steps,
            inexact=draws_error(members=self.cohort.members, dimension=self.dimension, steps=1),
        )


def norm_bound(reach: float, dimension: int) -> float:
    """Return the L2 norm to which a vector of norm ``reach`` is rounded with some probability.

    Kairouz, Liu & Steinke 2021, theorem 1, at beta = e^-1/2: random rounding keeps it in four
    draws of ten.
    """
    root = math.sqrt(dimension)
    return min(reach + root, math.sqrt(reach**2 + dimension / 4.0 + reach + root / 2.0))


def convolution_error(honest: int, deviation: float) -> float:
    """Return tau: how far a sum of discrete Gaussians is from one, on each coordinate.

    Kairouz, Liu & Steinke 2021, proposition 14.

    Args:
        honest: how many are added.
        deviation: of each, at least 1/2.
    """
    square = 2.0 * math.pi**2 * deviation**2
    return 10.0 * math.fsum(math.exp(-square * k / (k + 1)) for k in range(1, honest))


def renyi_divergence(noise: DistributedNoise, order: float, *, survivors: int) -> float:
    """Return the Renyi divergence bound of one sum (Kairouz, Liu & Steinke 2021, proposition 14).

    The least of three; a ledger charges the first, rho x order + xi. They differ by tau alone,
    which is below 1e-50 for every noise that is accepted here.
    """
    honest = noise.cohort.honest(survivors)
    tau = convolution_error(honest, noise.local_deviation)
    ratio = noise.sensitivity / (math.sqrt(honest) * noise.local_deviation)
    ratio_l1 = noise.sensitivity_l1 / (math.sqrt(honest) * noise.local_deviation)
    return min(
        order * ratio**2 / 2.0 + tau * noise.dimension,
        order / 2.0 * (ratio**2 + 2.0 * ratio_l1 * tau + tau**2 * noise.dimension),
        order / 2.0 * (ratio + math.sqrt(noise.dimension) * tau) ** 2,
    )


def noise_multiplier_for(
    epsilon: float, *, delta: float, steps: int, dimension: int, cohort: Cohort
) -> float:
    """Return the least noise that keeps ``steps`` sums within (epsilon, delta) at the reserve.

    By bisection over the same account that a ledger uses, and rounded up to five digits: members
    whose mathematical libraries differ in a last bit must come to the same scale and noise.

    Raises:
        RefusedError: delta does not even cover the draws (``E-EPSILON-UNBOUNDED``).
        ValueError: a value lies outside its domain.
    """
    if not epsilon > 0 or steps < 1:
        raise ValueError(f"expected epsilon > 0 and steps >= 1, got {epsilon} and {steps}")
    xi = convolution_error(cohort.members - cohort.colluders, MIN_LOCAL_DEVIATION) * dimension
    inexact = draws_error(members=cohort.members, dimension=dimension, steps=1)

    def is_enough(multiplier: float) -> bool:
        rho = 0.5 / multiplier**2
        event = ZeroConcentrated(rho=rho, xi=xi, steps=steps, inexact=inexact)
        try:
            return epsilon_of_events((event,), delta) <= epsilon
        except RefusedError:
            return False

    high = math.sqrt(steps)
    while not is_enough(high):
        high *= 2.0
        if high > _most_noise(epsilon, steps):
            raise RefusedError(
                "E-EPSILON-UNBOUNDED",
                f"expected a delta that covers the draws of {steps} sums of {dimension} numbers, "
                f"got {delta:g}",
                hint="Ask for fewer steps or a larger delta.",
            )
    low = high / 2.0
    while is_enough(low):
        low, high = low / 2.0, low
    while high > low * (1.0 + _CALIBRATION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return float(_AGREED.create_decimal_from_float(high))


def _most_noise(epsilon: float, steps: int) -> float:
    """Return noise at which epsilon holds at any delta that a ledger could have."""
    return 1e4 * math.sqrt(steps) * max(1.0, 1.0 / epsilon)
