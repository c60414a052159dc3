"""A Flower app that trains nothing, under Flower's own secure aggregation (SecAgg+).

What noop_app.py is for plain rounds: each client answers with the arrays that it received plus its
own constant, so that what is left of a round is what the platform costs. The protocol is flwr's:
``secaggplus_mod`` at the clients, ``SecAggPlusWorkflow`` at the server, in the legacy stack that
they need. Every client deals shares to all others, with the same threshold as ours; weights are
given the smallest range (all weigh 1), which favours Flower: more of its integers' range is left
for the model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp
from noop_app import append, delta_of, initial_arrays

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.client import Client
    from flwr.common import NDArrays, Parameters, Scalar
    from flwr.serverapp import Grid

CLIPPING_RANGE = 8.0
QUANTIZATION_RANGE = 2**22  # flwr's default


class NoopClient(NumPyClient):
    """Adds this node's constant."""

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Answer with the received arrays plus this node's constant."""
        delta = delta_of(self._node_id, int(config["server-round"]))
        return [array + np.float32(delta) for array in parameters], 1, {"delta": delta}


def client_fn(context: Context) -> Client:
    """Make a client, as flwr's legacy stack asks for it."""
    return NoopClient(context.node_id).to_client()


client_app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
server_app = ServerApp()


class Timed:
    """Flwr's workflow for one round, timed, and its result compared with what is right."""

    def __init__(self, report: Path, workflow: SecAggPlusWorkflow, strategy: Watched) -> None:
        self._report, self._workflow, self._strategy = report, workflow, strategy
        self._rounds = 0

    def __call__(self, grid: Grid, context: Context) -> None:
        """Play one round, and write what happened to the report."""
        self._rounds += 1
        started = time.monotonic()
        self._workflow(grid, context)
        ended = time.monotonic()
        deltas, sample = self._strategy.deltas, self._strategy.sample
        expected = self._strategy.sent + np.mean(deltas)
        append(
            self._report,
            round=self._rounds,
            started=started,
            ended=ended,
            replies=len(deltas),
            distinct=len(set(deltas)),
            error=float(np.abs(sample - expected).max()),
        )


class Watched(FedAvg):
    """FedAvg that keeps a sample of what it sent and of what came out."""

    def __init__(self, clients: int, initial: Parameters) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=initial,
            on_fit_config_fn=lambda number: {"server-round": number},
        )
        self.sent = self.sample = np.zeros(0)
        self.deltas: list[float] = []

    def configure_fit(self, server_round, parameters, client_manager):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - flwr's
        """Note what is sent."""
        self.sent = _sample(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - flwr's
        """Note what comes out."""
        self.deltas = [float(result.metrics["delta"]) for _, result in results]
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        self.sample = _sample(parameters)
        return parameters, metrics


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds under SecAgg+."""
    config = context.run_config
    clients = int(config["clients"])
    arrays = initial_arrays(int(config["parameters"]))
    strategy = Watched(clients, ndarrays_to_parameters([one.numpy() for one in arrays.values()]))
    legacy = LegacyContext(
        context=context, config=ServerConfig(num_rounds=int(config["rounds"])), strategy=strategy
    )
    secure = SecAggPlusWorkflow(
        num_shares=1.0,
        reconstruction_threshold=2 * clients // 3 + 1,
        max_weight=1.0,
        clipping_range=CLIPPING_RANGE,
        quantization_range=QUANTIZATION_RANGE,
    )
    timed = Timed(Path(str(config["report"])), secure, strategy)
    DefaultWorkflow(fit_workflow=timed)(grid, legacy)


def _sample(parameters: Parameters) -> np.ndarray:
    arrays = parameters_to_ndarrays(parameters)
    return np.concatenate([array.ravel()[::101].astype(np.float64) for array in arrays])
