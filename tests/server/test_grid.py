"""The grid: counted ids, one encoding per content, ordered replies, an answer to every message."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from tacit.core.artifacts import RunFolder, load_arrays, save_arrays
from tacit.core.errors import AppError, ConfigError
from tacit.core.specification import RetentionSpec, canonical_json, specification_sha256
from tacit.protos.flower import array_record, empty_run, set_task_identity
from tacit.server import app as server_app_module
from tacit.server.app import run_task
from tacit.server.grid import GRACE_S, Outgoing, Result, TacitGrid
from tacit.server.strategy_run import RunTask
from tests.conformance import Case, client_app, initial_arrays, run_spec
from tests.simulator import AppNode, DyingPort, app_nodes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUN_ID = "r-000000ab"


class RecordingPort(DyingPort):
    """Keeps what was stored and pushed; can hold back replies and turn their order round."""

    def __init__(self, nodes: dict[int, AppNode]) -> None:
        super().__init__(nodes)
        self.stored: list[str] = []
        self.pushed: list[Outgoing] = []
        self.silent: set[int] = set()
        self.waited: list[int] = []  # for how many messages each pull has waited

    def store(self, name: str, segments: Sequence[bytes | memoryview]) -> None:
        self.stored.append(name)
        super().store(name, segments)

    def push(self, messages: Sequence[Outgoing]) -> None:
        self.pushed += messages
        super().push(messages)

    def pull(self, message_ids: Sequence[str], *, timeout_s: float, wait: bool) -> list[Result]:
        self.waited += [len(message_ids)] if wait else []
        results = super().pull(message_ids, timeout_s=timeout_s, wait=wait)
        return [item for item in reversed(results) if item.node_id not in self.silent]


class Ticking:
    """A clock that moves on at every look."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def make_grid(app: ClientApp = client_app, **options: Any) -> tuple[TacitGrid, RecordingPort]:
    set_task_identity(run_id=0xAB, node_id=1)
    port = RecordingPort(app_nodes(app, (30, 10, 20)))
    return TacitGrid(port, run_id=RUN_ID, specification_sha256=b"s" * 32, **options), port


def instructions(content: RecordDict, nodes: Sequence[int] = (30, 10, 20)) -> list[Message]:
    return [Message(content, dst_node_id=node, message_type="train") for node in nodes]


def content(server_round: int = 1) -> RecordDict:
    config = ConfigRecord({"server-round": server_round})
    return RecordDict({"arrays": array_record(initial_arrays()), "config": config})


def test_ids_are_counted_from_where_the_checkpoint_says() -> None:
    """Ids depend on the counter alone, so a resumed worker asks for the same ones."""
    grid, port = make_grid(next_sequence=41)
    grid.get_node_ids()
    assert grid.push_messages(instructions(content())) == [
        "r-000000ab.000042",
        "r-000000ab.000043",
        "r-000000ab.000044",
    ]
    assert grid.next_sequence == 45
    assert [item.node_id for item in port.pushed] == [30, 10, 20]


def test_shared_content_is_stored_once() -> None:
    """Messages that share a content share a payload; other content gets another."""
    grid, port = make_grid()
    shared = content()
    grid.push_messages([*instructions(shared), *instructions(content(), [10])])
    assert len(port.stored) == 2
    assert len({item.payload_name for item in port.pushed[:3]}) == 1
    assert {item.head.specification_sha256 for item in port.pushed} == {b"s" * 32}


def test_replies_come_in_the_order_of_node_ids() -> None:
    """The order of arrival leaves no trace."""
    grid, _ = make_grid()
    replies = list(grid.send_and_receive(instructions(content()), timeout=5.0))
    assert [reply.metadata.src_node_id for reply in replies] == [10, 20, 30]
    assert all(reply.has_content() for reply in replies)
    assert replies[0].metadata.reply_to_message_id == "r-000000ab.000002"


def test_a_reply_that_never_comes_is_an_error_reply() -> None:
    """A port that stays silent past deadline and grace yields an error, not a missing reply."""
    grid, port = make_grid(clock=Ticking(GRACE_S))
    port.silent = {20}
    replies = list(grid.send_and_receive(instructions(content()), timeout=1.0))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "E-MESSAGE-EXPIRED"


def test_one_by_one_no_pull_waits_for_two() -> None:
    """Whoever is gone is waited for as long as the others, and every message has its reply."""
    grid, port = make_grid()
    replies = grid.send_and_receive(instructions(content()), timeout=60.0, one_by_one=True)
    assert [reply.metadata.src_node_id for reply in replies] == [10, 20, 30]
    assert port.waited == [1, 1, 1]


def test_the_deadline_travels_with_the_message() -> None:
    """A node learns how long its answer is wanted."""
    grid, port = make_grid()
    grid.send_and_receive(instructions(content()), timeout=7.5)
    assert {item.head.ttl_s for item in port.pushed} == {7.5}


def test_push_and_pull_give_each_reply_once() -> None:
    """A second pull of the same ids is empty; unknown ids are ignored."""
    grid, _ = make_grid()
    ids = grid.push_messages(instructions(content()))
    assert len(grid.pull_messages([*ids, "r-000000ab.000999"])) == 3
    assert grid.pull_messages(ids) == []


def test_strategies_may_write_into_replies() -> None:
    """An array from a reply is the strategy's own: writing into it changes no other reading."""
    grid, _ = make_grid()
    reply = grid.send_and_receive(instructions(content(), [10]), timeout=5.0)[0]
    array = reply.content["arrays"]["weight"]
    first = array.numpy()
    before = first.copy()
    first += 1.0
    np.testing.assert_array_equal(array.numpy(), before)


