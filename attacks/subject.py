"""Who is audited: a target's answers for records whose membership is known, checked.

Trusts: that the members were trained on and the others were not, and that both come from one
source: nothing in the records can show it. Refuses whatever would make a figure mean something
else: too few records, records on two sides, a model in training mode, answers that are none.
Messages hold counts, never a record.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from tacit.attacks.target import ModelTarget, Outputs, Target
from tacit.core.errors import DataError
from tacit.learning.prepared import Examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.specification import RunSpec

LEAST_RECORDS = 20  # on either side: below, even a perfect attack shows next to nothing

_LEAST_DISTINCT = 0.9  # of a side's answers: below, they repeat by chance
_MOST_SHARED = 0.05  # of answers that stand on both sides, where they do not

Int64Array = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.object_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Records on one side, and what the target says of them.

    Attributes:
        outputs: the target's answers for ``n`` records.
        examples: the records; None where only answers are there.
        rows: int64, ``(n,)``: each record's number in its file, from 1.
        columns: texts ``(n,)`` by the name of what the records are to be sliced by.
    """

    outputs: Outputs
    examples: Examples | None = None
    rows: Int64Array
    columns: Mapping[str, TextArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is audited.

    Attributes:
        members, non_members: the audited records.
        population: records of the same source that are neither audited nor trained on.
        target: what answered; None for saved predictions.
        trained_too: what else the target was trained on; references are trained on it as well.
        recipe: the run that made the target; without it no reference models can be trained.
        owners: how many owners' updates the run averaged in a round.

    Raises:
        DataError: fewer than 20 records on a side (``E-AUDIT-TOO-FEW``), a record on two sides
            (``E-AUDIT-OVERLAP``), features that are not finite or not of one shape
            (``E-AUDIT-FEATURES``), groups that differ in classes (``E-AUDIT-OUTPUTS``).
    """

    members: Group
    non_members: Group
    population: Group | None = None
    target: Target | None = None
    trained_too: Examples | None = None
    recipe: RunSpec | None = None
    owners: int = 1

    def __post_init__(self) -> None:
        for name, group in (("members", self.members), ("non-members", self.non_members)):
            if len(group) < LEAST_RECORDS:
                raise DataError(
                    "E-AUDIT-TOO-FEW",
                    f"expected at least {LEAST_RECORDS} {name}, got {len(group)}",
                    hint="hold out more records before training; an audit needs both sides",
                )
        classes = {group.outputs.classes for group in self.groups}
        if len(classes) > 1:
            raise DataError(
                "E-AUDIT-OUTPUTS",
                f"expected as many classes for every group, got {sorted(classes)}",
            )
        _verify_disjoint(self)

    @property
    def trained_on(self) -> int:
        """How many records the target was trained on."""
        return len(self.members) + (0 if self.trained_too is None else len(self.trained_too))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Members, non-members and, where there is one, the population."""
        both = (self.members, self.non_members)
        return both if self.population is None else (*both, self.population)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes as the recipe names them, or by number."""
        data = None if self.recipe is None else self.recipe.data
        if data is not None and len(data.classes) == self.members.outputs.classes:
            return tuple(data.classes)
        return tuple(str(number) for number in range(self.members.outputs.classes))


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Records before the target was asked.

    Attributes:
        examples: features float32 ``(n, ...)`` and labels int64 ``(n,)``.
        rows, columns: as :class:`Group` has them; without rows, they are numbered from 1.
    """

    examples: Examples
    rows: Int64Array | None = None
    columns: Mapping[str, TextArray] = field(default_factory=dict)


def subject_of_model(
    model: nn.Module | Target,
    *,
    members: Records | Examples,
    non_members: Records | Examples,
    population: Records | Examples | None = None,
    trained_too: Examples | None = None,
    recipe: RunSpec | None = None,
    owners: int = 1,
) -> Subject:
    """Ask a model about records, and return what is to be audited.

    Args:
        model: in evaluation mode; or any other :class:`tacit.attacks.target.Target`.
        members: what it was trained on.
        non_members: records of the same source that it was not trained on.
        population: further ones that nobody audits; RMIA and quantile regression need them.
        trained_too: what else it was trained on, and is not to be audited.
        recipe: the run that trained it, for reference models.
        owners: how many owners' updates that run averaged in a round.

    Raises:
        DataError: as :class:`Subject`; labels out of range or answers that are not finite
            (``E-AUDIT-OUTPUTS``); a model in training mode (``E-AUDIT-TRAIN-MODE``), or one that
            cannot take these records (``E-AUDIT-FEATURES``).
    """
    target = _target_of(model)
    return Subject(
        members=_asked(target, members, "members"),
        non_members=_asked(target, non_members, "non-members"),
        population=None if population is None else _asked(target, population, "population"),
        target=target,
        trained_too=trained_too,
        recipe=recipe,
        owners=owners,
    )


def subject_of_outputs(
    *, members: Outputs, non_members: Outputs, population: Outputs | None = None
) -> Subject:
    """Return what is to be audited where only saved answers are there.

    Raises:
        DataError: as :class:`Subject`.
    """

    def group(outputs: Outputs) -> Group:
        return Group(outputs=outputs, rows=np.arange(1, len(outputs) + 1, dtype=np.int64))

    return Subject(
        members=group(members),
        non_members=group(non_members),
        population=None if population is None else group(population),
    )


def record_keys(examples: Examples) -> npt.NDArray[np.uint64]:
    """Return one opaque number per record, ``(n,)``, equal where features and label are.

    64 bits of BLAKE2: among a million records, two that differ share one with a chance of 3e-8.
    """
    return keys_of(examples.features, examples.labels)


def keys_of(rows: npt.NDArray[np.floating[Any]], labels: Int64Array) -> npt.NDArray[np.uint64]:
    """Return :func:`record_keys` of any rows ``(n, ...)`` with their labels ``(n,)``."""
    numbers = np.ascontiguousarray(rows) + rows.dtype.type(0.0)  # no -0.0
    digests = (
        hashlib.blake2b(row.data, digest_size=8, salt=int(label).to_bytes(8, "big", signed=True))
        for row, label in zip(numbers, labels, strict=True)
    )
    return np.frombuffer(b"".join(each.digest() for each in digests), dtype=np.uint64)


def _target_of(model: nn.Module | Target) -> Target:
    return ModelTarget(model=model) if isinstance(model, nn.Module) else model


def _asked(target: Target, records: Records | Examples, name: str) -> Group:
    given = Records(examples=records) if isinstance(records, Examples) else records
    examples = given.examples
    if examples.features.dtype != np.float32 or not np.isfinite(examples.features).all():
        raise DataError(
            "E-AUDIT-FEATURES",
            f"expected finite float32 features of the {name}, "
            f"got {examples.features.dtype} or values that are not finite",
        )
    if len(examples) != len(examples.features) or len(examples) == 0:
        raise DataError(
            "E-AUDIT-FEATURES",
            f"expected {name}: records, each with a label; got {len(examples.features)} records "
            f"and {len(examples)} labels",
        )
    try:
        logits = target.logits(examples.features)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            "E-AUDIT-FEATURES",
            f"the model cannot take the {name}, records of shape "
            f"{examples.features.shape[1:]}: {type(error).__name__}",
            hint="hand in the features as the model was trained on them, or the recipe's own files",
        ) from error
    rows = np.arange(1, len(examples) + 1, dtype=np.int64) if given.rows is None else given.rows
    return Group(
        outputs=Outputs(logits=logits, labels=examples.labels),
        examples=examples,
        rows=rows,
        columns=given.columns,
    )


