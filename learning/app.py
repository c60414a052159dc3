"""The built-in Flower ClientApp, ``tacit.learning.app:app``: trains and evaluates at the owner.

What it is given: the specification (``run_config``), the path of the cleaned data set
(``node_config``), and under differential privacy a noise key (``state``), fresh for each
(run, round, attempt), taken out of the state when it is read. What it trusts: nothing in the
message but weights of the model's own shape, the round number and FedProx's weight.

The noise of a call comes from the key and a digest of the received weights: should one key ever
be used on two instructions, their noises would still be independent. No seed plays a part.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, ConfigError, RefusedError
from tacit.core.specification import DataSpec, ModelSpec, RunSpec, TrainingSpec
from tacit.learning.evaluation import evaluate_model, noised_evaluation
from tacit.learning.models import Arrays, build_model, load_model_arrays
from tacit.learning.prepared import PreparedSets, load_prepared
from tacit.learning.training import Recipe, train_model
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.privacy.noise import derive_key
from tacit.privacy.plan import PrivacyPlan, privacy_plan
from tacit.protos.flower import array_record

SPECIFICATION = "tacit-specification"
PREPARED = "tacit-prepared"
STATE = "tacit"
NOISE_KEY = "noise-key"

app = ClientApp()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One call, parsed: what to do, on which records, from which weights."""

    spec: RunSpec
    training: TrainingSpec
    plan: PrivacyPlan
    sets: PreparedSets
    received: Arrays
    model: nn.Module


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the owner's training records; reply with the weights and a weight for the mean."""
    task = _open_task(message, context)
    key = _take_noise_key(context)
    if key is not None:
        key = derive_key(key, purpose=f"train {_digest(task.received)}")
    config = _config(message)
    recipe = Recipe(
        training=task.training,
        plan=task.plan,
        proximal_mu=_number(config, "proximal-mu", task.training.proximal_mu),
        batch_seed=_batch_seed(task.training, config, context.node_id),
    )
    loss = train_model(task.model, task.sets.train, recipe, noise_key=key)
    metrics: dict[str, int | float] = {"num-examples": 1}
    if not task.plan.is_private:
        metrics = {"num-examples": len(task.sets.train), "loss": loss}
    content = RecordDict(
        {
            _arrays_key(message): array_record(_trained(task)),
            "metrics": MetricRecord(dict(metrics)),
        }
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on the owner's validation records: noised sums where the run declares an epsilon.

    Without one the values are exact.
    """
    key = _take_noise_key(context)
    task = _open_task(message, context)
    if task.spec.noises("evaluate"):
        metrics = _noised_metrics(task, key)
    else:
        metrics = evaluate_model(task.model, task.sets.validation)
    if task.plan.is_private:
        metrics["num-examples"] = 1
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    return Message(content=content, reply_to=message)


def _noised_metrics(task: _Task, key: bytes | None) -> dict[str, float]:
    if key is None:
        raise RefusedError(
            "E-NOISE-KEY-MISSING",
            "expected a noise key from the node, got none: without noise no metric may leave",
        )
    key = derive_key(key, purpose=f"evaluate {_digest(task.received)}")
    validation = task.sets.validation
    return noised_evaluation(
        task.model, validation, evaluation_plan(task.spec), key=key, subjects=validation.subjects
    )


def _open_task(message: Message, context: Context) -> _Task:
    torch.set_num_threads(1)  # several owners' workers may share a machine
    spec = _specification(context)
    data, model_spec, training = _built_in_parts(spec)
    sets = load_prepared(Path(str(context.node_config[PREPARED])))
    plan = privacy_plan(spec, records=sets.records)
    model = build_model(model_spec, data, private=plan.trains_with_noise)
    received = _arrays(message)
    load_model_arrays(model, received)
    return _Task(spec=spec, training=training, plan=plan, sets=sets, received=received, model=model)


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


def _take_noise_key(context: Context) -> bytes | None:
    """Take the key out of the state, so that it is used once and never stored with it."""
    record = context.state.get(STATE)
    if not isinstance(record, ConfigRecord):
        return None
    key = record.pop(NOISE_KEY, None)
    return key if isinstance(key, bytes) and key else None


def _arrays_key(message: Message) -> str:
    keys = list(message.content.array_records)
    if len(keys) != 1:
        raise AppError(
            "E-APP-MESSAGE", f"expected one array record in the instruction, got {len(keys)}"
        )
    return keys[0]


def _arrays(message: Message) -> Arrays:
    record = message.content.array_records[_arrays_key(message)]
    return {name: array.numpy() for name, array in record.items()}


def _trained(task: _Task) -> Arrays:
    """Return what may leave: trained parameters; anything else as it was received.

    A buffer is written by the forward pass without noise, so under differential privacy none
    leaves; a frozen parameter has no gradient, so a change of it was not the optimiser's.
    """
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    state = task.model.state_dict()
    return {
        name: state[name].detach().numpy()
        if name in trained or not task.plan.is_private
        else task.received[name]
        for name in task.received
    }


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _config(message: Message) -> ConfigRecord:
    records = list(message.content.config_records.values())
    return records[0] if records else ConfigRecord()


def _number(config: ConfigRecord, key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AppError("E-APP-MESSAGE", f"expected a finite number for {key} in the instruction")
    return float(value)


def _batch_seed(training: TrainingSpec, config: ConfigRecord, node_id: int) -> int:
    """Return a seed that differs by round and owner, and is the same in a rerun."""
    text = f"batches|{training.seed}|{_number(config, 'server-round', 0.0):.0f}|{node_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
