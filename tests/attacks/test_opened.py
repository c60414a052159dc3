"""Openings held against commitments, and one report of several owners: the worst verdict counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.attacks.canary_report import verify_report
from tacit.attacks.inclusion import Opening, draw_opening, owner_design
from tacit.attacks.opened import Answered, canary_report, verified_opening
from tacit.audit.report import canaries_bytes, parse_canaries
from tacit.core.configuration import from_plain
from tacit.core.errors import DataError, TrustError
from tacit.core.specification import CanarySpec, RunSpec
from tacit.learning.models import initial_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

CANARIES = CanarySpec(directions=1000, direction_guesses=400, run="r-0000000a")
PARAMETERS = 50
RUN = {
    "name": "small",
    "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
    "model": {"kind": "logistic"},
    "training": {"learning_rate": 0.5},
    "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
    "participation": {"rounds": 2},
}


def run_with(canaries: CanarySpec = CANARIES) -> RunSpec:
    return replace(from_plain(RUN, RunSpec), canaries=canaries)


def answered(
    node_id: int, member: str, *, gap: float, epsilon: float = 1.0, canaries: CanarySpec = CANARIES
) -> Answered:
    """An owner whose included directions stand ``gap`` deviations above the others."""
    opening = draw_opening(owner_design(canaries, node_id))
    noise = np.random.default_rng(node_id).normal(size=canaries.directions)
    return Answered(
        node_id=node_id,
        member=member,
        commitment=opening.commitment(),
        claim={"epsilon": epsilon, "delta": 1e-4, "unit": "record", "relation": "add/remove"},
        values=values_of(opening, (noise + gap * opening.directions).tolist()),
        bytes=1234,
    )


def values_of(opening: Opening, products: list[float]) -> dict[str, Any]:
    return {
        "canary-bits": [int(bit) for bit in opening.included],
        "canary-salt": list(opening.salt),
        "canary-products": products,
        "canary-squared-norm": 100.0,
        "canary-steps": 4,
        "canary-parameters": PARAMETERS,
    }


def report_of(
    *answers: Answered, unopened: dict[str, str] | None = None, absent: Sequence[str] = ()
) -> dict[str, Any]:
    spec = run_with()
    report = canary_report(
        spec, initial_arrays(spec), answers, unopened=unopened or {}, absent=absent
    )
    return report | {"canary_run": "r-0000000b"}


def test_bits_as_committed_are_taken() -> None:
    """The positive control: the opening comes out bit by bit."""
    answer = answered(1, "north", gap=0.0)
    opening = verified_opening(answer, CANARIES)
    assert opening.included.astype(int).tolist() == answer.values["canary-bits"]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["canary-bits"].__setitem__(3, 1 - v["canary-bits"][3]),
        lambda v: v["canary-salt"].__setitem__(0, v["canary-salt"][0] ^ 1),
        lambda v: v.update({"canary-bits": v["canary-bits"][:-1]}),
        lambda v: v["canary-bits"].__setitem__(0, 0.5),
        lambda v: v["canary-salt"].__setitem__(0, 0.5),
        lambda v: v.pop("canary-salt"),
    ],
    ids=["another bit", "another salt", "a bit less", "half a bit", "half a byte", "no salt"],
)
def test_whatever_else_is_opened_is_refused_by_name(change: Any) -> None:
    """Another bit, another salt, fewer, halves, none."""
    answer = answered(1, "north", gap=0.0)
    change(answer.values)
    with pytest.raises(TrustError, match="from north") as caught:
        report_of(answered(2, "south", gap=0.0), answer)
    assert caught.value.code == "E-CANARY-COMMITMENT"


def test_another_owners_bits_are_refused() -> None:
    """The design is the node's own: no owner can open what another committed to."""
    answer = answered(1, "north", gap=0.0)
    with pytest.raises(TrustError):
        verified_opening(replace(answer, node_id=2), CANARIES)


def test_the_worst_owner_is_the_verdict() -> None:
    """One whose noise is missing fails the run, whatever the other shows; words say so."""
    report = report_of(answered(1, "north", gap=0.0), answered(2, "south", gap=12.0))
    verdicts = {owner["member"]: owner["verdict"] for owner in report["owners"]}
    assert verdicts == {"north": "no violation found at this power", "south": "fail"}
    assert report["verdict"] == "fail"
    assert report["line"].startswith("Canaries: fail: of 2 owners who claim epsilon 1.00")
    assert parse_canaries(canaries_bytes(report)) == report


def levels_of(report: dict[str, Any]) -> set[float]:
    return {b["alpha"] for o in report["owners"] for k in o["kinds"] for b in k["bounds"]}


def test_five_percent_are_shared_among_those_who_committed() -> None:
    """Of two owners each is tested at 2.5 %, also where one does not open, or took no part."""
    north, south = answered(1, "north", gap=0.0), answered(2, "south", gap=0.0)
    assert levels_of(report_of(north, south)) == {0.025}
    assert levels_of(report_of(north, unopened={"south": "did not open in time"})) == {0.025}
    assert levels_of(report_of(north, absent=("south",))) == {0.025}
    assert levels_of(report_of(north)) == {0.05}


def test_an_owner_who_took_no_part_leaves_the_verdict() -> None:
    """Who committed, and was never asked to train, has no claim that the run could test."""
    report = report_of(answered(1, "north", gap=0.0), absent=("south",))
    assert report["verdict"] == "no violation found at this power"
    assert (report["absent"], report["unopened"]) == (["south"], [])