def _verify_disjoint(subject: Subject) -> None:
    members, non_members = subject.members.examples, subject.non_members.examples
    if members is None or non_members is None:
        _verify_answers_differ(subject.members.outputs, subject.non_members.outputs)
        return
    shapes = {members.features.shape[1:], non_members.features.shape[1:]}
    if len(shapes) > 1:
        raise DataError("E-AUDIT-FEATURES", f"expected records of one shape, got {sorted(shapes)}")
    trained, others = record_keys(members), record_keys(non_members)
    _refuse_shared(trained, others, "non-members", "members")
    if subject.population is not None and subject.population.examples is not None:
        audited = np.concatenate([trained, others])
        _refuse_shared(audited, record_keys(subject.population.examples), "population", "audited")


def _verify_answers_differ(members: Outputs, non_members: Outputs) -> None:
    """Refuse saved answers of which many stand on both sides, where answers hardly ever repeat.

    Answers that were rounded, or are saturated, repeat by chance: nothing is said of those.
    """
    first, second = (
        np.unique(np.column_stack([side.logits, side.labels]), axis=0)
        for side in (members, non_members)
    )
    if min(len(first) / len(members), len(second) / len(non_members)) < _LEAST_DISTINCT:
        return
    both = np.unique(np.concatenate([first, second]), axis=0)
    shared = len(first) + len(second) - len(both)
    if shared > _MOST_SHARED * min(len(first), len(second)):
        raise DataError(
            "E-AUDIT-OVERLAP",
            f"expected no record on two sides, got {shared} of {len(non_members)} non-members "
            "whose answer and label are, to the last bit, those of members",
            hint="leave them out: whether such a record is a member has no answer",
        )


def _refuse_shared(
    first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64], name: str, other: str
) -> None:
    shared = int(np.isin(second, first).sum())
    if shared:
        raise DataError(
            "E-AUDIT-OVERLAP",
            f"expected no record on two sides, got {shared} of {len(second)} records of the {name} "
            f"whose features and label are also among the {other} records",
            hint="leave them out: whether such a record is a member has no answer",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Disjoint:
    """Groups of records without any that stands on two sides.

    Attributes:
        members, non_members, population: what is left.
        trained_too: members that were left out: the target was trained on them all the same.
        dropped: how many records were left out of all groups.
    """

    members: Records
    non_members: Records
    population: Records | None
    trained_too: Examples
    dropped: int


def without_overlap(members: Records, non_members: Records, population: Records | None) -> Disjoint:
    """Leave out records that stand on two sides, from both of them.

    From one side alone would be a fault: common records would then be all on the other, and a probe
    that finds them would seem to find members.
    """
    trained, others = record_keys(members.examples), record_keys(non_members.examples)
    shared = np.isin(trained, others)
    rest = None
    dropped = int(shared.sum()) + int(np.isin(others, trained).sum())
    if population is not None:
        keys = record_keys(population.examples)
        known = np.isin(keys, np.concatenate([trained, others]))
        rest = _taken(population, np.flatnonzero(~known))
        dropped += int(known.sum())
    return Disjoint(
        members=_taken(members, np.flatnonzero(~shared)),
        non_members=_taken(non_members, np.flatnonzero(~np.isin(others, trained))),
        population=rest,
        trained_too=_taken(members, np.flatnonzero(shared)).examples,
        dropped=dropped,
    )


def _taken(records: Records, rows: Int64Array) -> Records:
    examples, numbers = records.examples, records.rows
    return Records(
        examples=Examples(features=examples.features[rows], labels=examples.labels[rows]),
        rows=rows + 1 if numbers is None else numbers[rows],
        columns={name: texts[rows] for name, texts in records.columns.items()},
    )
