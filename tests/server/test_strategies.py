"""The table of strategies: what a run may ask for, conformance, and state across rounds."""

from __future__ import annotations

import gc
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

import flwr.serverapp.strategy as flower_strategies
import numpy as np
import pytest

from tacit.core.artifacts import RunFolder, load_arrays, save_arrays
from tacit.core.errors import ConfigError
from tacit.core.specification import StrategySpec, canonical_json, specification_sha256
from tacit.protos.flower import set_task_identity
from tacit.server.app import run_task
from tacit.server.checkpoint import load_checkpoint
from tacit.server.strategies import STRATEGIES, WRAPPERS, build_strategy, strategy_problems
from tacit.server.strategy_run import RunTask
from tests.conformance import (
    APPS,
    CASES,
    NODES,
    ROUNDS,
    Case,
    assert_conformant,
    initial_arrays,
    run_spec,
)
from tests.simulator import DyingPort, WorkerDied, app_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN_ID = "r-00c0ffee"


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage() -> Iterator[None]:
    """Keep flwr's own garbage collections, seven in each q-FedAvg round, from taking seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


def make_task(case: Case, folder: Path) -> RunTask:
    set_task_identity(run_id=0xC0FFEE, node_id=1)
    run = run_spec(case)
    run_folder = RunFolder(folder).create()
    save_arrays(run_folder.initial, initial_arrays())
    digest = specification_sha256(canonical_json(run))
    return RunTask(run_id=RUN_ID, specification=run, specification_sha256=digest, folder=run_folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_run_over_the_grid_equals_a_direct_call(case: Case, tmp_path: Path) -> None:
    """Every strategy gives over our grid, codec and port what Flower's own loop gives."""
    task = make_task(case, tmp_path / "run")
    port = DyingPort(app_nodes(APPS[case.app], NODES), die_at=2)
    with pytest.raises(WorkerDied):  # after the first checkpoint, to learn the run's key
        run_task(task, port)
    key = load_checkpoint(task.folder.path / "checkpoints" / port.resume_from).key
    run_task(replace(task, checkpoint=port.resume_from), port)
    assert_conformant(case, load_arrays(task.folder.model), key)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_run_that_died_ends_with_the_same_bits(case: Case, tmp_path: Path) -> None:
    """A worker killed at any call of its port resumes to the weights of an undisturbed run."""
    undisturbed = DyingPort(app_nodes(APPS[case.app], NODES), die_at=2)
    task = make_task(case, tmp_path / "whole")
    with pytest.raises(WorkerDied):
        run_task(task, undisturbed)
    first = (task.folder.path / "checkpoints" / undisturbed.resume_from).read_bytes()
    run_task(replace(task, checkpoint=undisturbed.resume_from), undisturbed)
    expected = load_arrays(task.folder.model)

    killed = make_task(case, tmp_path / "killed")
    port = DyingPort(app_nodes(APPS[case.app], NODES))
    start = killed.folder.path / "checkpoints" / "000000.safetensors"
    start.parent.mkdir()
    start.write_bytes(first)
    port.resume_from = start.name
    for die_at in range(1, 100):
        port.calls, port.die_at = 0, 1 + die_at % 5
        try:
            run_task(replace(killed, checkpoint=port.resume_from), port)
            break
        except WorkerDied:
            continue
    actual = load_arrays(killed.folder.model)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)


def test_a_resumed_run_asks_nobody_twice(tmp_path: Path) -> None:
    """What the journal holds is answered from it: no node trains twice for one message."""
    case = Case("FedAvg")
    nodes = app_nodes(APPS[case.app], NODES)
    port = DyingPort(nodes)
    task = make_task(case, tmp_path / "run")
    for die_at in range(1, 50):
        port.calls, port.die_at = 0, 1 + die_at % 4
        try:
            run_task(replace(task, checkpoint=port.resume_from), port)
            break
        except WorkerDied:
            continue
    for node in nodes.values():
        assert len(node.calls) == len(set(node.calls)) == ROUNDS


@pytest.mark.parametrize("name", [*STRATEGIES, *WRAPPERS])
def test_the_table_agrees_with_flower(name: str) -> None:
    """Every parameter in the table is one of Flower's class, and every required one is there."""
    entry = STRATEGIES.get(name) or WRAPPERS[name]
    signature = inspect.signature(getattr(flower_strategies, name))
    assert set(entry.parameters) <= set(signature.parameters)
    required = {
        key
        for key, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty and key != "strategy"
    }
    assert set(entry.required) == required


@pytest.mark.parametrize(
    ("spec", "key", "text"),
    [
        (StrategySpec(name="FedAgv"), "strategy.name", "did you mean FedAvg?"),
        (
            StrategySpec(name="FedAdam", parameters={"beta1": 0.9}),
            "strategy.parameters.beta1",
            "did you mean beta_1?",
        ),
        (
            StrategySpec(parameters={"fraction_train": 0.5}),
            "strategy.parameters.fraction_train",
            "set participation.fraction instead",
        ),
        (
            StrategySpec(name="FedAvgM", parameters={"server_momentum": "much"}),
            "strategy.parameters.server_momentum",
            "expected float, got 'much'",
        ),
        (
            StrategySpec(name="QFedAvg"),
            "strategy.parameters.client_learning_rate",
            "missing",
        ),
        (
            StrategySpec(name="Bulyan", parameters={"num_malicious_nodes": 2}),
            "participation.min_clients",
            "needs 11 nodes",
        ),
        (
            StrategySpec(
                wrapper="DifferentialPrivacyServerSideFixedClipping",
                wrapper_parameters={
                    "noise_multiplier": 1.0,
                    "clipping_norm": 1.0,
                    "num_sampled_clients": 8,
                },
            ),
            "participation.min_clients",
            "num_sampled_clients (8)",
        ),
        (
            StrategySpec(wrapper_parameters={"a": 1}),
            "strategy.wrapper_parameters",
            "only a wrapper",
        ),
    ],
)
def test_problems_name_key_and_remedy(spec: StrategySpec, key: str, text: str) -> None:
    """A strategy that cannot be made is refused with the key and what to write instead."""
    run = replace(run_spec(Case("FedAvg")), strategy=spec)
    found = dict(strategy_problems(run))
    assert text in found[key]


def test_a_value_that_flower_refuses_is_a_configuration_error() -> None:
    """A value out of Flower's range is reported as such, not as a traceback."""
    spec = StrategySpec(name="FedTrimmedAvg", parameters={"beta": 0.7})
    with pytest.raises(ConfigError, match="E-STRATEGY"):
        build_strategy(replace(run_spec(Case("FedAvg")), strategy=spec))
