"""What canaries say of a claim: true claims stand, false ones do not, and little power is no pass.

Canaries here are Gaussian mechanisms of their own, N(0, 1) against N(mu, 1): epsilon is known.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tacit.attacks.bounds.bound import Guesses, Method
from tacit.attacks.bounds.one_run import one_run_bound
from tacit.attacks.canaries import (
    CanaryFindings,
    CanaryKind,
    ScoredCanaries,
    Verdict,
    _methods,
    audit_canaries,
    judge,
    mislabelled_scores,
)
from tacit.attacks.canary_plan import needed_canaries, one_run_ceiling, planned_guesses
from tacit.attacks.claim import Claim, claim_of
from tacit.attacks.self_test import null_self_test
from tacit.core.errors import DataError, RefusedError
from tacit.core.privacy_spec import PrivacyUnit, Relation
from tacit.privacy.accounting import gaussian_mu
from tacit.privacy.plan import plan_of
from tacit.privacy.spec import ClientLocal, NonPrivate, TargetEpsilon
from tests.privacy.dpsgd_models import QUIET

DELTA = 1e-5
TRIALS = 300
ALLOWED = 0.05 + 2 * math.sqrt(0.05 * 0.95 / TRIALS)


def claim(epsilon: float) -> Claim:
    return Claim(epsilon=epsilon, delta=DELTA, unit=PrivacyUnit.RECORD)


def scored(
    mu: float,
    seed: int,
    *,
    canaries: int = 400,
    guesses: int = 250,
    kind: CanaryKind = CanaryKind.DIRECTIONS,
) -> ScoredCanaries:
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    scores = rng.standard_normal(canaries) + mu * included
    return ScoredCanaries(kind=kind, scores=scores, included=included, guesses=guesses)


def audited(*parts: ScoredCanaries, epsilon: float = 4.0, permutations: int = 50) -> CanaryFindings:
    rng = np.random.default_rng(1)
    return audit_canaries(parts, claim(epsilon), rng=rng, permutations=permutations)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_true_claims_are_seldom_exceeded(epsilon: float) -> None:
    """Each method's lower end exceeds the truth in at most 5 % (+ 2 errors) of 300 trials."""
    mu = gaussian_mu(epsilon, DELTA)
    found = [audited(scored(mu, seed), epsilon=epsilon, permutations=2) for seed in range(TRIALS)]
    above = np.array(
        [[bound.value > epsilon + 1e-6 for bound in each.kinds[0].bounds] for each in found]
    )
    assert (above.mean(axis=0) <= ALLOWED).all()
    assert np.mean([each.verdict is Verdict.FAIL for each in found]) <= ALLOWED


def test_a_claim_far_too_small_fails() -> None:
    """Scores that tell every bit exceed a claim of 2 by proof, whatever the other kind says."""
    findings = audited(scored(20.0, 0), scored(0.0, 1, kind=CanaryKind.MISLABELLED), epsilon=2.0)
    assert findings.verdict is Verdict.FAIL
    assert findings.is_flagged
    assert any("directions: one-run bound of at least" in reason for reason in findings.reasons)


def test_an_estimate_above_the_claim_is_inconclusive() -> None:
    """A third of the noise that is claimed: no proof in one run, but a Gaussian estimate above."""
    findings = audited(scored(3 * gaussian_mu(4.0, DELTA), 0))
    (kind,) = findings.kinds
    assert kind.of(Method.ONE_RUN).value < 4.0 < kind.of(Method.GAUSSIAN_DP).value
    assert findings.verdict is Verdict.INCONCLUSIVE
    assert findings.is_flagged


def test_a_ceiling_below_the_claim_is_no_pass() -> None:
    """A hundred guesses cannot show an epsilon of 4, so that finding less says nothing."""
    findings = audited(scored(0.0, 0, guesses=100))
    assert findings.verdict is Verdict.INCONCLUSIVE
    assert not findings.is_flagged
    assert findings.kinds[0].of(Method.ONE_RUN).ceiling < 4.0
    assert any("could show" in reason for reason in findings.reasons)


def test_nothing_found_with_enough_power_is_said_so() -> None:
    """No leak, a ceiling above the claim, a sound self-test."""
    findings = audited(scored(0.0, 5))
    assert findings.verdict is Verdict.PASS
    assert findings.reasons == ()
    assert findings.verdict.value == "no violation found at this power"


def test_a_failed_self_test_is_no_pass() -> None:
    """Machinery that finds epsilons in permuted bits voids what it says of the true ones."""
    findings = audited(scored(0.0, 5))
    (kind,) = findings.kinds
    broken = dataclasses.replace(kind, self_test=dataclasses.replace(kind.self_test, mean_auc=0.6))
    verdict, reasons = judge([broken], findings.claim)
    assert verdict is Verdict.INCONCLUSIVE
    assert "self-test" in reasons[0]


def test_one_unlucky_draw_voids_no_audit() -> None:
    """Sound canaries whose null self-test fails once are tested on permutations of their own again:
    audits that stand include every one whose first test passes, and others besides."""
    first, stands = [], []
    for seed in range(60):
        part, rng = scored(0.0, seed), np.random.default_rng(seed)
        finding = audit_canaries((part,), claim(4.0), rng=rng, permutations=10).kinds[0]
        stands.append(finding.self_test.passed)
        methods = _methods(part.guesses, claim(4.0), 0.05, np.random.default_rng(seed))
        alone = null_self_test(
            part.scores,
            part.included,
            methods,
            rng=np.random.default_rng(1000 + seed),
            permutations=10,
        )
        first.append(alone.passed)
    assert sum(stands) > sum(first)
    assert sum(stands) >= 58


