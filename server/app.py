"""What a run's worker runs: a named strategy, an audit, or a foreign ServerApp as it is.

A foreign ServerApp has no checkpoints: it starts from the beginning and is answered by the journal.
It is code that the operator installed, and is trusted with the run; the worker around it holds no
key and no data.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import ConfigError
from tacit.protos.flower import SERVER_NODE_ID, array_record, flower_run_id, new_context
from tacit.server.audit_run import run_audit_task
from tacit.server.checkpoint import (
    Checkpoint,
    checkpoint_name,
    first_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seed_generators,
)
from tacit.server.grid import GridPort, TacitGrid
from tacit.server.manifest import RunManifest
from tacit.server.strategy_run import RunTask, StrategyRun

__all__ = ["RunTask", "load_object", "quiet_flower", "run_server_app", "run_task"]


def run_task(task: RunTask, port: GridPort) -> None:
    """Run the task to its end.

    Raises:
        TacitError: the run failed, with a stable code.
    """
    checkpoint = _begin(task, port)
    grid = TacitGrid(
        port,
        run_id=task.run_id,
        specification_sha256=task.specification_sha256,
        next_sequence=checkpoint.next_sequence,
    )
    app = task.specification.app
    if task.specification.audit is not None:
        run_audit_task(task, grid, checkpoint)
    elif task.specification.discards_model and task.folder.canaries.exists():
        finish_twin(task)
    elif app is not None and app.server:
        run_server_app(task, grid, checkpoint)
    else:
        StrategyRun(task, grid, checkpoint).run()


def finish_twin(task: RunTask) -> None:
    """End a twin whose worker died after its report was written: remove the weights."""
    task.folder.forget_weights()
    RunManifest.take_up(task.folder, task.run_id, task.specification).finish({})


def run_server_app(task: RunTask, grid: TacitGrid, checkpoint: Checkpoint) -> None:
    """Call a foreign ServerApp; it finds the initial weights in ``context.state["initial"]``.

    Weights that it leaves as ``context.state["model"]`` become the run's model. It runs in the
    folder ``app`` of the run folder, where it may leave files of its own.

    Raises:
        ConfigError: the app cannot be found.
    """
    app_spec = task.specification.app
    if app_spec is None:
        raise ConfigError("E-APP-MISSING", "expected a run with [app] server, got none")
    app = load_object(app_spec.server)
    state = RecordDict()
    initial = load_arrays(task.folder.initial) if task.folder.initial.exists() else {}
    state["initial"] = array_record(initial)
    context = new_context(
        run_id=flower_run_id(task.run_id),
        node_id=SERVER_NODE_ID,
        node_config={},
        run_config=dict(app_spec.config),
        state=state,
    )
    scratch = task.folder.path / "app"
    scratch.mkdir(mode=0o700, exist_ok=True)
    os.chdir(scratch)
    seed_generators(checkpoint.key, 0, 1)
    app(grid, context)
    manifest = RunManifest.begin(task.folder, task.run_id, task.specification)
    model = context.state.get("model")
    if isinstance(model, ArrayRecord):
        save_arrays(task.folder.model, {name: item.numpy() for name, item in model.items()})
    manifest.finish(grid.claims)


def quiet_flower() -> None:
    """Let Flower's logger say warnings only, through our handlers instead of its own."""
    flower = logging.getLogger("flwr")
    for handler in list(flower.handlers):
        flower.removeHandler(handler)
    flower.setLevel(logging.WARNING)
    flower.propagate = True


def load_object(path: str) -> Any:  # noqa: ANN401 - somebody's app
    """Import ``package.module:attribute``.

    Raises:
        ConfigError: it is not installed here.
    """
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "E-APP-MISSING",
            f"expected the app {path} to be installed here: {error}",
            hint="install the package that holds it into the daemon's environment",
        ) from error


def _begin(task: RunTask, port: GridPort) -> Checkpoint:
    folder = task.folder.path / "checkpoints"
    if task.checkpoint:
        return load_checkpoint(folder / task.checkpoint)
    checkpoint = first_checkpoint()
    path = folder / checkpoint_name(0)
    save_checkpoint(path, checkpoint)
    port.checkpoint(round_number=0, next_sequence=checkpoint.next_sequence, name=path.name)
    return checkpoint
