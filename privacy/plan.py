"""From a run's specification to the numbers that a mechanism uses: the one place of derivation.

Trusts: the specification as the owner approved it, and the public bound on records that the owner
declared. Never the data: nothing here can see how many records there are.
Promises: clip, noise, sampling, steps, normaliser and epsilon belong together; a mode, unit or app
that has no mechanism here is refused; what a plan says is what the engine does.

Rules:

1. Steps are rounds x local steps, for a node that takes part in every round: which nodes a server
   samples amplifies nothing against that server.
2. Each release (one answer to one train instruction) is charged with its local steps. A round that
   is tried again draws new noise and is a release of its own: ``epsilon_after`` tells its cost.
3. The normaliser divides a noised sum, so it is public: given, or sampling rate x declared records
   x share of the records that are trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacySpec, PrivacyUnit, RunSpec, Sampling
from tacit.privacy import accounting

RELATION = "add/remove"

# Sums of clipped float gradients are accumulated in float64; the rest of the rounding is charged.
SENSITIVITY_MARGIN = 1e-5

# The bound is about real Gaussian noise at the scale of the clip; far below that, float64 noise
# and float32 gradients no longer resemble it.
MIN_NOISE_MULTIPLIER = 1e-2


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Everything public about a run's mechanism at one owner.

    Attributes:
        mode: ``none`` (nothing is clipped or noised, and epsilon is infinite) or ``record-local``.
        releases: answers to train instructions that ``epsilon`` covers (the rounds).
        local_steps: noised steps inside one release.
        sample_rate: Poisson's q; 1.0 takes every record at every step.
        noise_multiplier: sigma / clip.
        clip: L2 bound of one unit's gradient over all parameters together.
        normaliser: public divisor of the noised sum.
        epsilon, delta: what the whole run costs each unit of this owner's data set.
        unit, relation: whose presence the bound is about, and which data sets it compares.
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
    relation: str = RELATION

    @property
    def is_private(self) -> bool:
        """Whether noise is added at all."""
        return self.mode is not PrivacyMode.NONE

    @property
    def steps(self) -> int:
        """Noised steps over the whole run."""
        return self.releases * self.local_steps

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum of clipped gradients."""
        return self.noise_multiplier * self.clip * (1.0 + SENSITIVITY_MARGIN)

    def epsilon_after(self, releases: int) -> float:
        """Return epsilon at the plan's delta after this many releases, retried rounds included."""
        if not self.is_private:
            return math.inf if releases else 0.0
        return accounting.epsilon_of(
            self.noise_multiplier, self.sample_rate, releases * self.local_steps, self.delta
        )


def privacy_plan(spec: RunSpec, *, records: int) -> PrivacyPlan:
    """Derive a run's mechanism at an owner whose data set is declared to hold ``records`` at most.

    Raises:
        RefusedError: no mechanism is built for this mode, unit or app (``E-MODE-NOT-BUILT``,
            ``E-UNIT-NOT-BUILT``, ``E-MODE-NEEDS-BUILT-IN``), or delta is not below 1 / records
            (``E-DELTA-TOO-LARGE``), or the noise is next to nothing (``E-NOISE-TOO-SMALL``).
        ConfigError: a value that the mode needs is missing (``E-PRIVACY-INCOMPLETE``).
        ValueError: ``records`` is not positive.
    """
    if records < 1:
        raise ValueError(f"expected records >= 1, got {records}")
    privacy = spec.privacy
    local_steps = 1 if spec.training is None else spec.training.local_steps
    if privacy.mode is PrivacyMode.NONE:
        return PrivacyPlan(
            mode=privacy.mode,
            releases=spec.participation.rounds,
            local_steps=local_steps,
            sample_rate=1.0,
            noise_multiplier=0.0,
            clip=math.inf,
            normaliser=1.0,
            epsilon=math.inf,
            delta=0.0,
            unit=privacy.unit,
        )
    _refuse_what_is_not_built(spec)
    clip, delta = _complete(privacy)
    if delta >= 1.0 / records:
        raise RefusedError(
            "E-DELTA-TOO-LARGE",
            f"expected delta below 1 / records = {1.0 / records:.3g}, got {delta:.3g}",
            hint="choose a smaller delta: at 1 / records, publishing one record whole would pass",
        )
    steps = spec.participation.rounds * local_steps
    noise_multiplier = _noise_multiplier(privacy, delta, steps)
    return PrivacyPlan(
        mode=privacy.mode,
        releases=spec.participation.rounds,
        local_steps=local_steps,
        sample_rate=privacy.sample_rate,
        noise_multiplier=noise_multiplier,
        clip=clip,
        normaliser=_normaliser(spec, records),
        epsilon=accounting.epsilon_of(noise_multiplier, privacy.sample_rate, steps, delta),
        delta=delta,
        unit=privacy.unit,
    )


def _refuse_what_is_not_built(spec: RunSpec) -> None:
    privacy = spec.privacy
    if privacy.mode is not PrivacyMode.RECORD_LOCAL:
        raise RefusedError(
            "E-MODE-NOT-BUILT",
            f'expected mode "record-local" or "none", got "{privacy.mode.value}"',
            hint="this version has no mechanism for that mode, so nothing may leave under its name",
        )
    if privacy.unit is not PrivacyUnit.RECORD:
        raise RefusedError(
            "E-UNIT-NOT-BUILT",
            f'expected unit "record", got "{privacy.unit.value}"',
            hint="this version bounds one record's gradient only, not a subject's several records",
        )
    if spec.training is None:
        raise RefusedError(
            "E-MODE-NEEDS-BUILT-IN",
            'mode "record-local" holds for the built-in training only, and this run brings an app',
            hint="how an app of your own uses a record is unknown here: use the built-in training",
        )


def _complete(privacy: PrivacySpec) -> tuple[float, float]:
    problems = tuple(f"privacy.{key}: {text}" for key, text in privacy.problems())
    if problems or privacy.clip is None or privacy.delta is None:
        raise ConfigError(
            "E-PRIVACY-INCOMPLETE",
            "the run's privacy is not completely declared",
            problems=problems,
        )
    return privacy.clip, privacy.delta


def _noise_multiplier(privacy: PrivacySpec, delta: float, steps: int) -> float:
    if privacy.noise_multiplier is not None:
        multiplier = privacy.noise_multiplier
    elif privacy.epsilon is not None:
        multiplier = accounting.noise_for(privacy.epsilon, delta, privacy.sample_rate, steps)
    else:  # _complete has seen exactly one of the two
        raise ValueError("expected epsilon or noise_multiplier")
    if multiplier < MIN_NOISE_MULTIPLIER:
        raise RefusedError(
            "E-NOISE-TOO-SMALL",
            f"expected a noise multiplier of at least {MIN_NOISE_MULTIPLIER}, got {multiplier:.3g}",
            hint="ask for a smaller epsilon",
        )
    return multiplier


def _normaliser(spec: RunSpec, records: int) -> float:
    if spec.privacy.normaliser > 0:
        return spec.privacy.normaliser
    rate = spec.privacy.sample_rate if spec.privacy.sampling is Sampling.POISSON else 1.0
    trained = 1.0 if spec.training is None else 1.0 - spec.training.validation_fraction
    return rate * records * trained
