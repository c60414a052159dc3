"""How far a budget goes, and what the next round costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tacit.core.specification import RunSpec
from tacit.privacy.dpsgd.cross_check import prv_epsilon
from tacit.privacy.outlook import curve, milestones, outlook_of
from tacit.privacy.plan import PrivacyPlan, privacy_plan
from tacit.privacy.profiles import tier_of

MakeRun = Callable[..., RunSpec]


@pytest.fixture
def plan(make_run: MakeRun) -> PrivacyPlan:
    return privacy_plan(make_run(), records=100)


def test_the_plan_fills_its_own_budget(plan: PrivacyPlan) -> None:
    """At the target, no round is left, and the next one costs what the accountant says."""
    found = outlook_of(plan)
    assert (found.rounds_allowed, found.rounds_left) == (10, 0)
    assert found.next_round_epsilon == plan.epsilon_after(11) - plan.epsilon > 0


@pytest.mark.parametrize("budget", [0.01, 0.4, 0.999, 1.7, 5.0])
def test_a_budget_allows_the_most_rounds_that_fit(plan: PrivacyPlan, budget: float) -> None:
    """The last allowed round fits, and one more does not."""
    found = outlook_of(plan, budget=budget)
    assert plan.epsilon_after(found.rounds_allowed) <= budget
    assert plan.epsilon_after(found.rounds_allowed + 1) > budget
    assert found.rounds_left == found.rounds_allowed - plan.releases


def test_tables_and_curves_say_what_the_accountant_says(plan: PrivacyPlan) -> None:
    """Each point is a whole round, with that round's epsilon; the plan's own is among them."""
    assert milestones(plan) == [1, 2, 5, 7, 10, 11, 20]
    points = curve(plan, rounds=15)
    assert [at for at, _ in points] == list(range(1, 16))
    assert all(cost == plan.epsilon_after(at) for at, cost in points)


def test_a_plan_without_noise_has_no_outlook(make_run: MakeRun) -> None:
    """Nothing is spent where nothing is bounded."""
    with pytest.raises(ValueError, match="with noise"):
        outlook_of(privacy_plan(make_run(privacy={"mode": "none"}), records=100))


def test_tiers_end_at_their_presets() -> None:
    """Up to 1 strong, up to 10 reasonable, above weak."""
    assert [tier_of(e) for e in (0.1, 1.0, 1.01, 10.0, 10.1)] == [
        "strong",
        "strong",
        "reasonable",
        "reasonable",
        "weak",
    ]


def test_the_second_opinion_agrees() -> None:
    """Opacus' PRV bound stands a hundredth above the PLD value; huge grids are not asked for."""
    values = {"noise_multiplier": 1.0, "sample_rate": 0.01, "delta": 1e-5}
    found = prv_epsilon(**values, steps=1000, expected=1.8282)
    assert found == pytest.approx(1.8384, abs=2e-3)
    assert prv_epsilon(**values, steps=1000, expected=1000.0) is None
    assert prv_epsilon(**values, steps=10**7, expected=5.0) is None
