"""From a run's specification to its noised evaluation: the one place of derivation.

Each owner sums over their validation records: right answers, wrong answers, and the loss, each
record's cut at a public bound. The sums leave with noise, one release per evaluation; nobody
divides before the sums of all owners are added, since a mean of noised ratios is biased. That holds
in both modes by record: under ``record-distributed``, too, the server sees each owner's noised sums
of an evaluation, and no update.

Where the unit is the subject, a subject's records are added before the cut: one with many weighs
about as much as one record, and accuracy and loss are means over subjects weighed so.

Trusts: the specification as the owner approved it. Never the data: nothing here can see how many
records there are, and the noise is the same at every owner.
Promises: ``evaluation.epsilon`` covers every evaluation of the run together, at the run's delta, on
the validation side. The training side's account is another one: a split is a fixed function of one
record, so no record is on both sides and no record pays twice.

Counting right and wrong answers, instead of right answers and records, puts both into one histogram
of sensitivity 1: the error of an accuracy of 0.8 is less than half. Of each loss, half the bound is
taken away, and given back to the mean: what is summed is half as large, and so is its noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError
from tacit.core.results import SUM_CORRECT, SUM_LOSS, SUM_WRONG
from tacit.core.specification import PrivacyMode, PrivacyUnit, RunSpec
from tacit.privacy import accounting
from tacit.privacy.plan import MIN_NOISE_MULTIPLIER
from tacit.privacy.sums import Block, BoundedSum, Ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.privacy.accounting import SampledGaussian

ANSWERS = "answers"  # two coordinates: right, wrong
LOSS = "loss"

# In units of the loss of a uniform guess, ln(classes): with two classes a record's loss is cut
# where its own class gets less than 1/16.
LOSS_BOUND_GUESSES = 4.0

# The loss gets half the precision of the answers, which then pay 12 % for it instead of 41 %.
_LOSS_WEIGHT = 0.5

_MODES = (PrivacyMode.RECORD_LOCAL, PrivacyMode.RECORD_DISTRIBUTED)

Estimate = float | list[float] | None


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Everything public about a run's noised evaluation at one owner.

    Attributes:
        query: the sums of one evaluation.
        releases: evaluations that ``epsilon`` covers.
        epsilon, delta: what they cost, together, each unit on the validation side.
        unit: whose presence the bound is about.
    """

    query: BoundedSum
    releases: int
    epsilon: float
    delta: float
    unit: PrivacyUnit

    @property
    def noise_multiplier(self) -> float:
        """Sigma / clip of each evaluation."""
        return self.query.noise_multiplier

    @property
    def loss_bound(self) -> float:
        """Where one record's loss is cut, in nats."""
        return 2.0 * next(block.bound for block in self.query.blocks if block.name == LOSS)

    def mechanism(self) -> SampledGaussian:
        """Return what one evaluation costs, as a ledger enters it."""
        return self.query.mechanism()

    def epsilon_after(self, releases: int) -> float:
        """Return epsilon at the plan's delta after this many evaluations."""
        return accounting.epsilon_of(self.noise_multiplier, 1.0, releases, self.delta)


def evaluation_plan(spec: RunSpec) -> EvaluationPlan:
    """Derive the noise of a run that declares ``evaluation.epsilon``.

    Raises:
        RefusedError: no mechanism is built for this mode (``E-MODE-NOT-BUILT``), or the noise is
            next to nothing (``E-NOISE-TOO-SMALL``).
        ValueError: the run's evaluation is exact, or there is none.
    """
    delta, releases = spec.privacy.delta, spec.evaluations
    if not spec.noises("evaluate") or delta is None or spec.data is None or releases < 1:
        raise ValueError("expected a run with evaluation.every and evaluation.epsilon")
    if spec.privacy.mode not in _MODES:
        modes = " or ".join(f'"{mode.value}"' for mode in _MODES)
        raise RefusedError(
            "E-MODE-NOT-BUILT",
            f'expected mode {modes} for noised metrics, got "{spec.privacy.mode.value}"',
            hint="set evaluation.every = 0",
        )
    multiplier = accounting.noise_for(spec.evaluation.epsilon, delta, 1.0, releases)
    if multiplier < MIN_NOISE_MULTIPLIER:
        raise RefusedError(
            "E-NOISE-TOO-SMALL",
            f"expected a noise multiplier of at least {MIN_NOISE_MULTIPLIER}, got {multiplier:.3g}",
            hint="ask for a smaller evaluation.epsilon",
        )
    loss_bound = LOSS_BOUND_GUESSES * math.log(max(2, len(spec.data.classes)))
    blocks = (
        Block(name=ANSWERS, length=2),
        Block(name=LOSS, bound=loss_bound / 2.0, weight=_LOSS_WEIGHT),
    )
    return EvaluationPlan(
        query=BoundedSum(blocks=blocks, noise_multiplier=multiplier),
        releases=releases,
        epsilon=accounting.epsilon_of(multiplier, 1.0, releases, delta),
        delta=delta,
        unit=spec.privacy.unit or PrivacyUnit.RECORD,
    )


def estimate_metrics(
    plan: EvaluationPlan, totals: Mapping[str, float], *, owners: int
) -> dict[str, Estimate]:
    """Return accuracy and loss over all owners' validation records, each with its 95 % interval.

    Args:
        plan: the run's.
        totals: the owners' noised sums, added up, by metric name.
        owners: how many owners they are of, each with noise of its own.

    Returns:
        ``accuracy`` and ``loss`` (None where the noise hides how many records there are), and
        ``accuracy-interval`` and ``loss-interval``, which are about these records: what other
        records of the same kind would give varies besides. The loss is that of records cut at
        ``plan.loss_bound``.
    """
    noise = owners * plan.query.deviation(ANSWERS) ** 2
    right, loss = totals[SUM_CORRECT], totals[SUM_LOSS]
    records = right + totals[SUM_WRONG]
    accuracy = Ratio(
        above=right,
        below=records,
        variance_above=noise,
        variance_below=2.0 * noise,
        covariance=noise,
    )
    mean_loss = Ratio(
        above=loss,
        below=records,
        variance_above=owners * plan.query.deviation(LOSS) ** 2,
        variance_below=2.0 * noise,
    )
    return {
        **_bounded("accuracy", accuracy, highest=1.0),
        **_bounded("loss", mean_loss, highest=plan.loss_bound, shift=plan.loss_bound / 2.0),
    }


def _bounded(name: str, ratio: Ratio, *, highest: float, shift: float = 0.0) -> dict[str, Estimate]:
    """Return ``ratio + shift`` and its interval, from 0 to ``highest``: what it can be at all.

    Where the noise has carried the ratio outside, the interval reaches as far to the inside of the
    end as it would have from the ratio: cut at the end alone, it could seem to be of no width.
    """
    ends = ratio.interval()
    if ends is None:
        return {name: None, f"{name}-interval": [0.0, highest]}
    raw = ratio.above / ratio.below + shift
    value = min(max(raw, 0.0), highest)
    low = ends[0] + shift + min(0.0, value - raw)
    high = ends[1] + shift + max(0.0, value - raw)
    return {name: value, f"{name}-interval": [max(low, 0.0), min(high, highest)]}
