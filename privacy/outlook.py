"""What a plan costs round by round, and how far a budget carries it.

Pure arithmetic on what a plan tells of its rounds: every epsilon is the accountant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tacit.core.specification import MAX_ROUNDS, PrivacyMode, PrivacyUnit, Relation

_CLOSED_FORM_POINTS = 60
_SAMPLED_POINTS = 12  # each costs the accountant up to a second


class Planned(Protocol):
    """A plan of any mode, as far as it is looked at round by round."""

    @property
    def mode(self) -> PrivacyMode: ...
    @property
    def unit(self) -> PrivacyUnit: ...
    @property
    def relation(self) -> Relation: ...
    @property
    def is_private(self) -> bool: ...
    @property
    def sample_rate(self) -> float: ...
    @property
    def noise_multiplier(self) -> float: ...
    @property
    def releases(self) -> int: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...
    def epsilon_after(self, releases: int) -> float:
        """Return epsilon at the plan's delta after this many releases."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What may still happen within a budget.

    Attributes:
        budget: epsilon that may be spent, at the plan's delta.
        rounds_allowed: rounds that fit into it; at most the platform's limit.
        rounds_left: of those, how many the plan leaves unused; negative where it exceeds them.
        next_round_epsilon: what one more round than planned adds.
    """

    budget: float
    rounds_allowed: int
    rounds_left: int
    next_round_epsilon: float


def outlook_of(plan: Planned, *, budget: float | None = None) -> Outlook:
    """Return how far ``budget`` carries; without one, the plan's own epsilon is the budget.

    Raises:
        ValueError: the plan adds no noise.
    """
    if not plan.is_private:
        raise ValueError("expected a plan with noise, got mode none")
    limit = plan.epsilon if budget is None else budget
    allowed = _rounds_within(plan, limit)
    return Outlook(
        budget=limit,
        rounds_allowed=allowed,
        rounds_left=allowed - plan.releases,
        next_round_epsilon=plan.epsilon_after(plan.releases + 1) - plan.epsilon,
    )


def _rounds_within(plan: Planned, budget: float) -> int:
    """Return the most rounds that cost at most ``budget``: epsilon never falls with rounds."""
    low, high = 0, plan.releases
    while high < MAX_ROUNDS and plan.epsilon_after(high) <= budget:
        # One more than planned first: a budget that the plan fills has no room for a second one.
        low, high = high, high + 1 if high == plan.releases else min(2 * high, MAX_ROUNDS)
    if plan.epsilon_after(high) <= budget:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if plan.epsilon_after(middle) <= budget:
            low = middle
        else:
            high = middle
    return low


def milestones(plan: Planned) -> list[int]:
    """Return the rounds that a table shows: the first, quarters, the last, one more, and twice."""
    total = plan.releases
    shown = {1, total // 4, total // 2, 3 * total // 4, total, total + 1, 2 * total}
    return sorted(rounds for rounds in shown if rounds >= 1)


def curve(plan: Planned, *, rounds: int) -> list[tuple[int, float]]:
    """Return (round, epsilon) from 1 to ``rounds``, at evenly spaced whole rounds."""
    points = _CLOSED_FORM_POINTS if plan.sample_rate == 1.0 else _SAMPLED_POINTS
    count = min(points, rounds)
    shown = {1 + round(place * (rounds - 1) / max(1, count - 1)) for place in range(count)}
    return [(at, plan.epsilon_after(at)) for at in sorted(shown | {min(plan.releases, rounds)})]
