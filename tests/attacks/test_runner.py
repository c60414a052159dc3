"""The runner: what leaks is found, what does not is not, and nothing is left out in silence."""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.attacks.arrangement import arranged
from tacit.attacks.findings import AuditResult, Outcome, Threshold, to_json
from tacit.attacks.null_check import self_test
from tacit.attacks.plans import PLANS
from tacit.attacks.probe import Need
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.runner import Progress, run_audit
from tacit.attacks.scoring import Scored
from tacit.attacks.subject import subject_of_outputs
from tacit.attacks.target import Outputs
from tacit.core.errors import UsageError
from tests.attacks.desk import MEMBERS, SIDE, SPEC, TINY, subject, trained, untrained

if TYPE_CHECKING:
    from tacit.attacks.target import BoolArray


@pytest.fixture(scope="module")
def leaking() -> AuditResult:
    return run_audit(subject(trained()), TINY, seed=1)


def test_an_overfit_model_is_found(leaking: AuditResult) -> None:
    """A model that knows its records by heart: evidence, with the recipe confirmed."""
    assert leaking.outcome is Outcome.EVIDENCE
    assert leaking.is_conclusive
    assert leaking.references is not None
    assert leaking.references.agrees
    assert [probe.probe for probe in leaking.probes] == list(TINY.probes)
    assert leaking.skipped == ()
    assert leaking.line.startswith(f"{leaking.strongest}: evidence: at FPR ")


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_is_not(seed: int) -> None:
    """A model that never saw the records shows nothing; without a recipe nothing else is said."""
    result = run_audit(subject(untrained(), recipe=None), TINY, seed=seed)
    assert result.outcome is Outcome.NO_EVIDENCE
    assert f"n = {SIDE} members and {SIDE} non-members" in result.line
    assert "would have been seen" in result.line


def test_the_same_seed_gives_the_same_result(leaking: AuditResult) -> None:
    """Nothing depends on the clock, on memory or on an earlier audit; the seed does matter."""
    assert to_json(run_audit(subject(trained()), TINY, seed=1)) == to_json(leaking)
    other = run_audit(subject(trained()), TINY, seed=2)
    assert to_json(other)["probes"] != to_json(leaking)["probes"]


def test_no_probe_can_tell_members_by_their_place() -> None:
    """Records are mixed: half of the first half are members, others with each seed."""
    first, second = (
        arranged(subject(untrained()), with_references=True, seed=seed).is_member for seed in (0, 1)
    )
    assert first.sum() == second.sum() == SIDE
    assert 0.35 < first[:SIDE].mean() < 0.65
    assert (first != second).any()


def test_what_is_missing_is_listed() -> None:
    """Of saved predictions, every other probe of the plan is skipped with what it lacked."""
    members, others = (
        group.outputs for group in (subject(trained()).members, subject(trained()).non_members)
    )
    plan = dataclasses.replace(TINY, probes=tuple(MEMBERSHIP))
    result = run_audit(subject_of_outputs(members=members, non_members=others), plan, seed=0)
    run = {probe.probe for probe in result.probes}
    assert run == {"loss", "modified-entropy"}
    assert {each.probe for each in result.skipped} == set(MEMBERSHIP) - run
    reasons = {each.probe: each.reason for each in result.skipped}
    assert reasons["lira-online"] == "it lacked reference models: only predictions were handed in"
    assert "only predictions were handed in" in reasons["label-only-boundary"]
    assert "weights" in reasons["gradient-norm-all"]
    assert "population" in reasons["quantile"]


def test_ctrl_c_keeps_what_is_finished() -> None:
    """Stopped while reference models are trained: what ran before stands, the rest is listed."""

    def stop(progress: Progress) -> None:
        if "reference models" in progress.stage:
            signal.raise_signal(signal.SIGINT)

    result = run_audit(subject(trained()), TINY, seed=1, progress=stop)
    assert result.interrupted
    assert not result.is_conclusive
    assert [probe.probe for probe in result.probes] == ["loss", "modified-entropy"]
    assert {each.probe for each in result.skipped} == {
        "lira-online",
        "rmia-offline",
        "base-offline",
    }
    assert {each.reason for each in result.skipped} == {"the audit was interrupted before it"}
    assert result.outcome is Outcome.INCONCLUSIVE
    assert result.line.startswith("INCONCLUSIVE: the audit was interrupted before its end. What ")
    assert {probe.outcome for probe in result.probes} == {Outcome.EVIDENCE}
    assert result.line.endswith("stands by itself, below: loss, modified-entropy.")


def test_a_recipe_that_does_not_reproduce_the_target_is_said() -> None:
    """References of one step beside a target of many: nothing follows from any that uses them."""
    training = dataclasses.replace(SPEC.training, local_steps=1, learning_rate=1e-4)
    other = dataclasses.replace(SPEC, training=training)
    alone = ("loss", "modified-entropy", "quantile", "label-only-noise", "gradient-norm-last")
    using = tuple(n for n, p in MEMBERSHIP.items() if Need.REFERENCES in p.needs)
    families = {name.split("-")[0] for name in using}
    assert families == {"base", "lira", "rmia", "calibrated", "shadow"}
    plan = dataclasses.replace(TINY, probes=(*alone, *using), query_records=100, queries=10)
    result = run_audit(subject(trained(), recipe=other), plan, seed=0)
    assert result.references is not None
    assert not result.references.agrees
    assert (result.outcome, result.is_conclusive) == (Outcome.INCONCLUSIVE, False)
    assert result.line.startswith("INCONCLUSIVE: the recipe does not reproduce the target: accur")
    assert "What would change it: audit with the run.toml that made this model" in result.line
    outcomes = {probe.probe: probe.outcome for probe in result.probes}
    assert [outcomes[name] for name in using] == [Outcome.INCONCLUSIVE] * len(using)
    assert outcomes["loss"] is Outcome.EVIDENCE
    assert Outcome.INCONCLUSIVE not in [outcomes[name] for name in alone]
    assert result.strongest in alone
    kinds = {point.threshold for probe in result.probes for point in probe.points}
    assert kinds == {Threshold.OPTIMISTIC}


