"""The built-in Flower ClientApp, ``tacit.learning.app:app``: trains and evaluates at the owner.

What it is given: the specification (``run_config``), the path of the cleaned data set
(``node_config``), and under differential privacy a noise key (``state``), fresh for each
(run, round, attempt), taken out of the state when it is read. What it trusts: nothing in the
message but weights of the model's own shape, the round number and FedProx's weight.

Of a run with canaries the data set holds the owner's bits; scores of released gradients stay in the
state, and a ``query`` after the last round gives both (``learning/planted.py``).

The noise of a call comes from the key and a digest of the received weights: should one key ever
be used on two instructions, their noises would still be independent. No seed plays a part.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tacit.core.errors import AppError, RefusedError
from tacit.learning.evaluation import evaluate_model, noised_evaluation
from tacit.learning.planted import (
    directions_of_round,
    keep_scores,
    kept_scores,
    opening_metrics,
)
from tacit.learning.task import Task, arrays_key, open_task, take_noise_key
from tacit.learning.training import (
    Recipe,
    gradient_share,
    train_model,
    train_with_canaries,
)
from tacit.privacy.distributed.plan import DistributedPlan
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.privacy.noise import derive_key
from tacit.protos.flower import array_record
from tacit.protos.secure import RECORD, VECTOR

if TYPE_CHECKING:
    from tacit.core.specification import TrainingSpec
    from tacit.learning.models import Arrays

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the owner's training records; reply with the weights and a weight for the mean."""
    task = open_task(message, context)
    key = take_noise_key(context)
    if key is not None:
        key = derive_key(key, purpose=f"train {task.weights_sha256()}")
    if isinstance(task.plan, DistributedPlan) and task.plan.trains_with_noise:
        return _share(message, task, task.plan, key)
    config = _config(message)
    recipe = Recipe(
        training=task.training,
        plan=task.plan,
        proximal_mu=_number(config, "proximal-mu", task.training.proximal_mu),
        batch_seed=_batch_seed(task.training, config, context.node_id),
    )
    loss = _train(task, recipe, key, _round(config), context.state)
    metrics: dict[str, int | float] = {"num-examples": 1}
    if not task.plan.is_private:
        metrics = {"num-examples": len(task.sets.train), "loss": loss}
    content = RecordDict(
        {
            arrays_key(message): array_record(_trained(task)),
            "metrics": MetricRecord(dict(metrics)),
        }
    )
    return Message(content=content, reply_to=message)


def _share(message: Message, task: Task, plan: DistributedPlan, key: bytes | None) -> Message:
    """Reply with this owner's share of one sum of clipped gradients, noised integers.

    Raises:
        RefusedError: there is no noise key (``E-NOISE-KEY-MISSING``).
        ConfigError: the model has no share to give (``E-MODEL-FROZEN``, ``E-MODEL-NOT-DP``).
    """
    vector = gradient_share(task.model, task.sets.train, plan, noise_key=key)
    content = RecordDict({RECORD: array_record({VECTOR: vector})})
    return Message(content=content, reply_to=message)


def _train(
    task: Task, recipe: Recipe, key: bytes | None, round_number: int, state: RecordDict
) -> float:
    """Train, and keep in the state what the release says of the owner's canaries, if any."""
    held, steps = task.sets.canaries, task.plan.local_steps
    canaries = directions_of_round(held, round_number, local_steps=steps)
    if canaries is None:
        return train_model(task.model, task.sets.train, recipe, noise_key=key)
    scores = train_with_canaries(
        task.model, task.sets.train, recipe, noise_key=key, canaries=canaries
    )
    keep_scores(state, round_number, scores)
    return math.nan


@app.query()
def query(message: Message, context: Context) -> Message:
    """Open the owner's canaries: bits, salt, and scores of released gradients; no record's part."""
    held = open_task(message, context).sets.canaries
    if held is None:
        raise AppError("E-APP-MESSAGE", "expected a run with canaries, this one has none")
    metrics = opening_metrics(held, kept_scores(context.state))
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on the owner's validation records: noised sums where the run declares an epsilon.

    Without one the values are exact.
    """
    key = take_noise_key(context)
    task = open_task(message, context)
    if task.spec.noises("evaluate"):
        metrics = _noised_metrics(task, key)
    else:
        metrics = evaluate_model(task.model, task.sets.validation)
    if task.plan.is_private:
        metrics["num-examples"] = 1
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    return Message(content=content, reply_to=message)


def _noised_metrics(task: Task, key: bytes | None) -> dict[str, float]:
    if key is None:
        raise RefusedError(
            "E-NOISE-KEY-MISSING",
            "expected a noise key from the node, got none: without noise no metric may leave",
        )
    key = derive_key(key, purpose=f"evaluate {task.weights_sha256()}")
    validation = task.sets.validation
    return noised_evaluation(
        task.model, validation, evaluation_plan(task.spec), key=key, subjects=validation.subjects
    )


def _trained(task: Task) -> Arrays:
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


def _config(message: Message) -> ConfigRecord:
    records = list(message.content.config_records.values())
    return records[0] if records else ConfigRecord()


def _number(config: ConfigRecord, key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AppError("E-APP-MESSAGE", f"expected a finite number for {key} in the instruction")
    return float(value)


def _round(config: ConfigRecord) -> int:
    return round(_number(config, "server-round", 0.0))


def _batch_seed(training: TrainingSpec, config: ConfigRecord, node_id: int) -> int:
    """Return a seed that differs by round and owner, and is the same in a rerun."""
    text = f"batches|{training.seed}|{_round(config)}|{node_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
