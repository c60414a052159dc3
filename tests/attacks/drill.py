"""One training run with canaries of both kinds, by the real engine and a mechanism of one's choice.

The sabotage is in what the test hands to the engine: a mechanism, or a source of gradients, that
breaks one rule. Nothing in the product can be told to.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from tacit.attacks.canaries import (
    CanaryFindings,
    CanaryKind,
    ScoredCanaries,
    audit_canaries,
    mislabelled_scores,
)
from tacit.attacks.canary_plan import planned_guesses
from tacit.attacks.claim import claim_of
from tacit.attacks.inclusion import CanaryDesign, Opening, verify_opening
from tacit.core.data_contract import ColumnKind, ColumnSpec, DataSpec
from tacit.core.privacy_spec import PrivacyMode, PrivacyUnit
from tacit.learning.mislabelled import mislabelled_from_ranges, planted
from tacit.learning.prepared import Examples
from tacit.privacy import accounting
from tacit.privacy.dpsgd.book_keeping import BookKeeping
from tacit.privacy.dpsgd.canaries import Canaries, CanaryScores, CanaryUnits
from tacit.privacy.dpsgd.engine import Engine
from tacit.privacy.dpsgd.mechanism import GaussianMechanism
from tacit.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.attacks.bounds.bound import Method
    from tacit.privacy.dpsgd.contributions import Contribution
    from tacit.privacy.dpsgd.engine import GradientSource
    from tacit.privacy.dpsgd.mechanism import Mechanism
    from tacit.privacy.dpsgd.units import Grouping

FEATURES, CLASSES, RECORDS = 128, 20, 400
CLIP, LEARNING_RATE, DELTA = 0.1, 0.3, 1e-5
CONTRACT = DataSpec(
    classes=tuple(str(number) for number in range(CLASSES)),
    columns={
        f"c{number:03d}": ColumnSpec(type=ColumnKind.NUMBER, range=(0.0, 1.0))
        for number in range(FEATURES)
    },
)


@functools.cache
def plan(steps: int, sample_rate: float = 1.0) -> PrivacyPlan:
    """A claim near 4."""
    sigma = accounting.noise_for(4.0, DELTA, sample_rate, steps)
    return PrivacyPlan(
        mode=PrivacyMode.RECORD_LOCAL,
        releases=1,
        local_steps=steps,
        sample_rate=sample_rate,
        noise_multiplier=sigma,
        clip=CLIP,
        normaliser=RECORDS * sample_rate,
        epsilon=accounting.epsilon_of(sigma, sample_rate, steps, DELTA),
        delta=DELTA,
        unit=PrivacyUnit.RECORD,
    )


class NoClip(GaussianMechanism):
    """Sums gradients as they are."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return torch.isfinite(norms).double()


def noise_times(share: float) -> Callable[[PrivacyPlan, bytes], Mechanism]:
    """Make mechanisms with that share of the noise that they should add."""

    def make(honest: PrivacyPlan, key: bytes) -> Mechanism:
        less = dataclasses.replace(honest, noise_multiplier=honest.noise_multiplier * share)
        return GaussianMechanism(less, key)

    return make


