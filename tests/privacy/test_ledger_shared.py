"""Noise that members share is reserved at the worst, and settled by those who are proved."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.errors import BudgetError, RefusedError
from tacit.core.specification import Relation
from tacit.privacy.accounting import (
    SampledGaussian,
    ZeroConcentrated,
    adaptive_epsilon,
    epsilon_of_events,
)
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.distributed.plan import distributed_plan_of
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_account import mechanism_for
from tacit.privacy.ledger_entries import Charge, Cost, Reserve, Settle, Unit, content_of
from tacit.privacy.spec import Record, RecordDistributed, TargetEpsilon
from tests.privacy.ledgers import TERMS, charge, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAN = distributed_plan_of(
    RecordDistributed(
        unit=Record(),
        clip=1.0,
        calibration=TargetEpsilon(epsilon=2.0),
        delta=TERMS.delta,
        relation=Relation.ADD_REMOVE,
        releases=5,
        steps_per_round=4,
        most_owner_records=TERMS.records,
        normaliser=8000.0,
        cohort=Cohort(members=10, threshold=7, colluders=1),
        bound=1000.0,
        dimension=200,
    )
)
SAMPLED = SampledGaussian(noise_multiplier=1.0, sample_rate=0.01, steps=1000)


def shared(number: int = 1, **changes: Any) -> Charge:
    """Return the charge of one round of the plan."""
    fields: dict[str, Any] = {
        "mechanism": PLAN.mechanism(),
        "noise_deviation": None,
        "integer_scale": PLAN.noise.scale,
        "ring_bits": 32,
    }
    return charge(number, **(fields | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_NAME


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with opened(path) as ledger:
        yield ledger


def test_the_rounds_of_a_run_are_reserved_at_its_epsilon(ledger: Ledger) -> None:
    """All rounds together cost what the plan said; in a budget of that there is room for no more.

    Each is charged as a round of four sums, whoever survives them.
    """
    ledger.open_data_set(dataclasses.replace(TERMS, budget=PLAN.epsilon))
    for number in range(1, 6):
        ledger.reserve(shared(number))
    assert ledger.account("heart").epsilon == pytest.approx(PLAN.epsilon)
    with pytest.raises(BudgetError, match="E-LEDGER-BUDGET"):
        ledger.reserve(shared(6))


@pytest.mark.parametrize("survivors", [7, 8, 10])
def test_signed_survivors_lower_a_round(path: Path, ledger: Ledger, survivors: int) -> None:
    """With h = |U3| - a the round costs less, and the budget has the room again after a restart."""
    ledger.reserve(shared())
    reserved = ledger.account("heart").epsilon
    settled = PLAN.settled_mechanism(survivors=survivors)
    entry = ledger.settle(
        shared().key,
        mechanism=settled,
        evidence=b"signatures of members on one list",
        realised_noise=PLAN.noise.released_deviation(survivors),
    )
    assert isinstance(entry.body, Settle)
    found = ledger.account("heart").epsilon
    assert found == epsilon_of_events((settled,), TERMS.delta)
    assert found < reserved if survivors > 7 else found == pytest.approx(reserved)
    ledger.close()
    with opened(path) as again:
        assert again.held(shared().key).mechanism == settled
        assert again.account("heart").epsilon == found


def test_a_round_that_ended_early_is_settled_with_its_steps(ledger: Ledger) -> None:
    """What was opened counts: two of four sums; not none of them."""
    ledger.reserve(shared())
    nothing = dataclasses.replace(PLAN.mechanism(), steps=0)
    with pytest.raises(RefusedError, match="E-LEDGER-SETTLE"):
        ledger.settle(shared().key, mechanism=nothing, evidence=b"signatures")
    two = PLAN.settled_mechanism(survivors=10, steps=2)
    ledger.settle(shared().key, mechanism=two, evidence=b"signatures")
    assert ledger.account("heart").epsilon == epsilon_of_events((two,), TERMS.delta)


@pytest.mark.parametrize(
    "changes",
    [{"rho": 1.01}, {"xi": 1e9}, {"steps": 2}, {"inexact": 2.0}],
    ids=lambda c: next(iter(c)),
)
def test_settling_never_raises(ledger: Ledger, changes: dict[str, float]) -> None:
    """Less noise, a larger tau, more steps or rougher numbers are no settlement."""
    ledger.reserve(shared())
    reserve = PLAN.mechanism()
    raised = {name: type(value)(getattr(reserve, name) * value) for name, value in changes.items()}
    if "xi" in raised:
        raised["xi"] = reserve.xi + 1e-9
    with pytest.raises(RefusedError, match="E-LEDGER-SETTLE"):
        ledger.settle(
            shared().key, mechanism=dataclasses.replace(reserve, **raised), evidence=b"signatures"
        )
    other = SampledGaussian(noise_multiplier=1e6)
    with pytest.raises(RefusedError, match="E-LEDGER-SETTLE"):
        ledger.settle(shared().key, mechanism=other, evidence=b"signatures")


def test_an_aborted_attempt_stays_at_the_worst(ledger: Ledger) -> None:
    """Nobody signed for survivors, so the reserve counts; the next attempt is another one."""
    ledger.reserve(shared())
    ledger.abort(shared().key, reason="two members left")
    ledger.reserve(shared(attempt=2))
    settled = PLAN.settled_mechanism(survivors=10)
    ledger.settle(shared(attempt=2).key, mechanism=settled, evidence=b"signatures")
    both = epsilon_of_events((PLAN.mechanism(), settled), TERMS.delta)
    assert ledger.account("heart").epsilon == both
    with pytest.raises(RefusedError, match="E-LEDGER-CONFLICT"):
        ledger.settle(shared().key, mechanism=settled, evidence=b"signatures")


def test_a_charge_of_integers_says_their_scale_and_ring(ledger: Ledger) -> None:
    """Without them nobody could tell later what the noise was."""
    for name in ("integer_scale", "ring_bits"):
        with pytest.raises(RefusedError, match=f"{name}: expected a value") as caught:
            ledger.reserve(shared(**{name: None}))
        assert caught.value.code == "E-LEDGER-CHARGE"


def test_a_ledger_of_both_kinds_takes_the_better_bound(ledger: Ledger) -> None:
    """min(all by Renyi, loss distributions at a part of delta plus Renyi at the rest)."""
    for discrete in (PLAN.mechanism(), ZeroConcentrated(rho=1e-6)):
        events = (SAMPLED, discrete)
        shares = [
            epsilon_of_events((SAMPLED,), part * 1e-5)
            + epsilon_of_events((discrete,), (1 - part) * 1e-5)
            for part in (0.1, 0.5, 0.9)
        ]
        by_renyi = adaptive_epsilon(events, 1e-5)
        expected = min(by_renyi, *shares)
        assert epsilon_of_events(events, 1e-5) == pytest.approx(expected, rel=1e-6)
    assert min(shares) < by_renyi  # either of the two is the better one for some ledger
    assert adaptive_epsilon((SAMPLED, PLAN.mechanism()), 1e-5) < min(
        epsilon_of_events((SAMPLED,), part * 1e-5)
        + epsilon_of_events((PLAN.mechanism(),), (1 - part) * 1e-5)
        for part in (0.1, 0.5, 0.9)
    )
    ledger.reserve(charge(1, mechanism=SAMPLED))
    ledger.reserve(shared(2))
    account = ledger.account("heart")
    assert account.epsilon == epsilon_of_events((SAMPLED, PLAN.mechanism()), 1e-5)
    assert account.held == account.epsilon  # one run, fixed beforehand
    ledger.reserve(shared(3, run="r-2"))
    two = (SAMPLED, PLAN.mechanism(), PLAN.mechanism())
    assert ledger.account("heart").held == adaptive_epsilon(two, 1e-5)


def test_a_bound_by_record_carries_to_a_subject() -> None:
    """Ten records of one person: ten times the distance, a hundred times rho."""
    one = shared(most_records=10)
    found = mechanism_for(one, one.mechanism, unit=Unit.SUBJECT)
    assert found == dataclasses.replace(PLAN.mechanism(), rho=100 * PLAN.mechanism().rho)


def test_an_entry_from_before_the_error_of_draws_is_read() -> None:
    """A ledger that was written without ``inexact`` says that nothing was booked."""
    tree = json.loads(content_of(_reserve(), at_s=1.0))
    assert from_plain(tree["body"], Reserve) == _reserve()
    del tree["body"]["charge"]["mechanism"]["inexact"]
    read = from_plain(tree["body"], Reserve)
    assert read.charge.mechanism == dataclasses.replace(PLAN.mechanism(), inexact=0.0)


def _reserve() -> Reserve:
    cost = Cost(alone=1.0, total=1.0, held=1.0, accountant="none", error=0.0)
    return Reserve(charge=shared(), cost=cost)
