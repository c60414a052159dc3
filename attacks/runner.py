"""The runner: every probe of a plan against one target, and what comes of it.

docs/auditing.md has an example, which the tests run.

Trusts: the subject's word on who is a member. Promises, in order:

1. Records are mixed before any probe sees them, and membership stays here (attacks/probe.py).
2. A probe that cannot run is listed with what it lacked; none is left out in silence.
3. Ctrl-C ends the audit, not what is finished: findings made so far are returned, marked
   ``interrupted``; finished reference models stay in the cache.
4. The same subject, plan and seed give the same result. Call ``torch.set_num_threads(1)`` first
   where it has to be the same to the last digit on machines with other numbers of cores.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tacit.attacks.arrangement import Arrangement, arranged, part_of, queried_rows, rng_for
from tacit.attacks.membership.label_only import BoundaryDistance
from tacit.attacks.probe import Evidence, Need
from tacit.attacks.reference_models import ReferencePlan, train, why_no_references
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.results import AuditTrail, result_of
from tacit.attacks.scoring import Scored
from tacit.core.errors import AppError, ConfigError, DataError, TacitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tacit.attacks.findings import AuditResult
    from tacit.attacks.plans import AuditPlan
    from tacit.attacks.probe import Probe
    from tacit.attacks.reference_cache import ReferenceCache
    from tacit.attacks.subject import Subject
    from tacit.attacks.target import Float64Array, Int64Array

_LEAST_TO_STAND_IN = 4  # references: with fewer, a stand-in leaves none to compare it with
_LEAST_TO_HALVE = 8
_COST_OF_REFERENCE, _COST_OF_QUERIES, _COST_OF_PROBE = 8.0, 20.0, 1.0  # guesses, for time left

_LACKING = {
    Need.QUERIES: "a target that can be asked: only predictions were handed in",
    Need.WEIGHTS: "the model's weights",
    Need.POPULATION: "a population: records of the same source that are not audited",
    Need.POPULATION_RECORDS: "a population with its features",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an audit is.

    Attributes:
        stage: what is done now.
        share: of the whole, from 0 to 1: a guess.
    """

    stage: str
    share: float


def run_audit(
    subject: Subject,
    plan: AuditPlan,
    *,
    seed: int,
    progress: Callable[[Progress], None] | None = None,
    cache: ReferenceCache | None = None,
    workers: int = 1,
) -> AuditResult:
    """Attack a target with every probe of a plan.

    Args:
        subject: the target's answers for records whose membership is known
            (:func:`tacit.attacks.subject.subject_of_model`).
        plan: one of :data:`tacit.attacks.plans.PLANS`, or one of your own.
        seed: of the order of records, the reference models and the probes' own draws.
        progress: called now and then.
        cache: keeps reference models' answers between audits of the same records.
        workers: processes that train reference models, of one thread each.

    Raises:
        UsageError: the plan names a probe that there is not (``E-AUDIT-PROBE``).
        UnavailableError: the cache cannot be written, or a worker ended.
        AppError: the recipe's model factory is not installed, or failed.
    """
    verify_probes(plan.probes)
    audit = _Audit(
        subject=subject, plan=plan, seed=seed, cache=cache, workers=workers, tell=progress
    )
    interrupted = False
    try:
        audit.run()
    except KeyboardInterrupt:
        interrupted = True
    return audit.result(interrupted=interrupted)


def verify_probes(names: Sequence[str]) -> None:
    """Refuse names that the registry does not have, and an empty list.

    Raises:
        UsageError: as said (``E-AUDIT-PROBE``).
    """
    unknown = [name for name in names if name not in MEMBERSHIP]
    if unknown or not names:
        raise UsageError(
            "E-AUDIT-PROBE",
            f"expected names of probes, got {', '.join(unknown) or 'none'}",
            hint=f"There are: {', '.join(MEMBERSHIP)}.",
        )


