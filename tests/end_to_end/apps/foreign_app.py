"""A ServerApp and a ClientApp as anybody could have written them for Flower, with a mod.

The ServerApp asks every node for a number first (a query), then trains with a strategy of its own
making; the mod halves what the ClientApp would have changed. Nothing in here knows of Tacit, but
for the two names under which a ServerApp finds and leaves weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

if TYPE_CHECKING:
    from collections.abc import Callable


def halving_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Halve the change of every array; count the calls in the app's own state."""
    before = message.content.array_records.get("arrays")
    reply = call_next(message, context)
    if before is None:
        return reply
    calls = int(context.state["calls"]["n"]) if "calls" in context.state else 0
    context.state["calls"] = MetricRecord({"n": calls + 1})
    after = reply.content.array_records["arrays"]
    for name in list(after):
        old, new = before[name].numpy(), after[name].numpy()
        after[name] = Array(np.asarray(old + (new - old) / np.float32(2), dtype=np.float32))
    reply.content.metric_records["metrics"]["calls"] = calls + 1
    return reply


client_app = ClientApp(mods=[halving_mod])
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Move every array by a number of this node."""
    step = np.float32((context.node_id % 11) * float(message.content["config"]["scale"]))
    arrays = {
        name: Array(np.asarray(item.numpy() + step, dtype=np.float32))
        for name, item in message.content["arrays"].items()
    }
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 2})}
    )
    return Message(content, reply_to=message)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with a number of this node."""
    content = RecordDict({"metrics": MetricRecord({"size": context.node_id % 13})})
    return Message(content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask, train, and leave the weights."""
    questions = [
        Message(
            RecordDict({"config": ConfigRecord({"ask": "size"})}),
            dst_node_id=node_id,
            message_type="query",
        )
        for node_id in sorted(grid.get_node_ids())
    ]
    answers = grid.send_and_receive(questions, timeout=60)
    sizes = [float(answer.content["metrics"]["size"]) for answer in answers]
    result = FedAvg(fraction_evaluate=0.0).start(
        grid,
        context.state["initial"],
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord({"scale": sum(sizes)}),
    )
    context.state["model"] = result.arrays
