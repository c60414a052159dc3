"""RMIA, the robust attack (Zarifzadeh et al. 2024, arXiv 2312.03262).

``ratio(x) = p(x|theta) / p(x)`` says how much likelier the model makes the record than the world
does. The score (section 3) is the share of population records z with ``ratio(x) / ratio(z) >=
gamma``. One OUT reference is enough. Offline, ``p(x) = ((1 + a) mean_OUT p + (1 - a)) / 2``
(appendix B) stands in for the references that would have been trained on x.

Temperature and ``a`` are tuned on references that stand in for the target. gamma is not: one
population serves all records, so the share grows with ratio(x) whatever gamma is, and gamma
decides only between which records it ties. Those ties are broken by ratio(x) itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tacit.attacks.membership.signals import (
    Mode,
    compared_with,
    log_ratio,
    needed,
    reference_log_odds,
    true_log_odds,
)
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import BoolArray, Float64Array

_TUNING_TARGETS = 4  # references that stand in for the target; each costs a pass over the others
_LOW_FPR = 0.05  # of the non-members: enough of them to choose by, where few records are audited
_GAMMA = {Mode.ONLINE: 2.0, Mode.OFFLINE: 1.0}  # the paper's, section 4
_A_OF_POPULATION = 0.3  # online: no reference was trained on the population


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tuned: the softmax's temperature, and how much of an OUT mean is believed."""

    temperature: float
    a: float


@dataclass(frozen=True, kw_only=True)
class Rmia:
    """Score: share of the population that the record's ratio exceeds, ties broken by the ratio.

    Attributes:
        mode: ``p(x)`` from all references, or from those that were not trained on x.
        temperatures: tried when tuning.
        offline_a: tried when tuning; of no meaning online.
        default: used where too few references are there to tune on.
    """

    mode: Mode = Mode.OFFLINE
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    offline_a: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9, 1.0)
    default: Setting = Setting(temperature=1.0, a=0.3)
    source: ClassVar[str] = "Zarifzadeh et al. 2024, arXiv 2312.03262"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCES, Need.POPULATION})

    @property
    def name(self) -> str:
        """``rmia-online`` or ``rmia-offline``."""
        return f"rmia-{self.mode.value}"

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:  # noqa: ARG002
        """Return the score per record, between 0 and 1."""
        setting = self.tuned(evidence)
        gamma = _GAMMA[self.mode]
        ratios = _log_ratios(evidence, self.mode, setting.temperature, (setting.a,))[0]
        return population_share(ratios, _population_log_ratios(evidence, self.mode, setting), gamma)

    def tuned(self, evidence: Evidence) -> Setting:
        """Return the setting that attacks references, taken for the target, best at a low FPR.

        That is where membership is shown; the best AUC is often at a higher temperature, which
        gives up the surest finds for the many unsure ones.
        """
        references = needed(evidence.references, "references")
        candidates = self.offline_a if self.mode is Mode.OFFLINE else (1.0,)
        settings = [Setting(temperature=t, a=a) for t in self.temperatures for a in candidates]
        if len(references) < 4:  # a stand-in and its complement leave none
            return self.default
        pairs = np.linspace(0, len(references) // 2 - 1, _TUNING_TARGETS).astype(int)
        totals = np.zeros(len(settings))
        for model in sorted({2 * int(pair) for pair in pairs}):
            stand_in, is_in = evidence.with_reference_as_target(model)
            ratios = [
                row
                for temperature in self.temperatures
                for row in _log_ratios(stand_in, self.mode, temperature, candidates)
            ]
            totals += [_low_fpr_power(row, is_in) for row in ratios]
        return settings[int(totals.argmax())]


def population_share(ratios: Float64Array, population: Float64Array, gamma: float) -> Float64Array:
    """Return (share of z with log ratio(x) - log ratio(z) >= log gamma), ties broken by the ratio.

    The share counts in steps of 1/|Z|; within a step, the ratio's own order decides. By sorting
    and bisection: no n x |Z| matrix.

    Args:
        ratios: log ratios of the records, ``(n,)``.
        population: log ratios of the population, ``(p,)``.
        gamma: the threshold of a pair.
    """
    exceeded = np.searchsorted(np.sort(population), ratios - math.log(gamma), side="right")
    # Increasing, between 0 and 1, and fine about 0, where a model is as sure as all others are.
    within = 0.5 + np.arcsinh(ratios * 1e300) / 1500.0
    return (exceeded + within) / (len(population) + 1.0)


def _log_ratios(
    evidence: Evidence, mode: Mode, temperature: float, values_of_a: tuple[float, ...]
) -> list[Float64Array]:
    """Return log p(x|theta) - log p(x) of the audited records for each a."""
    references = needed(evidence.references, "references")
    labels = evidence.outputs.labels
    phi = true_log_odds(evidence.outputs.logits, labels, temperature=temperature)
    usual = reference_log_odds(references.logits, labels, temperature=temperature)
    chosen = compared_with(references, mode)
    return [
        log_ratio(phi, usual, chosen, slope=1.0 if mode is Mode.ONLINE else _slope(a))
        for a in values_of_a
    ]


def _population_log_ratios(evidence: Evidence, mode: Mode, setting: Setting) -> Float64Array:
    references = needed(evidence.references, "references")
    population = needed(evidence.population, "a population")
    labels, temperature = population.labels, setting.temperature
    usual = reference_log_odds(references.population_logits, labels, temperature=temperature)
    return log_ratio(
        true_log_odds(population.logits, labels, temperature=temperature),
        usual,
        np.ones(usual.shape, dtype=np.bool_),
        slope=_slope(_A_OF_POPULATION if mode is Mode.ONLINE else setting.a),
    )


def _slope(a: float) -> float:
    """Return by how much p(x) moves with the OUT mean: p(x) = 1 - (1 + a)/2 (1 - mean)."""
    return (1.0 + a) / 2.0


def _low_fpr_power(scores: Float64Array, is_in: BoolArray) -> float:
    """Return the mean true-positive rate over false-positive rates up to a twentieth."""
    outside = np.sort(scores[~is_in])[::-1]
    highest = outside[: max(1, round(_LOW_FPR * len(outside)))]
    missed = np.searchsorted(np.sort(scores[is_in]), highest, side="right")
    return 1.0 - float(missed.mean()) / max(1, int(is_in.sum()))
