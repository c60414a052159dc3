"""Flower's strategies and apps over gRPC with mutual TLS give what a direct call gives.

One server and seven owners serve all cases: sixteen strategies by name, and a ServerApp with a
ClientApp and a mod of somebody's own. Every app runs in a confined worker of its owner's.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import save_arrays
from tacit.core.errors import UnavailableError
from tacit.core.specification import (
    AppSpec,
    MetricSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
)
from tacit.protos.flower import RecordDict, array_record, new_context, set_task_identity
from tacit.server.checkpoint import KEY_BYTES, load_checkpoint
from tests import conformance
from tests.conformance import (
    CASES,
    NODES,
    TOLERANCE,
    Case,
    DirectGrid,
    assert_conformant,
    run_spec,
)
from tests.end_to_end.apps import foreign_app
from tests.end_to_end.federation import Federation, eventually, federation

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
OWNERS = tuple(f"owner-{number}" for number in range(len(NODES)))
FOREIGN_ROUNDS = 3


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One federation for every case; the app of the table is installed as any package would be."""
    names = [f"tests.conformance:{app}" for app in conformance.APPS]
    policy = "".join(
        f'[policy.apps."{name}"]\nreadable = ["{ROOT / "server"}"]\n'  # the table imports it
        for name in (*names, "foreign_app:client_app")
    )
    with federation(tmp_path_factory.mktemp("all"), start=False) as made:
        (made.root / "apps" / "tests").mkdir()
        shutil.copy(conformance.__file__, made.root / "apps" / "tests")
        made.start_server()
        made.add_clients(*OWNERS, policy=policy)
        yield made


@pytest.fixture(scope="module")
def runs(played: Federation) -> dict[str, tuple[str, bytes]]:
    """Every row of the table, submitted at once: its run and the key that seeded it."""
    initial = played.root / "initial.safetensors"
    save_arrays(initial, conformance.initial_arrays())
    submitted = {case.label: played.submit(run_spec(case), initial) for case in CASES}
    keys: dict[str, bytes] = {}

    def all_seen() -> bool:
        for label, run_id in submitted.items():
            if label not in keys and (key := key_of(played, run_id)):
                keys[label] = key
        return len(keys) == len(submitted)

    eventually("every run to begin", all_seen, timeout_s=300)
    return {label: (run_id, keys[label]) for label, run_id in submitted.items()}


def key_of(played: Federation, run_id: str) -> bytes:
    """Return the seed of a run that is under way; it is wiped at the end."""
    folder = played.home / "runs" / run_id / "checkpoints"
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(UnavailableError):  # the next round's has taken its place
            key = load_checkpoint(path).key
            if key != bytes(KEY_BYTES):
                return key
    return b""


def nodes_of(played: Federation) -> tuple[int, ...]:
    return tuple(sorted(played.node_id(name) for name in OWNERS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_strategy_is_equal_to_a_direct_call(
    played: Federation, runs: dict[str, tuple[str, bytes]], case: Case
) -> None:
    """Bit-equal where it computes in the model's dtype, within 3e-7 where it does in float64."""
    run_id, key = runs[case.label]
    if case.app != "client_app":  # a norm at the owner: BLAS adds in an order of its own choice
        case = replace(case, tolerance=TOLERANCE)
    assert_conformant(case, played.finish(run_id), key, nodes=nodes_of(played))


def test_an_app_of_somebody_s_own_with_a_mod_is_equal_to_a_direct_call(played: Federation) -> None:
    """Neither the ServerApp nor the ClientApp, its mod and its state can tell the difference."""
    initial = played.root / "foreign.safetensors"
    save_arrays(initial, conformance.initial_arrays())
    run_id = played.submit(foreign_spec(), initial)
    model = played.finish(run_id)

    set_task_identity(run_id=1, node_id=1)
    state = RecordDict({"initial": array_record(conformance.initial_arrays())})
    context = new_context(
        run_id=1, node_id=1, node_config={}, run_config={"rounds": FOREIGN_ROUNDS}, state=state
    )
    foreign_app.server_app(StatefulGrid(nodes_of(played)), context)
    expected = {name: item.numpy() for name, item in context.state["model"].items()}
    assert list(model) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(array, model[name])
    for name in OWNERS:
        log = [line for line in played.decisions(name, run_id) if line.message_id]
        kinds = [line.message_type for line in reversed(log)]
        assert kinds == ["query", *["train"] * FOREIGN_ROUNDS]


def foreign_spec() -> RunSpec:
    few = MetricSpec(range=(0.0, 20.0))
    return RunSpec(
        name="foreign",
        privacy=PrivacySpec(mode=PrivacyMode.NONE),
        participation=ParticipationSpec(rounds=FOREIGN_ROUNDS, min_clients=len(OWNERS)),
        app=AppSpec(
            client="foreign_app:client_app",
            server="foreign_app:server_app",
            config={"rounds": FOREIGN_ROUNDS},
        ),
        initial="initial.safetensors",
        results={
            "train": ReplySpec(metrics={"num-examples": few, "calls": few}),
            "query": ReplySpec(arrays="none", metrics={"size": few}),
        },
    )


class StatefulGrid(DirectGrid):
    """A direct grid whose nodes keep their state between calls, as workers do."""

    def __init__(self, nodes: tuple[int, ...]) -> None:
        super().__init__(foreign_app.client_app, nodes)
        self._contexts = {node: conformance.context_of(node) for node in nodes}

    def send_and_receive(self, messages, *, timeout=None):  # noqa: ANN001, ANN201 - Flower's
        del timeout
        ordered = sorted(messages, key=lambda item: item.metadata.dst_node_id)
        return [
            foreign_app.client_app(message, self._contexts[message.metadata.dst_node_id])
            for message in ordered
        ]
