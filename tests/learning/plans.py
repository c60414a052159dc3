"""The plan of a run without a mechanism, for tests that train models."""

from __future__ import annotations

import math

from tacit.core.specification import PrivacyMode, PrivacyUnit
from tacit.privacy.plan import PrivacyPlan


def open_plan(*, local_steps: int) -> PrivacyPlan:
    """Two releases of full batches without clip and noise."""
    return PrivacyPlan(
        mode=PrivacyMode.NONE,
        releases=2,
        local_steps=local_steps,
        sample_rate=1.0,
        noise_multiplier=0.0,
        clip=math.inf,
        normaliser=1.0,
        epsilon=math.inf,
        delta=0.0,
        unit=PrivacyUnit.RECORD,
    )
