"""Mode client-local: what a hostile app can say beside its numbers, and what that costs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.approvals import Verdict
from tacit.client.configuration import AppRule
from tacit.core.errors import AppError, ProtocolError
from tacit.core.specification import (
    AppSpec,
    MetricSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
)
from tacit.protos import fleet_pb2, records_pb2
from tests.client.fakes import (
    MODEL,
    instruction,
    make_config,
    make_node,
    manifest_of,
    offer,
    open_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.client.payload import Payload

APP = AppSpec(client="tests.client.fakes:app")
TRAIN = ReplySpec(metrics={"num-examples": MetricSpec(range=(1.0, 1e6))})
MASKED = {**MODEL, "mask": np.array([True, False, True])}
MOVED = {name: array + np.float32(0.25) for name, array in MODEL.items()}
Reply = tuple[records_pb2.Manifest, bytes]


def spec_of(**changes: Any) -> RunSpec:
    """A run of somebody's own app under client-local."""
    values: dict[str, Any] = {
        "name": "own",
        "app": APP,
        "privacy": PrivacySpec(
            mode=PrivacyMode.CLIENT_LOCAL, clip=1.0, noise_multiplier=2.0, delta=1e-3
        ),
        "participation": ParticipationSpec(rounds=2),
        "results": {"train": TRAIN},
    }
    return RunSpec(**(values | changes))


def node_of(folder: Path, make: Callable[[Any], Any], **policy: Any) -> Node:
    """A node that admits the run, and whose runner answers as told."""
    config = make_config(
        folder,
        **{
            "modes": tuple(PrivacyMode),
            "apps": {APP.client: AppRule()},
            "max_epsilon_per_run": 100.0,
        }
        | policy,
    )
    data_set = dataclasses.replace(config.data_sets["default"], budget=100.0)
    config = dataclasses.replace(config, data_sets={"default": data_set})
    node, _ = make_node(folder, config, make)
    return node


def released(folder: Path, reply: Reply, model: Any = MODEL) -> tuple[bytes, bytes]:
    """Play one round; return the manifest and the bytes that left."""
    folder.mkdir()
    node = node_of(folder, lambda _: reply)
    assert offer(node, spec_of()).verdict is Verdict.APPROVED
    entry = node.answer(*instruction(spec_of(), model=model))
    head = fleet_pb2.ReplyHead.FromString(entry.head)
    assert head.WhichOneof("outcome") == "manifest", head.failure.reason
    return head.manifest.SerializeToString(deterministic=True), bytes(node.open_reply(entry))


def test_order_names_and_forms_of_a_reply_say_nothing(tmp_path: Path) -> None:
    """One update, told in seven ways, leaves as the same bytes."""
    plain = manifest_of(MOVED, {"num-examples": 1})
    backwards = manifest_of(dict(reversed(MOVED.items())), {"num-examples": 1})
    weight_first = records_pb2.Manifest()
    weight_first.CopyFrom(plain[0])
    del weight_first.records[:]
    weight_first.records.extend(reversed(plain[0].records))
    empty_metrics = manifest_of(MOVED, {})
    replies = [
        plain,
        backwards,
        (weight_first, plain[1]),
        manifest_of(MOVED),
        empty_metrics,
        manifest_of(MOVED, {"num-examples": 77}),
        manifest_of(MOVED, {"num-examples": 1.5}),
    ]
    assert len({reply[0].SerializeToString() for reply in replies}) == len(replies)
    left = [released(tmp_path / str(number), reply) for number, reply in enumerate(replies)]
    assert set(left) == {left[0]}


def test_signs_of_zero_and_bits_of_truth_values_say_nothing(tmp_path: Path) -> None:
    """-0.0 leaves as 0.0 does under noise; a truth value of another byte is another integer."""
    zeros = {**MODEL, "bias": np.zeros(2, np.float32)}
    signed = {**MODEL, "bias": np.array([-0.0, 0.0], np.float32)}
    left = [
        released(tmp_path / str(number), manifest_of(arrays))
        for number, arrays in enumerate((zeros, signed))
    ]
    assert left[0] == left[1]
    manifest, payload = manifest_of(MASKED, {"num-examples": 1})
    crafted = payload[:-3] + bytes([7, 0, 255])
    manifest.payload_sha256 = b""
    (tmp_path / "crafted").mkdir()
    node = node_of(tmp_path / "crafted", lambda _: (manifest, crafted))
    offer(node, spec_of())
    node.answer(*instruction(spec_of(), model=MASKED))
    assert node.store.list_decisions(limit=1)[0].code == "E-UPDATE-INTEGER"
    assert released(tmp_path / "good", manifest_of(MASKED), MASKED)[1].endswith(b"\1\0\1")


def refused_by_app(_: Any) -> str:
    return "E-APP-RAISED"


def not_finite(_: Any) -> Reply:
    return manifest_of({**MODEL, "bias": np.full(2, np.nan, np.float32)})


def undeclared(_: Any) -> Reply:
    return manifest_of(MODEL, {"loss": 1.0})


def dies(_: Any) -> Any:
    raise AppError("E-APP-DIED", "the app's process ended with status 63")


