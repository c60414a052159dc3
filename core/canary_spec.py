"""Canaries in a run, as its specification declares them: how many of each kind, in which model.

Everything that an auditor could otherwise choose by what came out stands here, so that an owner
approves it before the first round and commits to it: counts, guesses, the seed of directions and
rows. The bits, in or out, are each owner's own and stand nowhere (attacks/inclusion.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator  # noqa: TC003 - read when a specification is converted
from dataclasses import dataclass

MAX_CANARIES = 100_000  # of both kinds, at one owner: their bits travel in one manifest
LEAST_CANARIES = 20  # of one kind: of fewer, all may fall on one side

_RUN = re.compile(r"r-[0-9a-f]{8}")
_GUESSED = 2  # half of the canaries: fewer guesses are surer, and show less at most


@dataclass(frozen=True, kw_only=True)
class CanarySpec:
    """Which canaries each owner puts into a run.

    Attributes:
        directions: white-box canaries (privacy/dpsgd/canaries.py).
        mislabelled: records with a wrong label (learning/mislabelled.py).
        twin: the run is a twin: it ends with its canaries' report, and its model is discarded.
            Otherwise the canaries are in the model that is released, at most 1 % of its records.
        run: the finished run whose twin it is; empty for one that is planned.
        direction_guesses, mislabelled_guesses: how many of each kind are called in or out; 0 is
            half.
        seed: of directions and rows; public, and never of noise or of the bits.
    """

    directions: int = 0
    mislabelled: int = 0
    twin: bool = True
    run: str = ""
    direction_guesses: int = 0
    mislabelled_guesses: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # What is approved names the guesses, and no later default changes them.
        for kind in ("direction", "mislabelled"):
            canaries = self.directions if kind == "direction" else self.mislabelled
            if canaries > 0 and getattr(self, f"{kind}_guesses") == 0:
                object.__setattr__(self, f"{kind}_guesses", max(1, canaries // _GUESSED))

    def problems(self) -> Iterator[tuple[str, str]]:
        counts = (
            ("directions", self.directions, "direction_guesses", self.direction_guesses),
            ("mislabelled", self.mislabelled, "mislabelled_guesses", self.mislabelled_guesses),
        )
        for key, canaries, guessed, guesses in counts:
            if canaries != 0 and canaries < LEAST_CANARIES:
                yield key, f"expected 0 (none) or at least {LEAST_CANARIES}, got {canaries}"
            elif not 0 <= guesses <= canaries:
                yield guessed, f"expected 0 (half) to {canaries}, got {guesses}"
        if not 0 < self.directions + self.mislabelled <= MAX_CANARIES:
            yield "directions", f"expected 1 to {MAX_CANARIES} canaries of both kinds together"
        if self.run and not _RUN.fullmatch(self.run):
            yield "run", f"expected the id of a run, such as r-7f3a9c20, got {self.run!r}"
        if self.run and not self.twin:
            yield "run", "expected with twin = true only"
        if self.seed < 0:
            yield "seed", f"expected 0 or more, got {self.seed}"
