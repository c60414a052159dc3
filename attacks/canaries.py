"""Is the claimed epsilon true? What canaries of one run prove, what they estimate, what follows.

Trusts: inclusion bits were drawn and committed to before training (``inclusion.py``), the scores
were made without them, and the number of guesses was fixed with them.
Promises:

1. Nothing is chosen by the bits. Guesses are made by number. The two rates are taken at the median
   of all scores, which knows no bit.
2. Each figure stands beside its ceiling, the value of the same method at perfect scores.
3. Only the one-run bound fails a claim: a proof whose error is shared over the kinds of canaries.
   What assumes a shape, or that canaries of one run are independent, can exceed a true claim.

Verdicts, the worst first: FAIL, a one-run bound above the claim. INCONCLUSIVE, an estimate's lower
end above the claim (then: repeat over independent runs), a one-run ceiling below it, or a null
self-test that failed. Else "no violation found at this power". The estimate of canary clients is
shown and decides nothing.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.bounds.bound import ALPHA, Bound, Method, guess
from tacit.attacks.bounds.fl_canaries import fl_canary_estimate
from tacit.attacks.bounds.one_run import f_dp_bound, f_dp_gaussian_estimate, one_run_bound
from tacit.attacks.bounds.two_sided import clopper_pearson_bound, gaussian_dp_estimate
from tacit.attacks.membership.signals import true_log_odds
from tacit.attacks.self_test import PERMUTATIONS, SelfTest, null_self_test
from tacit.attacks.statistics import checked, realised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator

    from tacit.attacks.claim import Claim
    from tacit.attacks.points import BoolArray, Float64Array
    from tacit.attacks.self_test import BoundOf
    from tacit.attacks.target import Int64Array


class CanaryKind(enum.Enum):
    """How canaries were put in."""

    DIRECTIONS = "directions"  # white-box: units without a record, before the clip
    MISLABELLED = "mislabelled"  # black-box: records with a wrong label, through the whole path


class Verdict(enum.Enum):
    """What an audit by canaries says of a claim."""

    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    PASS = "no violation found at this power"  # noqa: S105 - no password


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredCanaries:
    """Canaries of one kind after the run.

    Attributes:
        kind: how they were put in.
        scores: float64 ``(m,)``, larger = in.
        included: bool ``(m,)``: the opened bits.
        guesses: r, fixed with the bits.
        cosines: float64 ``(m,)``, of white-box canaries with everything released, or None.
        dimension: of the cosines' space.
    """

    kind: CanaryKind
    scores: Float64Array
    included: BoolArray
    guesses: int
    cosines: Float64Array | None = None
    dimension: int = 0


@dataclass(frozen=True, kw_only=True)
class KindFindings:
    """What canaries of one kind say.

    Attributes:
        kind: how they were put in.
        canaries, included: how many there were, and how many of them were in.
        bounds: one per method, the one-run bound first.
        self_test: the same methods on permuted bits.
    """

    kind: CanaryKind
    canaries: int
    included: int
    bounds: tuple[Bound, ...]
    self_test: SelfTest

    def of(self, method: Method) -> Bound:
        """Return one method's bound.

        Raises:
            KeyError: it was not applied.
        """
        for bound in self.bounds:
            if bound.method is method:
                return bound
        raise KeyError(method)

    def above(self, claim: Claim) -> tuple[Bound, ...]:
        """Return what exceeds the claim: bounds, and lower ends of estimates but FL canaries'."""
        return tuple(
            bound
            for bound in self.bounds
            if bound.value > claim.epsilon and bound.method is not Method.FL_CANARIES
        )


@dataclass(frozen=True, kw_only=True)
class CanaryFindings:
    """One audit by canaries.

    Attributes:
        claim: what was held against them.
        kinds: by kind of canary.
        verdict: the worst that any kind gives.
        reasons: why it is no better, one sentence each; empty for a pass.
    """

    claim: Claim
    kinds: tuple[KindFindings, ...]
    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def is_flagged(self) -> bool:
        """Whether any bound, or any estimate's lower end, lies above the claim."""
        return any(kind.above(self.claim) for kind in self.kinds)


def mislabelled_scores(logits: Float64Array, labels: Int64Array) -> Float64Array:
    """Return the log odds that a model gives the wrong labels: larger = in.

    Args:
        logits: float64 ``(m, classes)`` of the final model on every mislabelled record.
        labels: int64 ``(m,)``: the wrong ones.
    """
    return true_log_odds(logits, labels)


