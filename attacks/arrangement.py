"""Whom an audit looks at, and in which order: so that a probe cannot tell who is a member.

Promises: members and non-members are interleaved in a random order that follows from the seed and
from what the records hold, whatever order they came in; so does the order of the population.
Membership is kept apart from everything that a probe sees. Where reference models are trained, as
many members as non-members are audited, so that a reference, which has half of them and all other
members, is as large as the target (attacks/references.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.design import choose_audited
from tacit.attacks.probe import Evidence
from tacit.attacks.subject import keys_of, record_keys
from tacit.attacks.target import Outputs
from tacit.learning.prepared import Examples
from tacit.learning.shadow_recipe import derived_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator

    from tacit.attacks.design import Keys
    from tacit.attacks.subject import Group, Subject, TextArray
    from tacit.attacks.target import BoolArray, Int64Array

_LEAST_POPULATION = 100  # non-members that are left over and serve as a population


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """Audited records in no telling order.

    Attributes:
        evidence: what every probe sees; without references so far.
        is_member: bool ``(n,)``: what no probe sees.
        rows: int64 ``(n,)``: each record's number in its own file.
        columns: texts ``(n,)`` by column, for slices.
        always: trained on and not audited: these belong into every reference; None for none.
        population_is_left_over: whether non-members that are not audited serve as population.
    """

    evidence: Evidence
    is_member: BoolArray
    rows: Int64Array
    columns: Mapping[str, TextArray]
    always: Examples | None
    population_is_left_over: bool


def rng_for(seed: int, purpose: str) -> Generator:
    """Return a generator for one purpose: no two purposes or seeds share a stream."""
    return np.random.default_rng(derived_seed(seed, purpose))


def arranged(subject: Subject, *, with_references: bool, seed: int) -> Arrangement:
    """Choose whom to audit, and mix them.

    Args:
        subject: what was handed in.
        with_references: whether reference models are to be trained.
        seed: of the choice and the order.
    """
    members, others = subject.members, subject.non_members
    is_member = np.arange(len(members) + len(others)) < len(members)
    outputs = _outputs(members, others)
    examples = _examples(members, others)
    keys = _keys(outputs, examples)
    audited = np.arange(len(is_member), dtype=np.int64)
    beyond = audited[:0]
    if with_references:
        audited, beyond = choose_audited(is_member, keys, rng=rng_for(seed, "audited records"))
    by_key = audited[np.argsort(keys[audited], kind="stable")]
    order = rng_for(seed, "order of records").permutation(by_key)
    left = np.flatnonzero(~is_member & ~np.isin(keys, keys[audited]))
    uses_left = subject.population is None and len(left) >= _LEAST_POPULATION
    population, strangers = (
        _by_key(outputs.take(left), take_examples(examples, left))
        if uses_left
        else _population(subject.population)
    )
    evidence = Evidence(
        outputs=outputs.take(order),
        examples=take_examples(examples, order),
        target=subject.target,
        population=population,
        population_examples=strangers,
    )
    names = np.array(subject.class_names, dtype=object)
    shared = [name for name in members.columns if name in others.columns]
    columns = {
        name: np.concatenate([members.columns[name], others.columns[name]]) for name in shared
    }
    return Arrangement(
        evidence=evidence,
        is_member=is_member[order],
        rows=np.concatenate([members.rows, others.rows])[order],
        columns={
            "class": names[evidence.outputs.labels],
            **{name: texts[order] for name, texts in columns.items()},
        },
        always=_joined(take_examples(examples, beyond), subject.trained_too),
        population_is_left_over=uses_left,
    )


def take_examples(examples: Examples | None, rows: Int64Array) -> Examples | None:
    """Return some of the records."""
    if examples is None:
        return None
    return Examples(features=examples.features[rows], labels=examples.labels[rows])


def part_of(evidence: Evidence, rows: Int64Array) -> Evidence:
    """Return the evidence for some of the audited records."""
    references = evidence.references
    if references is not None:
        references = dataclasses.replace(
            references, logits=references.logits[:, rows], is_in=references.is_in[:, rows]
        )
    return dataclasses.replace(
        evidence,
        outputs=evidence.outputs.take(rows),
        examples=take_examples(evidence.examples, rows),
        references=references,
    )


def queried_rows(is_member: BoolArray, *, count: int, rng: Generator) -> Int64Array:
    """Return audited records for probes whose queries are dear: half of them members, in order."""
    sides = (np.flatnonzero(is_member), np.flatnonzero(~is_member))
    chosen = [rng.permutation(side)[: count // 2] for side in sides]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _outputs(first: Group, second: Group) -> Outputs:
    return Outputs(
        logits=np.concatenate([first.outputs.logits, second.outputs.logits]),
        labels=np.concatenate([first.outputs.labels, second.outputs.labels]),
    )


def _examples(first: Group, second: Group) -> Examples | None:
    if first.examples is None or second.examples is None:
        return None
    return Examples(
        features=np.concatenate([first.examples.features, second.examples.features]),
        labels=np.concatenate([first.examples.labels, second.examples.labels]),
    )


def _joined(first: Examples | None, second: Examples | None) -> Examples | None:
    parts = [part for part in (first, second) if part is not None and len(part)]
    if not parts:
        return None
    return Examples(
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def _keys(outputs: Outputs, examples: Examples | None) -> Keys:
    """Return each record's key; where records are not there, that of the answer."""
    if examples is not None:
        return record_keys(examples)
    return keys_of(outputs.logits, outputs.labels)


def _by_key(outputs: Outputs, examples: Examples | None) -> tuple[Outputs, Examples | None]:
    order = np.argsort(_keys(outputs, examples), kind="stable")
    return outputs.take(order), take_examples(examples, order)


def _population(group: Group | None) -> tuple[Outputs | None, Examples | None]:
    return (None, None) if group is None else _by_key(group.outputs, group.examples)
