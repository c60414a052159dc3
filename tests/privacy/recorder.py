"""Record and replay: does a mechanism really do what its account says?

A recorder stands between an engine and its mechanism (sample, clip, noise, divide), and keeps what
went in and came out. The same code runs on a data set and on a neighbour, and the two records are
compared with what was declared: equal control flow, sums no further apart than the sensitivity,
noise of the declared deviation that is the same on both and new at every step, samples that follow
independent coins. Whatever the code between does wrong, the account then covers, or a check fails.
The idea is that of dp-recorder (arXiv 2602.17454).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tacit.privacy.dpsgd.mechanism import Mechanism

MARGIN = 1e-5  # of the sensitivity, for rounding; the noise is scaled up by as much
SIGMAS = 5.0


class Leak(AssertionError):  # noqa: N818 - what it is
    """The record shows more than the account covers."""


@dataclass(frozen=True)
class Declared:
    """What the account says of every step.

    Attributes:
        sensitivity: how far one unit moves a sum, in L2.
        deviation: of the noise on each number of a sum.
        normaliser: public divisor.
        sample_rate: of the independent coins; 1 takes every unit.
    """

    sensitivity: float
    deviation: float
    normaliser: float
    sample_rate: float


@dataclass
class Recorder:
    """A mechanism that another one does the work for, and that remembers."""

    mechanism: Mechanism
    flow: list[tuple[str, int]] = field(default_factory=list)
    samples: list[npt.NDArray[np.int64]] = field(default_factory=list)
    sums: list[torch.Tensor] = field(default_factory=list)
    noises: list[torch.Tensor] = field(default_factory=list)
    normaliser: float = 1.0

    def sample(self, units: int, *, step: int) -> npt.NDArray[np.int64]:
        chosen = self.mechanism.sample(units, step=step)
        self.flow.append(("sample", step))
        self.samples.append(chosen)
        return chosen

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return self.mechanism.factors(norms)

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        before = torch.cat([total.flatten() for total in sums]).clone()
        released = self.mechanism.release(sums, step=step)
        after = torch.cat([value.flatten().double() for value in released]) * self.normaliser
        self.flow.append(("release", step))
        self.sums.append(before)
        self.noises.append(after - before)
        return released


def verify(one: Recorder, neighbour: Recorder, declared: Declared) -> None:
    """Compare the records of one run on two data sets that differ in their last unit.

    Raises:
        Leak: what happened is not what was declared.
    """
    if one.flow != neighbour.flow:
        raise Leak("control flow depends on the data")
    for index, (here, there) in enumerate(zip(one.sums, neighbour.sums, strict=True)):
        moved = float((here - there).norm())
        if moved > declared.sensitivity * (1 + MARGIN):
            raise Leak(f"sensitivity: step {index} moved by {moved:.3g}")
    for here, there in zip(one.noises, neighbour.noises, strict=True):
        if not torch.allclose(here, there, rtol=1e-4, atol=1e-4 * declared.deviation):
            raise Leak("noise depends on the data")
    verify_noise(one.noises, declared)
    if declared.sample_rate < 1.0:
        _verify_coins(one, neighbour, declared.sample_rate)


def verify_noise(noises: Sequence[torch.Tensor], declared: Declared) -> None:
    """Check that all these noises are there, as large as declared, and each drawn anew."""
    numbers = torch.cat(list(noises))
    error = SIGMAS / math.sqrt(2 * len(numbers))
    if abs(float(numbers.square().mean().sqrt()) / declared.deviation - 1) > error:
        raise Leak(f"noise: deviation {float(numbers.std()):.3g}, not {declared.deviation:.3g}")
    for index, here in enumerate(noises):
        for there in noises[index + 1 :]:
            correlation = float(here @ there / (here.norm() * there.norm()))
            if abs(correlation) > SIGMAS / math.sqrt(len(here)):
                raise Leak("noise: drawn once and used twice")


def _verify_coins(one: Recorder, neighbour: Recorder, rate: float) -> None:
    """Check that each unit's coin is its own: none follows from the others or from the size."""
    units = max(int(chosen.max(initial=0)) for chosen in one.samples)
    for here, there in zip(one.samples, neighbour.samples, strict=True):
        if not np.array_equal(here[here < units], there[there < units]):
            raise Leak("sample: one unit's absence changes the others' coins")
    sizes = np.array([len(chosen) for chosen in one.samples], dtype=np.float64)
    expected = (units + 1) * rate
    spread = math.sqrt(expected * (1 - rate))
    if abs(sizes.mean() - expected) > SIGMAS * spread / math.sqrt(len(sizes)):
        raise Leak("sample: another rate than declared")
    if sizes.std() < 0.5 * spread:
        raise Leak("sample: sizes are fixed, which Poisson's are not")
