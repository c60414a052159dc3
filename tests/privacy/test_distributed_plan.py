"""A distributed run is one statement, with noise for its target at the worst that may happen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, RunSpec
from tacit.privacy.accounting import SampledGaussian, epsilon_of_events
from tacit.privacy.distributed.account import Rounding
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.distributed.plan import (
    DistributedPlan,
    distributed_plan,
    distributed_plan_of,
    epsilon_of_answers,
    plan_of_run,
)
from tacit.privacy.distributed.statement import parse_distributed
from tacit.privacy.ledger_account import verify_lower
from tacit.privacy.plan import privacy_plan
from tacit.privacy.spec import (
    ClientDistributed,
    GivenNoise,
    Record,
    RecordDistributed,
    Subject,
    TargetEpsilon,
)

MakeRun = Callable[..., RunSpec]
MEMBERS = [f"hospital-{letter}" for letter in "abcd"]
SECURE = {"members": MEMBERS}
RECORDS = {"mode": "record-distributed", "clip": 0.5, "delta": 1e-4, "normaliser": 800.0}
UPDATES = {"mode": "client-distributed", "clip": 0.5, "delta": 1e-4, "noise_multiplier": 3.0}
STATEMENT = RecordDistributed(
    unit=Record(),
    clip=0.5,
    calibration=TargetEpsilon(epsilon=1.0),
    delta=1e-4,
    relation=Relation.ADD_REMOVE,
    releases=10,
    steps_per_round=3,
    most_owner_records=200,
    normaliser=800.0,
    cohort=Cohort(members=4, threshold=3, colluders=1),
    bound=400.0,
    dimension=55,
)


def run_of(make_run: MakeRun, privacy: dict[str, Any], **sections: Any) -> RunSpec:
    people = {"rounds": 10, "min_clients": 3}
    changed = {"secure_aggregation": SECURE, "training": {"learning_rate": 1.0}} | sections
    changed = {"participation": people} | changed
    return make_run(privacy=privacy, **changed)


def refusal(spec: RunSpec, **changes: Any) -> str:
    with pytest.raises((RefusedError, ConfigError)) as caught:
        parse_distributed(spec, **({"records": 200, "dimension": 55} | changes))
    return caught.value.code


def test_the_tables_become_one_statement_by_record(make_run: MakeRun) -> None:
    """Every key of [privacy] and [secure_aggregation] stands at its place; R is normaliser x C."""
    secure = SECURE | {"steps_per_round": 3}
    spec = run_of(make_run, RECORDS | {"epsilon": 1.0}, secure_aggregation=secure)
    assert parse_distributed(spec, records=200, dimension=55) == STATEMENT
    table = RECORDS | {"epsilon": 1.0, "unit": "subject", "most_records": 20}
    secure = SECURE | {"threshold": 4, "colluders": 2, "max_records": 300, "steps_per_round": 3}
    spec = run_of(
        make_run,
        table | {"relation": "replace-one"},
        secure_aggregation=secure,
        participation={"rounds": 10, "min_clients": 4},
    )
    assert parse_distributed(spec, records=200, dimension=55) == dataclasses.replace(
        STATEMENT,
        unit=Subject(most_records=20),
        relation=Relation.REPLACE_ONE,
        cohort=Cohort(members=4, threshold=4, colluders=2),
        bound=150.0,
    )
    bounded = run_of(make_run, RECORDS | {"epsilon": 1}, secure_aggregation=SECURE | {"bound": 9})
    parsed = parse_distributed(bounded, records=200, dimension=55)
    assert parsed.bound == 9.0


def test_the_tables_become_one_statement_by_client(make_run: MakeRun) -> None:
    """A whole update is replaced by any other unless the run says otherwise; R is C."""
    spec = run_of(make_run, UPDATES, training={"learning_rate": 1.0, "local_steps": 9})
    statement = parse_distributed(spec, records=200, dimension=55)
    assert statement == ClientDistributed(
        clip=0.5,
        calibration=GivenNoise(noise_multiplier=3.0),
        delta=1e-4,
        relation=Relation.REPLACE_ONE,
        releases=10,
        most_owner_records=200,
        cohort=Cohort(members=4, threshold=3, colluders=1),
        dimension=55,
    )
    assert statement.bound == 0.5
    zeroed = run_of(make_run, UPDATES | {"relation": "add/remove"})
    parsed = parse_distributed(zeroed, records=200, dimension=55)
    assert parsed.relation is Relation.ADD_REMOVE


def test_what_has_no_mechanism_is_refused(make_run: MakeRun) -> None:
    """Samples, apps of one's own by record, a delta above 1 / records, and what is not declared."""
    table = RECORDS | {"epsilon": 1.0}
    sampled = table | {"sampling": "poisson", "sample_rate": 0.1}
    assert refusal(run_of(make_run, sampled)) == "E-SAMPLING-NO-ACCOUNT"
    assert refusal(run_of(make_run, table), records=20_000) == "E-DELTA-TOO-LARGE"
    app = {"app": {"client": "package.module:app"}, "results": {"train": {}}}
    app |= dict.fromkeys(("data", "model", "training"))
    assert refusal(run_of(make_run, table, **app)) == "E-MODE-NEEDS-BUILT-IN"
    spec = dataclasses.replace(
        run_of(make_run, {**table, "normaliser": 0.0}), secure_aggregation=None
    )
    with pytest.raises(ConfigError) as caught:
        parse_distributed(spec, records=200, dimension=55)
    missing = [problem.split(":")[0] for problem in caught.value.problems]
    assert missing == ["secure_aggregation", "privacy.normaliser"]
    for wrong in ({"records": 0}, {"dimension": 0}):
        with pytest.raises(ValueError, match="whole number"):
            parse_distributed(
                run_of(make_run, table), **({"records": 200, "dimension": 55} | wrong)
            )
    with pytest.raises(ValueError, match="distributed mode"):
        parse_distributed(make_run(), records=200, dimension=55)


