"""What a run promises, as types in which a promise without a mechanism cannot be written.

``parse_statement`` is the one place where the flat ``[privacy]`` table of ``run.toml`` becomes a
:data:`Statement`; ``privacy/plan.py`` derives every number from that. Nothing here sees a record:
the only number about an owner's data is the bound that the owner declared.

What the types exclude:

1. A mode that nobody has built: there is no type for it.
2. A target and a noise multiplier at once, or neither: :data:`Calibration` is one of the two.
3. Poisson samples under replace-one, for which no account is used here: the relation is a field of
   :class:`FullBatch`, and :class:`Poisson` is add/remove by definition.
4. A claim per record about an update whose maker is unknown: :class:`ClientLocal` has no unit, no
   sampling and no normaliser; it compares whole data sets, one replaced by another.
5. Several records of one person under the unit record: :class:`Record` has no count.
6. A number outside its domain: no clip, count, divisor or delta that a mechanism could not use.
7. Samples under shared discrete noise, for which no tight account is published: neither
   :class:`RecordDistributed` nor :class:`ClientDistributed` has a sampling.
8. A claim that holds only while no member works against the others: their cohort has a colluder.

The statements of the distributed modes are :data:`DistributedStatement`, apart from
:data:`Statement`: their noise is shared among members (``privacy/distributed/``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import (
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    Relation,
    RunSpec,
    Sampling,
)
from tacit.privacy.distributed.cohort import Cohort

if TYPE_CHECKING:
    from types import UnionType


def _verify(holds: bool, rule: str, got: object) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise ValueError(f"expected {rule}, got {got}")


def verify_positive(name: str, value: float) -> None:
    """Refuse what is not a positive finite number (``ValueError``)."""
    _verify(0 < value < math.inf, f"0 < {name} < inf", value)


def verify_count(name: str, value: float, *, least: int = 1) -> None:
    """Refuse what is not a whole number from ``least`` on (``ValueError``)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    _verify(whole and value >= least, f"a whole number {name} >= {least}", value)


def verify_delta(delta: float, *, records: int | None = None) -> None:
    """Refuse what is no delta, or none for so many records (``ValueError``)."""
    _verify(0 < delta < 1, "0 < delta < 1", delta)
    if records is not None:
        rule = f"delta < 1 / most_owner_records = {1.0 / records:.3g}"
        _verify(delta < 1.0 / records, rule, delta)


def verify_one_of(name: str, value: object, types: type | UnionType) -> None:
    """Refuse a value of another type (``ValueError``)."""
    _verify(isinstance(value, types), f"{name} of type {types}", value)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Each record is protected for itself."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """All records of one person are protected together.

    Attributes:
        most_records: public bound on the records of one person, at least 2.
    """

    most_records: int

    def __post_init__(self) -> None:
        verify_count("most_records", self.most_records, least=2)


Unit = Record | Subject


@dataclass(frozen=True, kw_only=True)
class TargetEpsilon:
    """The least noise that keeps the whole run within ``epsilon``."""

    epsilon: float

    def __post_init__(self) -> None:
        verify_positive("epsilon", self.epsilon)


@dataclass(frozen=True, kw_only=True)
class GivenNoise:
    """This noise, in units of the sensitivity; epsilon is what it costs."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        verify_positive("noise_multiplier", self.noise_multiplier)


Calibration = TargetEpsilon | GivenNoise


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Every unit takes part in every step."""

    relation: Relation = Relation.ADD_REMOVE

    def __post_init__(self) -> None:
        verify_one_of("relation", self.relation, Relation)


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Each unit takes part with probability ``rate``, secretly and independently."""

    rate: float

    def __post_init__(self) -> None:
        _verify(0 < self.rate <= 1, "0 < rate <= 1", self.rate)


SamplingScheme = FullBatch | Poisson


@dataclass(frozen=True, kw_only=True)
class NonPrivate:
    """Nothing is clipped or noised.

    Attributes:
        releases: answers to train instructions in the run.
        local_steps: steps inside one release.
    """

    releases: int
    local_steps: int

    def __post_init__(self) -> None:
        verify_count("releases", self.releases)
        verify_count("local_steps", self.local_steps)


