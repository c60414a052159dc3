"""An audit of a finished run, as a specification of its own: what is asked of the owners' records.

An owner approves it as they approve any run, by the hash of its canonical JSON. It names the model
by its hash, the probes whose scores leave as histograms over public bins, and what that may cost.
What each owner's node finds besides stays there, whatever stands here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator  # noqa: TC003 - read when a specification is converted
from dataclasses import dataclass

# Probes whose score of a record depends on that record, public constants and the model alone: only
# of those is a histogram a bounded sum. attacks/score_bins.py has their public bins.
SENT_PROBES = ("loss", "modified-entropy", "gradient-norm-all")

LOCAL_PLANS = ("quick", "standard", "full")  # attacks/plans.py

_RUN = re.compile(r"r-[0-9a-f]{8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BINS = (4, 256)


@dataclass(frozen=True, kw_only=True)
class AuditSpec:
    """What an audit asks of each owner who took part in a run.

    Attributes:
        run: the finished run's id.
        model_sha256: of its final weights, array after array, in hex: what is sent to each owner.
        rounds: that the run played: what each owner's node needs of it to train reference models.
        owners: whose updates it averaged in a round.
        plan: which probes each owner's node runs for its owner alone.
        probes: whose histograms leave.
        bins: of each histogram, twice: members' and non-members' scores.
        epsilon: what the histograms cost each unit, all together, at ``delta``; 0: exact counts.
        delta: the data set's; None with exact counts.
        seed: of the order of records and of reference models; never of noise.
    """

    run: str
    model_sha256: str
    rounds: int
    owners: int
    plan: str = "quick"
    probes: tuple[str, ...] = SENT_PROBES
    bins: int = 16
    epsilon: float = 0.0
    delta: float | None = None
    seed: int = 0

    @property
    def is_noised(self) -> bool:
        """Whether the histograms leave with noise."""
        return self.epsilon > 0

    @property
    def length(self) -> int:
        """Counts of one histogram: the members' bins, then the non-members'."""
        return 2 * self.bins

    def problems(self) -> Iterator[tuple[str, str]]:
        if not _RUN.fullmatch(self.run):
            yield "run", f"expected the id of a run, such as r-7f3a9c20, got {self.run!r}"
        if not _SHA256.fullmatch(self.model_sha256):
            yield "model_sha256", "expected a SHA-256 in hex"
        for key in ("rounds", "owners"):
            if getattr(self, key) < 1:
                yield key, f"expected at least 1, got {getattr(self, key)}"
        if self.plan not in LOCAL_PLANS:
            yield "plan", f"expected one of {', '.join(LOCAL_PLANS)}, got {self.plan!r}"
        unknown = [name for name in self.probes if name not in SENT_PROBES]
        if unknown or not self.probes or len(set(self.probes)) != len(self.probes):
            yield "probes", f"expected some of {', '.join(SENT_PROBES)}, each once"
        if not _BINS[0] <= self.bins <= _BINS[1]:
            yield "bins", f"expected {_BINS[0]} to {_BINS[1]}, got {self.bins}"
        if self.seed < 0:
            yield "seed", f"expected 0 or more, got {self.seed}"
        yield from self._problems_of_noise()

    def _problems_of_noise(self) -> Iterator[tuple[str, str]]:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            yield "epsilon", f"expected 0 (exact counts) or more, got {self.epsilon}"
        if self.is_noised and (self.delta is None or not 0 < self.delta < 1):
            yield "delta", f"missing: expected 0 < delta < 1 with an epsilon, got {self.delta}"
        if not self.is_noised and self.delta is not None:
            yield "delta", "exact counts have no delta: remove it, or name an epsilon"
