"""What the replies of a run may carry, as its specification declares it.

Trusts nothing. What a reply really carries is checked against this at the owner (core/results.py),
and again where it arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping  # noqa: TC003 - read when a file is converted
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric that a reply may carry.

    Attributes:
        range: inclusive bounds; a value outside is refused at the owner.
        length: 0 for a single number, else the length of the list.
    """

    range: tuple[float, float]
    length: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.range[0] <= self.range[1]:
            yield "range", f"expected low <= high, got {list(self.range)}"
        if self.length < 0:
            yield "length", f"expected 0 (a single number) or more, got {self.length}"


@dataclass(frozen=True, kw_only=True)
class ReplySpec:
    """What one kind of reply may contain; everything else is refused at the owner.

    Attributes:
        arrays: ``"model"``: one array record with the names, shapes and dtypes of the model that
            the instruction carried; ``"none"``: no arrays; ``"share"``: one member's share of a
            noised sum, uint32 (built-in runs in mode ``record-distributed`` alone).
        metrics: allowed metrics by name.
    """

    arrays: str = "model"
    metrics: Mapping[str, MetricSpec] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.arrays not in ("model", "none"):
            yield "arrays", f'expected "model" or "none", got {self.arrays!r}'