def test_the_grid_serves_one_run() -> None:
    """Another run's description is refused."""
    grid, _ = make_grid()
    grid.set_run(empty_run(0xAB))
    with pytest.raises(RuntimeError, match=RUN_ID):
        grid.set_run(empty_run(0xAC))


def make_task(folder: Path, **participation: Any) -> RunTask:
    run = run_spec(Case("FedAvg"))
    run = replace(run, participation=replace(run.participation, min_clients=2, **participation))
    run_folder = RunFolder(folder).create()
    save_arrays(run_folder.initial, initial_arrays())
    digest = specification_sha256(canonical_json(run))
    return RunTask(run_id=RUN_ID, specification=run, specification_sha256=digest, folder=run_folder)


def test_a_node_that_fails_does_not_stop_the_round(tmp_path: Path) -> None:
    """With enough replies the round goes on, and the manifest names who failed and why."""
    set_task_identity(run_id=0xAB, node_id=1)
    nodes = app_nodes(client_app, (10, 20, 30))
    nodes[20].failing = {"*"}
    task = make_task(tmp_path / "run", rounds=2)
    run_task(task, DyingPort(nodes))
    text = task.folder.manifest.read_text()
    assert '"20": "E-APP-FAILED"' in text
    assert sorted(load_arrays(task.folder.model)) == sorted(initial_arrays())


def test_a_round_with_too_few_replies_is_tried_again(tmp_path: Path) -> None:
    """A transient failure costs an attempt, not the run."""
    set_task_identity(run_id=0xAB, node_id=1)
    nodes = app_nodes(client_app, (10, 20))
    nodes[20].failing = {f"{RUN_ID}.000002", f"{RUN_ID}.000003"}
    task = make_task(tmp_path / "run", rounds=1)
    port = DyingPort(nodes)
    run_task(task, port)
    attempts = [fields["attempt"] for kind, fields in port.events if kind == "round_started"]
    assert attempts == [1, 2]


def test_a_round_that_keeps_failing_ends_the_run(tmp_path: Path) -> None:
    """After max_attempts the run fails, with the owners' codes."""
    set_task_identity(run_id=0xAB, node_id=1)
    nodes = app_nodes(client_app, (10, 20))
    nodes[20].failing = {"*"}
    with pytest.raises(AppError, match=r"failed 2 times.*E-APP-FAILED"):
        run_task(make_task(tmp_path / "run", rounds=1, max_attempts=2), DyingPort(nodes))


def test_an_aggregate_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Weights that overflow are never written as a model."""
    set_task_identity(run_id=0xAB, node_id=1)
    app = ClientApp()

    @app.train()
    def train(message: Message, _: Any) -> Message:
        arrays = {k: v.numpy() + np.float32("inf") for k, v in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1})
        record = array_record({k: np.asarray(v) for k, v in arrays.items()})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    task = make_task(tmp_path / "run", rounds=1)
    with pytest.raises(AppError, match="E-AGGREGATE-NOT-FINITE"):
        run_task(task, DyingPort(app_nodes(app, (10, 20))))
    assert not task.folder.model.exists()


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (RetentionSpec(), [1, 2, 3, 4, 5]),
        (RetentionSpec(rounds="all"), [1, 2, 3, 4, 5]),
        (RetentionSpec(rounds="none"), []),
        (RetentionSpec(rounds="none", every=2), [2, 4]),
    ],
)
def test_the_run_folder_keeps_what_retention_says(
    tmp_path: Path, retention: RetentionSpec, kept: list[int]
) -> None:
    """Weights of the other rounds are removed, and a finished run may be started once more."""
    set_task_identity(run_id=0xAB, node_id=1)
    task = make_task(tmp_path / "run", rounds=5)
    task = replace(task, specification=replace(task.specification, retention=retention))
    port = DyingPort(app_nodes(client_app, (10, 20)))
    run_task(task, port)
    assert task.folder.round_numbers() == kept
    model = load_arrays(task.folder.model)
    run_task(replace(task, checkpoint=port.resume_from), port)
    assert all(np.array_equal(model[k], v) for k, v in load_arrays(task.folder.model).items())


foreign = ServerApp()


@foreign.main()
def _main(grid: TacitGrid, context: Any) -> None:
    record = RecordDict({"arrays": context.state["initial"], "config": ConfigRecord()})
    record["config"]["server-round"] = 1
    replies = grid.send_and_receive(instructions(record, grid.get_node_ids()), timeout=5.0)
    context.state["model"] = ArrayRecord(
        {k: v for k, v in replies[0].content["arrays"].items()}  # noqa: C416 - a plain dict
    )


def test_a_foreign_server_app_runs_and_leaves_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any ServerApp runs over the grid; the weights in its state become the run's model."""
    monkeypatch.chdir(tmp_path)  # the app is given a folder of its own to work in
    set_task_identity(run_id=0xAB, node_id=1)
    task = make_task(tmp_path / "run")
    spec = task.specification.app
    assert spec is not None
    run = replace(task.specification, app=replace(spec, server="tests.server.test_grid:foreign"))
    run_task(replace(task, specification=run), DyingPort(app_nodes(client_app, (10, 20))))
    assert list(load_arrays(task.folder.model)) == list(initial_arrays())


def test_an_app_that_is_not_installed_is_named() -> None:
    """A missing ServerApp is a configuration error that names it."""
    with pytest.raises(ConfigError, match="no_such_package"):
        server_app_module.load_object("no_such_package.module:app")
