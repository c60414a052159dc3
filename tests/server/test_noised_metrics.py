"""Noised sums of several owners: added before anything is divided; who sends none counts not."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from tacit.core.configuration import from_plain
from tacit.core.specification import RunSpec
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.protos.fleet_pb2 import InstructionHead
from tacit.protos.flower import make_instruction, set_task_identity
from tacit.server.noised_metrics import merge_noised_metrics

RUN = from_plain(
    {
        "name": "test",
        "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
        "model": {"kind": "logistic"},
        "training": {"learning_rate": 1.0},
        "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
        "participation": {"rounds": 1},
        "evaluation": {"every": 1, "epsilon": 20.0},
    },
    RunSpec,
)


def reply(**sums: Any) -> Message:
    set_task_identity(run_id=1, node_id=1)
    metrics = MetricRecord({name.replace("_", "-"): value for name, value in sums.items()})
    return Message(RecordDict({"metrics": metrics}), reply_to=instruction())


def refused() -> Message:
    set_task_identity(run_id=1, node_id=1)
    return Message(Error(code=2, reason="E-X"), reply_to=instruction())


def instruction() -> Message:
    head = InstructionHead(
        run_id="r-00000001", message_id="r-00000001.000001", message_type="evaluate", ttl_s=60.0
    )
    return make_instruction(head, RecordDict(), node_id=1)


def test_sums_are_added_before_they_are_divided() -> None:
    """90 of 100 and 0 of 300: 22.5 %, where a mean of the owners' shares would say 45 %."""
    half = evaluation_plan(RUN).loss_bound / 2
    large = reply(sum_correct=0.0, sum_wrong=300.0, sum_loss=300 * (1.0 - half))
    small = reply(sum_correct=90.0, sum_wrong=10.0, sum_loss=100 * (0.2 - half))
    shown = merge_noised_metrics(RUN, [small, large])
    assert shown is not None
    assert shown["accuracy"] == pytest.approx(0.225)
    assert shown["loss"] == pytest.approx(0.8)


def test_refusals_and_partial_answers_count_not() -> None:
    """Nor do they fail the round, or add noise to the interval."""
    whole = reply(sum_correct=80.0, sum_wrong=20.0, sum_loss=0.0)
    partial = reply(sum_correct=50.0)
    lists = reply(sum_correct=[1.0], sum_wrong=[1.0], sum_loss=[1.0])
    alone = merge_noised_metrics(RUN, [whole])
    assert alone is not None
    assert merge_noised_metrics(RUN, [partial, whole, refused(), lists]) == alone
    assert merge_noised_metrics(RUN, [partial, refused()]) is None
