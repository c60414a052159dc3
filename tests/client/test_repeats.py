"""`approve --repeat` covers later runs of the same two hashes, while the policy admits them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tacit.client.approvals import Verdict
from tacit.client.configuration import Approval, AppRule
from tacit.client.status import Connection, read_status
from tacit.client.store import STORE_NAME, open_store
from tacit.core.errors import RefusedError, UsageError
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tests.client.fakes import RUN, make_config, make_node, make_spec
from tests.client.test_approval_covers import CASES, FOREIGN, answered, asking_node, replaced

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.approvals import Judgement
    from tacit.client.node import Node
    from tacit.client.status import NodeStatus

SPEC = make_spec()
LATER = "r-0000beef"


def offered(node: Node, spec: RunSpec = SPEC, run_id: str = LATER) -> Judgement:
    canonical = canonical_json(spec)
    return node.offer(run_id, canonical, specification_sha256(canonical))


def shown(node: Node) -> NodeStatus:
    connection = Connection(state="stopped")
    return read_status(node.store, member="a", node_id=7, connection=connection)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node at which a person has approved one run."""
    node = asking_node(tmp_path, SPEC)
    assert offered(node, SPEC, RUN).verdict is Verdict.PENDING
    return node


def test_each_run_is_asked_anew_by_default(node: Node) -> None:
    """The same specification costs again, so the word on one run is a word on one run."""
    node.approve(RUN)
    assert offered(node).verdict is Verdict.PENDING
    assert shown(node).repeats == ()


def test_a_repeat_approves_later_runs_by_name(node: Node) -> None:
    """A later run says whose repetition it is, is made ready, and answers; the owner sees both."""
    assert "with later runs" in node.approve(RUN, repeat=True).reason
    judgement = offered(node)
    assert (judgement.verdict, judgement.by) == (Verdict.APPROVED, "repeat")
    assert judgement.reason == f"repeat of {RUN}"
    assert [each.run_id for each in shown(node).repeats] == [RUN]
    outcomes = [line.outcome for line in node.store.list_decisions(limit=9)]
    assert outcomes == ["approved", "repeated", "approved", "pending"]


def test_a_repeat_survives_the_process(node: Node, tmp_path: Path) -> None:
    """It is on the disk once the verb has answered."""
    node.approve(RUN, repeat=True)
    store = open_store(tmp_path / STORE_NAME, read_only=True)
    assert [each.run_id for each in store.list_repeats()] == [RUN]
    store.close()


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, *_ in CASES])
def test_any_changed_value_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A repeat covers one canonical specification, value by value."""
    (tmp_path / "covered_app.py").write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    _, spec, path, new = CASES[number]
    folder = tmp_path / "node"
    folder.mkdir()
    node = asking_node(folder, spec)
    offered(node, spec, RUN)
    node.approve(RUN, repeat=True)
    assert offered(node, spec, LATER).verdict is Verdict.APPROVED
    judgement = offered(node, replaced(spec, path, new), "r-0000cafe")
    assert judgement.verdict is not Verdict.APPROVED


def test_a_changed_byte_of_the_app_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a later run nor one that is under way by repetition goes on with other files."""
    app = tmp_path / "covered_app.py"
    app.write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "node"
    folder.mkdir()
    node = asking_node(folder, FOREIGN)
    offered(node, FOREIGN, LATER)
    node.approve(LATER, repeat=True)
    assert offered(node, FOREIGN, RUN).by == "repeat"
    assert answered(node, FOREIGN, 1) == ""
    app.write_text("app = 2\n")
    assert answered(node, FOREIGN, 2) == "E-APPROVAL-APP"
    under_way = offered(node, FOREIGN, RUN)
    assert (under_way.verdict, under_way.code) == (Verdict.PENDING, "E-APPROVAL-APP")
    assert offered(node, FOREIGN, "r-0000cafe").verdict is Verdict.PENDING
    node.approve("r-0000cafe", repeat=True)  # the new files, for good
    assert offered(node, FOREIGN, RUN).reason == "repeat of r-0000cafe"