def test_the_verdict_says_what_was_not_tested() -> None:
    """Directions alone see no missing clip; mislabelled records alone hardly any missing noise."""
    assert report_of(answered(1, "north", gap=0.0))["line"].endswith(
        "without mislabelled records, missing or wrong clipping was not tested"
    )
    canaries = CanarySpec(mislabelled=400, mislabelled_guesses=100)
    spec = run_with(canaries)
    answer = answered(1, "north", gap=0.0, canaries=canaries)
    report = canary_report(spec, initial_arrays(spec), [answer], unopened={}, absent=())
    assert report["line"].endswith("without directions, too little noise was hardly tested")


def test_a_report_is_computed_again_from_what_was_opened() -> None:
    """An auditor who has the file alone comes to the same commitments, bounds and verdicts."""
    report = report_of(
        answered(1, "north", gap=0.5), answered(2, "south", gap=12.0), unopened={"west": "gone"}
    )
    read = parse_canaries(canaries_bytes(report))
    assert verify_report(read) == sum(
        len(kind["bounds"]) for owner in report["owners"] for kind in owner["kinds"]
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r.update(verdict="no violation found at this power"), "E-CANARY-REPORT"),
        (lambda r: r["owners"][1].update(verdict="inconclusive"), "E-CANARY-REPORT"),
        (lambda r: r["owners"][1]["kinds"][0]["bounds"][0].update(epsilon=0.1), "E-CANARY-REPORT"),
        (lambda r: r["owners"][1]["kinds"][0]["bounds"][0].update(alpha=0.05), "E-CANARY-REPORT"),
        (lambda r: r["absent"].append("east"), "E-CANARY-REPORT"),
        (lambda r: r["unopened"].clear(), "E-CANARY-REPORT"),
        (lambda r: r["owners"][0]["opening"].update(salt="00" * 32), "E-CANARY-COMMITMENT"),
        (lambda r: r["owners"][0]["opening"].update(node_id="2"), "E-CANARY-COMMITMENT"),
        (lambda r: r["design"].update(direction_guesses=401), "E-CANARY-COMMITMENT"),
        (lambda r: r["design"].update(direction_guesses=2000), "E-CANARY-REPORT"),
        (lambda r: r["owners"][0].update(commitment="00" * 32), "E-CANARY-COMMITMENT"),
        (
            lambda r: r["owners"][1]["opening"]["directions"]["products"].reverse(),
            "E-CANARY-REPORT",
        ),
    ],
    ids=[
        "verdict", "owner's verdict", "bound", "level", "one more", "all opened",
        "salt", "node", "guesses", "too many guesses", "commitment", "products",
    ],
)  # fmt: skip
def test_a_report_that_does_not_follow_is_refused(change: Any, code: str) -> None:
    """A verdict, bound, level, owner, salt, design or score of somebody's own."""
    report = report_of(
        answered(1, "north", gap=0.0), answered(2, "south", gap=12.0), unopened={"west": "gone"}
    )
    change(report)
    with pytest.raises(TrustError) as caught:
        verify_report(parse_canaries(canaries_bytes(report)))
    assert caught.value.code == code


def test_who_does_not_open_leaves_it_open() -> None:
    """No pass without everybody who committed; and nobody at all is no verdict either."""
    report = report_of(answered(1, "north", gap=0.0), unopened={"south": "E-MESSAGE-EXPIRED"})
    assert report["owners"][0]["verdict"] == "no violation found at this power"
    assert report["verdict"] == "inconclusive"
    assert report["unopened"] == [{"member": "south", "why": "E-MESSAGE-EXPIRED"}]
    nobody = report_of(unopened={"south": "gone"})
    assert (nobody["verdict"], nobody["owners"]) == ("inconclusive", [])


def test_the_same_openings_give_the_same_bytes() -> None:
    """A worker that died after the last answer writes the report that it would have written."""
    answers = (answered(1, "north", gap=0.5), answered(2, "south", gap=0.5))
    assert canaries_bytes(report_of(*answers)) == canaries_bytes(report_of(*answers))


def test_other_json_is_no_canary_report() -> None:
    """Cut, foreign, or with a verdict of its own."""
    report = report_of(answered(1, "north", gap=0.0))
    for content in (b"", b"[]", canaries_bytes(report)[:-9], b'{"schema": "tacit-audit-report"}'):
        with pytest.raises(DataError):
            parse_canaries(content)
    with pytest.raises(ValueError, match="verdict"):
        canaries_bytes(report | {"verdict": "safe"})


def test_mislabelled_records_are_scored_from_contract_seed_and_model() -> None:
    """Rows are made again here: the owner has sent bits and salt alone."""
    canaries = CanarySpec(mislabelled=400, mislabelled_guesses=100)
    spec = run_with(canaries)
    answer = answered(1, "north", gap=0.0, canaries=canaries)
    report = canary_report(spec, initial_arrays(spec), [answer], unopened={}, absent=())
    (kind,) = report["owners"][0]["kinds"]
    assert (kind["kind"], kind["canaries"]) == ("mislabelled", 400)
    assert kind["included"] == sum(answer.values["canary-bits"])
    assert report["owners"][0]["steps"] is None
