"""What charges are made of: their noise, their split, and what several of them come to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

from tacit.core.errors import BudgetError
from tacit.core.plain import plain
from tacit.privacy.accounting import epsilon_of_events
from tacit.privacy.distributed.account import RING_BITS
from tacit.privacy.distributed.plan import DistributedPlan, RunPlan
from tacit.privacy.ledger_account import mechanism_for
from tacit.privacy.ledger_entries import Charge, Terms, canonical, split_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tacit.client.configuration import DataSet
    from tacit.core.specification import RunSpec

_SPLIT_RULE = "tacit split 1"  # learning/splits.py


@contextlib.contextmanager
def naming(others: Mapping[str, Sequence[Charge]], terms: Terms) -> Iterator[None]:
    """Say of a budget without room which runs will use it.

    Raises:
        BudgetError: as it came, with their names.
    """
    try:
        yield
    except BudgetError as error:
        runs = [
            f"{run_id} is approved and will use up to epsilon "
            f"{epsilon_of_charges(charges, terms):.4g}"
            for run_id, charges in others.items()
        ]
        raise BudgetError(
            error.code,
            f"{error.message}; counted as used, though not all of it is yet: {'; '.join(runs)}",
            hint="Wait until such a run is over, or `tacit client deny` it; then "
            f"`tacit client approve` looks again. {error.hint}",
        ) from error


def epsilon_of_charges(charges: Sequence[Charge], terms: Terms) -> float:
    """Return what a whole run costs one unit of the budget: that of its dearer side."""
    return max(
        epsilon_of_events([mechanism_for(charge, charge.mechanism, unit=terms.unit)], terms.delta)
        for charge in charges
    )


def noise_of(plan: RunPlan) -> dict[str, Any]:
    """Return what one answer to training is noised with: one sum's share, or all local steps."""
    if isinstance(plan, DistributedPlan):
        return {
            "mechanism": plan.noise.reserve(1),
            "integer_scale": plan.noise.scale,
            "ring_bits": RING_BITS,
        }
    return {"mechanism": plan.mechanism(), "noise_deviation": plan.noise_deviation}


def times(charge: Charge, releases: int) -> Charge:
    """Return what so many releases cost together."""
    one = charge.mechanism
    return dataclasses.replace(
        charge, mechanism=dataclasses.replace(one, steps=one.steps * releases)
    )


def split_of(specification: RunSpec, data_set: DataSet) -> str:
    """Return the digest of the rule that divides a data set's records for a run."""
    training = specification.training
    if training is None:
        return ""
    depends_on = hashlib.sha256(
        canonical([plain(specification.data), data_set.subject, data_set.clean.digest()])
    )
    return split_digest(
        rule=_SPLIT_RULE,
        seed=training.seed,
        fraction=training.validation_fraction,
        depends_on=depends_on.hexdigest(),
    )