@dataclass(frozen=True, kw_only=True)
class RecordLocal:
    """The owner's training noises every step: DP-SGD.

    Attributes:
        unit: whose contribution is clipped.
        clip: L2 bound of one unit's gradient, over all parameters together (C).
        calibration: target or noise.
        delta: for the whole run; below 1 / ``most_owner_records``.
        sampling: which units a step takes, and which data sets the statement compares.
        releases: answers to train instructions in the run.
        local_steps: noised steps inside one release.
        most_owner_records: public bound on the records of this owner.
        normaliser: public divisor of the noised sum.
    """

    unit: Unit
    clip: float
    calibration: Calibration
    delta: float
    sampling: SamplingScheme
    releases: int
    local_steps: int
    most_owner_records: int
    normaliser: float

    def __post_init__(self) -> None:
        verify_one_of("unit", self.unit, Unit)
        verify_one_of("calibration", self.calibration, Calibration)
        verify_one_of("sampling", self.sampling, SamplingScheme)
        verify_positive("clip", self.clip)
        verify_positive("normaliser", self.normaliser)
        for name in ("releases", "local_steps", "most_owner_records"):
            verify_count(name, getattr(self, name))
        verify_delta(self.delta, records=self.most_owner_records)


@dataclass(frozen=True, kw_only=True)
class ClientLocal:
    """The owner's node clips and noises each whole update, whoever made it.

    Two data sets of one owner are compared, any for any other: the clipped update moves by 2C.

    Attributes:
        clip: L2 bound of the update, over all its arrays together (C).
        calibration: target or noise.
        delta: for the whole run; below 1 / ``most_owner_records``.
        releases: updates in the run.
        most_owner_records: public bound on the records of this owner.
    """

    clip: float
    calibration: Calibration
    delta: float
    releases: int
    most_owner_records: int

    def __post_init__(self) -> None:
        verify_one_of("calibration", self.calibration, Calibration)
        verify_positive("clip", self.clip)
        verify_count("releases", self.releases)
        verify_count("most_owner_records", self.most_owner_records)
        verify_delta(self.delta, records=self.most_owner_records)


@dataclass(frozen=True, kw_only=True)
class RecordDistributed:
    """All members sum their clipped gradients unseen, and share the noise of every sum.

    Attributes:
        unit: whose contribution is clipped.
        clip: L2 bound of one unit's gradient, over all parameters together (C).
        calibration: target or noise.
        delta: for the whole run; below 1 / ``most_owner_records``.
        relation: which data sets the statement compares.
        releases: rounds of the run.
        steps_per_round: noised sums in one round.
        most_owner_records: public bound on the records of this owner.
        normaliser: public divisor of the noised sum, over all members together.
        cohort: who shares the noise.
        bound: largest size of a coordinate of one member's sum (R).
        dimension: every coordinate of a sum, metrics included (d).
    """

    unit: Unit
    clip: float
    calibration: Calibration
    delta: float
    relation: Relation
    releases: int
    steps_per_round: int
    most_owner_records: int
    normaliser: float
    cohort: Cohort
    bound: float
    dimension: int

    def __post_init__(self) -> None:
        verify_one_of("unit", self.unit, Unit)
        verify_positive("normaliser", self.normaliser)
        verify_count("steps_per_round", self.steps_per_round)
        _verify_shared(self)


@dataclass(frozen=True, kw_only=True)
class ClientDistributed:
    """All members sum their whole clipped updates unseen, and share the noise of the sum.

    Attributes:
        clip: L2 bound of the update, over all its numbers together (C).
        calibration: target or noise.
        delta: for the whole run; below 1 / ``most_owner_records``.
        relation: add/remove compares an update with zeros, replace-one with any other; who takes
            part is known under both.
        releases: updates in the run.
        most_owner_records: public bound on the records of this owner.
        cohort: who shares the noise.
        dimension: every number of an update, metrics included (d).
    """

    clip: float
    calibration: Calibration
    delta: float
    relation: Relation
    releases: int
    most_owner_records: int
    cohort: Cohort
    dimension: int

    @property
    def bound(self) -> float:
        """Largest size of a coordinate: an update has no larger one than its norm."""
        return self.clip

    def __post_init__(self) -> None:
        _verify_shared(self)


DistributedStatement = RecordDistributed | ClientDistributed


def _verify_shared(statement: DistributedStatement) -> None:
    verify_one_of("calibration", statement.calibration, Calibration)
    verify_one_of("relation", statement.relation, Relation)
    verify_one_of("cohort", statement.cohort, Cohort)
    verify_count("colluders", statement.cohort.colluders)
    for name in ("clip", "bound"):
        verify_positive(name, getattr(statement, name))
    for name in ("releases", "most_owner_records", "dimension"):
        verify_count(name, getattr(statement, name))
    verify_delta(statement.delta, records=statement.most_owner_records)


Statement = NonPrivate | RecordLocal | ClientLocal

BUILT_MODES = (
    PrivacyMode.RECORD_DISTRIBUTED,
    PrivacyMode.RECORD_LOCAL,
    PrivacyMode.CLIENT_DISTRIBUTED,
    PrivacyMode.CLIENT_LOCAL,
    PrivacyMode.NONE,
)


