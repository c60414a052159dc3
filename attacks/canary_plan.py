"""What canaries can show, before anybody is asked: how many, how many guesses, which ceiling.

The one-run ceiling follows from the claim, the counts, the guesses and the owners who share the
error alone. A claim above it cannot be tested, whatever comes out, and each owner would pay for the
run all the same; so it is known, and said, before the run is submitted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tacit.attacks.bounds.bound import ALPHA, Guesses
from tacit.attacks.bounds.one_run import one_run_bound
from tacit.attacks.claim import Claim, claim_of
from tacit.attacks.inclusion import RELEASED_SHARE
from tacit.core.canary_spec import LEAST_CANARIES

if TYPE_CHECKING:
    from tacit.core.canary_spec import CanarySpec
    from tacit.privacy.plan import PrivacyPlan

HEADROOM = 1.05  # of the one-run ceiling over the claim, where the number of guesses can give it
MOST_PLANNED = 20_000  # canaries of one kind: more hardly raise a ceiling, at any usual delta
_STEP = 1.05
_COARSE_STEP = 1.25


def one_run_ceiling(canaries: int, guesses: int, *, delta: float, alpha: float) -> float:
    """Return the one-run bound of so many guesses if every one were right.

    Args:
        canaries: of one kind, at one owner.
        guesses: how many of them are called in or out.
        delta: of the claim.
        alpha: this kind's share, at this owner, of the error.
    """
    right = Guesses(canaries=canaries, guesses=guesses, correct=guesses)
    return one_run_bound(right, delta=delta, alpha=alpha).ceiling


def planned_guesses(canaries: int, claim: Claim, *, kinds: int = 1, alpha: float = ALPHA) -> int:
    """Return how many guesses to fix before training.

    A tenth of the canaries, or as many more as it takes for the one-run ceiling to exceed the
    claim; where no number does, that of the highest ceiling.

    Args:
        canaries: of one kind.
        claim: to be tested.
        kinds: of canaries that share alpha.
        alpha: of the whole audit; with several owners, of one of them.
    """
    return _planned(canaries, claim, alpha=alpha / kinds, step=_STEP)[0]


def needed_canaries(claim: Claim, *, kinds: int = 1, alpha: float = ALPHA) -> int | None:
    """Return about how few canaries of a kind can test a claim; None: not even 20,000.

    Args:
        claim: to be tested.
        kinds: of canaries that share alpha.
        alpha: of the whole audit; with several owners, of one of them.
    """
    canaries = LEAST_CANARIES
    while canaries <= MOST_PLANNED:
        if _planned(canaries, claim, alpha=alpha / kinds, step=_COARSE_STEP)[1] >= claim.epsilon:
            return canaries
        canaries = _rounded_up(canaries * _STEP)
    return None


def canary_power(canaries: CanarySpec, plan: PrivacyPlan, *, owners: int) -> dict[str, Any]:
    """Return what a run's canaries could show at most, beside its claim, as plain values.

    Args:
        canaries: as the specification has them.
        plan: of the run at one owner, which makes the claim.
        owners: who share the error.

    Raises:
        RefusedError: the run claims nothing that a canary could test.
    """
    claim, counts = claim_of(plan), kinds_of(canaries)
    alpha = ALPHA / owners
    needed = needed_canaries(claim, kinds=len(counts), alpha=alpha)
    found: dict[str, Any] = {"twin": canaries.twin, "claim": claim.epsilon, "owners": owners}
    for kind, (count, guesses) in counts.items():
        share = alpha / len(counts)
        ceiling = one_run_ceiling(count, guesses, delta=claim.delta, alpha=share)
        found[kind] = {
            "canaries": count,
            "guesses": guesses,
            "ceiling": ceiling,
            "tests_the_claim": ceiling >= claim.epsilon,
            "best_guesses": planned_guesses(count, claim, kinds=len(counts), alpha=alpha),
        }
    if needed is None:
        found["note"] = f"not even {MOST_PLANNED} canaries of a kind can test this claim"
        return found
    found["note"] = f"about {needed} canaries of each kind, well guessed, can test this claim"
    if not canaries.twin:
        declared = math.ceil(needed * len(counts) / RELEASED_SHARE)
        found["note"] += (
            f"; in a released model, where they are at most 1 % of the declared records, that "
            f"takes about {declared} of these at each owner: a twin takes fewer"
        )
    return found


def kinds_of(canaries: CanarySpec) -> dict[str, tuple[int, int]]:
    """Return how many canaries there are of each kind, and how many guesses; without kinds of 0."""
    both = {
        "directions": (canaries.directions, canaries.direction_guesses),
        "mislabelled": (canaries.mislabelled, canaries.mislabelled_guesses),
    }
    return {kind: counts for kind, counts in both.items() if counts[0] > 0}


def _planned(canaries: int, claim: Claim, *, alpha: float, step: float) -> tuple[int, float]:
    """Return a number of guesses, and its ceiling."""
    least = max(1, canaries // 10)
    steps = math.ceil(math.log(canaries / least, step))
    best = (least, -1.0)
    for guesses in sorted({min(canaries, math.ceil(least * step**k)) for k in range(steps + 1)}):
        ceiling = one_run_ceiling(canaries, guesses, delta=claim.delta, alpha=alpha)
        if ceiling >= HEADROOM * claim.epsilon:
            return guesses, ceiling
        if ceiling > best[1]:
            best = guesses, ceiling
    return best


def _rounded_up(number: float) -> int:
    """Return the next number of two digits and zeros."""
    unit: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