@dataclass(kw_only=True)
class _Audit:
    """One audit on its way: what is finished so far."""

    subject: Subject
    plan: AuditPlan
    seed: int
    cache: ReferenceCache | None
    workers: int
    tell: Callable[[Progress], None] | None
    trail: AuditTrail = field(init=False)
    evidence: Evidence = field(init=False)
    references: ReferencePlan | str = field(init=False)
    done: float = 0.0
    total: float = 1.0

    def __post_init__(self) -> None:
        self.references = why_no_references(self.subject, self.plan, self._wanting())
        arrangement = arranged(
            self.subject, with_references=isinstance(self.references, ReferencePlan), seed=self.seed
        )
        self.trail = AuditTrail(subject=self.subject, plan=self.plan, arrangement=arrangement)
        self.evidence = arrangement.evidence
        self.total = max(1.0, self._cost_of_all())

    @property
    def arrangement(self) -> Arrangement:
        return self.trail.arrangement

    def run(self) -> None:
        """Score probes without references, train those, then score the rest."""
        wanting = self._wanting()
        for name in self.plan.probes:
            if name not in wanting:
                self._score(MEMBERSHIP[name])
        if isinstance(self.references, ReferencePlan):
            self._train(self.references)
            for name in list(self.trail.scored):  # does nothing where no reference came of it
                self._stand_in(name)
        for name in self.plan.probes:
            if name in wanting:
                self._score(MEMBERSHIP[name])
                self._stand_in(name)

    def result(self, *, interrupted: bool) -> AuditResult:
        """Return what the finished part comes to."""
        self._report("statistics")
        return result_of(
            self.trail, seed=self.seed, interrupted=interrupted, replicates=self._replicates
        )

    def _wanting(self) -> list[str]:
        return [name for name in self.plan.probes if Need.REFERENCES in MEMBERSHIP[name].needs]

    def _train(self, references: ReferencePlan) -> None:
        before = self.done
        cost = _COST_OF_REFERENCE * references.models

        def told(done: int, total: int) -> None:
            self.done = before + cost * done / max(1, total)
            self._report(f"{references.models} reference models")

        told(0, 1)
        try:
            trained, finding = train(
                references,
                self.arrangement,
                seed=self.seed,
                cache=self.cache,
                workers=self.workers,
                progress=told,
            )
        except (AppError, ConfigError) as error:  # what needs none is finished, and stands
            self.references = f"{error.message} [{error.code}]"
            if error.code == "E-TRAINING-DIVERGED":
                self.trail.diverged = error.message
            return
        self.evidence = dataclasses.replace(self.evidence, references=trained)
        self.trail.references = finding
        self.done = before + cost

    def _score(self, probe: Probe) -> None:
        # In the order of the Enum: a set's own order changes from process to process.
        lacking = [n for n in Need if n in probe.needs and not self.evidence.has(n)]
        if lacking:
            self.trail.skipped[probe.name] = (
                f"it lacked {'; '.join(self._lack(n) for n in lacking)}"
            )
            return
        self._report(probe.name)
        rows = self._rows(probe)
        evidence = (
            part_of(self.evidence, rows)
            if len(rows) < len(self.evidence.outputs)
            else self.evidence
        )
        try:
            scores = self._attack(probe, evidence)
        except TacitError as error:
            self.trail.skipped[probe.name] = f"{error.message} [{error.code}]"
            return
        empty = np.zeros((0, len(rows)))
        self.trail.scored[probe.name] = Scored(
            probe=probe.name,
            source=probe.source,
            rows=rows,
            scores=scores,
            stand_in_scores=empty,
            stand_in_is_in=empty.astype(np.bool_),
        )
        self.done += self._cost(probe)

    def _attack(self, probe: Probe, evidence: Evidence) -> Float64Array:
        if isinstance(probe, BoundaryDistance):
            probe = dataclasses.replace(probe, queries=self.plan.queries)
        scores = probe.scores(evidence, rng=rng_for(self.seed, f"probe {probe.name}"))
        if np.isnan(scores).any():
            raise DataError(
                "E-AUDIT-SCORES",
                f"expected a score for each record, got none for {np.isnan(scores).sum()} of them",
            )
        return scores

    def _stand_in(self, name: str) -> None:
        """Attack some references as if they were the target, for realistic thresholds."""
        scored, references = self.trail.scored.get(name), self.evidence.references
        probe = MEMBERSHIP[name]
        if scored is None or references is None or len(references) < _LEAST_TO_STAND_IN:
            return
        if probe.needs & {Need.QUERIES, Need.WEIGHTS}:
            return  # a reference's answers are kept, its weights are not
        pairs = np.linspace(0, len(references) // 2 - 1, self.plan.stand_ins).astype(int)
        scores, is_in = [], []
        for pair in sorted({int(pair) for pair in pairs}):
            self._report(f"{name}, thresholds")
            evidence, inside = self.evidence.with_reference_as_target(2 * pair)
            try:
                scores.append(self._attack(probe, evidence))
            except TacitError:
                return  # its thresholds stay optimistic, which the report shows
            is_in.append(inside)
        self.trail.scored[name] = dataclasses.replace(
            scored, stand_in_scores=np.stack(scores), stand_in_is_in=np.stack(is_in)
        )
        self.done += _COST_OF_PROBE * len(scores)

    def _replicates(self, name: str) -> list[Float64Array]:
        """Return scores with either half of the references, to see who is named again."""
        probe, references = MEMBERSHIP[name], self.evidence.references
        if references is None or Need.REFERENCES not in probe.needs:
            return []
        if len(references) < _LEAST_TO_HALVE:
            return []
        pair = np.arange(len(references)) // 2
        halves = [references.take(np.flatnonzero(pair % 2 == half)) for half in (0, 1)]
        try:
            return [
                self._attack(probe, dataclasses.replace(self.evidence, references=half))
                for half in halves
            ]
        except TacitError:
            return []  # nobody knows then who would be named again, and the report says null

    def _rows(self, probe: Probe) -> Int64Array:
        everybody = np.arange(len(self.evidence.outputs), dtype=np.int64)
        if Need.QUERIES not in probe.needs or self.plan.query_records >= len(everybody):
            return everybody
        return queried_rows(
            self.arrangement.is_member,
            count=self.plan.query_records,
            rng=rng_for(self.seed, "records that are queried"),
        )

    def _lack(self, need: Need) -> str:
        if need is Need.REFERENCES:
            why = self.references if isinstance(self.references, str) else "none were trained"
            return f"reference models: {why}"
        return _LACKING[need]

    def _cost(self, probe: Probe) -> float:
        return _COST_OF_QUERIES if Need.QUERIES in probe.needs else _COST_OF_PROBE

    def _cost_of_all(self) -> float:
        probes = sum(self._cost(MEMBERSHIP[name]) for name in self.plan.probes)
        if not isinstance(self.references, ReferencePlan):
            return probes
        stand_ins = _COST_OF_PROBE * self.plan.stand_ins * len(self.plan.probes)
        return probes + stand_ins + _COST_OF_REFERENCE * self.references.models

    def _report(self, stage: str) -> None:
        if self.tell is not None:
            self.tell(Progress(stage=stage, share=min(1.0, self.done / self.total)))
