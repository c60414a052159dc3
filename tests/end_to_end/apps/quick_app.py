"""A Flower app without training: what is left is the platform, so that runs take a second.

Its reply depends on the weights, the round and the node, and on nothing else: two runs of one
federation are equal to the bit, whatever was killed in between. While a file ``hold-ROUND-NODE`` or
``hold-ROUND`` stands in the folder of gates, the app waits, and says so in its worker's log.
With ``fault`` and ``fault-node`` in its configuration, that node misbehaves from round 2 on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the arrays moved by numbers that the round and the node seed."""
    number = int(message.content["config"]["server-round"])
    wait_for_gate(context, number)
    rng = np.random.default_rng([context.node_id, number])
    arrays = {
        name: Array((item.numpy() * np.float32(0.5)) + rng.normal(size=item.shape).astype("<f4"))
        for name, item in message.content["arrays"].items()
    }
    if context.run_config.get("fault-node") == str(context.node_id):
        arrays = misbehave(str(context.run_config["fault"]), number, arrays)
    metrics = MetricRecord({"num-examples": 1 + context.node_id % 5})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


def wait_for_gate(context: Context, number: int) -> None:
    """Wait while the round is held."""
    gates = Path(str(context.node_config["gates"]))
    held = [gates / f"hold-{number}-{context.node_id}", gates / f"hold-{number}"]
    if any(gate.exists() for gate in held):
        print(f"held in round {number}", flush=True)  # noqa: T201 - read in the worker's log
    while any(gate.exists() for gate in held):
        time.sleep(0.01)


def misbehave(fault: str, number: int, arrays: dict[str, Array]) -> dict[str, Array]:
    """Do what no app should, from round 2 on."""
    first = next(iter(arrays))
    values = arrays[first].numpy()
    if number < 2:
        return arrays
    match fault:
        case "raise":
            raise RuntimeError("secret value 42")
        case "hang":
            time.sleep(3600)
        case "die":
            os._exit(3)
        case "nan":
            values = np.full_like(values, np.nan)
        case "shape":
            values = values[:1]
        case "dtype":
            values = values.astype(np.float64)
    return {**arrays, first: Array(values)}
