"""Twins: a run once more, with canaries in it, whose model is discarded.

A twin is the run that it tests in every value that training depends on; only so does what it shows
say anything of that run's code and claim. It evaluates nothing, which would cost records a charge
for a model that nobody keeps.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tacit.core.specification import (
    MAX_NAME_CHARACTERS,
    EvaluationSpec,
    RetentionSpec,
    RunSpec,
)

if TYPE_CHECKING:
    from tacit.core.canary_spec import CanarySpec


def twin_of(run: RunSpec, canaries: CanarySpec) -> RunSpec:
    """Return the specification of a run's twin.

    Args:
        run: that is tested.
        canaries: what goes into the twin; it names the run.
    """
    return dataclasses.replace(
        run,
        name=f"canaries of {run.name}"[:MAX_NAME_CHARACTERS],
        evaluation=EvaluationSpec(),
        retention=RetentionSpec(rounds="none"),
        canaries=canaries,
    )


def is_twin_of(specification: RunSpec, run: RunSpec) -> bool:
    """Whether a specification is that of a run's twin, value by value."""
    canaries = specification.canaries
    return canaries is not None and canaries.twin and specification == twin_of(run, canaries)
