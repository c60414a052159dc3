"""A probe: one attack, from what it may see to a score per record.

A probe is never told who is a member: it gets the audited records in no telling order, and the
runner, which knows, scores it. So nothing can be chosen on what it is evaluated on. What needs
choosing (a threshold, a temperature, a curve) is chosen on reference models taken for the target:
whoever trains a reference knows what went into it.

Larger score = member, for every probe.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tacit.attacks.target import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    ModelTarget,
    Outputs,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator

    from tacit.learning.prepared import Examples


class Need(enum.Enum):
    """What a probe cannot do without."""

    QUERIES = "queries"  # a target that can be asked about other records
    WEIGHTS = "weights"  # the model itself
    REFERENCES = "references"  # models trained by the same recipe on records of known membership
    POPULATION = "population"  # records of the same kind that nobody audits
    POPULATION_RECORDS = "population records"  # and what they hold, beside what is said of them


@dataclass(frozen=True, kw_only=True)
class References:
    """Models trained by the target's recipe, each on a known half of the pool.

    They come in pairs: model 2k + 1 was trained on the records that model 2k was not, so every
    record is in half of the models, whatever half of them is taken pair by pair.

    Attributes:
        logits: float32, ``(models, n, classes)``: of the audited records.
        is_in: bool, ``(models, n)``: which audited records each was trained on.
        population_logits: float32, ``(models, p, classes)``: of the population; p may be 0.
    """

    logits: Float32Array
    is_in: BoolArray
    population_logits: Float32Array

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, models: Sequence[int] | Int64Array) -> References:
        """Return some of the models."""
        rows = np.asarray(models, dtype=np.int64)
        return References(
            logits=self.logits[rows],
            is_in=self.is_in[rows],
            population_logits=self.population_logits[rows],
        )

    def without_pair(self, model: int) -> References:
        """Return all models but one and its complement, which tells as much as the model does."""
        pair = model // 2
        return self.take([row for row in range(len(self)) if row // 2 != pair])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a probe sees.

    Attributes:
        outputs: of the target, for the ``n`` audited records.
        examples: the audited records; None where only predictions were handed in.
        target: None where it cannot be asked.
        references: None where none were trained.
        population: outputs of the target for ``p`` records of the same kind that are not audited,
            and that neither target nor references were trained on; None without.
        population_examples: those records; None where only predictions were handed in.
    """

    outputs: Outputs
    examples: Examples | None = None
    target: Target | None = None
    references: References | None = None
    population: Outputs | None = None
    population_examples: Examples | None = None

    def has(self, need: Need) -> bool:
        """Return whether a probe that needs this can run."""
        match need:
            case Need.QUERIES:
                return self.target is not None and self.examples is not None
            case Need.WEIGHTS:
                return isinstance(self.target, ModelTarget) and self.examples is not None
            case Need.REFERENCES:
                return self.references is not None
            case Need.POPULATION:
                return self.population is not None and len(self.population) > 0
            case Need.POPULATION_RECORDS:
                records = self.examples is not None and self.population_examples is not None
                return records and self.has(Need.POPULATION)

    def with_reference_as_target(self, model: int) -> tuple[Evidence, BoolArray]:
        """Return the evidence of an attack on a reference, and its true membership, ``(n,)``.

        The reference and its complement are no references of that attack.

        Raises:
            ValueError: there are no references.
        """
        if self.references is None:
            raise ValueError("expected references")
        population = self.population
        if population is not None:
            population = Outputs(
                logits=self.references.population_logits[model].astype(np.float64),
                labels=population.labels,
            )
        evidence = replace(
            self,
            outputs=Outputs(
                logits=self.references.logits[model].astype(np.float64), labels=self.outputs.labels
            ),
            target=None,
            references=self.references.without_pair(model),
            population=population,
        )
        return evidence, self.references.is_in[model]


class Probe(Protocol):
    """One attack.

    Attributes:
        name: in lower case with dashes, as reports and plans spell it.
        source: the paper.
        needs: without which it does not run; a report then says what was missing.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def needs(self) -> frozenset[Need]: ...

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:
        """Return a score per audited record, float64, ``(n,)``; larger = member."""
