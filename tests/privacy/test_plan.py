"""A plan follows from the specification and the declared bound alone, and refuses the rest."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, RunSpec
from tacit.privacy.accounting import epsilon_of, noise_for
from tacit.privacy.plan import SENSITIVITY_MARGIN, PrivacyPlan, privacy_plan
from tacit.privacy.spec import BUILT_MODES

MakeRun = Callable[..., RunSpec]
PRIVACY = {"mode": "record-local", "clip": 0.5, "delta": 1e-4}


def test_the_run_costs_what_was_asked_for(make_run: MakeRun) -> None:
    """Rounds x local steps cost the target epsilon at the declared delta."""
    plan = privacy_plan(make_run(), records=100)
    assert plan.steps == 20
    assert plan.epsilon == pytest.approx(1.0, rel=1e-6)
    assert plan.epsilon == epsilon_of(plan.noise_multiplier, 1.0, 20, 1e-4)
    assert plan.epsilon_after(plan.releases) == plan.epsilon


def test_a_retried_round_costs_more(make_run: MakeRun) -> None:
    """An eleventh release of a run of ten rounds goes beyond its epsilon."""
    plan = privacy_plan(make_run(), records=100)
    assert plan.epsilon_after(0) == 0.0
    assert plan.epsilon_after(5) < plan.epsilon < plan.epsilon_after(11)


def test_the_normaliser_is_public(make_run: MakeRun) -> None:
    """It follows the declared records, the trained share and the sampling rate."""
    assert privacy_plan(make_run(), records=200).normaliser == pytest.approx(150.0)
    poisson = {**PRIVACY, "noise_multiplier": 1.0, "sampling": "poisson", "sample_rate": 0.1}
    assert privacy_plan(make_run(privacy=poisson), records=200).normaliser == pytest.approx(15.0)
    given = {**PRIVACY, "noise_multiplier": 1.0, "normaliser": 64.0}
    assert privacy_plan(make_run(privacy=given), records=200).normaliser == 64.0


def test_no_data_can_reach_a_plan() -> None:
    """The only argument beside the specification is the declared bound."""
    assert list(inspect.signature(privacy_plan).parameters) == ["spec", "records"]


def test_a_given_multiplier_is_taken_and_priced(make_run: MakeRun) -> None:
    """noise_multiplier in place of epsilon gives the epsilon that it costs."""
    plan = privacy_plan(make_run(privacy={**PRIVACY, "noise_multiplier": 3.0}), records=100)
    assert plan.noise_multiplier == 3.0
    assert plan.epsilon == epsilon_of(3.0, 1.0, 20, 1e-4)
    assert plan.noise_deviation == pytest.approx(1.5, rel=2e-5)
    assert plan.noise_deviation > 1.5


def test_mode_none_has_no_epsilon(make_run: MakeRun) -> None:
    """A run in the open promises nothing, and says so in its numbers."""
    plan = privacy_plan(make_run(privacy={"mode": "none"}), records=100)
    assert not plan.is_private
    assert (plan.epsilon, plan.noise_multiplier, plan.clip) == (math.inf, 0.0, math.inf)
    assert plan.epsilon_after(1) == math.inf
    with pytest.raises(ValueError, match="mode none"):
        plan.mechanism()


@pytest.mark.parametrize("mode", [mode.value for mode in PrivacyMode if mode not in BUILT_MODES])
def test_modes_without_a_mechanism_are_refused(make_run: MakeRun, mode: str) -> None:
    """Nothing leaves under the name of a mode that is not built."""
    run = make_run(privacy={**PRIVACY, "mode": mode, "epsilon": 1.0})
    with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
        privacy_plan(run, records=100)


def test_a_subject_costs_what_a_record_costs(make_run: MakeRun) -> None:
    """One clip per subject: the plan differs in the unit and in the most records of one only."""
    run = make_run(privacy={**PRIVACY, "epsilon": 1.0, "unit": "subject", "most_records": 20})
    plan = privacy_plan(run, records=100)
    by_record = privacy_plan(make_run(privacy={**PRIVACY, "epsilon": 1.0}), records=100)
    changes = {"unit": PrivacyUnit.SUBJECT, "most_records": 20}
    assert plan == dataclasses.replace(by_record, **changes)


def test_replacing_a_record_needs_twice_the_noise(make_run: MakeRun) -> None:
    """The multiplier is relative to the sensitivity: C when one comes or goes, 2C in exchange."""
    one = privacy_plan(make_run(privacy={**PRIVACY, "epsilon": 1.0}), records=100)
    replaced = {**PRIVACY, "epsilon": 1.0, "relation": "replace-one"}
    two = privacy_plan(make_run(privacy=replaced), records=100)
    assert (one.sensitivity, two.sensitivity) == (0.5, 1.0)
    assert two.noise_multiplier == one.noise_multiplier
    assert two.noise_deviation == 2.0 * one.noise_deviation
    assert two.epsilon == one.epsilon


def test_one_release_is_what_the_accountant_composes(make_run: MakeRun) -> None:
    """Multiplier, rate and steps of one release, composed over the rounds, cost the run's epsilon.

    The margin for rounding is in the noise, not in the multiplier.
    """
    sampled = {"noise_multiplier": 2.0, "sampling": "poisson", "sample_rate": 0.25}
    plan = privacy_plan(make_run(privacy=PRIVACY | sampled), records=100)
    one = plan.mechanism()
    assert (one.noise_multiplier, one.sample_rate, one.steps) == (2.0, 0.25, 2)
    assert epsilon_of(2.0, 0.25, plan.releases * 2, plan.delta) == plan.epsilon
    assert plan.noise_deviation == 2.0 * plan.sensitivity * (1 + SENSITIVITY_MARGIN)


def test_the_node_noises_whole_updates_of_any_app(make_run: MakeRun) -> None:
    """client-local: one noised step per round, at 2C, for the whole data set of the owner."""
    app: dict[str, Any] = {"model": None, "training": None, "app": {"client": "a.b:c"}}
    app["results"] = {"train": {"arrays": "model"}}
    privacy = {**PRIVACY, "mode": "client-local", "epsilon": 2.0}
    foreign = privacy_plan(make_run(privacy=privacy, **app), records=100)
    assert foreign == privacy_plan(make_run(privacy=privacy), records=100)
    assert (foreign.unit, foreign.relation) == (PrivacyUnit.CLIENT, Relation.REPLACE_ONE)
    assert (foreign.steps, foreign.clip, foreign.sensitivity) == (10, 0.5, 1.0)
    assert foreign.most_records == 100
    assert foreign.noise_multiplier == noise_for(2.0, 1e-4, 1.0, 10)
    assert foreign.epsilon == pytest.approx(2.0, rel=1e-6)
    assert foreign.is_private
    assert not foreign.trains_with_noise


def test_a_foreign_app_gets_no_claim_per_record(make_run: MakeRun) -> None:
    """What an app of one's own does with a record is not known here."""
    run = make_run(
        model=None, training=None, app={"client": "a.b:c"}, results={"train": {"arrays": "model"}}
    )
    with pytest.raises(RefusedError, match="E-MODE-NEEDS-BUILT-IN"):
        privacy_plan(run, records=100)


