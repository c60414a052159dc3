"""From what a run in a distributed mode promises to the numbers of its noise and their cost.

Trusts: the statement (``privacy/spec.py``), which follows from the specification as all members
approved it, and from each owner's public bound on records. Never the data.
Promises: scale, noise and epsilon belong together; epsilon is what the reserve costs, with no more
survivors than the threshold and all colluders among them. It holds for one owner's data set; a
subject with records at several owners composes over them.

The rules of ``privacy/plan.py`` hold here, too. Noise is a multiple of D2, the distance by which
one unit moves the sum of integers; a release is one round, of ``steps_per_round`` noised sums.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, RunSpec
from tacit.privacy.accounting import epsilon_of_events
from tacit.privacy.distributed.account import DistributedNoise, Rounding, noise_multiplier_for
from tacit.privacy.distributed.statement import parse_distributed
from tacit.privacy.plan import MIN_NOISE_MULTIPLIER, PrivacyPlan, privacy_plan
from tacit.privacy.spec import (
    ClientDistributed,
    DistributedStatement,
    GivenNoise,
    Record,
    RecordDistributed,
    Subject,
    TargetEpsilon,
)

if TYPE_CHECKING:
    from tacit.privacy.accounting import ZeroConcentrated


@dataclass(frozen=True, kw_only=True)
class DistributedPlan:
    """Everything public about a run's shared noise.

    Attributes:
        mode: ``record-distributed`` or ``client-distributed``.
        noise: of one sum: cohort, clip, scale, deviation.
        releases: rounds that ``epsilon`` covers.
        local_steps: noised sums in one round.
        normaliser: public divisor of a decoded sum; 0 where it is the number of survivors, which
            is public by then.
        epsilon, delta: what the whole run costs each unit of one owner's data set at the reserve.
        unit: whose presence the bound is about.
        most_records: public bound on the records of one unit.
    """

    mode: PrivacyMode
    noise: DistributedNoise
    releases: int
    local_steps: int
    normaliser: float
    epsilon: float
    delta: float
    unit: PrivacyUnit
    most_records: int

    @property
    def relation(self) -> Relation:
        """Which data sets the bound compares."""
        return self.noise.relation

    @property
    def clip(self) -> float:
        """L2 bound of one unit's contribution."""
        return self.noise.clip

    @property
    def noise_multiplier(self) -> float:
        """Deviation of the noise that is counted on / D2."""
        return self.noise.noise_multiplier

    @property
    def is_private(self) -> bool:
        """Every statement of a distributed mode has noise."""
        return True

    @property
    def trains_with_noise(self) -> bool:
        """Whether the training itself clips each unit, so that layers must allow it."""
        return self.mode is PrivacyMode.RECORD_DISTRIBUTED

    @property
    def sample_rate(self) -> float:
        """Every unit takes part in every step."""
        return 1.0

    @property
    def steps(self) -> int:
        """Noised sums over the whole run."""
        return self.releases * self.local_steps

    @property
    def central_ratio(self) -> float:
        """Noise of a sum from all members against that of one noise added centrally."""
        return self.noise.cohort.inflation * self.noise.rounding_overhead

    def mechanism(self) -> ZeroConcentrated:
        """Return one round as it is reserved, before anybody knows who survives."""
        return self.noise.reserve(self.local_steps)

    def settled_mechanism(self, *, survivors: int, steps: int | None = None) -> ZeroConcentrated:
        """Return one round as it is settled, once the survivors are proved.

        Args:
            survivors: |U3|, from the signatures of at least the threshold on one list.
            steps: sums that were opened, or may have been; all of the round's by default.

        Raises:
            ValueError: so few or so many cannot survive, or there are no such steps.
        """
        opened = self.local_steps if steps is None else steps
        if not 1 <= opened <= self.local_steps:
            raise ValueError(f"expected 1 to {self.local_steps} steps, got {opened}")
        return self.noise.settled(opened, survivors=survivors)

    def epsilon_after(self, releases: int) -> float:
        """Return epsilon of so many reserved rounds, retried ones included."""
        if releases == 0:
            return 0.0
        event = self.noise.reserve(releases * self.local_steps)
        return epsilon_of_events((event,), self.delta)

    def settled_epsilon(self, *, survivors: int) -> float:
        """Return epsilon of the whole run if every round ends with so many survivors.

        Raises:
            ValueError: so few or so many cannot survive.
        """
        event = self.noise.settled(self.steps, survivors=survivors)
        return epsilon_of_events((event,), self.delta)


RunPlan = PrivacyPlan | DistributedPlan