@dataclass(frozen=True)
class NormOfNothing:
    """A contribution whose norm is read as a hundredth of what it is."""

    real: Contribution

    @property
    def parameter(self) -> int:
        return self.real.parameter

    @property
    def numbers(self) -> int:
        return self.real.numbers

    def squared_norms(self) -> torch.Tensor:
        return self.real.squared_norms() * 1e-4

    def add_to(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        self.real.add_to(total, weights)


class WrongNorms(BookKeeping):
    """Per-example gradients that are right, of norms that are not: the clip does not bite."""

    def contributions(
        self, features: torch.Tensor, labels: torch.Tensor, grouping: Grouping
    ) -> list[Contribution]:
        return [NormOfNothing(part) for part in super().contributions(features, labels, grouping)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is broken, if anything."""

    mechanism: Callable[[PrivacyPlan, bytes], Mechanism] = GaussianMechanism
    source: type[BookKeeping] = BookKeeping


CLEAN = Case()
SABOTAGE = {
    "noise over batch": Case(mechanism=noise_times(1 / RECORDS)),
    "noise x 0.1": Case(mechanism=noise_times(0.1)),
    "no clipping": Case(mechanism=NoClip),
    "wrong norms": Case(source=WrongNorms),
}


def records(seed: int) -> Examples:
    """Records of a linear rule with noise."""
    rng = np.random.default_rng(seed)
    features = rng.random((RECORDS, FEATURES)).astype(np.float32)
    rule = np.random.default_rng(9).normal(size=(FEATURES, CLASSES))
    labels = (2 * (features - 0.5) @ rule + rng.gumbel(size=(RECORDS, CLASSES))).argmax(axis=1)
    return Examples(features=features, labels=labels.astype(np.int64))


def trained(
    case: Case, honest: PrivacyPlan, examples: Examples, canaries: Canaries, *, noise_key: bytes
) -> tuple[nn.Module, CanaryScores]:
    """Train as the built-in app does, with the case's parts in the engine."""
    model = nn.Linear(FEATURES, CLASSES)
    source: GradientSource = case.source(model)
    units = CanaryUnits(canaries, source.parameters, clip=honest.clip)
    mechanism = case.mechanism(honest, noise_key)
    engine = Engine(source, mechanism, steps=honest.local_steps, canaries=units)
    optimizer = torch.optim.SGD(engine.parameters, lr=LEARNING_RATE)
    features, labels = torch.from_numpy(examples.features), torch.from_numpy(examples.labels)
    for _ in range(honest.local_steps):
        gradients = engine.gradient(features, labels)
        for parameter, gradient in zip(engine.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return model.eval(), engine.canary_scores()


def drill(
    case: Case,
    seed: int,
    *,
    honest: PrivacyPlan,
    directions: int = 600,
    mislabelled: int = 300,
    permutations: int = 200,
) -> CanaryFindings:
    """Plant, train, open and audit once, in the order in which an audit goes.

    Everything follows from the seed, so that a table can be made again; outside of tests bits and
    noise come from the operating system.
    """
    rng = np.random.default_rng(1000 + seed)
    claim = claim_of(honest)
    design = CanaryDesign(
        directions=directions,
        mislabelled=mislabelled,
        seed_hex=rng.bytes(32).hex(),
        direction_guesses=planned_guesses(directions, claim, kinds=2),
        mislabelled_guesses=planned_guesses(mislabelled, claim, kinds=2),
    )
    included = rng.random(design.canaries) < 0.5
    opening = Opening(design=design, salt=rng.bytes(32), included=included)
    commitment = opening.commitment()
    wrong = mislabelled_from_ranges(CONTRACT, mislabelled, seed=design.seed)
    model, scores = trained(
        case,
        honest,
        planted(records(seed), wrong, opening.mislabelled),
        Canaries(seed=design.seed, included=opening.directions),
        noise_key=rng.bytes(32),
    )
    with torch.no_grad():
        logits = model(torch.from_numpy(wrong.features)).double().numpy()
    verify_opening(opening, commitment=commitment)
    scored = (
        ScoredCanaries(
            kind=CanaryKind.DIRECTIONS,
            scores=scores.products,
            included=opening.directions,
            guesses=design.direction_guesses,
            cosines=scores.cosines(),
            dimension=scores.dimension,
        ),
        ScoredCanaries(
            kind=CanaryKind.MISLABELLED,
            scores=mislabelled_scores(logits, wrong.labels),
            included=opening.mislabelled,
            guesses=design.mislabelled_guesses,
        ),
    )
    return audit_canaries(scored, claim, rng=rng, permutations=permutations)


def flagged_by(findings: CanaryFindings, kind: CanaryKind) -> bool:
    """Whether canaries of one kind alone lie above the claim."""
    return any(each.above(findings.claim) for each in findings.kinds if each.kind is kind)


def table(runs: list[CanaryFindings]) -> str:
    """Every bound by run and kind, beside its ceiling; what an estimate's point is, in brackets."""
    lines = []
    for number, findings in enumerate(runs):
        for each in findings.kinds:
            bounds = "  ".join(
                f"{bound.method.value} {bound.value:.2f}/{bound.ceiling:.2f}"
                + (f" ({bound.point:.2f})" if bound.point is not None else "")
                for bound in each.bounds
            )
            tested = "" if each.self_test.passed else "  self-test failed"
            lines.append(
                f"{number:2} {findings.verdict.name:12} {each.kind.value:11} {bounds}{tested}"
            )
    return "\n".join(["", f"claim {runs[0].claim.epsilon:.3f}", *lines])


def value(findings: CanaryFindings, kind: CanaryKind, method: Method) -> float:
    """One figure of one kind."""
    return next(each for each in findings.kinds if each.kind is kind).of(method).value
