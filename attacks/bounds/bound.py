"""One bound, whatever method made it; and the guesses that bounds from one run rest on.

Trusts: each canary's inclusion bit was drawn by itself, 1/2 either way, by nobody who could see the
model; the scores were made without the bits; the number of guesses was fixed before the scores were
seen. The last is why guesses are made by number, here, and never by a threshold: the best of
several numbers "proves" an epsilon above zero where nothing leaks.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.statistics import checked_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.random import Generator

    from tacit.attacks.points import BoolArray, Float64Array

ALPHA = 0.05


class Method(enum.Enum):
    """How a bound was made; reports and gates spell it so."""

    ONE_RUN = "one-run"
    F_DP = "f-dp"
    F_DP_GAUSSIAN = "f-dp-gaussian"
    CLOPPER_PEARSON = "clopper-pearson"
    GAUSSIAN_DP = "gaussian-dp"
    FL_CANARIES = "fl-canaries"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound on epsilon.

    Attributes:
        method: how it was made.
        value: epsilon is at least that with confidence 1 - alpha: a proof, or an estimate's
            lower end.
        alpha: the chance that a proof is wrong.
        delta: at which epsilon is meant.
        canaries: whose inclusion was drawn, or the records that were scored.
        guesses: how many of them were called in or out; None where the method calls none.
        correct: how many guesses were right; None likewise.
        ceiling: the value of the same method at a perfect score: a claim above it was not tested.
        is_proof: holds whatever the mechanism. Otherwise it assumes something (a shape,
            independence) that a correct mechanism may break, and must fail no model alone.
        point: the estimate itself, where the method has one beside its lower end.
    """

    method: Method
    value: float
    alpha: float
    delta: float
    canaries: int
    guesses: int | None
    correct: int | None
    ceiling: float
    is_proof: bool
    point: float | None = None


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How often the inclusion bits of canaries were guessed right.

    Attributes:
        canaries: whose bits were drawn (m).
        guesses: a number fixed beforehand (r).
        correct: of the guesses (v).
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.guesses < 1:
            raise ValueError(
                "expected 0 <= correct <= guesses <= canaries and a guess, "
                f"got {self.correct}, {self.guesses} and {self.canaries}"
            )

    def perfect(self) -> Guesses:
        """Return the same guesses, all of them right."""
        return Guesses(canaries=self.canaries, guesses=self.guesses, correct=self.guesses)


def guess(scores: Float64Array, included: BoolArray, *, guesses: int, rng: Generator) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, and count who is right.

    Half of the guesses go to either end (of an odd number, the odd one goes up); all canaries
    between are abstained from. A tie at the border is broken by lot: by position it would tell the
    bits of canaries that are listed in order of inclusion.

    Args:
        scores: float64, ``(m,)``, one per canary, larger = in.
        included: bool, ``(m,)``: the bits.
        guesses: r, from 1 to m, fixed before the scores were seen.
        rng: breaks ties.

    Raises:
        DataError: a score is no number (``E-AUDIT-SCORES``), or a bit no boolean
            (``E-AUDIT-MEMBERS``). That all bits fell alike is no error: refusing it would bias.
        ValueError: there are fewer canaries than guesses.
    """
    scores, included = checked_pairs(scores, included)
    if not 1 <= guesses <= len(scores):
        raise ValueError(f"expected 1 to {len(scores)} guesses, got {guesses}")
    order = rng.permutation(len(scores))
    order = order[np.argsort(scores[order])]
    lowest = order[: guesses // 2]
    highest = order[len(order) - (guesses + 1) // 2 :]
    right = np.sum(included[highest]) + np.sum(~included[lowest])
    return Guesses(canaries=len(scores), guesses=guesses, correct=int(right))


def merged(parts: Iterable[Guesses]) -> Guesses:
    """Return the guesses of several owners as one; each had its number fixed beforehand."""
    found = list(parts)
    return Guesses(
        canaries=sum(part.canaries for part in found),
        guesses=sum(part.guesses for part in found),
        correct=sum(part.correct for part in found),
    )


def check_levels(alpha: float, delta: float) -> None:
    """Refuse an error or a delta that is no chance.

    Raises:
        ValueError: expected ``0 < alpha < 1`` and ``0 <= delta < 1``.
    """
    if not (0 < alpha < 1 and 0 <= delta < 1):
        raise ValueError(f"expected 0 < alpha < 1 and 0 <= delta < 1, got {alpha} and {delta}")
