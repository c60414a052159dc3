"""The built-in ClientApp: what it takes, what it replies, and what it never lets out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, ConfigError, RefusedError, TacitError
from tacit.core.results import result_schema
from tacit.core.specification import PrivacyMode, PrivacyUnit, RunSpec, canonical_json
from tacit.learning.app import app
from tacit.learning.evaluation import noised_evaluation
from tacit.learning.models import initial_arrays
from tacit.learning.prepared import Examples, PreparedSets, save_prepared
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.privacy.spec import BUILT_MODES
from tacit.protos import flower
from tacit.protos.fleet_pb2 import InstructionHead

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = bytes(range(32))
DP = {"mode": "record-local", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
COLUMNS = {f"x{i}": {"type": "number", "range": [0.0, 1.0]} for i in range(6)}
DATA = {"classes": ["a", "b"], "columns": COLUMNS}
NODE_ID = 77


class WithBuffer(nn.Module):
    """Keeps a sum of the records it has seen, and a frozen weight, beside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.frozen.data += x.detach().sum()
        return self.linear(x)


@pytest.fixture
def call(tmp_path: Path, sets: PreparedSets) -> Callable[..., flower.RecordDict]:
    """Return a caller of the app: as the worker does, with records in and records out."""
    path = tmp_path / "prepared.safetensors"
    save_prepared(path, sets)

    def send(
        run: RunSpec,
        kind: str = "train",
        *,
        key: bytes | None = None,
        arrays: dict[str, np.ndarray] | None = None,
        **config: Any,
    ) -> flower.RecordDict:
        flower.set_task_identity(run_id=1, node_id=NODE_ID)
        head = InstructionHead(
            run_id="r-00000001", message_id="r-00000001.000001", message_type=kind, ttl_s=60.0
        )
        records = {
            "arrays": flower.array_record(initial_arrays(run) if arrays is None else arrays),
            "config": flower.ConfigRecord(config),
        }
        content = flower.RecordDict(records)
        state = flower.RecordDict({"tacit": flower.ConfigRecord({"noise-key": key or b""})})
        context = flower.new_context(
            run_id=1,
            node_id=NODE_ID,
            node_config={"tacit-prepared": str(path)},
            run_config={"tacit-specification": canonical_json(run).decode()},
            state=state,
        )
        reply = app(flower.make_instruction(head, content, node_id=NODE_ID), context)
        assert "noise-key" not in context.state.config_records["tacit"]
        return reply.content

    return send


def heart_like(*, noise_free: bool = False) -> RunSpec:
    """A run of one evaluation; with next to no noise where the sums are to be read."""
    plain = {
        "name": "test",
        "data": DATA,
        "model": {"kind": "logistic"},
        "training": {"learning_rate": 0.5},
        "privacy": DP,
        "participation": {"rounds": 1},
        "evaluation": {"every": 1, "epsilon": 400.0 if noise_free else 1.0},
    }
    return from_plain(plain, RunSpec)


def weights(content: flower.RecordDict) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in content.array_records["arrays"].items()}


def keeps_schema(run: RunSpec, kind: str, content: flower.RecordDict) -> bool:
    """Whether a reply is what the owner's envelope expects of this run."""
    schema = result_schema(run)[kind].metrics
    metrics = content.metric_records["metrics"]
    inside = all(
        schema[name].range[0] <= value <= schema[name].range[1]  # type: ignore[operator]
        for name, value in metrics.items()
    )
    return set(metrics) == set(schema) and inside


