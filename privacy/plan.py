"""From what a run promises to the numbers that a mechanism uses: the one place of derivation.

Trusts: the statement (``privacy/spec.py``), which was parsed from the specification as the owner
approved it and from the public bound on records that the owner declared. Never the data: nothing
here can see how many records there are.
Promises: clip, noise, sampling, steps, normaliser and epsilon belong together; what a plan says is
what the mechanism does.

Rules:

1. Steps are rounds x local steps, for a node that takes part in every round: which nodes a server
   samples amplifies nothing against that server.
2. Each release (one answer to one train instruction) is charged with its noised steps. A round that
   is tried again draws new noise and is a release of its own: ``epsilon_after`` tells its cost.
3. Noise is a multiple of the sensitivity: C where a unit is added or removed, 2C where one is
   replaced by another.
4. The normaliser divides a noised sum, so it is public: given, or sampling rate x declared records
   x share of the records that are trained on. It is the same for subjects, whose gradients are
   sums over their records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, RunSpec
from tacit.privacy import accounting
from tacit.privacy.spec import (
    Calibration,
    ClientLocal,
    FullBatch,
    GivenNoise,
    NonPrivate,
    Poisson,
    Record,
    RecordLocal,
    Statement,
    Subject,
    TargetEpsilon,
    parse_statement,
    verify_count,
    verify_positive,
)

# Sums of clipped float gradients are accumulated in float64; the rest of the rounding is charged.
SENSITIVITY_MARGIN = 1e-5

# The bound is about real Gaussian noise at the scale of the clip; far below that, float64 noise
# and float32 gradients no longer resemble it.
MIN_NOISE_MULTIPLIER = 1e-2


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Everything public about a run's mechanism at one owner.

    Attributes:
        mode: ``none`` (nothing is clipped or noised, and epsilon is infinite), ``record-local``
            (the training noises every step) or ``client-local`` (the node noises every update).
        releases: answers to train instructions that ``epsilon`` covers (the rounds).
        local_steps: noised steps inside one release.
        sample_rate: Poisson's q; 1.0 takes every unit at every step.
        noise_multiplier: sigma / ``sensitivity``.
        clip: L2 bound of one unit's gradient, or of the update, over all parameters together.
        normaliser: public divisor of the noised sum; 1 under ``client-local``.
        epsilon, delta: what the whole run costs each unit of this owner's data set; epsilon is
            infinite where nobody claims one.
        unit, relation: whose presence the bound is about, and which data sets it compares.
        most_records: public bound on the records of one unit.
    """

    mode: PrivacyMode
    releases: int
    local_steps: int
    sample_rate: float
    noise_multiplier: float
    clip: float
    normaliser: float
    epsilon: float
    delta: float
    unit: PrivacyUnit
    relation: Relation = Relation.ADD_REMOVE
    most_records: int = 1

    def __post_init__(self) -> None:
        for name in ("releases", "local_steps", "most_records"):
            verify_count(name, getattr(self, name))
        verify_positive("normaliser", self.normaliser)
        problem = _problem_with_noise(self) if self.is_private else _problem_without(self)
        if problem:
            raise ValueError(f"expected {problem}, got {self}")

    @property
    def is_private(self) -> bool:
        """Whether noise is added at all, by the training or by the node."""
        return self.mode is not PrivacyMode.NONE

    @property
    def trains_with_noise(self) -> bool:
        """Whether the training itself clips and noises each unit (DP-SGD)."""
        return self.mode is PrivacyMode.RECORD_LOCAL

    @property
    def steps(self) -> int:
        """Noised steps over the whole run."""
        return self.releases * self.local_steps

    @property
    def sensitivity(self) -> float:
        """How far one unit can move what is noised, in L2: C, or 2C under replace-one."""
        return self.clip if self.relation is Relation.ADD_REMOVE else 2.0 * self.clip

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise on each coordinate of the clipped sum or update."""
        return self.noise_multiplier * self.sensitivity * (1.0 + SENSITIVITY_MARGIN)

    def mechanism(self) -> accounting.SampledGaussian:
        """Return one release as an accountant sees it.

        The multiplier is relative to the sensitivity under the plan's relation with the margin for
        rounding, since the noise was made larger by that margin.

        Raises:
            ValueError: nothing is noised.
        """
        if not self.is_private:
            raise ValueError("expected a plan with noise, got mode none")
        return accounting.SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.local_steps,
        )

    def epsilon_after(self, releases: int) -> float:
        """Return epsilon at the plan's delta after this many releases, retried rounds included."""
        if not self.is_private:
            return math.inf if releases else 0.0
        one = self.mechanism()
        return accounting.epsilon_of(
            one.noise_multiplier, one.sample_rate, releases * one.steps, self.delta
        )


def _problem_without(plan: PrivacyPlan) -> str:
    """Say what in a plan of mode none promises something."""
    found = (plan.noise_multiplier, plan.delta, plan.clip, plan.epsilon, plan.sample_rate)
    nothing = (0.0, 0.0, math.inf, math.inf, 1.0)
    return "" if found == nothing else "no clip, noise, sampling or claim in mode none"


