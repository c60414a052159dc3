"""The exact tests: right against enumeration, and wrong together no more often than they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tacit.attacks.plans import FPRS
from tacit.attacks.scoring import is_evidence
from tacit.attacks.significance import (
    LEVEL,
    chance_of_auc,
    chance_of_finding,
    least_evident_auc,
    least_evident_tpr,
    number_of_tests,
    resolvable,
)
from tacit.attacks.statistics import roc_of


@pytest.mark.parametrize(("members", "others"), [(3, 4), (5, 3), (4, 4)])
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_the_chance_is_that_of_all_orders(members: int, others: int, allowed: int) -> None:
    """The tail equals the share of all assignments in which that many members come first."""
    total = members + others
    found = []
    for places in itertools.combinations(range(total), members):
        is_member = np.isin(np.arange(total), places)
        stop = np.flatnonzero(~is_member)[allowed]
        found.append(int(is_member[:stop].sum()))
    for count in range(members + 1):
        expected = np.mean(np.array(found) >= count)
        chance = chance_of_finding(count, allowed=allowed, members=members, non_members=others)
        assert chance == pytest.approx(expected)


@pytest.mark.parametrize("fpr", [0.1, 0.01])
def test_the_least_evident_tpr_is_the_boundary(fpr: float) -> None:
    """One member fewer would not have been called evidence."""
    least = least_evident_tpr(fpr, members=300, non_members=500, level=0.001)
    assert least is not None
    count, allowed = round(least * 300), int(fpr * 500)
    sides = {"allowed": allowed, "members": 300, "non_members": 500}
    assert chance_of_finding(count, **sides) <= 0.001
    assert chance_of_finding(count - 1, **sides) > 0.001


def test_few_records_can_show_nothing() -> None:
    """Of 3 members and 3 others even a perfect attack is no evidence at 0.1 %, and that is said."""
    assert least_evident_tpr(0.4, members=3, non_members=3, level=0.001) is None


def test_the_auc_boundary_is_where_its_chance_meets_the_level() -> None:
    """Chance and boundary are inverse to one another."""
    least = least_evident_auc(members=80, non_members=120, level=0.002)
    assert chance_of_auc(least, members=80, non_members=120) == pytest.approx(0.002)
    assert chance_of_auc(0.5, members=80, non_members=120) == pytest.approx(0.5)


def test_rates_below_one_non_member_are_not_tested() -> None:
    """Of 200 non-members 0.5 % is the smallest rate; a plan of three probes makes twelve tests."""
    assert resolvable(FPRS, non_members=200) == (0.1, 0.05, 0.01)
    assert number_of_tests(3, FPRS, non_members=200) == 12


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_noise_is_called_evidence_no_more_often_than_stated(*, rounded: bool) -> None:
    """400 audits of five probes whose scores are noise: at most 5 % and two standard errors."""
    rng = np.random.default_rng(20)
    level = LEVEL / number_of_tests(5, FPRS, non_members=300)
    is_member = np.arange(600) < 300
    trials = 400
    false = 0
    for _ in range(trials):
        scores = rng.normal(size=(5, 600))
        scores = scores.round(1) if rounded else scores
        false += any(is_evidence(roc_of(each, is_member), FPRS, level=level) for each in scores)
    assert false / trials <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / trials)