def test_the_policy_comes_first(tmp_path: Path) -> None:
    """A repeat is no way round the policy or the budget: what they refuse is denied."""
    costs = [1.0]
    config = make_config(tmp_path, approve=Approval.ASK)
    node, _ = make_node(tmp_path, config, epsilon_of=lambda *_: costs[0])
    offered(node, SPEC, RUN)
    node.approve(RUN, repeat=True)
    costs[0] = 99.0
    judgement = offered(node)
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-POLICY-EPSILON")


def test_what_the_policy_denies_cannot_be_repeated(tmp_path: Path) -> None:
    """No word on later runs is kept of an approval that was refused."""
    node = make_node(tmp_path, make_config(tmp_path, approve=Approval.ASK, min_clients=9))[0]
    offered(node, SPEC, RUN)
    with pytest.raises(RefusedError, match="E-POLICY-COHORT"):
        node.approve(RUN, repeat=True)
    assert shown(node).repeats == ()


@pytest.mark.parametrize("run_id", [RUN, LATER], ids=["the first", "a repetition"])
@pytest.mark.parametrize("ended", [False, True])
def test_denying_any_of_the_runs_withdraws_it(node: Node, run_id: str, *, ended: bool) -> None:
    """Also where that run is over; what else is under way goes on until it is denied itself."""
    other = LATER if run_id == RUN else RUN
    node.approve(RUN, repeat=True)
    offered(node)
    if ended:
        node.end_run(run_id, "finished")
    assert node.deny(run_id).verdict is Verdict.DENIED
    assert offered(node, SPEC, "r-0000cafe").verdict is Verdict.PENDING
    assert offered(node, SPEC, other).verdict is Verdict.APPROVED
    assert shown(node).repeats == ()


def test_a_run_that_is_over_is_denied_for_nothing_else(node: Node) -> None:
    """Without anything to withdraw, a run that is over is unknown, as ever."""
    node.approve(RUN)
    node.end_run(RUN, "finished")
    with pytest.raises(UsageError, match="E-RUN-UNKNOWN"):
        node.deny(RUN)


def test_a_denied_run_stays_denied(node: Node) -> None:
    """The word of a person on a run itself stands before that on its likes."""
    node.deny(RUN)
    offered(node)
    node.approve(LATER, repeat=True)
    assert offered(node, SPEC, RUN).verdict is Verdict.DENIED


def test_status_says_that_an_approval_has_lapsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the app's files differ, before any message comes; not where a run is over."""
    app = tmp_path / "covered_app.py"
    app.write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "node"
    folder.mkdir()
    node = asking_node(folder, FOREIGN)
    offered(node, FOREIGN, RUN)
    node.approve(RUN)
    (run,) = shown(node).runs
    assert (run.verdict, run.code) == ("approved", "")
    app.write_text("app = 2\n")
    (run,) = shown(node).runs
    assert (run.verdict, run.code) == ("pending", "E-APPROVAL-APP")
    assert "no longer holds" in run.reason
    assert f"tacit client approve {RUN}" in run.reason
    assert "submitted anew" in run.reason
    app.unlink()  # not even installed
    assert shown(node).runs[0].code == "E-APPROVAL-APP"
    node.end_run(RUN, "failed")
    assert shown(node).runs[0].verdict == "approved"


def test_other_files_get_another_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded the old files does not go on under the approval of the new ones."""
    app = tmp_path / "covered_app.py"
    app.write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "node"
    folder.mkdir()
    modes, apps = (FOREIGN.privacy.mode,), {"covered_app:app": AppRule()}
    config = make_config(folder, approve=Approval.ASK, modes=modes, apps=apps)
    node, runner = make_node(folder, config)
    offered(node, FOREIGN, RUN)
    node.approve(RUN)
    assert runner.ended == []
    app.write_text("app = 2\n")
    node.approve(RUN)
    assert runner.ended == [RUN]
    assert runner.begun == [RUN, RUN]