def test_references_that_diverge_are_said() -> None:
    """A recipe that makes no model is not the target's: the whole is inconclusive, not the rest."""
    training = dataclasses.replace(SPEC.training, optimizer="sgd", learning_rate=1e38)
    result = run_audit(
        subject(trained(), recipe=dataclasses.replace(SPEC, training=training)), TINY, seed=0
    )
    assert [probe.probe for probe in result.probes] == ["loss", "modified-entropy"]
    assert all("E-TRAINING-DIVERGED" in each.reason for each in result.skipped)
    assert (result.outcome, result.is_conclusive) == (Outcome.INCONCLUSIVE, False)
    assert {probe.outcome for probe in result.probes} == {Outcome.EVIDENCE}


def test_realistic_thresholds_come_from_references(leaking: AuditResult) -> None:
    """Each point stands twice: read off the curve, and at a threshold that references chose."""
    for probe in leaking.probes:
        kinds = [(point.threshold, point.asked_fpr) for point in probe.points]
        assert kinds == [(kind, fpr) for kind in Threshold for fpr in TINY.fprs]
        realistic = [p for p in probe.points if p.threshold is Threshold.REALISTIC]
        assert all(point.chance is None and not point.is_evidence for point in realistic)


def test_members_are_named_by_their_row(leaking: AuditResult) -> None:
    """The strongest probe names members by the row of their file; the others name nobody."""
    for probe in leaking.probes:
        assert bool(probe.exposed) == (probe.probe == leaking.strongest)
        for each in probe.exposed:
            assert each.label == SPEC.data.classes[MEMBERS.labels[each.row - 1]]


def test_slices_tell_classes_apart(leaking: AuditResult) -> None:
    """Findings by class add up to all records; a slice with too few records gets no figures."""
    for probe in leaking.probes:
        classes = [each for each in probe.slices if each.column == "class"]
        assert sum(each.members for each in classes) == SIDE
        assert all(each.auc is not None for each in classes)
    strict = dataclasses.replace(TINY, probes=("loss",), least_slice=SIDE)
    (only,) = run_audit(subject(untrained()), strict, seed=0).probes
    assert all(each.auc is None and each.tpr is None for each in only.slices)


def test_a_self_test_that_fails_voids_the_report() -> None:
    """Held to a level at which everything is evidence, permuted membership shows evidence."""
    scored, is_member = noise_scores()
    held = self_test([scored], is_member, plan=TINY, level=0.001, seed=0)
    failed = self_test([scored], is_member, plan=TINY, level=1.0, seed=0)
    assert held is not None
    assert failed is not None
    assert (held.passed, failed.passed) == (True, False)
    assert failed.false_evidence == 1.0


def noise_scores() -> tuple[Scored, BoolArray]:
    rng = np.random.default_rng(5)
    nothing = np.zeros((0, 100))
    scored = Scored(
        probe="loss",
        source="-",
        rows=np.arange(100),
        scores=rng.normal(size=100),
        stand_in_scores=nothing,
        stand_in_is_in=nothing.astype(bool),
    )
    return scored, rng.permutation(np.arange(100) < 50)


def test_a_name_that_is_no_probe_is_refused() -> None:
    """A misspelt probe is refused with the names that there are, before anything is run."""
    plan = dataclasses.replace(TINY, probes=("lira",))
    with pytest.raises(UsageError, match="E-AUDIT-PROBE") as caught:
        run_audit(subject(untrained()), plan, seed=0)
    assert "lira-online" in caught.value.hint


def test_any_probe_can_be_asked_for_alone() -> None:
    """Every plan says how much its probes may query, also for those that it would not run."""
    for plan in PLANS.values():
        small = dataclasses.replace(plan, probes=("label-only-noise",), query_records=60)
        (probe,) = run_audit(subject(untrained(), recipe=None), small, seed=0).probes
        assert (probe.members, probe.non_members) == (30, 30)
        assert min(plan.query_records, plan.queries) > 0


def test_plans_name_probes_that_there_are() -> None:
    """Every plan's probes are in the registry; standard and full run them all."""
    assert set(PLANS["quick"].probes) < set(MEMBERSHIP)
    assert PLANS["standard"].probes == PLANS["full"].probes == tuple(MEMBERSHIP)
    assert all(plan.references % 2 == 0 for plan in PLANS.values())


def test_surplus_non_members_serve_as_population() -> None:
    """Where nobody handed in a population, non-members beyond the members' number are one."""
    outputs = subject(untrained()).non_members
    more = Outputs(
        logits=np.concatenate([scale * outputs.outputs.logits for scale in (1.0, 2.0, 3.0)]),
        labels=np.tile(outputs.outputs.labels, 3),
    )
    few = subject_of_outputs(members=subject(untrained()).members.outputs, non_members=more)
    with_references = arranged(few, with_references=True, seed=0)
    assert len(with_references.is_member) == 2 * SIDE
    assert with_references.evidence.population is not None
    assert len(with_references.evidence.population) == 2 * SIDE
    without = arranged(few, with_references=False, seed=0)
    assert (len(without.is_member), without.evidence.population) == (4 * SIDE, None)