def parse_statement(spec: RunSpec, *, records: int) -> Statement:
    """Return what a run promises at an owner who declares to hold ``records`` at most.

    Raises:
        RefusedError: nothing is built for this mode, or not for an app of one's own
            (``E-MODE-NOT-BUILT``, ``E-MODE-NEEDS-BUILT-IN``), or delta is not below 1 / records
            (``E-DELTA-TOO-LARGE``).
        ConfigError: the values do not make one statement (``E-PRIVACY-INCOMPLETE``).
        ValueError: ``records`` is not positive.
    """
    if records < 1:
        raise ValueError(f"expected records >= 1, got {records}")
    privacy, rounds = spec.privacy, spec.participation.rounds
    match privacy.mode:
        case PrivacyMode.NONE:
            steps = 1 if spec.training is None else spec.training.local_steps
            return NonPrivate(releases=rounds, local_steps=steps)
        case PrivacyMode.RECORD_LOCAL:
            return _record_local(spec, records)
        case PrivacyMode.CLIENT_LOCAL:
            clip, delta = declared_bounds(privacy, records)
            return ClientLocal(
                clip=clip,
                calibration=declared_calibration(privacy),
                delta=delta,
                releases=rounds,
                most_owner_records=records,
            )
        case PrivacyMode.RECORD_DISTRIBUTED | PrivacyMode.CLIENT_DISTRIBUTED:
            raise ValueError("expected parse_distributed: the noise is shared")
        case _:
            built = ", ".join(f'"{mode.value}"' for mode in BUILT_MODES)
            raise RefusedError(
                "E-MODE-NOT-BUILT",
                f'expected one of {built}, got "{privacy.mode.value}"',
                hint="this version has no mechanism for that mode, so nothing may leave under "
                "its name",
            )


def needs_built_in(mode: PrivacyMode) -> RefusedError:
    """Return the refusal of an app of one's own in a mode that clips by record."""
    return RefusedError(
        "E-MODE-NEEDS-BUILT-IN",
        f'mode "{mode.value}" holds for the built-in training only, and this run brings an app',
        hint='how an app of your own uses a record is unknown here: take mode "client-local", '
        "or the built-in training",
    )


def _record_local(spec: RunSpec, records: int) -> RecordLocal:
    privacy, training = spec.privacy, spec.training
    if training is None:
        raise needs_built_in(privacy.mode)
    clip, delta = declared_bounds(privacy, records)
    sampling = _sampling(privacy)
    rate = sampling.rate if isinstance(sampling, Poisson) else 1.0
    expected = rate * records * (1.0 - training.validation_fraction)
    return RecordLocal(
        unit=declared_unit(privacy),
        clip=clip,
        calibration=declared_calibration(privacy),
        delta=delta,
        sampling=sampling,
        releases=spec.participation.rounds,
        local_steps=training.local_steps,
        most_owner_records=records,
        normaliser=privacy.normaliser if privacy.normaliser > 0 else expected,
    )


def declared_bounds(privacy: PrivacySpec, records: int) -> tuple[float, float]:
    """Return clip and delta of a table whose values make one statement.

    Raises:
        RefusedError: delta is not below 1 / records (``E-DELTA-TOO-LARGE``).
        ConfigError: the values do not make one statement (``E-PRIVACY-INCOMPLETE``).
    """
    problems = tuple(f"privacy.{key}: {text}" for key, text in privacy.problems())
    if problems or privacy.clip is None or privacy.delta is None:
        raise ConfigError(
            "E-PRIVACY-INCOMPLETE",
            "the run's privacy is not completely declared",
            problems=problems,
        )
    if privacy.delta >= 1.0 / records:
        raise RefusedError(
            "E-DELTA-TOO-LARGE",
            f"expected delta below 1 / records = {1.0 / records:.3g}, got {privacy.delta:.3g}",
            hint="choose a smaller delta: at 1 / records, publishing one record whole would pass",
        )
    return privacy.clip, privacy.delta


def declared_calibration(privacy: PrivacySpec) -> Calibration:
    """Return target or noise of a table whose values make one statement."""
    if privacy.noise_multiplier is not None:
        return GivenNoise(noise_multiplier=privacy.noise_multiplier)
    if privacy.epsilon is not None:
        return TargetEpsilon(epsilon=privacy.epsilon)
    raise ValueError(
        "expected epsilon or noise_multiplier"
    )  # declared_bounds has seen one of the two


def _sampling(privacy: PrivacySpec) -> SamplingScheme:
    if privacy.sampling is Sampling.POISSON:
        return Poisson(rate=privacy.sample_rate)
    return FullBatch(relation=privacy.relation or Relation.ADD_REMOVE)


def declared_unit(privacy: PrivacySpec) -> Unit:
    """Return whose contribution a table's clip bounds, in a mode that clips by record."""
    if privacy.unit is PrivacyUnit.SUBJECT:
        return Subject(most_records=privacy.most_records)
    return Record()
