"""What charges add up to: sides, units and relations, always to the careful side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.errors import BudgetError, RefusedError
from tacit.core.specification import Relation
from tacit.privacy.accounting import (
    SampledGaussian,
    ZeroConcentrated,
    adaptive_epsilon,
    epsilon_of,
    epsilon_of_events,
)
from tacit.privacy.ledger import LEDGER_NAME
from tacit.privacy.ledger_account import Account, mechanism_for
from tacit.privacy.ledger_entries import Charge, Side, Unit, split_digest
from tests.privacy.ledgers import TERMS, charge, opened

if TYPE_CHECKING:
    from pathlib import Path

ONE = epsilon_of(10.0, 1.0, 1, 1e-5)
TWO = epsilon_of(10.0, 1.0, 2, 1e-5)


def account_of(folder: Path, *charges: Charge, **terms: Any) -> Account:
    """Charge a fresh ledger and return where the data set stands."""
    with opened(
        folder / LEDGER_NAME, terms=dataclasses.replace(TERMS, **{"budget": 1e6} | terms)
    ) as ledger:
        for item in charges:
            ledger.reserve(item)
        return ledger.account("heart")


def validation(number: int, **changes: Any) -> Charge:
    return charge(number, **{"side": Side.VALIDATION} | changes)


def test_disjoint_sides_cost_their_maximum(tmp_path: Path) -> None:
    """While all charges divide the records in one way, each side has an account of its own."""
    account = account_of(tmp_path, charge(1), charge(2), validation(3))
    assert account.epsilon_by_side == pytest.approx({"train": TWO, "validation": ONE})
    assert account.epsilon == pytest.approx(TWO)


def test_charges_on_the_whole_data_set_count_on_both_sides(tmp_path: Path) -> None:
    """A query on everything touches the records of either side."""
    account = account_of(tmp_path, charge(1), validation(2), charge(3, side=Side.WHOLE, split=""))
    assert account.epsilon_by_side == pytest.approx({"train": TWO, "validation": TWO})


def test_another_split_makes_everything_compose(tmp_path: Path) -> None:
    """Two runs that divide the records differently can show one record on both sides."""
    other = validation(2, run="r-2", message="r-2.1", split="s2")
    account = account_of(tmp_path, charge(1), other)
    assert account.epsilon_by_side == pytest.approx({"whole": TWO})
    assert account.epsilon == pytest.approx(TWO)


def test_another_split_is_charged_for_what_it_does_to_earlier_charges(tmp_path: Path) -> None:
    """A run whose split differs refuses where the composed sides have no room."""
    path = tmp_path / LEDGER_NAME
    terms = dataclasses.replace(TERMS, budget=(ONE + TWO) / 2)
    with opened(path, terms=terms) as ledger:
        ledger.reserve(charge(1))
        ledger.reserve(validation(2))
        other = charge(3, run="r-2", message="r-2.1", split="s2")
        with pytest.raises(BudgetError):
            ledger.reserve(
                dataclasses.replace(other, mechanism=SampledGaussian(noise_multiplier=90.0))
            )


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"relation": Relation.REPLACE_ONE}, {}),
        ({"unit": Unit.SUBJECT}, {"unit": Unit.SUBJECT}),
        ({"unit": Unit.CLIENT, "split_unit": Unit.CLIENT}, {"unit": Unit.CLIENT}),
    ],
)
def test_sides_that_a_unit_can_straddle_compose(
    tmp_path: Path, changes: dict[str, Any], terms: dict[str, Any]
) -> None:
    """A replaced record may change sides, and a split by records divides subjects and owners."""
    account = account_of(tmp_path, charge(1, **changes), validation(2, **changes), **terms)
    assert account.epsilon_by_side == pytest.approx({"whole": TWO})


def test_a_split_by_subjects_keeps_records_and_subjects_apart(tmp_path: Path) -> None:
    """Where no subject is cut, sides are disjoint for subjects, and so for records."""
    for unit in (Unit.RECORD, Unit.SUBJECT):
        folder = tmp_path / unit.value
        folder.mkdir()
        items = [
            maker(number, unit=unit, split_unit=Unit.SUBJECT)
            for number, maker in enumerate((charge, validation), start=1)
        ]
        assert account_of(folder, *items, unit=unit).epsilon == pytest.approx(ONE)


def test_a_client_level_release_bounds_records_and_subjects(tmp_path: Path) -> None:
    """Replacing the whole data set covers replacing a part of it."""
    item = charge(unit=Unit.CLIENT, relation=Relation.REPLACE_ONE)
    for unit in Unit:
        folder = tmp_path / unit.value
        folder.mkdir()
        assert account_of(folder, item, unit=unit).epsilon == pytest.approx(ONE)


def test_part_of_a_subject_is_a_removal_and_an_addition() -> None:
    """Under add/remove a subject-level bound holds for its records at half the noise."""
    item = charge(unit=Unit.SUBJECT)
    assert mechanism_for(item, item.mechanism, unit=Unit.RECORD) == SampledGaussian(
        noise_multiplier=5.0
    )


def test_records_bound_subjects_only_as_many_as_there_are() -> None:
    """With at most m records per subject the noise counts m times less; without m it refuses."""
    item = charge(most_records=4)
    assert mechanism_for(item, item.mechanism, unit=Unit.SUBJECT) == SampledGaussian(
        noise_multiplier=2.5
    )
    discrete = ZeroConcentrated(rho=0.01, xi=1e-9)
    assert mechanism_for(item, discrete, unit=Unit.SUBJECT) == ZeroConcentrated(rho=0.16, xi=1e-9)
    with pytest.raises(RefusedError, match="E-LEDGER-UNIT"):
        mechanism_for(charge(), item.mechanism, unit=Unit.SUBJECT)


def test_a_bound_at_another_unit_keeps_no_amplification() -> None:
    """Which of a subject's records a step samples is not independent of one another's effect."""
    sampled = SampledGaussian(noise_multiplier=8.0, sample_rate=0.01, steps=3)
    item = charge(most_records=2, mechanism=sampled)
    full = SampledGaussian(noise_multiplier=4.0, sample_rate=1.0, steps=3)
    assert mechanism_for(item, sampled, unit=Unit.SUBJECT) == full
    one = charge(most_records=1, mechanism=sampled)
    assert mechanism_for(one, sampled, unit=Unit.SUBJECT) == sampled


def test_a_charge_that_bounds_nothing_for_the_budget_refuses(tmp_path: Path) -> None:
    """A record-level run cannot be charged to a budget per subject without a bound on records."""
    with pytest.raises(RefusedError, match="E-LEDGER-UNIT"):
        account_of(tmp_path, charge(), unit=Unit.SUBJECT)


def test_poisson_samples_have_no_account_under_replace_one(tmp_path: Path) -> None:
    """The loss distribution of Poisson samples is that of add/remove."""
    sampled = SampledGaussian(noise_multiplier=1.0, sample_rate=0.1)
    with pytest.raises(RefusedError, match="under add/remove only"):
        account_of(tmp_path, charge(mechanism=sampled, relation=Relation.REPLACE_ONE))


def test_several_sampled_runs_are_stopped_by_the_bound_that_adapts(tmp_path: Path) -> None:
    """One run is held at its epsilon; a later one may have been chosen after seeing it."""
    first = SampledGaussian(noise_multiplier=1.0, sample_rate=0.01, steps=100)
    second = SampledGaussian(noise_multiplier=0.8, sample_rate=0.02, steps=50)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one = account_of(folders[0], charge(1, mechanism=first))
    assert one.held == one.epsilon == epsilon_of_events([first], 1e-5)
    other = charge(2, run="r-2", message="r-2.1", mechanism=second)
    two = account_of(folders[1], charge(1, mechanism=first), other)
    assert two.epsilon == epsilon_of_events([first, second], 1e-5)
    assert two.held == adaptive_epsilon([first, second], 1e-5) > two.epsilon


def test_split_digests_tell_rules_apart() -> None:
    """Seed, share, and what the rule looks at: another of these may move a record across."""
    plain: dict[str, Any] = {"rule": "r", "seed": 1, "fraction": 0.2, "depends_on": "ab"}
    digests = {
        split_digest(**plain | change)
        for change in ({}, {"rule": "q"}, {"seed": 2}, {"fraction": 0.3}, {"depends_on": "cd"})
    }
    assert len(digests) == 5
    assert split_digest(**plain) == split_digest(**plain)
