"""The owner's floors for secure aggregation."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from tacit.client.cohort import least_threshold, verify_members
from tacit.client.configuration import ClientConfig, SecureAggregationPolicy
from tacit.core.configuration import parse_toml
from tacit.core.errors import ConfigError, RefusedError

FOUR = ("ada", "bo", "cy", "di")


def refused(names: Any, pinned: Any = FOUR, *, policy: Any = None, **numbers: int) -> str:
    with pytest.raises(RefusedError) as caught:
        verify_members(names, pinned, SecureAggregationPolicy(**(policy or {})), **numbers)
    assert caught.value.hint
    return caught.value.code


def test_a_run_within_all_floors_is_admitted() -> None:
    """All pinned, three members or more, and the threshold of a full graph."""
    verify_members(FOUR, FOUR, SecureAggregationPolicy(), threshold=3)
    verify_members(FOUR[:3], FOUR, SecureAggregationPolicy(), threshold=3)


def test_a_run_without_secure_aggregation_needs_an_owner_who_does_not_ask_for_it() -> None:
    """`required` refuses it; by default the modes of the policy decide alone."""
    verify_members(None, (), SecureAggregationPolicy())
    assert refused(None, policy={"required": True}) == "E-SECAGG-REQUIRED"


def test_every_member_must_be_pinned() -> None:
    """One member that only the server vouches for is enough to refuse; the refusal names it."""
    for three in combinations(FOUR, 3):
        assert refused(FOUR, three, threshold=3) == "E-MEMBER-UNPINNED"
    with pytest.raises(RefusedError, match="not pinned here are: bo, di"):
        verify_members(FOUR, ("ada", "cy"), SecureAggregationPolicy(), threshold=3)


def test_an_owner_may_believe_the_server_about_its_members() -> None:
    """Only by saying so, and the other floors stay."""
    trusting = {"require_pinned_members": False}
    verify_members(FOUR, (), SecureAggregationPolicy(**trusting), threshold=3)
    assert refused(FOUR[:2], (), policy=trusting, threshold=2) == "E-COHORT-TOO-SMALL"


def test_a_member_named_twice_counts_once() -> None:
    """Nobody makes a cohort larger by repeating a name."""
    assert refused(("ada", "bo", "bo"), threshold=3) == "E-COHORT-TOO-SMALL"


@pytest.mark.parametrize(
    ("members", "floor"), [(3, 3), (4, 3), (5, 4), (7, 5), (10, 7), (200, 134)]
)
def test_the_threshold_is_more_than_two_thirds(members: int, floor: int) -> None:
    """floor(2n/3) + 1: two such sets share more than a third of the members."""
    names = [f"m{number}" for number in range(members)]
    assert least_threshold(members) == floor
    assert 2 * floor - members > members / 3
    verify_members(names, names, SecureAggregationPolicy(), threshold=floor)
    assert refused(names, names, threshold=floor - 1) == "E-THRESHOLD-TOO-LOW"


def test_an_owner_raises_the_threshold_and_never_lowers_it() -> None:
    """min_threshold = 4 of four refuses 3; min_threshold = 1 does not admit 2."""
    assert refused(FOUR, policy={"min_threshold": 4}, threshold=3) == "E-THRESHOLD-TOO-LOW"
    assert refused(FOUR, policy={"min_threshold": 1}, threshold=2) == "E-THRESHOLD-TOO-LOW"
    assert refused(FOUR) == "E-THRESHOLD-TOO-LOW"  # a run that names no threshold


def test_a_sparse_graph_brings_its_own_floor() -> None:
    """What is safe for fewer neighbours takes the place of two thirds of all; the owner's stays."""
    names = [f"m{number}" for number in range(300)]
    verify_members(names, names, SecureAggregationPolicy(), threshold=75, safe_threshold=75)
    assert refused(names, names, threshold=74, safe_threshold=75) == "E-THRESHOLD-TOO-LOW"
    strict = {"min_threshold": 80}
    assert (
        refused(names, names, policy=strict, threshold=75, safe_threshold=75)
        == "E-THRESHOLD-TOO-LOW"
    )


def test_the_floors_stand_in_client_toml() -> None:
    """The table is read, its defaults are the careful ones, and what makes no sense is refused."""
    text = "[policy.secure_aggregation]\nrequired = true\nmin_members = 5\n"
    read = parse_toml(text, ClientConfig, source="client.toml").value.policy.secure_aggregation
    assert read == SecureAggregationPolicy(required=True, min_members=5)
    assert (read.require_pinned_members, read.min_threshold) == (True, 0)
    wrong = "[policy.secure_aggregation]\nmin_members = 1\nmin_threshold = -1\n"
    with pytest.raises(ConfigError) as caught:
        parse_toml(wrong, ClientConfig, source="client.toml")
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "policy.secure_aggregation.min_members",
        "policy.secure_aggregation.min_threshold",
    ]
