"""The rows of a comparison: the federated model, training alone or pooled, and a guess.

Every model is scored on records that nobody trained on, and trained with the run's own recipe and
at its epsilon: the pool with noise that is added centrally, an owner alone with their own. The
numbers are exact and carry no noise: they are for eyes that may see the records. The simulator and
the demo hold everybody's; at an owner there is one owner, and the table stays there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.learning.baselines import (
    Score,
    score_arrays,
    specification_alone,
    train_alone,
    trivial_score,
    union,
)
from tacit.privacy.distributed.plan import plan_of_run
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.artifacts import Arrays
    from tacit.core.specification import RunSpec
    from tacit.learning.prepared import PreparedSets

FEDERATED, POOLED, TRIVIAL = "federated", "all data pooled", "trivial guess"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in the table.

    Attributes:
        model: which.
        kind: federated, alone, pooled or trivial.
        epsilon: what its training cost each record at the run's delta; None without noise.
        overall: its score on the held-out records of all owners together.
        by_owner: its score on each owner's held-out records.
    """

    model: str
    kind: str
    epsilon: float | None
    overall: Score
    by_owner: Mapping[str, Score]


def standard_error(score: Score) -> float:
    """Return the standard error of an accuracy over so many records (binomial)."""
    return math.sqrt(score.accuracy * (1.0 - score.accuracy) / max(1, score.examples))


def federated_row(specification: RunSpec, sets: Mapping[str, PreparedSets], arrays: Arrays) -> Row:
    """Score the federation's weights; their epsilon is the largest that any owner reserved.

    Raises:
        ConfigError: they are not the weights of the run's model (``E-MODEL-WEIGHTS``).
    """
    plans = [plan_of_run(specification, records=owner.records) for owner in sets.values()]
    epsilons = [plan.epsilon for plan in plans if plan.is_private]
    head = (FEDERATED, "federated", max(epsilons, default=None))
    return _scored(head, specification, sets, arrays)


def trained_row(
    specification: RunSpec,
    sets: Mapping[str, PreparedSets],
    *,
    of: str | None = None,
    noise_key: bytes | None,
) -> Row:
    """Train in one place and score on everybody's held-out records.

    Args:
        specification: the run.
        sets: every owner's records, by name.
        of: the owner who trains alone; None pools all.
        noise_key: for the training's noise, where the run has a private mode.

    Raises:
        RefusedError, AppError: as :func:`train_alone`.
    """
    owners = list(sets.values()) if of is None else [sets[of]]
    arrays = train_alone(specification, owners, noise_key=noise_key)
    alone = specification_alone(specification)
    plan = privacy_plan(alone, records=sum(owner.records for owner in owners))
    epsilon = plan.epsilon if plan.trains_with_noise else None  # no node noises what stays
    head = (POOLED, "pooled", epsilon) if of is None else (f"{of} alone", "alone", epsilon)
    return _scored(head, specification, sets, arrays)


def trivial_row(specification: RunSpec, sets: Mapping[str, PreparedSets]) -> Row:
    """Score the guess that ignores the features."""
    classes = len(specification.data.classes) if specification.data is not None else 2
    training = union([owner.train for owner in sets.values()])
    held_out = union([owner.validation for owner in sets.values()])
    return Row(
        model=TRIVIAL,
        kind="trivial",
        epsilon=None,
        overall=trivial_score(training, held_out, classes=classes),
        by_owner={
            name: trivial_score(training, owner.validation, classes=classes)
            for name, owner in sets.items()
            if len(owner.validation)
        },
    )


def _scored(
    head: tuple[str, str, float | None],
    specification: RunSpec,
    sets: Mapping[str, PreparedSets],
    arrays: Arrays,
) -> Row:
    """Score weights; ``head`` is the row's name, kind and epsilon."""
    name, kind, epsilon = head
    held_out = union([owner.validation for owner in sets.values()])
    return Row(
        model=name,
        kind=kind,
        epsilon=epsilon,
        overall=score_arrays(specification, arrays, held_out),
        by_owner={
            owner: score_arrays(specification, arrays, parts.validation)
            for owner, parts in sets.items()
            if len(parts.validation)
        },
    )
