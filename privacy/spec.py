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
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import (
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    Relation,
    RunSpec,
    Sampling,
)


def _verify(holds: bool, rule: str, got: float) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise ValueError(f"expected {rule}, got {got}")


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
        _verify(self.most_records >= 2, "most_records >= 2", self.most_records)


Unit = Record | Subject


@dataclass(frozen=True, kw_only=True)
class TargetEpsilon:
    """The least noise that keeps the whole run within ``epsilon``."""

    epsilon: float

    def __post_init__(self) -> None:
        _verify(0 < self.epsilon < math.inf, "0 < epsilon < inf", self.epsilon)


@dataclass(frozen=True, kw_only=True)
class GivenNoise:
    """This noise, in units of the sensitivity; epsilon is what it costs."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        given = self.noise_multiplier
        _verify(0 < given < math.inf, "0 < noise_multiplier < inf", given)


Calibration = TargetEpsilon | GivenNoise


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Every unit takes part in every step."""

    relation: Relation = Relation.ADD_REMOVE


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


@dataclass(frozen=True, kw_only=True)
class RecordLocal:
    """The owner's training noises every step: DP-SGD.

    Attributes:
        unit: whose contribution is clipped.
        clip: L2 bound of one unit's gradient, over all parameters together (C).
        calibration: target or noise.
        delta: for the whole run.
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


@dataclass(frozen=True, kw_only=True)
class ClientLocal:
    """The owner's node clips and noises each whole update, whoever made it.

    Two data sets of one owner are compared, any for any other: the clipped update moves by 2C.

    Attributes:
        clip: L2 bound of the update, over all its arrays together (C).
        calibration: target or noise.
        delta: for the whole run.
        releases: updates in the run.
        most_owner_records: public bound on the records of this owner.
    """

    clip: float
    calibration: Calibration
    delta: float
    releases: int
    most_owner_records: int


Statement = NonPrivate | RecordLocal | ClientLocal

BUILT_MODES = (PrivacyMode.RECORD_LOCAL, PrivacyMode.CLIENT_LOCAL, PrivacyMode.NONE)


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
            clip, delta = _bounds(privacy, records)
            return ClientLocal(
                clip=clip,
                calibration=_calibration(privacy),
                delta=delta,
                releases=rounds,
                most_owner_records=records,
            )
        case _:
            built = ", ".join(f'"{mode.value}"' for mode in BUILT_MODES)
            raise RefusedError(
                "E-MODE-NOT-BUILT",
                f'expected one of {built}, got "{privacy.mode.value}"',
                hint="this version has no mechanism for that mode, so nothing may leave under "
                "its name",
            )


def _record_local(spec: RunSpec, records: int) -> RecordLocal:
    privacy, training = spec.privacy, spec.training
    if training is None:
        raise RefusedError(
            "E-MODE-NEEDS-BUILT-IN",
            'mode "record-local" holds for the built-in training only, and this run brings an app',
            hint='how an app of your own uses a record is unknown here: take mode "client-local", '
            "or the built-in training",
        )
    clip, delta = _bounds(privacy, records)
    sampling = _sampling(privacy)
    rate = sampling.rate if isinstance(sampling, Poisson) else 1.0
    expected = rate * records * (1.0 - training.validation_fraction)
    return RecordLocal(
        unit=_unit(privacy),
        clip=clip,
        calibration=_calibration(privacy),
        delta=delta,
        sampling=sampling,
        releases=spec.participation.rounds,
        local_steps=training.local_steps,
        most_owner_records=records,
        normaliser=privacy.normaliser if privacy.normaliser > 0 else expected,
    )


def _bounds(privacy: PrivacySpec, records: int) -> tuple[float, float]:
    """Return clip and delta of a table whose values make one statement."""
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


def _calibration(privacy: PrivacySpec) -> Calibration:
    if privacy.noise_multiplier is not None:
        return GivenNoise(noise_multiplier=privacy.noise_multiplier)
    if privacy.epsilon is not None:
        return TargetEpsilon(epsilon=privacy.epsilon)
    raise ValueError("expected epsilon or noise_multiplier")  # _bounds has seen one of the two


def _sampling(privacy: PrivacySpec) -> SamplingScheme:
    if privacy.sampling is Sampling.POISSON:
        return Poisson(rate=privacy.sample_rate)
    return FullBatch(relation=privacy.relation or Relation.ADD_REMOVE)


def _unit(privacy: PrivacySpec) -> Unit:
    if privacy.unit is PrivacyUnit.SUBJECT:
        return Subject(most_records=privacy.most_records)
    return Record()