def plan_of_run(spec: RunSpec, *, records: int) -> RunPlan:
    """Derive a run's mechanism at an owner who declares to hold ``records`` at most, in any mode.

    Raises:
        ConfigError: a run in a distributed mode does not say how many numbers a vector has
            (``E-SECAGG-DIMENSION``); and as :func:`distributed_plan`.
        RefusedError, ValueError: as :func:`distributed_plan` or :func:`privacy_plan`.
    """
    if not spec.privacy.mode.is_distributed:
        return privacy_plan(spec, records=records)
    secure = spec.secure_aggregation
    if secure is None or secure.dimension == 0:
        raise ConfigError(
            "E-SECAGG-DIMENSION",
            "expected secure_aggregation.dimension: what noise costs depends on it",
            hint="It is counted in the initial weights when the run is checked or submitted.",
        )
    return distributed_plan(spec, records=records, dimension=secure.dimension)


def epsilon_of_answers(plan: RunPlan, answers: int) -> float:
    """Return epsilon after an owner has answered training so often, retries included.

    Under shared noise each answer is one sum; else it is one release of all local steps.
    """
    shared = isinstance(plan, DistributedPlan)
    return plan.epsilon_after(-(-answers // plan.local_steps) if shared else answers)


def distributed_plan(spec: RunSpec, *, records: int, dimension: int) -> DistributedPlan:
    """Derive a run's shared noise at an owner who declares to hold ``records`` at most.

    Args:
        spec: of a run in a distributed mode.
        records: the owner's public bound.
        dimension: every number of one sum, metrics included.

    Raises:
        RefusedError: see :func:`parse_distributed`; or the noise is next to nothing
            (``E-NOISE-TOO-SMALL``), the ring has no room (``E-SCALE-TOO-SMALL``), or no epsilon
            holds (``E-EPSILON-UNBOUNDED``).
        ConfigError: the values do not make one statement (``E-PRIVACY-INCOMPLETE``).
        ValueError: the mode is another, or a number is not positive.
    """
    return distributed_plan_of(parse_distributed(spec, records=records, dimension=dimension))


@functools.lru_cache(maxsize=64)  # a search by epsilon, asked anew for each of a run's messages
def distributed_plan_of(statement: DistributedStatement) -> DistributedPlan:
    """Derive the numbers of a statement.

    Raises:
        RefusedError: as :func:`distributed_plan`.
    """
    match statement:
        case RecordDistributed():
            mode, rounding = PrivacyMode.RECORD_DISTRIBUTED, Rounding.NEAREST
            steps, normaliser = statement.steps_per_round, statement.normaliser
            unit, most_records = _unit(statement.unit)
        case ClientDistributed():
            mode, rounding = PrivacyMode.CLIENT_DISTRIBUTED, Rounding.CONDITIONAL
            steps, normaliser = 1, 0.0
            unit, most_records = PrivacyUnit.CLIENT, statement.most_owner_records
        case _:
            assert_never(statement)
    noise = DistributedNoise(
        cohort=statement.cohort,
        dimension=statement.dimension,
        clip=statement.clip,
        bound=statement.bound,
        rounding=rounding,
        relation=statement.relation,
        noise_multiplier=_noise_multiplier(statement, statement.releases * steps),
    )
    reserve = noise.reserve(statement.releases * steps)
    return DistributedPlan(
        mode=mode,
        noise=noise,
        releases=statement.releases,
        local_steps=steps,
        normaliser=normaliser,
        epsilon=epsilon_of_events((reserve,), statement.delta),
        delta=statement.delta,
        unit=unit,
        most_records=most_records,
    )


def _unit(unit: Record | Subject) -> tuple[PrivacyUnit, int]:
    match unit:
        case Subject(most_records=most_records):
            return PrivacyUnit.SUBJECT, most_records
        case Record():
            return PrivacyUnit.RECORD, 1
    assert_never(unit)


def _noise_multiplier(statement: DistributedStatement, steps: int) -> float:
    match statement.calibration:
        case GivenNoise(noise_multiplier=multiplier):
            pass
        case TargetEpsilon(epsilon=epsilon):
            multiplier = noise_multiplier_for(
                epsilon,
                delta=statement.delta,
                steps=steps,
                dimension=statement.dimension,
                cohort=statement.cohort,
            )
    if multiplier < MIN_NOISE_MULTIPLIER:
        raise RefusedError(
            "E-NOISE-TOO-SMALL",
            f"expected a noise multiplier of at least {MIN_NOISE_MULTIPLIER}, got {multiplier:.3g}",
            hint="ask for a smaller epsilon",
        )
    return multiplier
