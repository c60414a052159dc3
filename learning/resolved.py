"""What a run says once its initial weights are known: how many numbers one vector has.

The noise that members share, and its cost, depend on that number. It is counted before a run is
hashed, so that every owner approves it; each node counts again in what it receives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.artifacts import load_arrays
from tacit.learning.models import initial_arrays
from tacit.privacy.secure_sum import with_dimension

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.specification import RunSpec


def resolved(specification: RunSpec, initial: Path | None) -> RunSpec:
    """Return a specification with what is counted in its initial weights.

    Args:
        specification: as a file says it; in a mode without shared noise it stays as it is.
        initial: the initial weights of a run with an app of its own, as safetensors.

    Raises:
        ConfigError: the file says another number (``E-SECAGG-DIMENSION``), or its model cannot be
            built as the run asks.
        AppError: the model's factory is not installed here, or failed.
        UnavailableError: the initial weights cannot be read.
    """
    if not specification.privacy.mode.is_distributed or specification.audit is not None:
        return specification
    if specification.app is None:
        return with_dimension(specification, initial_arrays(specification))
    return with_dimension(specification, load_arrays(initial) if initial is not None else {})


def resolved_beside(file: Path, specification: RunSpec) -> RunSpec:
    """Return the specification of a run.toml as :func:`resolved` does; its weights stand beside it.

    Raises:
        TacitError: as :func:`resolved`.
    """
    initial = file.parent / specification.initial if specification.initial else None
    return resolved(specification, initial)
