"""Who shares noise, and on how many of them a claim counts. Pure numbers; trusts nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who shares the noise.

    Attributes:
        members: n, in the session's first list.
        threshold: t, the fewest survivors with whom a sum is opened.
        colluders: a, members who add no noise or tell the server what they added; a claim that
            anybody relies on has at least one, since each member can subtract its own noise.
    """

    members: int
    threshold: int
    colluders: int

    def __post_init__(self) -> None:
        if not 0 <= self.colluders < self.threshold <= self.members:
            raise ValueError(f"expected 0 <= colluders < threshold <= members, got {self}")

    @property
    def fewest_honest(self) -> int:
        """How many members' noise is counted on: t - a."""
        return self.threshold - self.colluders

    @property
    def inflation(self) -> float:
        """Noise of all members together against what is counted on: kappa = sqrt(n / (t - a))."""
        return math.sqrt(self.members / self.fewest_honest)

    def honest(self, survivors: int) -> int:
        """Return how many of so many survivors' noise counts.

        Raises:
            ValueError: so few, or so many, cannot survive.
        """
        if not self.threshold <= survivors <= self.members:
            raise ValueError(
                f"expected {self.threshold} to {self.members} survivors, got {survivors}"
            )
        return survivors - self.colluders
