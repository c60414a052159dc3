"""Logistic regression in numpy as a Flower ClientApp, on data that the owner's node made ready.

The node has applied the run's data contract already: the app sees features and labels, never the
owner's file. Which file that is stands in ``context.node_config["tacit-prepared"]``; whatever the
owner wrote under ``node_config`` in client.toml stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tacit.learning.prepared import load_prepared

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take ``steps`` full-batch gradient steps from the weights that came."""
    examples = load_prepared(Path(str(context.node_config["tacit-prepared"]))).train
    weights = message.content["arrays"]["weights"].numpy().copy()
    for _ in range(int(context.run_config.get("steps", 1))):
        gradient = _gradient(weights, examples.features, examples.labels)
        weights -= np.float32(context.run_config.get("learning-rate", 1.0)) * gradient
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(weights)}),
            "metrics": MetricRecord({"num-examples": len(examples.labels)}),
        }
    )
    return Message(content, reply_to=message)


def _gradient(weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    chance = 1.0 / (1.0 + np.exp(-(features @ weights[:-1] + weights[-1])))
    error = (chance - labels).astype(np.float32)
    mean = np.append(features.T @ error, error.sum()) / np.float32(len(labels))
    return np.asarray(mean, dtype=np.float32)
