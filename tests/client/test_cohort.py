"""The owner's floors for secure aggregation."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest

from tacit.client.approvals import Verdict
from tacit.client.cohort import own_name_of, verify_included, verify_members
from tacit.client.configuration import ClientConfig, SecureAggregationPolicy
from tacit.core.configuration import parse_toml
from tacit.core.errors import ConfigError, RefusedError
from tacit.core.secagg_spec import SecureAggregationSpec, least_threshold
from tacit.core.specification import ParticipationSpec
from tacit.privacy.secagg.terms import Member
from tests.client.fakes import KEY, RUN, make_config, make_node, make_spec, offer, open_mode

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.specification import RunSpec

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


OWN = KEY.public_key().public_bytes_raw()  # this node is cy


def pins(*names: str) -> dict[str, Member]:
    """What an owner has pinned, cy's own key among it as a node always has it."""
    numbers = {name: number for number, name in enumerate(FOUR, start=1)}
    others = {name: Member(node_id=numbers[name], enrolment_key=bytes(32)) for name in names}
    return others | {"cy": Member(node_id=7, enrolment_key=OWN)}


def summing(*names: str, **secure: Any) -> RunSpec:
    return make_spec(
        privacy=open_mode(),
        participation=ParticipationSpec(rounds=2, min_clients=3),
        secure_aggregation=SecureAggregationSpec(members=names, **secure),
    )


def judged(folder: Path, spec: RunSpec, pinned: Any = None, **policy: Any) -> str:
    """What the node says of a run: its verdict, or the code of a denial."""
    config = make_config(
        folder,
        modes=tuple(type(spec.privacy.mode)),
        secure_aggregation=SecureAggregationPolicy(**policy),
    )
    known = pins(*FOUR) if pinned is None else pinned
    node, _ = make_node(folder, config, pinned=known if callable(known) else lambda: known)
    judgement = offer(node, spec)
    return judgement.code or str(judgement.verdict.value)


def test_a_run_among_pinned_members_is_approved(tmp_path: Path) -> None:
    """All four are pinned, this node is one of them, and the threshold is two thirds and one."""
    assert judged(tmp_path, summing(*FOUR)) == "approved"
    assert judged(tmp_path, summing(*FOUR), required=True) == "approved"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"min_members": 5}, "E-COHORT-TOO-SMALL"),
        ({"min_threshold": 4}, "E-THRESHOLD-TOO-LOW"),
    ],
)
def test_the_owners_floors_hold_for_an_offered_run(
    tmp_path: Path, policy: dict[str, int], code: str
) -> None:
    """What [policy.secure_aggregation] asks for is judged when the run is offered."""
    assert judged(tmp_path, summing(*FOUR), **policy) == code


def test_a_run_with_a_member_that_is_not_pinned_is_denied_until_it_is(tmp_path: Path) -> None:
    """The pins are read anew: once the owner has pinned the member, approving it is enough."""
    known = pins("ada", "bo")
    config = make_config(tmp_path, modes=tuple(type(open_mode().mode)))
    node, _ = make_node(tmp_path, config, pinned=lambda: known)
    judgement = offer(node, summing(*FOUR))
    assert judgement.code == "E-MEMBER-UNPINNED"
    assert "di" in judgement.reason
    known |= pins("di")
    assert node.approve(RUN).verdict is Verdict.APPROVED


def test_a_run_among_others_is_not_for_this_node(tmp_path: Path) -> None:
    """Whatever else it asks, a node that is no member says so first, and pins change nothing."""
    among_others = summing("ada", "bo", "di")
    assert judged(tmp_path, among_others) == "E-SECAGG-LEFT-OUT"
    assert judged(tmp_path, among_others, {}, required=True) == "E-SECAGG-LEFT-OUT"
    trusting = {"require_pinned_members": False}
    assert judged(tmp_path, among_others, **trusting) == "E-SECAGG-LEFT-OUT"


def test_a_name_is_this_nodes_by_its_key() -> None:
    """Not by what a run or a file calls it: who pinned another key has no name of their own."""
    assert own_name_of(pins(*FOUR), OWN) == "cy"
    assert own_name_of({"cy": Member(node_id=7, enrolment_key=bytes(32))}, OWN) == ""
    with pytest.raises(RefusedError, match="E-SECAGG-LEFT-OUT"):
        verify_included(FOUR, "")


def test_pins_that_cannot_be_read_deny_a_secure_run_alone(tmp_path: Path) -> None:
    """A damaged members.toml is the refusal, with its code; a run without members needs none."""

    def damaged() -> dict[str, Member]:
        raise ConfigError("E-CONFIG", "members.toml is wrong", problems=("members.bo.key: short",))

    assert judged(tmp_path, summing(*FOUR), damaged) == "E-CONFIG"
    assert judged(tmp_path, make_spec(privacy=open_mode()), damaged) == "E-OFFER-CHANGED"
    (tmp_path / "fresh").mkdir()
    assert judged(tmp_path / "fresh", make_spec(privacy=open_mode()), damaged) == "approved"