def _problem_with_noise(plan: PrivacyPlan) -> str:
    """Say what in a plan no mechanism could do, or no account could price."""
    by_node = plan.mode is PrivacyMode.CLIENT_LOCAL
    replaced = plan.relation is Relation.REPLACE_ONE
    rules = {
        "a local mode": plan.mode in (PrivacyMode.RECORD_LOCAL, PrivacyMode.CLIENT_LOCAL),
        "a relation": isinstance(plan.relation, Relation),
        "0 < clip < inf": 0 < plan.clip < math.inf,
        "0 < noise_multiplier < inf": 0 < plan.noise_multiplier < math.inf,
        "0 < sample_rate <= 1": 0 < plan.sample_rate <= 1,
        "0 <= epsilon": plan.epsilon >= 0,
        "0 < delta < 1": 0 < plan.delta < 1,
        "add/remove where units are sampled": plan.sample_rate == 1 or not replaced,
        "the unit client under client-local alone": by_node is (plan.unit is PrivacyUnit.CLIENT),
        "one full release under replace-one for an update": not by_node
        or (replaced and plan.local_steps == 1 and plan.sample_rate == 1),
        "most_records = 1 for the unit record": plan.unit is not PrivacyUnit.RECORD
        or plan.most_records == 1,
    }
    return next((rule for rule, holds in rules.items() if not holds), "")


def privacy_plan(spec: RunSpec, *, records: int) -> PrivacyPlan:
    """Derive a run's mechanism at an owner whose data set is declared to hold ``records`` at most.

    Raises:
        RefusedError: no mechanism is built for this mode or app (``E-MODE-NOT-BUILT``,
            ``E-MODE-NEEDS-BUILT-IN``), or delta is not below 1 / records (``E-DELTA-TOO-LARGE``),
            or the noise is next to nothing (``E-NOISE-TOO-SMALL``).
        ConfigError: a value that the mode needs is missing (``E-PRIVACY-INCOMPLETE``).
        ValueError: ``records`` is not positive.
    """
    return plan_of(parse_statement(spec, records=records))


def plan_of(statement: Statement) -> PrivacyPlan:
    """Derive the numbers of a statement.

    Raises:
        RefusedError: the noise is next to nothing (``E-NOISE-TOO-SMALL``), or so little that no
            epsilon holds (``E-EPSILON-UNBOUNDED``).
    """
    match statement:
        case NonPrivate():
            return _plan_without_noise(statement)
        case RecordLocal():
            return _plan_of_records(statement)
        case ClientLocal():
            return _plan_of_updates(statement)
    assert_never(statement)


def _plan_without_noise(statement: NonPrivate) -> PrivacyPlan:
    return PrivacyPlan(
        mode=PrivacyMode.NONE,
        releases=statement.releases,
        local_steps=statement.local_steps,
        sample_rate=1.0,
        noise_multiplier=0.0,
        clip=math.inf,
        normaliser=1.0,
        epsilon=math.inf,
        delta=0.0,
        unit=PrivacyUnit.RECORD,
    )


def _plan_of_records(statement: RecordLocal) -> PrivacyPlan:
    match statement.unit:
        case Subject(most_records=most_records):
            unit = PrivacyUnit.SUBJECT
        case Record():
            unit, most_records = PrivacyUnit.RECORD, 1
    match statement.sampling:
        case FullBatch(relation=relation):
            rate = 1.0
        case Poisson(rate=rate):
            relation = Relation.ADD_REMOVE
    steps = statement.releases * statement.local_steps
    noise_multiplier = _noise_multiplier(statement.calibration, statement.delta, rate, steps)
    return PrivacyPlan(
        mode=PrivacyMode.RECORD_LOCAL,
        releases=statement.releases,
        local_steps=statement.local_steps,
        sample_rate=rate,
        noise_multiplier=noise_multiplier,
        clip=statement.clip,
        normaliser=statement.normaliser,
        epsilon=accounting.epsilon_of(noise_multiplier, rate, steps, statement.delta),
        delta=statement.delta,
        unit=unit,
        relation=relation,
        most_records=most_records,
    )


def _plan_of_updates(statement: ClientLocal) -> PrivacyPlan:
    steps = statement.releases
    noise_multiplier = _noise_multiplier(statement.calibration, statement.delta, 1.0, steps)
    return PrivacyPlan(
        mode=PrivacyMode.CLIENT_LOCAL,
        releases=statement.releases,
        local_steps=1,
        sample_rate=1.0,
        noise_multiplier=noise_multiplier,
        clip=statement.clip,
        normaliser=1.0,
        epsilon=accounting.epsilon_of(noise_multiplier, 1.0, steps, statement.delta),
        delta=statement.delta,
        unit=PrivacyUnit.CLIENT,
        relation=Relation.REPLACE_ONE,
        most_records=statement.most_owner_records,
    )


def _noise_multiplier(calibration: Calibration, delta: float, rate: float, steps: int) -> float:
    match calibration:
        case GivenNoise(noise_multiplier=multiplier):
            pass
        case TargetEpsilon(epsilon=epsilon):
            multiplier = accounting.noise_for(epsilon, delta, rate, steps)
    if multiplier < MIN_NOISE_MULTIPLIER:
        raise RefusedError(
            "E-NOISE-TOO-SMALL",
            f"expected a noise multiplier of at least {MIN_NOISE_MULTIPLIER}, got {multiplier:.3g}",
            hint="ask for a smaller epsilon",
        )
    return multiplier