WHOLE = {"mode": "client-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-3}


@pytest.mark.parametrize("privacy", [{"mode": "none"}, DP, WHOLE], ids=["open", "private", "whole"])
def test_a_trained_reply_keeps_the_schema(
    privacy: dict[str, Any],
    make_run: Callable[..., RunSpec],
    call: Callable[..., flower.RecordDict],
) -> None:
    """The arrays' names, shapes and dtypes are those that came; metrics are the declared ones."""
    run = make_run(data=DATA, privacy=privacy)
    content = call(run, key=KEY)
    before, after = initial_arrays(run), weights(content)
    assert list(before) == list(after)
    assert [(a.shape, a.dtype) for a in before.values()] == [
        (a.shape, a.dtype) for a in after.values()
    ]
    assert before["linear.weight"].tobytes() != after["linear.weight"].tobytes()
    assert keeps_schema(run, "train", content)


def test_in_the_open_the_weight_is_the_number_of_records(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict], sets: PreparedSets
) -> None:
    """FedAvg's weighted mean needs it; the loss of zero weights is ln 2."""
    metrics = call(make_run(data=DATA)).metric_records["metrics"]
    assert metrics["num-examples"] == len(sets.train)
    assert metrics["loss"] == pytest.approx(math.log(2))


def test_for_the_node_to_noise_it_trains_as_in_the_open(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """client-local: the weights are those of plain training; no count and no loss is beside."""
    whole = call(make_run(data=DATA, privacy=WHOLE), key=KEY)
    plain = call(make_run(data=DATA))
    assert all(np.array_equal(weights(whole)[name], w) for name, w in weights(plain).items())
    assert dict(whole.metric_records["metrics"]) == {"num-examples": 1}


@pytest.mark.parametrize("privacy", [{"mode": "none"}, DP], ids=["open", "private"])
def test_an_evaluated_reply_keeps_the_schema(
    privacy: dict[str, Any],
    make_run: Callable[..., RunSpec],
    call: Callable[..., flower.RecordDict],
    sets: PreparedSets,
) -> None:
    """Zero weights say the first class: its share is the accuracy."""
    run = make_run(data=DATA, privacy=privacy)
    content = call(run, "evaluate")
    assert not content.array_records
    assert keeps_schema(run, "evaluate", content)
    accuracy = content.metric_records["metrics"]["accuracy"]
    assert accuracy == float(np.mean(sets.validation.labels == 0))


NOISED = {"every": 1, "epsilon": 1.0}


def test_noised_metrics_are_sums_with_noise_of_the_plan(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict], sets: PreparedSets
) -> None:
    """300 keys: right, wrong and loss are right on average, with the declared deviation."""
    run = make_run(data=DATA, privacy=DP, evaluation=NOISED)
    query, bound = evaluation_plan(run).query, evaluation_plan(run).loss_bound
    first = call(run, "evaluate", key=KEY)
    assert not first.array_records
    assert keeps_schema(run, "evaluate", first)
    draws = [
        call(run, "evaluate", key=n.to_bytes(32, "big")).metric_records["metrics"]
        for n in range(300)
    ]
    right, held_out = int(np.sum(sets.validation.labels == 0)), len(sets.validation)
    for name, truth, deviation in (
        ("sum-correct", right, query.deviation("answers")),
        ("sum-wrong", held_out - right, query.deviation("answers")),
        ("sum-loss", held_out * (math.log(2) - bound / 2), query.deviation("loss")),
    ):
        values = np.array([draw[name] for draw in draws])
        assert abs(values.mean() - truth) < 5 * deviation / math.sqrt(300)
        assert values.std() == pytest.approx(deviation, rel=0.2)
        assert truth not in values
        assert len(set(values)) == 300


