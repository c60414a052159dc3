"""One member's share of a noised sum of clipped gradients: what mode ``record-distributed`` sends.

Trusts and promises what ``engine.py`` and ``privacy/distributed/encoding.py`` do: every unit takes
part in every step, is clipped over all parameters together, and is summed in float64; the sum is
rounded once, and this member's noise is in it before it is given to anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyMode
from tacit.privacy.distributed.encoding import encode_total
from tacit.privacy.dpsgd.engine import Engine, source_for, subjects_of
from tacit.privacy.dpsgd.mechanism import clip_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import nn

    from tacit.privacy.distributed.plan import DistributedPlan

    Int64Array = npt.NDArray[np.int64]
    UInt32Array = npt.NDArray[np.uint32]


class ShareMechanism:
    """Every unit, L2 clipping, and this member's noised integers, as a plan says."""

    def __init__(self, plan: DistributedPlan, noise_key: bytes) -> None:
        self._plan = plan
        self._key = noise_key

    def sample(self, units: int, *, step: int) -> Int64Array:
        """Return every unit: samples under shared noise have no account."""
        del step
        return np.arange(units, dtype=np.int64)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Return min(1, C / norm); a unit whose norm is not finite counts as zero."""
        return clip_factors(norms, clip=self._plan.clip)

    def release(self, sums: Sequence[torch.Tensor], *, step: int) -> list[torch.Tensor]:
        """Return the sums of all parameters, in order, as one int32 tensor of the ring's numbers.

        Raises:
            RefusedError: a sum is not finite (``E-VECTOR-NOT-FINITE``).
            ValueError: the parameters are not as many as the plan is for.
        """
        total = np.concatenate([part.view(-1).numpy() for part in sums])
        purpose = f"share of step {step}"
        ring = encode_total(total, self._plan.noise, key=self._key, purpose=purpose)
        return [torch.from_numpy(ring.view(np.int32))]


class ShareEngine:
    """Gives one member's share of each step's sum, under one noise key."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine whose mechanism is a :class:`ShareMechanism`."""
        self._engine = engine

    def share(self, features: torch.Tensor, labels: torch.Tensor) -> UInt32Array:
        """Return the next step's share, at the model's present weights (uint32, shape ``(d,)``).

        Args:
            features: all training records, records first.
            labels: their class indices, int64.

        Raises:
            RefusedError, ConfigError: as :meth:`Engine.gradient`; or a sum is not finite
                (``E-VECTOR-NOT-FINITE``).
        """
        (ring,) = self._engine.gradient(features, labels)
        return ring.numpy().view(np.uint32)


def make_share_engine(
    model: nn.Module,
    *,
    plan: DistributedPlan,
    noise_key: bytes,
    subjects: Int64Array | None = None,
) -> ShareEngine:
    """Return the engine for one round of a plan by record.

    Args:
        model: its weights are set by the caller before each step; the engine only reads it.
        plan: of mode ``record-distributed``; its dimension is the number of trained parameters.
        noise_key: 32 secret bytes, for this round and attempt alone; each step has its own stream.
        subjects: int64 ``(n,)``, the subject of each record; needed where the plan's unit is one.

    Raises:
        RefusedError: the plan is of another mode (``E-MODE-NOT-BUILT``), or its unit is a subject
            and no subjects are given (``E-SUBJECTS-MISSING``).
        ConfigError: the model has layers without per-example gradients (``E-MODEL-NOT-DP``).
    """
    if plan.mode is not PrivacyMode.RECORD_DISTRIBUTED:
        raise RefusedError(
            "E-MODE-NOT-BUILT", f"expected a plan that clips by record, got {plan.mode.value}"
        )
    source, notes = source_for(model)
    engine = Engine(
        source,
        ShareMechanism(plan, noise_key),
        steps=plan.local_steps,
        subjects=subjects_of(plan.unit, subjects, most_records=plan.most_records),
        notes=notes,
    )
    return ShareEngine(engine)
