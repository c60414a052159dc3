"""The built-in ClientApp: what it takes, what it replies, and what it never lets out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import AppError, ConfigError, RefusedError, TacitError
from tacit.core.results import result_schema
from tacit.core.specification import PrivacyMode, RunSpec, canonical_json
from tacit.learning.app import app
from tacit.learning.models import initial_arrays
from tacit.learning.prepared import PreparedSets, save_prepared
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