def test_a_noised_reply_is_rebuilt_and_another_instruction_is_noised_anew(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """Noise comes from the key and the received weights; under one key two replies do not cancel.

    The weights are moved so little that the sums without noise are the same.
    """
    run = make_run(data=DATA, privacy=DP, evaluation=NOISED)
    start = initial_arrays(run)
    moved = {name: array + np.float32(1e-12) for name, array in start.items()}
    one, again, other = (
        call(run, "evaluate", key=KEY, arrays=arrays).metric_records["metrics"]
        for arrays in (start, start, moved)
    )
    assert dict(one) == dict(again)
    assert one["sum-correct"] != other["sum-correct"]


def test_no_key_no_noised_metrics(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """Without a key from the node nothing is evaluated."""
    run = make_run(data=DATA, privacy=DP, evaluation=NOISED)
    with pytest.raises(RefusedError, match="E-NOISE-KEY-MISSING"):
        call(run, "evaluate")


def test_nobody_held_out_is_answered_with_noise(sets: PreparedSets) -> None:
    """A refusal would tell the count; so would another number of values."""
    nobody = Examples(features=sets.validation.features[:0], labels=sets.validation.labels[:0])
    plan = evaluation_plan(heart_like())
    metrics = noised_evaluation(nn.Linear(6, 2), nobody, plan, key=KEY)
    assert set(metrics) == {"sum-correct", "sum-wrong", "sum-loss"}
    assert all(math.isfinite(value) and value != 0.0 for value in metrics.values())


def test_a_model_that_gives_nan_is_wrong_and_of_the_highest_loss(sets: PreparedSets) -> None:
    """A diverged model hides no record: all are counted, none as right."""
    plan = evaluation_plan(heart_like(noise_free=True))
    model = nn.Linear(6, 2)
    nn.init.constant_(model.weight, math.nan)
    metrics = noised_evaluation(model, sets.validation, plan, key=KEY)
    count = len(sets.validation)
    assert metrics["sum-correct"] == pytest.approx(0.0, abs=0.5)
    assert metrics["sum-wrong"] == pytest.approx(count, abs=0.5)
    assert metrics["sum-loss"] == pytest.approx(count * plan.loss_bound / 2, abs=2.0)


def test_subjects_are_needed_where_they_are_the_unit(sets: PreparedSets) -> None:
    """A clip per row is no clip per subject: without their numbers nothing leaves."""
    plan = replace(evaluation_plan(heart_like()), unit=PrivacyUnit.SUBJECT)
    with pytest.raises(RefusedError, match="E-UNIT-NOT-BUILT"):
        noised_evaluation(nn.Linear(6, 2), sets.validation, plan, key=KEY)
    subjects = np.arange(len(sets.validation)) // 5
    assert noised_evaluation(nn.Linear(6, 2), sets.validation, plan, key=KEY, subjects=subjects)


@pytest.mark.parametrize("unit", [PrivacyUnit.SUBJECT, PrivacyUnit.RECORD])
@pytest.mark.parametrize("label", [0, 1])
def test_twenty_rows_of_a_subject_move_the_metrics_by_one_clip(
    sets: PreparedSets, unit: PrivacyUnit, label: int
) -> None:
    """Present or absent, all right or all far wrong; counted one by one they move it by twenty."""
    plan = replace(evaluation_plan(heart_like()), unit=unit)
    model = nn.Linear(6, 2)
    others = sets.validation
    far = np.full((20, 6), 1e6, np.float32)
    joined = Examples(
        features=np.concatenate([others.features, far]),
        labels=np.concatenate([others.labels, np.full(20, label)]),
    )
    whose = np.minimum(np.arange(len(joined)), len(others))
    moved = np.zeros(3)
    for examples, sign in ((joined, 1.0), (others, -1.0)):
        subjects = whose[: len(examples)] if unit is PrivacyUnit.SUBJECT else None
        sums = noised_evaluation(model, examples, plan, key=KEY, subjects=subjects)
        moved += sign * plan.query.scales * [sums[f"sum-{x}"] for x in ("correct", "wrong", "loss")]
    clips = 1 if unit is PrivacyUnit.SUBJECT else 20
    assert np.linalg.norm(moved) == pytest.approx(clips * plan.query.clip, rel=1e-4)


def test_the_same_key_and_instruction_give_the_same_bytes(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """A restarted node rebuilds its reply; no seed of the run takes part."""
    run = make_run(data=DATA, privacy=DP)
    seeded = make_run(data=DATA, privacy=DP, training={"learning_rate": 0.5, "seed": 9})
    one, again = weights(call(run, key=KEY)), weights(call(seeded, key=KEY))
    other = weights(call(run, key=bytes(32)))
    assert one["linear.weight"].tobytes() == again["linear.weight"].tobytes()
    assert not np.isclose(one["linear.weight"], other["linear.weight"]).any()


def test_another_instruction_under_one_key_has_noise_of_its_own(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """Should a key be used twice, subtracting two replies still does not cancel the noise."""
    loud = {**DP, "noise_multiplier": 1e6}
    run = make_run(data=DATA, privacy=loud)
    start = initial_arrays(run)
    moved = {name: array + np.float32(1e-3) for name, array in start.items()}
    one = weights(call(run, key=KEY, arrays=start))["linear.weight"]
    two = weights(call(run, key=KEY, arrays=moved))["linear.weight"]
    assert float(np.abs(one - two).max()) > 1.0


@pytest.mark.parametrize("key", [None, b"", b"short"])
def test_no_proper_key_no_private_training(
    key: bytes | None, make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """Without 32 bytes from the node nothing is trained under DP."""
    with pytest.raises((RefusedError, ValueError), match=r"E-NOISE-KEY-MISSING|32 bytes"):
        call(make_run(data=DATA, privacy=DP), key=key)


def test_what_the_forward_pass_writes_does_not_leave(
    make_run: Callable[..., RunSpec],
    call: Callable[..., flower.RecordDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that hides records in a frozen weight gets that weight back as it came."""
    monkeypatch.setattr(torch, "h5_factory", WithBuffer, raising=False)
    model = {"kind": "module", "factory": "torch:h5_factory"}
    private = weights(call(make_run(data=DATA, model=model, privacy=DP), key=KEY))
    assert private["frozen"].tolist() == [1.0]
    opened = weights(call(make_run(data=DATA, model=model)))
    assert opened["frozen"].tolist() != [1.0]


def test_the_strategy_sets_the_proximal_weight(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """FedProx sends proximal-mu in its message; it goes before the specification's."""
    run = make_run(data=DATA, training={"learning_rate": 0.1, "local_steps": 5})
    free = np.linalg.norm(weights(call(run))["linear.weight"])
    held = np.linalg.norm(weights(call(run, **{"proximal-mu": 9.0}))["linear.weight"])
    assert held < 0.5 * free


def test_batches_differ_between_rounds_and_repeat_within_one(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """The round of the message names the batches."""
    training = {"learning_rate": 0.1, "local_steps": 5, "batch_size": 8}
    run = make_run(data=DATA, training=training)
    one, again, other = (weights(call(run, **{"server-round": n})) for n in (1, 1, 2))
    assert one["linear.weight"].tobytes() == again["linear.weight"].tobytes()
    assert one["linear.weight"].tobytes() != other["linear.weight"].tobytes()


def test_weights_of_another_model_are_refused(
    make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """What the server sends is held against the specification."""
    with pytest.raises(ConfigError, match="E-MODEL-WEIGHTS"):
        call(make_run(data=DATA), arrays={"other": np.zeros(3, dtype=np.float32)})


@pytest.mark.parametrize("value", [float("nan"), "much", True])
def test_nonsense_in_the_message_is_refused(
    value: object, make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """A proximal weight that is no number is not guessed."""
    with pytest.raises(AppError, match="E-APP-MESSAGE"):
        call(make_run(data=DATA), **{"proximal-mu": value})


@pytest.mark.parametrize(
    "mode", [mode for mode in PrivacyMode if mode not in BUILT_MODES], ids=lambda m: m.value
)
def test_modes_without_a_mechanism_train_nothing(
    mode: PrivacyMode, make_run: Callable[..., RunSpec], call: Callable[..., flower.RecordDict]
) -> None:
    """The app refuses by itself, whatever let the run through before it."""
    run = make_run(data=DATA, privacy={**DP, "mode": mode.value})
    with pytest.raises(TacitError, match="E-MODE-NOT-BUILT"):
        call(run, key=KEY)