def test_an_app_of_ones_own_has_a_plan_by_client(make_run: MakeRun) -> None:
    """A whole update is bounded, whoever made it."""
    app = {"app": {"client": "package.module:app"}, "results": {"train": {}}}
    app |= dict.fromkeys(("data", "model", "training"))
    plan = distributed_plan(run_of(make_run, UPDATES, **app), records=200, dimension=55)
    assert (plan.unit, plan.most_records, plan.local_steps) == (PrivacyUnit.CLIENT, 200, 1)


def test_statements_that_nothing_could_keep_cannot_be_made() -> None:
    """No colluders, no relation, no dimension, no such delta: the types exclude them."""
    wrong: list[dict[str, Any]] = [
        {"cohort": Cohort(members=4, threshold=3, colluders=0)},
        {"cohort": None},
        {"relation": "add/remove "},
        {"unit": None},
        {"calibration": 1.0},
        {"dimension": 0},
        {"steps_per_round": 0},
        {"releases": 0},
        {"bound": math.inf},
        {"clip": 0.0},
        {"normaliser": 0.0},
        {"delta": 0.01},
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(STATEMENT, **changes)


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_the_target_holds_with_the_fewest_survivors(epsilon: float, relation: Relation) -> None:
    """The reserve of the whole run costs the target; all members together cost less."""
    calibration = TargetEpsilon(epsilon=epsilon)
    statement = dataclasses.replace(STATEMENT, calibration=calibration, relation=relation)
    plan = distributed_plan_of(statement)
    assert epsilon * (1 - 2e-4) < plan.epsilon <= epsilon
    assert plan.epsilon_after(10) == plan.epsilon
    assert plan.epsilon_after(9) < plan.epsilon < plan.epsilon_after(11)
    assert plan.epsilon_after(0) == 0.0
    assert plan.settled_epsilon(survivors=4) < plan.settled_epsilon(survivors=3) <= plan.epsilon
    gaussian = SampledGaussian(noise_multiplier=plan.noise_multiplier, steps=plan.steps)
    assert epsilon_of_events((gaussian,), plan.delta) < plan.epsilon


def test_settling_a_round_lowers_it() -> None:
    """What survivors prove is accepted by the ledger; a round that ended early has fewer steps."""
    plan = distributed_plan_of(STATEMENT)
    settled = plan.settled_mechanism(survivors=4)
    assert settled.rho == pytest.approx(plan.mechanism().rho * 2 / 3)
    for mechanism in (settled, plan.settled_mechanism(survivors=3, steps=1)):
        verify_lower(mechanism, than=plan.mechanism())
    for wrong in ({"survivors": 2}, {"survivors": 5}, {"survivors": 3, "steps": 4}):
        with pytest.raises(ValueError, match="expected"):
            plan.settled_mechanism(**wrong)


def test_noise_is_near_that_of_a_trusted_server() -> None:
    """Four members: sqrt(4 / 2) times central noise, and a little for rounding."""
    plan = distributed_plan_of(STATEMENT)
    assert plan.central_ratio == pytest.approx(math.sqrt(2), rel=1e-3)
    released = plan.noise.released_deviation(4)
    central = plan.noise_multiplier * plan.clip
    assert released / central == pytest.approx(plan.central_ratio)


def test_all_members_derive_the_same_noise(make_run: MakeRun) -> None:
    """What an owner declares of its own records changes nothing that members must agree on."""
    spec = run_of(make_run, RECORDS | {"epsilon": 1.0})
    plans = [distributed_plan(spec, records=records, dimension=55) for records in (20, 5000)]
    assert plans[0] == plans[1]
    assert plans[0].noise.rounding is Rounding.NEAREST
    assert plans[0].mode is PrivacyMode.RECORD_DISTRIBUTED


def test_next_to_no_noise_is_refused() -> None:
    """A multiplier below a hundredth is a mistake."""
    with pytest.raises(RefusedError) as caught:
        distributed_plan_of(
            dataclasses.replace(STATEMENT, calibration=GivenNoise(noise_multiplier=1e-3))
        )
    assert caught.value.code == "E-NOISE-TOO-SMALL"


def test_a_run_is_planned_by_the_numbers_that_it_names(make_run: MakeRun) -> None:
    """What owners charge follows from the specification alone, its dimension included."""
    for table in (RECORDS | {"epsilon": 1.0}, UPDATES):
        plan = plan_of_run(
            run_of(make_run, table, secure_aggregation=SECURE | {"dimension": 55}), records=200
        )
        assert isinstance(plan, DistributedPlan)
        assert plan.noise.dimension == 55
        assert epsilon_of_answers(plan, 10) == plan.epsilon
        with pytest.raises(ConfigError, match="E-SECAGG-DIMENSION"):
            plan_of_run(run_of(make_run, table), records=200)
    assert plan_of_run(make_run(), records=200) == privacy_plan(make_run(), records=200)


def test_shared_noise_has_no_plan_of_an_owners_own(make_run: MakeRun) -> None:
    """Where an owner's own noise is asked for, a mode that shares it is refused by name."""
    for table in (RECORDS | {"epsilon": 1.0}, UPDATES):
        with pytest.raises(ValueError, match="parse_distributed"):
            privacy_plan(run_of(make_run, table), records=200)
