"""Flower's strategies against a direct call: the table, and what both sides of it share.

A transport is conformant if every strategy gives over it what ``Strategy.start`` gives when it
calls the same ClientApp directly. The table, the apps and the comparison are here, so that the
check runs over any transport: the fake port, the simulator, or gRPC between processes (import this
module as ``tests.conformance`` at the client's side).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid

from tacit.core.specification import (
    AppSpec,
    MetricSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
    StrategySpec,
)
from tacit.protos.flower import set_task_identity
from tacit.server.checkpoint import seed_generators
from tacit.server.strategies import build_strategy

ROUNDS = 3
NODES = tuple(range(101, 108))  # seven: what Bulyan needs for one malicious node
TOLERANCE = 3e-7
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Case:
    """One row: a strategy, the app it needs, and how close its result must be.

    Attributes:
        tolerance: 0 where the strategy computes in the model's dtype: then equal to the bit.
            Flower's Adam and q-FedAvg answer in float64, which the model's float32 rounds.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    wrapper: str = ""
    wrapper_parameters: dict[str, Any] = field(default_factory=dict)
    app: str = "client_app"
    tolerance: float = 0.0

    @property
    def label(self) -> str:
        return self.name if not self.wrapper else f"{self.wrapper}({self.name})"


_NOISE = {"noise_multiplier": 0.5, "num_sampled_clients": len(NODES)}
CASES = (
    Case("FedAvg"),
    Case("FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 0.5}),
    Case("FedAdam", {"eta": 0.05}, tolerance=TOLERANCE),
    Case("FedYogi", {"eta": 0.05}),
    Case("FedAdagrad", {"eta": 0.05}),
    Case("FedProx", {"proximal_mu": 0.1}),
    Case("FedMedian"),
    Case("FedTrimmedAvg", {"beta": 0.2}),
    Case("Krum", {"num_malicious_nodes": 1}),
    Case("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    Case("Bulyan", {"num_malicious_nodes": 1}),
    Case("QFedAvg", {"client_learning_rate": 0.1, "q": 0.2}, tolerance=TOLERANCE),
    Case(
        "FedAvg",
        wrapper="DifferentialPrivacyServerSideFixedClipping",
        wrapper_parameters={**_NOISE, "clipping_norm": 0.5},
    ),
    Case(
        "FedAvg",
        wrapper="DifferentialPrivacyClientSideFixedClipping",
        wrapper_parameters={**_NOISE, "clipping_norm": 0.5},
        app="fixed_clipping_app",
    ),
    Case(
        "FedAvg",
        wrapper="DifferentialPrivacyServerSideAdaptiveClipping",
        wrapper_parameters={**_NOISE, "initial_clipping_norm": 0.5},
    ),
    Case(
        "FedAvgM",
        {"server_momentum": 0.5},
        wrapper="DifferentialPrivacyClientSideAdaptiveClipping",
        wrapper_parameters={**_NOISE, "initial_clipping_norm": 0.5},
        app="adaptive_clipping_app",
    ),
)


def run_spec(case: Case, *, rounds: int = ROUNDS) -> RunSpec:
    """Return the run that plays a row of the table."""
    metrics = {
        "num-examples": MetricSpec(range=(0.0, 1e6)),
        "loss": MetricSpec(range=(0.0, 1e6)),
        "norm_bit": MetricSpec(range=(0.0, 1.0)),
    }
    return RunSpec(
        name=f"conformance {case.label}",
        privacy=PrivacySpec(mode=PrivacyMode.NONE),
        strategy=StrategySpec(
            name=case.name,
            parameters=case.parameters,
            wrapper=case.wrapper,
            wrapper_parameters=case.wrapper_parameters,
        ),
        participation=ParticipationSpec(rounds=rounds, min_clients=len(NODES)),
        app=AppSpec(client=f"tests.conformance:{case.app}"),
        initial="initial.safetensors",
        results={"train": ReplySpec(metrics=metrics)},
    )


def initial_arrays() -> Arrays:
    """Return the weights before round 1."""
    rng = np.random.default_rng(7)
    return {
        "weight": rng.normal(size=(7, 5)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
        "scale": np.asarray(np.float32(1.5)),
    }


def make_app(*mods: Any) -> ClientApp:
    """Return an app whose reply depends on the weights, the round and the node, on nothing else."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        rng = np.random.default_rng([context.node_id, int(config["server-round"])])
        pull = 1.0 + float(config.get("proximal-mu", 0.0))
        arrays, loss = {}, 0.0
        for name, item in message.content["arrays"].items():
            old = item.numpy()
            step = rng.normal(size=old.shape).astype(np.float32) * np.float32(0.1)
            arrays[name] = Array(np.asarray(old * np.float32(0.9 / pull) + step, dtype=np.float32))
            loss += float(np.square(old).mean())
        metrics = MetricRecord({"num-examples": 10 + context.node_id % 7, "loss": loss})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


client_app = make_app()
fixed_clipping_app = make_app(fixedclipping_mod)
adaptive_clipping_app = make_app(adaptiveclipping_mod)
APPS = {
    "client_app": client_app,
    "fixed_clipping_app": fixed_clipping_app,
    "adaptive_clipping_app": adaptive_clipping_app,
}


class DirectGrid(Grid):
    """A grid that calls the app on the spot: no codec, no port, no counting."""

    def __init__(self, app: ClientApp, nodes: tuple[int, ...] = NODES) -> None:
        self._app = app
        self._nodes = nodes

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def push_messages(self, messages: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> Any:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        del timeout
        return [
            self._app(message, context_of(message.metadata.dst_node_id))
            for message in sorted(messages, key=lambda item: item.metadata.dst_node_id)
        ]


def context_of(node_id: int) -> Context:
    return Context(run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def direct_call(
    case: Case, key: bytes, *, rounds: int = ROUNDS, nodes: tuple[int, ...] = NODES
) -> Arrays:
    """Return the weights that Flower's own loop makes, with the app called on the spot.

    ``key`` seeds the generators as the run's worker does, so that sampling and noise agree.
    """

    def seed(server_round: int, _: ArrayRecord) -> None:
        seed_generators(key, server_round + 1, 1)

    set_task_identity(run_id=1, node_id=1)
    strategy = build_strategy(run_spec(case, rounds=rounds))
    if hasattr(strategy, "fraction_evaluate"):
        strategy.fraction_evaluate = 0.0
    else:
        strategy.strategy.fraction_evaluate = 0.0
    result = strategy.start(
        DirectGrid(APPS[case.app], nodes),
        ArrayRecord({name: Array(array) for name, array in initial_arrays().items()}),
        num_rounds=rounds,
        train_config=ConfigRecord(),
        evaluate_fn=seed,
    )
    return {name: item.numpy() for name, item in result.arrays.items()}


def assert_conformant(
    case: Case, over_transport: Arrays, key: bytes, *, nodes: tuple[int, ...] = NODES
) -> None:
    """Compare what came over a transport with the direct call.

    Raises:
        AssertionError: they differ by more than the row allows.
    """
    expected = direct_call(case, key, nodes=nodes)
    assert list(over_transport) == list(expected)
    for name, array in over_transport.items():
        assert array.dtype == np.float32
        if case.tolerance == 0.0:
            np.testing.assert_array_equal(array, expected[name])
        else:
            # A weight near 1 has a step of 6e-8 in float32, and each round rounds once.
            limit = case.tolerance
            np.testing.assert_allclose(array, expected[name], rtol=limit, atol=limit)


Transport = Callable[[Case], tuple[Arrays, bytes]]
