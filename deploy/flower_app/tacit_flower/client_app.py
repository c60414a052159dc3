"""The ClientApp: ``tacit.learning.app`` with what Tacit's node would have given it.

Under Flower's engine there is no node of ours around the app: no approval, no envelope, no policy,
no isolation, and nobody counts what was spent. What is kept is the mechanism: a fresh 256-bit noise
key from the operating system for every message, wiped afterwards, so that no noise is used twice.

The prepared data set is the file that SuperNode's ``--node-config 'tacit-prepared="/path"'`` names,
or, in a simulation, the file of this node's partition in the run config's ``tacit-prepared``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from tacit.core.errors import UsageError
from tacit.learning.app import app as built_in
from tacit_flower.port import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_BYTES = 32

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train as the built-in app does."""
    return call(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate as the built-in app does."""
    return call(message, context)


def call(message: Message, context: Context) -> Message:
    """Call the built-in app with a noise key of this message's own."""
    prepared = prepared_path(context.node_config, context.run_config)
    context.state["tacit"] = ConfigRecord({"noise-key": os.urandom(KEY_BYTES)})
    inner = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config={**context.node_config, "tacit-prepared": str(prepared)},
        state=context.state,
        run_config=context.run_config,
    )
    try:
        reply = built_in(message, inner)
        plain(reply.content)
    finally:
        context.state.pop("tacit", None)
    return reply


def prepared_path(node_config: Mapping[str, object], run_config: Mapping[str, object]) -> Path:
    """Return this node's prepared data set.

    Raises:
        UsageError: neither configuration names one.
    """
    if "tacit-prepared" in node_config:
        return Path(str(node_config["tacit-prepared"]))
    folder, partition = str(run_config.get("tacit-prepared", "")), node_config.get("partition-id")
    if not folder or partition is None:
        raise UsageError(
            "E-FLOWER-CONFIG",
            "expected tacit-prepared in the node config, or a simulated partition",
            hint="flower-supernode --node-config 'tacit-prepared=\"/path/prepared.safetensors\"'",
        )
    return Path(folder) / f"{partition}.safetensors"
