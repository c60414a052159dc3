"""The four acts that make a sum private: sample, clip, add noise, divide by a public number.

They are one small object, apart from how gradients are computed, so that tests can stand between
the two: record what each act was given on one data set, replay on a neighbour, and compare.
Everything here follows from the plan and the noise key; nothing depends on how many records exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tacit.privacy.noise import GaussianStream, UniformStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tacit.privacy.plan import PrivacyPlan

    Int64Array = npt.NDArray[np.int64]


class Mechanism(Protocol):
    """What an engine asks for at each step."""

    def sample(self, units: int, *, step: int) -> Int64Array:
        """Return the positions of the units that take part in this step."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Return what each unit's gradient is multiplied with, from its norm (float64)."""

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        """Return the noised mean of a step's sums; the sums themselves are used up."""


def clip_factors(norms: torch.Tensor, *, clip: float) -> torch.Tensor:
    """Return min(1, C / norm) (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).

    A unit whose norm is not finite counts as zero.
    """
    factors = (clip / norms.clamp(min=1e-300)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


class GaussianMechanism:
    """Poisson sampling (or every unit), L2 clipping and Gaussian noise, as a plan says."""

    def __init__(self, plan: PrivacyPlan, noise_key: bytes) -> None:
        self._plan = plan
        self._key = noise_key

    def sample(self, units: int, *, step: int) -> Int64Array:
        """Return every unit, or those whose secret coin says so: an own coin per unit and step."""
        if self._plan.sample_rate >= 1.0:
            return np.arange(units, dtype=np.int64)
        coins = UniformStream(self._key, purpose=f"sample of step {step}")
        return coins.select(units, probability=self._plan.sample_rate)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Return min(1, C / norm); a unit whose norm is not finite counts as zero."""
        return clip_factors(norms, clip=self._plan.clip)

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        """Add noise of the plan's deviation to every number of the float64 sums, and divide."""
        noise = GaussianStream(self._key, purpose=f"noise of step {step}")
        released = []
        for total in sums:
            exact = total.view(-1).numpy()
            noise.add_to(exact, deviation=self._plan.noise_deviation)
            mean = torch.empty(total.shape, dtype=torch.float32)
            np.divide(exact, self._plan.normaliser, out=mean.view(-1).numpy(), casting="same_kind")
            released.append(mean)
        return released
