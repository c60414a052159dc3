"""Noised metrics: the whole run's evaluations within one epsilon, and a fair estimate from sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.results import SUM_CORRECT, SUM_LOSS, SUM_WRONG
from tacit.core.specification import PrivacyMode, RunSpec, SecureAggregationSpec
from tacit.privacy.accounting import epsilon_of
from tacit.privacy.evaluation_plan import ANSWERS, LOSS, estimate_metrics, evaluation_plan

MakeRun = Callable[..., RunSpec]
DP = {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4}


def evaluated(make_run: MakeRun, **sections: Any) -> RunSpec:
    return make_run(**{"evaluation": {"every": 3, "epsilon": 0.5}, **sections})


def test_epsilon_is_for_all_evaluations_together(make_run: MakeRun) -> None:
    """Ten rounds, every third: three releases, at the run's delta, within the target."""
    plan = evaluation_plan(evaluated(make_run))
    assert plan.releases == 3
    event = plan.mechanism()
    cost = epsilon_of(event.noise_multiplier, event.sample_rate, 3 * event.steps, 1e-4)
    assert plan.epsilon == cost == plan.epsilon_after(3)
    assert cost == pytest.approx(0.5, rel=1e-6)
    assert cost <= 0.5 * (1 + 1e-9)


def test_an_owners_records_change_nothing_of_the_noise(make_run: MakeRun) -> None:
    """Sensitivity follows from the declaration: one answer, and half a loss bound in weight."""
    plan = evaluation_plan(evaluated(make_run))
    assert plan.query.clip == pytest.approx(math.sqrt(1.25))
    assert plan.loss_bound == pytest.approx(4 * math.log(2))
    assert plan.query.deviation(LOSS) == pytest.approx(
        plan.loss_bound * plan.query.deviation(ANSWERS)
    )


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"privacy": {"mode": "none"}}, "adds no noise"),
        ({"evaluation": {"epsilon": 1.0}}, "nothing is evaluated"),
        ({"evaluation": {"every": 11, "epsilon": 1.0}}, "nothing is evaluated"),
        ({"evaluation": {"every": 1, "epsilon": -1.0}}, "expected 0"),
        ({"evaluation": {"every": 1, "epsilon": math.inf}}, "expected a finite number"),
        ({"training": {"learning_rate": 1.0, "validation_fraction": 0.0}}, "nothing is held out"),
    ],
)
def test_an_epsilon_that_nothing_can_spend_is_a_problem_of_the_file(
    sections: dict[str, Any], problem: str, make_run: MakeRun
) -> None:
    """No private mode, no evaluation, no held-out records, no such number."""
    with pytest.raises(ConfigError) as caught:
        evaluated(make_run, **sections)
    assert any(problem in text for text in caught.value.problems)


def test_exact_metrics_have_no_plan(make_run: MakeRun) -> None:
    """Epsilon 0 is no noise, so there is nothing to derive."""
    with pytest.raises(ValueError, match=r"evaluation\.epsilon"):
        evaluation_plan(make_run(evaluation={"every": 1}))


def test_shared_noise_of_training_changes_nothing_of_the_metrics(make_run: MakeRun) -> None:
    """Under record-distributed, too, each owner's sums leave with that owner's own noise."""
    spec = evaluated(make_run)
    secure = SecureAggregationSpec(members=("a-1", "b-1", "c-1"))
    privacy = replace(spec.privacy, mode=PrivacyMode.RECORD_DISTRIBUTED)
    shared = replace(spec, privacy=privacy, secure_aggregation=secure)
    assert evaluation_plan(shared) == evaluation_plan(spec)


@pytest.mark.parametrize("mode", ["client-local", "central"])
def test_other_modes_have_no_mechanism_for_metrics(mode: str, make_run: MakeRun) -> None:
    """Record-level noise under another promise would be a wrong statement."""
    with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
        evaluation_plan(evaluated(make_run, privacy={**DP, "mode": mode}))


def test_next_to_no_noise_is_refused(make_run: MakeRun) -> None:
    """An epsilon of a hundred thousand is a mistake."""
    with pytest.raises(RefusedError, match="E-NOISE-TOO-SMALL"):
        evaluation_plan(evaluated(make_run, evaluation={"every": 1, "epsilon": 1e5}))


def test_metrics_are_ratios_of_the_sums_of_all_owners(make_run: MakeRun) -> None:
    """80 of 100 right, a mean loss of 0.4; more owners, more noise, a wider interval."""
    plan = evaluation_plan(evaluated(make_run, evaluation={"every": 10, "epsilon": 5.0}))
    loss = 40.0 - 100 * plan.loss_bound / 2
    totals = {SUM_CORRECT: 80.0, SUM_WRONG: 20.0, SUM_LOSS: loss}
    four = estimate_metrics(plan, totals, owners=4)
    nine = estimate_metrics(plan, totals, owners=9)
    assert four["accuracy"] == pytest.approx(0.8)
    assert four["loss"] == pytest.approx(0.4)
    for name in ("accuracy-interval", "loss-interval"):
        (low, high), (lower, higher) = four[name], nine[name]  # type: ignore[misc]
        assert lower < low < four[name.removesuffix("-interval")] < high < higher  # type: ignore[operator]


@pytest.mark.parametrize("right", [-200.0, 0.0, 3.0])
def test_sums_that_noise_hides_give_no_value(right: float, make_run: MakeRun) -> None:
    """A negative or tiny noised count: the interval is all that a value can be."""
    plan = evaluation_plan(evaluated(make_run, evaluation={"every": 10, "epsilon": 0.1}))
    shown = estimate_metrics(plan, {SUM_CORRECT: right, SUM_WRONG: 2.0, SUM_LOSS: -9.0}, owners=2)
    assert shown == {
        "accuracy": None,
        "accuracy-interval": [0.0, 1.0],
        "loss": None,
        "loss-interval": [0.0, plan.loss_bound],
    }


def test_values_stay_where_values_can_be(make_run: MakeRun) -> None:
    """Noise below zero at many records: an accuracy of more than one is shown as one, with room."""
    plan = evaluation_plan(evaluated(make_run, evaluation={"every": 10, "epsilon": 8.0}))
    shown = estimate_metrics(
        plan, {SUM_CORRECT: 1000.0, SUM_WRONG: -2.0, SUM_LOSS: -1400.0}, owners=1
    )
    assert shown["accuracy"] == 1.0
    assert shown["loss"] == 0.0
    low, high = shown["accuracy-interval"]  # type: ignore[misc]
    assert 0.99 < low < 0.999
    assert high == 1.0
