"""What a finding says: intervals that hold for what was picked, and words that follow the test."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from tacit.attacks.findings import Correction, Outcome, ProbeFinding, strongest_of
from tacit.attacks.plans import PLANS
from tacit.attacks.scoring import Scored, finding_of
from tacit.attacks.significance import LEVEL, number_of_tests
from tacit.attacks.wording import overall_line

PROBES = 5
PLAN = dataclasses.replace(PLANS["quick"], name="scored", fprs=(0.05, 0.01, 0.001))


def found(name: str, members: np.ndarray, others: np.ndarray) -> ProbeFinding:
    """Score one probe as one of five."""
    tests = number_of_tests(PROBES, PLAN.fprs, non_members=len(others))
    correction = Correction(method="", level=LEVEL, tests=tests, level_each=LEVEL / tests)
    scores = np.concatenate([members, others])
    scored = Scored(
        probe=name,
        source="",
        rows=np.arange(len(scores)),
        scores=scores,
        stand_in_scores=np.empty((0, len(scores))),
        stand_in_is_in=np.empty((0, len(scores)), dtype=bool),
    )
    is_member = np.arange(len(scores)) < len(members)
    return finding_of(scored, is_member, {}, plan=PLAN, correction=correction)


def test_of_several_powers_the_least_is_stated() -> None:
    """Of probes that found nothing, the line is that of the one that needs the most to see it."""
    rng = np.random.default_rng(5)
    able = found("able", rng.random(400), rng.random(400))
    points = tuple(
        dataclasses.replace(point, least_evident_tpr=point.least_evident_tpr * 2)
        if point.least_evident_tpr is not None
        else point
        for point in able.points
    )
    blunt = dataclasses.replace(able, probe="blunt", points=points, line=f"{able.line}, blunt")
    for probes in ([able, blunt], [blunt, able]):
        line = overall_line(probes, None)
        assert line.startswith("no evidence by any of 2 probes")
        assert line.endswith(", blunt")


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_the_interval_of_what_was_picked_covers(mu: float) -> None:
    """The strongest of five probes and three FPRs: its interval holds its TPR 95 % of the time."""
    rng, trials, held = np.random.default_rng(9), 200, []
    for _ in range(trials):
        probes = [
            found(str(number), rng.standard_normal(1000) + mu, rng.standard_normal(1000))
            for number in range(PROBES)
        ]
        best = getattr(strongest_of(probes), "best", None)
        if best is not None:
            truth = ndtr(mu - ndtri(1 - best.asked_fpr))
            held.append(best.corrected_tpr.low <= truth <= best.corrected_tpr.high)
    assert len(held) > trials / 2
    assert np.mean(held) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(held))


def test_the_line_states_the_corrected_interval() -> None:
    """What was picked is told at the level of one of all tests, wider than 95 % alone."""
    rng = np.random.default_rng(3)
    finding = found("one", rng.standard_normal(1000) + 2.0, rng.standard_normal(1000))
    best = finding.best
    assert best is not None
    assert best.corrected_tpr is not None
    assert best.corrected_tpr.low < best.tpr.low
    assert best.tpr.high < best.corrected_tpr.high
    low, high = 100 * best.corrected_tpr.low, 100 * best.corrected_tpr.high
    assert f"[{low:.3g}, {high:.3g}] of members (corrected for 20 tests)" in finding.line
    assert low > 100 * best.asked_fpr


def test_what_rests_on_one_non_member_is_said() -> None:
    """Of a thousand 20 members lead, and one other: evidence, and no interval says otherwise.

    The exact test is sure that this is no chance; at which TPR an FPR of 0.1 % lies, one non-member
    does not tell, so the line has the test's own limit.
    """
    rng = np.random.default_rng(5)
    members, others = rng.random(1000), rng.random(1000)
    members[:20], others[0] = 3.0 + members[:20], 2.0
    finding = found("one", members, others)
    assert finding.outcome is Outcome.EVIDENCE
    best = finding.best
    assert best is not None
    assert (best.asked_fpr, best.non_members_above) == (0.001, 1)
    assert best.tpr.low == 0.0
    assert finding.line.startswith("evidence: at FPR 0.1 % finds 2")
    assert "of members, and chance less than" in finding.line
    assert finding.line.endswith("(corrected for 20 tests); that FPR rests on 1 non-member")
    assert finding.notes == ("FPR 0.1 % rests on 1 non-member",)


def test_what_rests_on_few_non_members_or_none_is_said() -> None:
    """Of 200 others none can stand for 0.1 %: nothing is tested there, and a note says why."""
    rng = np.random.default_rng(6)
    finding = found("one", rng.random(200), rng.random(200))
    thin = next(point for point in finding.points if point.asked_fpr == 0.001)
    assert (thin.is_resolvable, thin.non_members_above, thin.corrected_tpr) == (False, 0, None)
    assert finding.notes == (
        "FPR 1 % rests on 2 non-members",
        "FPR 0.1 % rests on no non-member",
    )


def test_an_area_is_stated_at_the_level_of_its_test() -> None:
    """Evidence by the area alone has the corrected interval, above one half."""
    rng = np.random.default_rng(8)
    finding = found(
        "one",
        np.minimum(rng.standard_normal(1000) + 0.3, 0.5),
        np.minimum(rng.standard_normal(1000), 0.5),
    )
    assert finding.best is None
    assert finding.auc.is_evidence
    corrected = finding.auc.corrected
    assert 0.5 < corrected.low < finding.auc.area.low
    assert f"[{corrected.low:.3f}, {corrected.high:.3f}] (corrected for 20 tests)" in finding.line