def test_alpha_is_shared_over_the_kinds() -> None:
    """Two kinds together fail a true claim no more often than one."""
    findings = audited(scored(0.0, 0), scored(0.0, 1, kind=CanaryKind.MISLABELLED))
    assert {bound.alpha for kind in findings.kinds for bound in kind.bounds} == {0.025}


def test_canary_clients_estimate_is_shown_and_decides_nothing() -> None:
    """A huge estimate from cosines alone leaves the verdict as it was."""
    part = scored(0.0, 5)
    cosines = np.full(len(part.scores), 0.5)
    findings = audited(dataclasses.replace(part, cosines=cosines, dimension=10_000))
    assert findings.kinds[0].of(Method.FL_CANARIES).value > 100.0
    assert findings.verdict is Verdict.PASS
    assert not findings.is_flagged


def test_a_method_that_was_not_applied_has_no_bound() -> None:
    """Without cosines there is no estimate of canary clients."""
    with pytest.raises(KeyError):
        audited(scored(0.0, 5)).kinds[0].of(Method.FL_CANARIES)


@pytest.mark.parametrize("change", ["constant", "scale", "order"])
def test_scores_count_by_their_order_alone(change: str) -> None:
    """A constant, a scale, or another order of the canaries changes no figure."""
    part = scored(1.5, 3)
    match change:
        case "constant":
            other = dataclasses.replace(part, scores=part.scores + 1e3)
        case "scale":
            other = dataclasses.replace(part, scores=part.scores * 1e-6)
        case _:
            order = np.random.default_rng(0).permutation(len(part.scores))
            other = dataclasses.replace(
                part, scores=part.scores[order], included=part.included[order]
            )
    assert audited(part).kinds[0].bounds == audited(other).kinds[0].bounds


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 5.0])
def test_guesses_are_planned_so_that_the_ceiling_exceeds_the_claim(
    epsilon: float, kinds: int
) -> None:
    """At least a tenth of the canaries, and no more than it takes."""
    planned = planned_guesses(1000, claim(epsilon), kinds=kinds)

    def ceiling(guesses: int) -> float:
        right = Guesses(canaries=1000, guesses=guesses, correct=guesses)
        return one_run_bound(right, delta=DELTA, alpha=0.05 / kinds).ceiling

    assert planned >= 100
    assert ceiling(planned) >= 1.05 * epsilon
    assert planned == 100 or ceiling(math.floor(planned / 1.05) - 1) < 1.05 * epsilon


def test_a_claim_beyond_any_ceiling_gets_the_highest() -> None:
    """A thousand canaries never show 12: what comes nearest is planned, and no pass."""
    planned = planned_guesses(1000, claim(12.0))
    best = one_run_ceiling(1000, planned, delta=DELTA, alpha=0.05)
    assert best < 12.0
    assert all(
        one_run_ceiling(1000, guesses, delta=DELTA, alpha=0.05) <= best + 0.05
        for guesses in range(100, 1001, 50)
    )
    assert needed_canaries(claim(12.0)) is None


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 5.0])
def test_as_many_canaries_as_are_needed_can_test_the_claim(epsilon: float) -> None:
    """With three owners who share the error among two kinds; noticeably fewer cannot."""
    alpha = 0.05 / 3
    needed = needed_canaries(claim(epsilon), kinds=2, alpha=alpha)
    assert needed is not None

    def reached(canaries: int) -> float:
        guesses = planned_guesses(canaries, claim(epsilon), kinds=2, alpha=alpha)
        return one_run_ceiling(canaries, guesses, delta=DELTA, alpha=alpha / 2)

    assert reached(needed) >= epsilon
    assert needed == 20 or reached(int(needed * 0.85)) < epsilon


def test_what_has_no_claim_for_a_canary_is_refused() -> None:
    """Mode none, clients, and replace-one: bound and claim would not mean the same."""
    assert claim_of(dataclasses.replace(QUIET, epsilon=2.0)).epsilon == 2.0
    with pytest.raises(RefusedError, match="E-CANARIES-NO-CLAIM"):
        claim_of(plan_of(NonPrivate(releases=1, local_steps=1)))
    replaced = dataclasses.replace(QUIET, epsilon=2.0, relation=Relation.REPLACE_ONE)
    of_clients = ClientLocal(
        clip=1.0,
        calibration=TargetEpsilon(epsilon=2.0),
        delta=DELTA,
        releases=1,
        most_owner_records=10,
    )
    for plan in (replaced, plan_of(of_clients)):
        with pytest.raises(RefusedError, match="E-CANARIES-RELATION"):
            claim_of(plan)


def test_scores_that_cannot_be_used_are_refused() -> None:
    """Not a number, all in, no canaries, one kind twice."""
    part = scored(0.0, 0)
    broken = part.scores.copy()
    broken[0] = np.nan
    with pytest.raises(DataError, match="E-AUDIT-SCORES"):
        audited(dataclasses.replace(part, scores=broken))
    with pytest.raises(DataError, match="E-AUDIT-MEMBERS"):
        audited(dataclasses.replace(part, included=np.ones(400, dtype=np.bool_)))
    for parts in ((), (part, part)):
        with pytest.raises(ValueError, match="each kind once"):
            audited(*parts)


def test_mislabelled_scores_are_log_odds_of_the_wrong_label() -> None:
    """log p - log(1 - p); a constant added to the logits changes nothing."""
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, -1.0]])
    labels = np.array([2, 0])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = p[[0, 1], labels]
    np.testing.assert_allclose(mislabelled_scores(logits, labels), np.log(wrong / (1 - wrong)))
    np.testing.assert_allclose(
        mislabelled_scores(logits + 7.0, labels), mislabelled_scores(logits, labels)
    )
