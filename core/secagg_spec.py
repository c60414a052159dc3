"""The ``[secure_aggregation]`` table of a run: whose updates are summed without anybody seeing one.

Trusts nothing. Promises: the cohort, its threshold and the number of members that may work against
the others are named before anybody approves; so is all that the integer scale follows from. What
they mean for noise is ``privacy/distributed/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator  # noqa: TC003 - read when a specification is converted
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.privacy_spec import PrivacyMode

if TYPE_CHECKING:
    from tacit.core.specification import RunSpec

LEAST_MEMBERS = 3  # of two, each knows the other's share of a sum
MAX_MEMBERS = 1_000  # the sparse graph above 200 is computed up to here (privacy/secagg/graph.py)
MAX_STEPS_PER_ROUND = 10_000

_PLAIN_BOUND = 4.0  # of ten owners with 1,000 records each, means are then exact to 2e-7

_MEMBER = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")  # core/keys.py


def least_threshold(members: int) -> int:
    """Return the fewest survivors with whom a sum may be opened: floor(2n / 3) + 1.

    Two sets of so many members have more than n / 3 in common, so that no server can have two
    stories signed unless more than a third of the members help it (Bonawitz et al. 2017,
    doi:10.1145/3133956.3133982, section 6, active adversaries).
    """
    return 2 * members // 3 + 1


@dataclass(frozen=True, kw_only=True)
class SecureAggregationSpec:
    """Who is in a run's secure sums, and what these sums hold.

    Attributes:
        members: names of all members, at least three; what is approved has them in order.
        threshold: t, the fewest survivors with whom a sum is opened; 0 is floor(2n / 3) + 1.
        colluders: a, members that may tell the server what they know, or add no noise.
        steps_per_round: K, secure sums in one round; above 1 in mode ``record-distributed`` only.
        bound: R, largest size of a coordinate of one member's sum; 0 is max_records x clip, or the
            clip of a whole update. A silo clamps what is larger, which costs accuracy alone.
        max_records: a public guess of the most records of one member, for R; 0 is
            privacy.normaliser, which counts those of all.
        dimension: d, numbers in one member's vector, which the noise and its cost depend on in the
            distributed modes; 0 in a file: they are counted in the initial weights.
        max_weight: public bound on a member's weight in the mean, where sums have no noise of
            their own; a larger one is refused.
    """

    members: tuple[str, ...]
    threshold: int = 0
    colluders: int = 1
    steps_per_round: int = 1
    bound: float = 0.0
    max_records: int = 0
    max_weight: int = 100_000
    dimension: int = 0

    def __post_init__(self) -> None:
        # What is approved names the threshold, and the order of members says nothing.
        object.__setattr__(self, "members", tuple(sorted(self.members)))
        if self.threshold == 0:
            object.__setattr__(self, "threshold", least_threshold(len(self.members)))

    @property
    def coordinate_bound(self) -> float:
        """Largest change of one number in a round, where sums have no noise of their own."""
        return self.bound or _PLAIN_BOUND

    def problems(self) -> Iterator[tuple[str, str]]:
        count = len(self.members)
        for name in self.members:
            if not _MEMBER.fullmatch(name):
                yield "members", f"expected names of members, such as clinic-a, got {name!r}"
        if len(set(self.members)) != count:
            yield "members", "expected each member once"
        if not LEAST_MEMBERS <= count <= MAX_MEMBERS:
            yield "members", f"expected {LEAST_MEMBERS} to {MAX_MEMBERS} members, got {count}"
        else:
            yield from self._problems_of_counts(count)
        if not 1 <= self.max_weight <= 2**53:
            yield "max_weight", f"expected 1 to 2^53, got {self.max_weight}"
        if not 1 <= self.steps_per_round <= MAX_STEPS_PER_ROUND:
            text = f"expected 1 to {MAX_STEPS_PER_ROUND}, got {self.steps_per_round}"
            yield "steps_per_round", text
        for key in ("bound", "max_records", "dimension"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                yield key, f"expected 0 (derived) or more, got {value}"

    def problems_in(self, run: RunSpec) -> Iterator[tuple[str, str]]:
        """Yield what in this table does not fit the rest of a run."""
        by_record = run.privacy.mode is PrivacyMode.RECORD_DISTRIBUTED
        people, count = run.participation, len(self.members)
        if people.fraction != 1.0:
            yield "participation.fraction", "members are named, not sampled: expected 1"
        if not self.threshold <= people.min_clients <= count:
            text = f"expected the threshold, {self.threshold}, to all {count} members"
            yield "participation.min_clients", f"{text}, got {people.min_clients}"
        if by_record and run.training is not None and run.training.local_steps != 1:
            text = "each step is a sum over all members: expected 1, and"
            yield "training.local_steps", f"{text} secure_aggregation.steps_per_round for more"
        if not by_record and self.steps_per_round != 1:
            yield "secure_aggregation.steps_per_round", "a whole update is summed once: expected 1"
        if not by_record and self.max_records:
            yield "secure_aggregation.max_records", "an update is bounded as a whole: remove this"
        if run.privacy.mode is PrivacyMode.CLIENT_DISTRIBUTED and self.bound:
            yield "secure_aggregation.bound", "privacy.clip bounds the update: remove this key"
        for name, reply in run.results.items():
            if name != "train" and (name.startswith("train") or reply.arrays != "none"):
                text = "only replies to train are summed unseen: remove this, or its arrays"
                yield f"results.{name}", text
        if run.app is not None and run.app.server:
            text = "a ServerApp of your own asks each client: name a strategy that needs the mean"
            yield "app.server", text

    def _problems_of_counts(self, count: int) -> Iterator[tuple[str, str]]:
        least = least_threshold(count)
        if not least <= self.threshold <= count:
            yield "threshold", f"expected {least} to {count} of {count} members"
            return
        # Two halves that the server shows different lists both reach t with the colluders' help
        # unless 2t - n is more; and a sum of one honest member is no sum.
        most = min(2 * self.threshold - count - 1, self.threshold - 2)
        if not 1 <= self.colluders <= most:
            text = f"expected 1 to {most} of {count} members, got {self.colluders}"
            yield "colluders", f"{text}: each one knows its own noise, and more could open two sums"
