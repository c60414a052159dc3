"""Runs that share a data set's budget: each is told at the offer what the others will still use."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tacit.client.approvals import Verdict
from tacit.client.configuration import Approval
from tacit.core.errors import RefusedError
from tacit.core.specification import EvaluationSpec, canonical_json, specification_sha256
from tacit.protos import fleet_pb2
from tests.client.fakes import (
    RUN,
    instruction,
    make_node,
    make_spec,
    open_mode,
    prepare_nothing,
)
from tests.client.test_charges import config_of
from tests.privacy.ledgers import tampering

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.approvals import Judgement
    from tacit.client.node import Node
    from tacit.client.preparation import PrepareJob
    from tacit.core.specification import RunSpec

SECOND, THIRD = "r-00000002", "r-00000003"


def offered(node: Node, run_id: str, spec: RunSpec | None = None) -> Judgement:
    """Offer a run of epsilon 1, or another, and return the node's word."""
    canonical = canonical_json(make_spec() if spec is None else spec)
    return node.offer(run_id, canonical, specification_sha256(canonical))


def test_what_an_approved_run_will_use_is_not_given_to_another(tmp_path: Path) -> None:
    """Nothing is charged yet, and still the second run is denied; the first one is named."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.2))
    assert offered(node, RUN).verdict is Verdict.APPROVED
    judgement = offered(node, SECOND)
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-LEDGER-BUDGET")
    assert f"{RUN} is approved and will use up to epsilon 1" in judgement.reason
    assert "Wait until such a run is over" in judgement.reason


def test_a_part_that_is_charged_counts_once(tmp_path: Path) -> None:
    """The whole run takes the place of what it was charged so far; so two runs of 1 fit in 1.8."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.8))
    offered(node, RUN)
    node.answer(*instruction(make_spec(), 1))
    assert offered(node, SECOND).verdict is Verdict.APPROVED
    assert RUN in offered(node, THIRD).reason
    assert SECOND in offered(node, THIRD).reason


def test_a_refusal_tells_what_was_used_before_the_run(tmp_path: Path) -> None:
    """What the run itself asks for is not among what is used."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=0.4))
    assert "got 1 with this release (by itself 1); used 0, left 0.4" in offered(node, RUN).reason


def test_a_run_that_is_over_gives_back_what_it_did_not_use(tmp_path: Path) -> None:
    """After its end only its charges count, and a run offered again is judged anew."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.2))
    offered(node, RUN)
    assert offered(node, SECOND).verdict is Verdict.DENIED
    node.end_run(RUN, "stopped")
    assert offered(node, SECOND).verdict is Verdict.APPROVED


@pytest.mark.parametrize("verb", ["deny", "open"])
def test_a_run_that_will_use_nothing_takes_no_room(tmp_path: Path, verb: str) -> None:
    """Denied by a person, or without noise and so without an epsilon."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.2))
    offered(node, RUN, make_spec(privacy=open_mode()) if verb == "open" else None)
    if verb == "deny":
        node.deny(RUN)
    assert offered(node, SECOND).verdict is Verdict.APPROVED


def test_a_restart_denies_no_run_that_is_approved(tmp_path: Path) -> None:
    """Rounds that were tried again cost more than planned: each message is held against the room.

    Offered again after a restart, both runs stay approved, whatever is left.
    """
    config, spec = config_of(tmp_path, budget=1.8), make_spec()
    node, _ = make_node(tmp_path, config)
    offered(node, RUN)
    offered(node, SECOND)
    for attempt in range(12):
        last = node.answer(*instruction(spec, attempt=attempt))
    assert fleet_pb2.ReplyHead.FromString(last.head).failure.reason == "E-LEDGER-BUDGET"
    again, _ = make_node(tmp_path, config)
    assert offered(again, RUN).verdict is Verdict.APPROVED
    assert offered(again, SECOND).verdict is Verdict.APPROVED
    assert offered(again, THIRD).verdict is Verdict.DENIED


def test_a_person_cannot_give_the_same_budget_twice(tmp_path: Path) -> None:
    """Two runs that wait both fit by themselves; once one is approved, the other is refused."""
    config = config_of(tmp_path, budget=1.2, approve=Approval.ASK)
    node, _ = make_node(tmp_path, config)
    for run_id in (RUN, SECOND):
        assert offered(node, run_id).verdict is Verdict.PENDING
    node.approve(RUN)
    with pytest.raises(RefusedError, match=rf"{RUN} is approved .*E-LEDGER-BUDGET"):
        node.approve(SECOND)
    assert node.approve(RUN).verdict is Verdict.APPROVED


def test_a_run_that_is_still_made_ready_counts(tmp_path: Path) -> None:
    """A second offer during the first one's preparation of data does not get the same budget."""
    preparing, go_on = threading.Event(), threading.Event()

    def prepare(job: PrepareJob) -> None:
        preparing.set()
        assert go_on.wait(30)
        prepare_nothing(job)

    found: list[Any] = []
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.2), prepare=prepare)
    first = threading.Thread(target=lambda: found.append(offered(node, RUN)))
    first.start()
    assert preparing.wait(30)
    second = offered(node, SECOND)
    go_on.set()
    first.join()
    assert [each.verdict for each in (*found, second)] == [Verdict.APPROVED, Verdict.DENIED]


def test_metrics_of_the_other_run_count_too(tmp_path: Path) -> None:
    """Two runs that divide the records differently compose, evaluations included."""
    first = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.9))
    assert first.training is not None
    seed = dataclasses.replace(first.training, seed=first.training.seed + 1)
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=1.8))
    assert offered(node, RUN, first).verdict is Verdict.APPROVED
    second = make_spec(training=seed)
    assert offered(node, SECOND, second).code == "E-LEDGER-BUDGET"
    node.end_run(RUN, "stopped")
    assert offered(node, RUN[:-1] + "4", make_spec()).verdict is Verdict.APPROVED
    assert offered(node, SECOND, second).verdict is Verdict.APPROVED


def test_under_a_damaged_ledger_no_run_is_admitted(tmp_path: Path) -> None:
    """What status says is true: nothing more leaves, and no app is called for it."""
    spec = make_spec()
    node, runner = make_node(tmp_path, config_of(tmp_path))
    offered(node, RUN)
    node.answer(*instruction(spec, 1))
    with tampering(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE entries SET content = x'7b7d' WHERE sequence = 2")
    entry = node.answer(*instruction(spec, 2))
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-LEDGER-CORRUPT"
    assert len(runner.calls) == 1
    judgement = offered(node, SECOND)
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-LEDGER-CORRUPT")
    assert "tacit client restore" in judgement.reason