def audit_canaries(
    scored: Sequence[ScoredCanaries],
    claim: Claim,
    *,
    rng: Generator,
    alpha: float = ALPHA,
    permutations: int = PERMUTATIONS,
) -> CanaryFindings:
    """Hold one run's canaries against its claim.

    Args:
        scored: one entry per kind, opened and verified.
        claim: of the run that they were in.
        rng: breaks ties and permutes.
        alpha: the chance that a true claim is failed, over all kinds together.
        permutations: of the null self-test.

    Raises:
        DataError: scores or bits cannot be used, or all canaries are in, or all out
            (``E-AUDIT-SCORES``, ``E-AUDIT-MEMBERS``).
        ValueError: no canaries, one kind twice, or more guesses than canaries.
    """
    if not scored or len({each.kind for each in scored}) != len(scored):
        raise ValueError("expected canaries, each kind once")
    share = alpha / len(scored)
    kinds = tuple(
        _findings(each, claim, share, rng=rng, permutations=permutations) for each in scored
    )
    verdict, reasons = judge(kinds, claim)
    return CanaryFindings(claim=claim, kinds=kinds, verdict=verdict, reasons=reasons)


def judge(kinds: Sequence[KindFindings], claim: Claim) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict that findings come to, and why it is no better."""
    reasons = tuple(reason for kind in kinds for reason in _reasons(kind, claim))
    if any(kind.of(Method.ONE_RUN).value > claim.epsilon for kind in kinds):
        return Verdict.FAIL, reasons
    return (Verdict.INCONCLUSIVE if reasons else Verdict.PASS), reasons


def _findings(
    scored: ScoredCanaries, claim: Claim, alpha: float, *, rng: Generator, permutations: int
) -> KindFindings:
    scores, included = checked(scored.scores, scored.included)
    methods = _methods(scored.guesses, claim, alpha, rng)
    bounds = [method(scores, included) for method in methods.values()]
    if scored.cosines is not None:
        bounds.append(
            fl_canary_estimate(
                scored.cosines[included],
                dimension=scored.dimension,
                delta=claim.delta,
                alpha=alpha,
            )
        )
    tested = null_self_test(scores, included, methods, rng=rng, permutations=permutations)
    if not tested.passed:  # by chance in some 3 % of tests; a fault fails on other draws as well
        tested = null_self_test(scores, included, methods, rng=rng, permutations=permutations)
    return KindFindings(
        kind=scored.kind,
        canaries=len(scores),
        included=int(included.sum()),
        bounds=tuple(bounds),
        self_test=tested,
    )


def _methods(guesses: int, claim: Claim, alpha: float, rng: Generator) -> Mapping[str, BoundOf]:
    """Return what makes a bound of scores and bits, by method; all is fixed but the bits."""
    delta = claim.delta

    def counted(scores: Float64Array, included: BoolArray, *, bound: Method) -> Bound:
        found = guess(scores, included, guesses=guesses, rng=rng)
        match bound:
            case Method.F_DP:
                return f_dp_bound(found, delta=delta, alpha=alpha)
            case Method.F_DP_GAUSSIAN:
                return f_dp_gaussian_estimate(found, delta=delta, alpha=alpha)
            case _:
                return one_run_bound(found, delta=delta, alpha=alpha)

    def rated(scores: Float64Array, included: BoolArray, *, bound: Method) -> Bound:
        point = realised(scores, included, float(np.median(scores)))
        if bound is Method.GAUSSIAN_DP:
            return gaussian_dp_estimate(point, delta=delta, alpha=alpha)
        return clopper_pearson_bound(point, delta=delta, independent_runs=False, alpha=alpha)

    by_count = (Method.ONE_RUN, Method.F_DP, Method.F_DP_GAUSSIAN)
    by_rate = (Method.CLOPPER_PEARSON, Method.GAUSSIAN_DP)
    return {
        **{each.value: functools.partial(counted, bound=each) for each in by_count},
        **{each.value: functools.partial(rated, bound=each) for each in by_rate},
    }


def _reasons(kind: KindFindings, claim: Claim) -> list[str]:
    """Return why these canaries do not pass the claim, one sentence each."""
    name, one_run = kind.kind.value, kind.of(Method.ONE_RUN)
    reasons = [
        f"{name}: {bound.method.value} {'bound' if bound.is_proof else 'estimate'} of at least "
        f"{bound.value:.2f} lies above the claimed {claim.epsilon:.2f}"
        for bound in kind.above(claim)
    ]
    if one_run.ceiling < claim.epsilon:
        reasons.append(
            f"{name}: {kind.canaries} canaries and {one_run.guesses} guesses could show "
            f"{one_run.ceiling:.2f} at most, which is below the claimed {claim.epsilon:.2f}"
        )
    if not kind.self_test.passed:
        reasons.append(f"{name}: the null self-test failed: these figures are void")
    return reasons
