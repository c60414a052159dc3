"""A Flower app that trains nothing: what is left of a round is what the platform costs.

Both engines run this file unmodified. Each client answers with the arrays that it received plus a
small constant that depends on its node id and on the round, so that no two replies are equal and no
engine can win by remembering one. The server side is Flower's own FedAvg, step by step, so that a
round can be timed: configure, send, receive, aggregate. After each round, outside the timed part,
a sample of the aggregate is compared with what four honest clients must give.

The report is a file of JSON lines, one per round, with times of CLOCK_MONOTONIC: the one clock that
all processes of a machine share.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

PARTS = 10  # a model is a list of arrays, not one: ten of equal size
ROUND_TIMEOUT_S = 900.0
SAMPLE_STEP = 1009  # a prime: no alignment with chunks or pages
TOLERANCE = 1e-5  # float32 rounding of values of size one, over a handful of rounds

client_app = ClientApp()
server_app = ServerApp()


def delta_of(node_id: int, server_round: int) -> float:
    """Return the constant that a node adds in a round: different for each node and round."""
    spread = (node_id * 2_654_435_761 % 2**32) / 2**32
    return 1e-3 * (server_round + spread)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the received arrays plus this node's constant."""
    arrays = message.content.array_records["arrays"]
    server_round = int(message.content.config_records["config"]["server-round"])
    delta = delta_of(context.node_id, server_round)
    changed = {name: Array(array.numpy() + np.float32(delta)) for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": 1.0, "delta": delta})
    content = RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics})
    return Message(content=content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, time each one, and write what happened to the report."""
    config = context.run_config
    clients = int(config["clients"])
    report = Path(str(config["report"]))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    arrays = initial_arrays(int(config["parameters"]))
    sample = sample_of(arrays)
    for server_round in range(1, int(config["rounds"]) + 1):
        started = time.monotonic()
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages, timeout=ROUND_TIMEOUT_S))
        received = time.monotonic()
        deltas = [float(r.content["metrics"]["delta"]) for r in replies if r.has_content()]
        aggregated, _ = strategy.aggregate_train(server_round, replies)
        ended = time.monotonic()
        del replies
        if aggregated is None:
            raise RuntimeError(f"round {server_round}: no reply could be aggregated")
        expected, sample = sample + np.mean(deltas), sample_of(aggregated)
        arrays = aggregated
        append(
            report,
            round=server_round,
            started=started,
            received=received,
            ended=ended,
            replies=len(deltas),
            distinct=len(set(deltas)),
            error=float(np.abs(sample - expected).max()),
        )


def initial_arrays(parameters: int) -> ArrayRecord:
    """Return ``parameters`` seeded float32 numbers in ten arrays."""
    values = np.random.default_rng(0).standard_normal(parameters, dtype=np.float32)
    parts = np.array_split(values, PARTS)
    return ArrayRecord({f"part.{index}": Array(part) for index, part in enumerate(parts)})


def sample_of(arrays: ArrayRecord) -> np.ndarray:
    """Return a spread of the model's values as float64, small whatever the model's size."""
    parts = []
    for array in arrays.values():
        values = array.numpy()
        step = SAMPLE_STEP if values.size > SAMPLE_STEP * 100 else 1
        parts.append(values[::step].astype(np.float64))
    return np.concatenate(parts)


def append(report: Path, **fields: float) -> None:
    """Add one line to the report."""
    with report.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(fields) + "\n")