def test_delta_must_be_below_one_in_the_records(make_run: MakeRun) -> None:
    """At 1 / records, publishing one record in full would count as private."""
    assert privacy_plan(make_run(), records=9_999).delta == 1e-4
    with pytest.raises(RefusedError, match="E-DELTA-TOO-LARGE"):
        privacy_plan(make_run(), records=10_000)


def test_next_to_no_noise_is_refused(make_run: MakeRun) -> None:
    """An epsilon in the millions is not a privacy mechanism."""
    run = make_run(privacy={**PRIVACY, "noise_multiplier": 1e-3})
    with pytest.raises(RefusedError, match="E-NOISE-TOO-SMALL"):
        privacy_plan(run, records=100)


def one(mode: PrivacyMode = PrivacyMode.RECORD_LOCAL) -> PrivacyPlan:
    by_node = mode is PrivacyMode.CLIENT_LOCAL
    return PrivacyPlan(
        mode=mode,
        releases=3,
        local_steps=1,
        sample_rate=1.0,
        noise_multiplier=2.0,
        clip=0.5,
        normaliser=8.0,
        epsilon=1.0,
        delta=1e-5,
        unit=PrivacyUnit.CLIENT if by_node else PrivacyUnit.RECORD,
        relation=Relation.REPLACE_ONE if by_node else Relation.ADD_REMOVE,
    )


NO_COUNT = st.integers(max_value=0) | st.just(1.5)
NO_POSITIVE = st.floats(max_value=0.0) | st.sampled_from([math.inf, math.nan])
NO_RATE = st.floats(max_value=0.0) | st.floats(1.0, exclude_min=True) | st.just(math.nan)
UNBUILT = [mode for mode in PrivacyMode if mode not in BUILT_MODES]
IMPOSSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from([PrivacyMode.NONE, PrivacyMode.CLIENT_LOCAL, *UNBUILT]),
    "releases": NO_COUNT,
    "local_steps": NO_COUNT,
    "sample_rate": NO_RATE,
    "noise_multiplier": NO_POSITIVE,
    "clip": NO_POSITIVE,
    "normaliser": NO_POSITIVE,
    "epsilon": st.floats(max_value=0.0, exclude_max=True) | st.just(math.nan),
    "delta": st.floats(max_value=0.0) | st.floats(min_value=1.0) | st.just(math.nan),
    "unit": st.just(PrivacyUnit.CLIENT),
    "relation": st.none(),
    "most_records": NO_COUNT | st.just(2),  # of the unit record
}


def test_the_table_of_impossible_plans_is_complete() -> None:
    """No field of a plan goes unchecked."""
    assert {field.name for field in dataclasses.fields(PrivacyPlan)} == IMPOSSIBLE.keys()


@pytest.mark.parametrize("name", IMPOSSIBLE)
@given(data=st.data())
def test_a_plan_that_no_mechanism_could_keep_cannot_be_written(
    name: str, data: st.DataObject
) -> None:
    """One value outside its domain, all else in order: there is no such plan."""
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(one(), **{name: data.draw(IMPOSSIBLE[name])})


def test_fields_of_a_plan_belong_together() -> None:
    """No sampled units under replace-one, and no update in several steps or per record."""
    sampled = {"sample_rate": 0.5, "relation": Relation.REPLACE_ONE}
    with pytest.raises(ValueError, match="where units are sampled"):
        dataclasses.replace(one(), **sampled)
    for changes in ({"local_steps": 2}, {"sample_rate": 0.5}, {"unit": PrivacyUnit.RECORD}):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(one(PrivacyMode.CLIENT_LOCAL), **changes)