def speaks_twice(_: Any) -> Any:
    raise ProtocolError("E-WORKER-REPLY", "expected one answer")


FAILURES = {
    "E-APP-RAISED": refused_by_app,
    "E-REPLY-NOT-FINITE": not_finite,
    "E-REPLY-METRIC": undeclared,
    "E-APP-DIED": dies,
    "E-WORKER-REPLY": speaks_twice,
}


@pytest.mark.parametrize("code", FAILURES)
def test_every_failure_leaves_as_one_code_at_the_price_of_an_update(
    tmp_path: Path, code: str
) -> None:
    """Whether and how an app fails may depend on the records; the owner alone sees how."""
    node = node_of(tmp_path, FAILURES[code])
    offer(node, spec_of())
    entry = node.answer(*instruction(spec_of()))
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-APP-FAILED"
    assert code == "E-APP-RAISED" or code.encode() not in entry.head
    line = node.store.list_decisions(limit=1)[0]
    assert (line.code, bool(line.reason)) == (code, True)
    assert len(open_ledger(tmp_path).account("default").charges) == 1
    node.answer(*instruction(spec_of()))  # the same attempt again
    assert len(open_ledger(tmp_path).account("default").charges) == 1
    assert list((tmp_path / "outbox").iterdir()) == []


def test_failures_stop_at_the_owners_limit(tmp_path: Path) -> None:
    """An operator who asks again and again of an app that fails at will comes to an end."""
    node = node_of(tmp_path, refused_by_app, max_epsilon_per_run=1.5)
    offer(node, spec_of())
    codes = []
    for number in range(1, 6):
        entry = node.answer(*instruction(spec_of(), number))
        codes.append(fleet_pb2.ReplyHead.FromString(entry.head).failure.reason)
    assert codes == ["E-APP-FAILED"] * 3 + ["E-PRIVACY-SPENT"] * 2


def test_the_owners_own_no_is_no_secret_and_costs_nothing(tmp_path: Path) -> None:
    """A denial while the app works leaves as such."""
    nodes: list[Node] = []

    def denied(_: Any) -> str:
        nodes[0].deny("r-00000001")
        return "E-APP-RAISED"

    nodes.append(node_of(tmp_path, denied))
    offer(nodes[0], spec_of())
    entry = nodes[0].answer(*instruction(spec_of()))
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-APPROVAL-MISSING"
    assert open_ledger(tmp_path).data_sets() == []


@pytest.mark.parametrize(
    ("evaluate", "allowed", "code"),
    [
        (ReplySpec(arrays="model"), False, "E-POLICY-EXACT-ARRAYS"),
        (ReplySpec(arrays="model"), True, "E-POLICY-EXACT-ARRAYS"),
        (ReplySpec(arrays="none", metrics=TRAIN.metrics), False, "E-POLICY-EXACT-METRICS"),
        (ReplySpec(arrays="none", metrics=TRAIN.metrics), True, ""),
    ],
)
def test_an_evaluation_is_no_way_around_the_noise(
    tmp_path: Path,
    evaluate: ReplySpec,
    allowed: bool,  # noqa: FBT001
    code: str,
) -> None:
    """Declared without ``evaluation.every`` it still evaluates; its arrays would be exact."""
    node = node_of(tmp_path, lambda _: manifest_of(MODEL), allow_exact_metrics=allowed)
    spec = spec_of(results={"train": TRAIN, "evaluate": evaluate})
    assert offer(node, spec).code == code


def test_an_instruction_that_was_changed_since_it_came_reaches_no_app(tmp_path: Path) -> None:
    """The model that an update is compared with has the digest that the server sent."""
    node = node_of(tmp_path, lambda _: manifest_of(MOVED))
    offer(node, spec_of())
    head, _ = instruction(spec_of())
    _, other = instruction(spec_of(), model=MOVED)
    entry = node.answer(head, other)
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-PAYLOAD-DIGEST"


def test_the_app_is_given_nothing_that_the_node_compares_with(tmp_path: Path) -> None:
    """An app that writes its update into the received model moves nothing but its own copy."""

    def in_place(call: Any) -> Reply:
        del call
        np.frombuffer(seen[0], np.float32)[:] += np.float32(1e6)
        return manifest_of({name: array + np.float32(1e6) for name, array in MODEL.items()})

    seen: list[bytearray] = []
    node = node_of(tmp_path, in_place)
    offer(node, spec_of())
    head, payload = instruction(spec_of())
    shared = bytearray(b"".join(bytes(piece) for piece in payload.pieces()))
    seen.append(shared)
    entry = node.answer(head, SharedPayload(shared))
    model = np.concatenate([array.ravel() for array in MODEL.values()])
    change = np.frombuffer(bytes(node.open_reply(entry)), np.float32) - model
    assert np.abs(change).max() < 40  # deviation 4 on 8 numbers, and a clip of 1


@dataclasses.dataclass
class SharedPayload:
    """An instruction in memory that somebody else may still write to."""

    data: bytearray

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self) -> Any:
        yield memoryview(self.data)

    def close(self) -> None: ...


if TYPE_CHECKING:
    _: Payload = SharedPayload(bytearray())
