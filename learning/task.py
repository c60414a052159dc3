"""One call of a built-in app, parsed: what to do, on which records, from which weights.

What an app is given: the specification (``run_config``), the path of the cleaned data set
(``node_config``), and where noise is promised a key (``state``), fresh for each (run, round,
attempt), taken out of the state when it is read. Trusts nothing in a message but weights of the
model's own shape.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import ConfigRecord

from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, ConfigError
from tacit.core.specification import DataSpec, ModelSpec, RunSpec, TrainingSpec
from tacit.learning.models import build_model, load_model_arrays
from tacit.learning.prepared import PreparedSets, load_prepared
from tacit.privacy.distributed.plan import RunPlan, plan_of_run

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from torch import nn

    from tacit.learning.models import Arrays

SPECIFICATION = "tacit-specification"
PREPARED = "tacit-prepared"
STATE = "tacit"
NOISE_KEY = "noise-key"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one message asks of one owner.

    Attributes:
        spec, training: the run's, as the owner approved it.
        plan: its mechanism.
        sets: the owner's two sides.
        received: the weights that came, by name.
        model: holds them.
    """

    spec: RunSpec
    training: TrainingSpec
    plan: RunPlan
    sets: PreparedSets
    received: Arrays
    model: nn.Module

    def weights_sha256(self) -> str:
        """Return a digest of the weights that came, which sets two calls' noises apart."""
        digest = hashlib.sha256()
        for name, array in self.received.items():
            digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def open_task(message: Message, context: Context) -> Task:
    """Return what a message asks, with the owner's records and the model that it carries.

    Raises:
        AppError: the message or what the node gives is incomplete.
        ConfigError: the run is none of the built-in apps'.
        TacitError: the records or the weights cannot be read.
    """
    torch.set_num_threads(1)  # several owners' workers may share a machine
    spec = _specification(context)
    data, model_spec, training = _built_in_parts(spec)
    sets = load_prepared(Path(str(context.node_config[PREPARED])))
    plan = plan_of_run(spec, records=sets.records)
    model = build_model(model_spec, data, private=plan.trains_with_noise)
    received = _arrays(message)
    load_model_arrays(model, received)
    return Task(spec=spec, training=training, plan=plan, sets=sets, received=received, model=model)


def _specification(context: Context) -> RunSpec:
    for where, key in ((context.run_config, SPECIFICATION), (context.node_config, PREPARED)):
        if not isinstance(where.get(key), str):
            raise AppError("E-APP-CONTEXT", f"expected {key} from the node, it was not given")
    return from_plain(json.loads(str(context.run_config[SPECIFICATION])), RunSpec)


def _built_in_parts(spec: RunSpec) -> tuple[DataSpec, ModelSpec, TrainingSpec]:
    if spec.data is None or spec.model is None or spec.training is None:
        raise ConfigError(
            "E-APP-CONTEXT", "expected [data], [model] and [training]: the built-in app needs them"
        )
    return spec.data, spec.model, spec.training


def take_noise_key(context: Context) -> bytes | None:
    """Take the key out of the state, so that it is used once and never stored with it."""
    record = context.state.get(STATE)
    if not isinstance(record, ConfigRecord):
        return None
    key = record.pop(NOISE_KEY, None)
    return key if isinstance(key, bytes) and key else None


def arrays_key(message: Message) -> str:
    """Return the name of the one array record of a message.

    Raises:
        AppError: there is none, or several.
    """
    keys = list(message.content.array_records)
    if len(keys) != 1:
        raise AppError(
            "E-APP-MESSAGE", f"expected one array record in the instruction, got {len(keys)}"
        )
    return keys[0]


def _arrays(message: Message) -> Arrays:
    record = message.content.array_records[arrays_key(message)]
    return {name: array.numpy() for name, array in record.items()}
