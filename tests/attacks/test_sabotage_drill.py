"""The sabotage drill: broken DP-SGD is caught by canaries of one run, correct DP-SGD is not.

At a claim near epsilon 4 (delta 1e-5), with 600 white-box and 300 mislabelled canaries beside 400
records. Run with ``-s`` for the table of every estimate by seed.
"""

from __future__ import annotations

import pytest

from tacit.attacks.bounds.bound import Method
from tacit.attacks.canaries import CanaryKind, Verdict
from tests.attacks.drill import CLEAN, SABOTAGE, drill, flagged_by, plan, table, value

# Which kind must see it by itself.
CAUGHT_BY = {
    "noise over batch": CanaryKind.DIRECTIONS,
    "noise x 0.1": CanaryKind.DIRECTIONS,
    "no clipping": CanaryKind.MISLABELLED,
    "wrong norms": CanaryKind.MISLABELLED,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SABOTAGE))
def test_sabotage_is_caught(name: str) -> None:
    """In at least 4 of 5 seeds something lies above the claim, which is then never a pass."""
    runs = [drill(SABOTAGE[name], seed, honest=plan(60)) for seed in range(5)]
    print(name, table(runs))  # noqa: T201 - the drill's result, with -s
    flagged = [findings for findings in runs if findings.is_flagged]
    assert len(flagged) >= 4, table(runs)
    assert all(findings.verdict is not Verdict.PASS for findings in flagged)
    assert sum(flagged_by(findings, CAUGHT_BY[name]) for findings in runs) >= 4, table(runs)


@pytest.mark.slow
@pytest.mark.parametrize("sample_rate", [1.0, 0.5], ids=["full", "poisson"])
def test_correct_code_is_not_accused(sample_rate: float) -> None:
    """In 20 clean seeds at most 3 flags, and the one-run bound above the claim in at most one."""
    honest = plan(60, sample_rate)
    runs = [drill(CLEAN, seed, honest=honest) for seed in range(20 if sample_rate == 1.0 else 5)]
    print("clean", table(runs))  # noqa: T201
    assert sum(findings.is_flagged for findings in runs) <= 3, table(runs)
    assert sum(findings.verdict is Verdict.FAIL for findings in runs) <= 1, table(runs)
    # Not for want of power: white-box canaries show a good part of what is claimed.
    shown = [value(findings, CanaryKind.DIRECTIONS, Method.GAUSSIAN_DP) for findings in runs]
    assert sum(shown) / len(shown) > 0.375 * honest.epsilon, table(runs)


def test_the_drill_in_short() -> None:
    """One seed: missing noise and missing clipping are caught, correct code is not."""
    short = plan(20)
    found = {
        name: drill(case, 0, honest=short, directions=300, permutations=20)
        for name, case in {"clean": CLEAN, **SABOTAGE}.items()
        if name in ("clean", "noise x 0.1", "no clipping")
    }
    flagged = {name for name, findings in found.items() if findings.is_flagged}
    assert flagged == {"noise x 0.1", "no clipping"}, table(list(found.values()))
