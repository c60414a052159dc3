"""What a run's worker runs: a named strategy round by round, or a foreign ServerApp as it is.

It holds no data and cannot train: it moves arrays between the strategy and the grid.

The loop of a named strategy, and what makes it resumable:

1. Before round 1 a checkpoint records the run's seed; every (round, attempt) seeds the generators
   from it, so a repeated attempt samples the same nodes and draws the same noise.
2. An attempt sees one membership: the nodes that were approved and connected when it began.
3. A round ends well with at least ``min_clients`` replies and an aggregate; otherwise it is tried
   again, and after ``max_attempts`` the run fails.
4. The aggregate keeps the model's names, shapes and dtypes (some strategies compute in float64) and
   is finite, or the run fails.
5. Weights are written first, then the manifest, then the checkpoint; only then does the port hear
   of it. A death in between repeats the round from the journal's answers, with the same outcome.

A foreign ServerApp has no checkpoints: it starts from the beginning and is answered by the journal.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import AppError, ConfigError
from tacit.core.events import EventKind
from tacit.protos.flower import (
    SERVER_NODE_ID,
    array_record,
    flower_run_id,
    new_context,
)
from tacit.server.checkpoint import (
    KEY_BYTES,
    Checkpoint,
    checkpoint_name,
    first_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seed_generators,
)
from tacit.server.grid import GridPort, TacitGrid
from tacit.server.manifest import RoundEntry, RunManifest
from tacit.server.strategies import build_strategy, restore_state, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message, MetricRecord
    from flwr.serverapp.strategy import Strategy

    from tacit.core.artifacts import RunFolder
    from tacit.core.specification import RunSpec

log = logging.getLogger("tacit.server.app")

AUTO_RETENTION_BYTES = 100_000_000  # DESIGN: all rounds' weights while they fit in 100 MB
LONGEST_PAUSE_S = 5.0  # between two questions for connected nodes

Metrics = Mapping[str, float | list[float] | None]


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """One run as its worker gets it.

    Attributes:
        run_id: such as ``r-7f3a9c20``.
        specification: what the owners approved.
        specification_sha256: its hash.
        folder: holds ``initial.safetensors``; gets everything else.
        checkpoint: the name in ``folder/checkpoints`` to resume from, or empty.
        pause: waits between two questions for connected nodes.
    """

    run_id: str
    specification: RunSpec
    specification_sha256: bytes
    folder: RunFolder
    checkpoint: str = ""
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)


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
    if app is not None and app.server:
        run_server_app(task, grid, checkpoint)
    else:
        StrategyRun(task, grid, checkpoint).run()


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
    manifest.finish()


class StrategyRun:
    """A named strategy, from its checkpoint to the last round."""

    def __init__(self, task: RunTask, grid: TacitGrid, checkpoint: Checkpoint) -> None:
        self._task = task
        self._run = task.specification
        self._folder = task.folder
        self._grid = grid
        self._checkpoint = checkpoint
        self._strategy: Strategy = build_strategy(self._run)
        if checkpoint.round_number:
            restore_state(self._run, self._strategy, checkpoint.arrays, checkpoint.numbers)
        weights = load_arrays(self._weights_file(checkpoint.round_number))
        self._form = {name: (array.dtype, array.shape) for name, array in weights.items()}
        self._model_bytes = sum(array.nbytes for array in weights.values())
        self._arrays = array_record(weights)
        self._manifest = RunManifest.begin(
            self._folder, task.run_id, self._run, finished_rounds=checkpoint.round_number
        )

    def run(self) -> None:
        """Play the rounds that are left and write the model."""
        for number in range(self._checkpoint.round_number + 1, self._run.participation.rounds + 1):
            entry = self._train(number)
            every = self._run.evaluation.every
            if every and number % every == 0:
                entry = replace(entry, evaluation=self._evaluate(number))
            self._commit(number, entry)
        last = self._weights_file(self._run.participation.rounds)
        save_arrays(self._folder.model, load_arrays(last))
        self._manifest.finish()
        self._forget_rounds()
        self._save_checkpoint(replace(self._checkpoint, key=bytes(KEY_BYTES)))

    def _train(self, number: int) -> RoundEntry:
        people = self._run.participation
        reason = ""
        for attempt in range(1, people.max_attempts + 1):
            began = time.monotonic()
            nodes = self._wait_for_nodes(number)
            seed_generators(self._checkpoint.key, number, attempt)
            with self._grid.attempt(number, nodes):
                messages = list(
                    self._strategy.configure_train(number, self._arrays, ConfigRecord(), self._grid)
                )
                cohort = sorted(message.metadata.dst_node_id for message in messages)
                self._event(EventKind.ROUND_STARTED, round=number, attempt=attempt, cohort=cohort)
                replies = self._grid.send_and_receive(messages, timeout=people.round_deadline_s)
            answered = [reply for reply in replies if not reply.has_error()]
            failed = _failures(replies)
            if len(answered) >= people.min_clients:
                arrays, metrics = self._strategy.aggregate_train(number, replies)
                if arrays is not None:
                    self._arrays = self._checked(arrays, number)
                    return RoundEntry(
                        round=number,
                        attempt=attempt,
                        cohort=cohort,
                        failed=failed,
                        metrics=plain_metrics(metrics),
                        seconds=time.monotonic() - began,
                    )
                reason = "the strategy made no aggregate of them"
            else:
                reason = f"{people.min_clients} are needed"
            reason = f"{len(answered)} of {len(cohort)} replies are good and {reason}"
            if failed:
                counts = Counter(failed.values())
                reason += "; " + ", ".join(f"{n} x {code}" for code, n in sorted(counts.items()))
            log.warning("round attempt failed", extra={"fields": {"round": number, "why": reason}})
        raise AppError(
            "E-ROUND-FAILED",
            f"round {number} failed {people.max_attempts} times: {reason}",
            hint="see the owners' codes in the events; raise round_deadline_s or max_attempts",
        )

    def _wait_for_nodes(self, number: int) -> list[int]:
        needed = self._run.participation.min_clients
        pause_s = 0.25
        told = False
        while len(nodes := self._grid.get_node_ids()) < needed:
            if not told:
                self._event(
                    EventKind.RUN_WAITING,
                    reason=f"round {number} needs more connected clients",
                    approved=len(nodes),
                    needed=needed,
                )
                told = True
            self._task.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return nodes

    def _evaluate(self, number: int) -> Metrics | None:
        """Ask for the owners' metrics; owners who refuse them do not fail the run."""
        began = time.monotonic()
        with self._grid.attempt(number, self._wait_for_nodes(number)):
            messages = list(
                self._strategy.configure_evaluate(number, self._arrays, ConfigRecord(), self._grid)
            )
            replies = self._grid.send_and_receive(
                messages, timeout=self._run.participation.round_deadline_s
            )
        metrics = None
        if any(not reply.has_error() for reply in replies):
            metrics = plain_metrics(self._strategy.aggregate_evaluate(number, replies))
        self._event(
            EventKind.EVALUATION_FINISHED,
            round=number,
            cohort=sorted(message.metadata.dst_node_id for message in messages),
            metrics=metrics,
            failed=_failures(replies),
            seconds=round(time.monotonic() - began, 3),
        )
        return metrics

    def _commit(self, number: int, entry: RoundEntry) -> None:
        weights = {name: item.numpy() for name, item in self._arrays.items()}
        save_arrays(self._folder.round(number), weights)
        self._manifest.add(entry)
        arrays, numbers = state_of(self._run, self._strategy)
        self._save_checkpoint(
            Checkpoint(
                round_number=number,
                next_sequence=self._grid.next_sequence,
                key=self._checkpoint.key,
                arrays=arrays,
                numbers=numbers,
            )
        )
        self._event(
            EventKind.ROUND_FINISHED,
            round=number,
            cohort=list(entry.cohort),
            metrics=entry.metrics,
            seconds=round(entry.seconds, 3),
        )
        previous = self._checkpoint_path(number - 1)
        previous.unlink(missing_ok=True)
        if number > 1 and not self._keeps(number - 1):
            self._folder.round(number - 1).unlink(missing_ok=True)

    def _save_checkpoint(self, checkpoint: Checkpoint) -> None:
        path = self._checkpoint_path(checkpoint.round_number)
        save_checkpoint(path, checkpoint)
        self._checkpoint = checkpoint
        self._grid.port.checkpoint(
            round_number=checkpoint.round_number,
            next_sequence=checkpoint.next_sequence,
            name=path.name,
        )

    def _weights_file(self, number: int) -> Path:
        """Return the file of the weights after a round; the last round's may be gone by now."""
        if number == 0:
            return self._folder.initial
        path = self._folder.round(number)
        finished = number == self._run.participation.rounds and self._folder.model.exists()
        return self._folder.model if finished and not path.exists() else path

    def _checkpoint_path(self, number: int) -> Path:
        return self._folder.path / "checkpoints" / checkpoint_name(number)

    def _keeps(self, number: int) -> bool:
        retention = self._run.retention
        if retention.every and number % retention.every == 0:
            return True
        if retention.rounds == "auto":
            total = self._model_bytes * self._run.participation.rounds
            return total <= AUTO_RETENTION_BYTES or number == self._run.participation.rounds
        return retention.rounds == "all"

    def _forget_rounds(self) -> None:
        for number in self._folder.round_numbers():
            if not self._keeps(number):
                self._folder.round(number).unlink(missing_ok=True)

    def _checked(self, arrays: ArrayRecord, number: int) -> ArrayRecord:
        """Return the aggregate with the model's dtypes; refuse another form, NaN and infinity."""
        if set(arrays) != set(self._form):
            raise AppError("E-AGGREGATE-FORM", f"round {number}: the aggregate has other arrays")
        checked = ArrayRecord()
        for name, (dtype, shape) in self._form.items():
            values = arrays[name].numpy()
            if values.shape != shape:
                raise AppError(
                    "E-AGGREGATE-FORM",
                    f"round {number}: expected {name} of shape {shape}, got {values.shape}",
                )
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                raise AppError(
                    "E-AGGREGATE-NOT-FINITE",
                    f"round {number}: the aggregate of {name} is not finite",
                    hint="lower the learning rate, or the strategy's own",
                )
            same = values.dtype == dtype
            checked[name] = arrays[name] if same else Array(_cast(values, dtype))
        return checked

    def _event(self, kind: EventKind, **fields: object) -> None:
        self._grid.port.event(kind.value, fields)


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


def plain_metrics(metrics: MetricRecord | None) -> dict[str, float | list[float] | None] | None:
    """Return metrics as JSON values; what is not finite becomes null."""
    if metrics is None:
        return None
    return {
        key: [float(item) for item in value] if isinstance(value, list) else _finite(value)
        for key, value in metrics.items()
    }


def _begin(task: RunTask, port: GridPort) -> Checkpoint:
    folder = task.folder.path / "checkpoints"
    if task.checkpoint:
        return load_checkpoint(folder / task.checkpoint)
    checkpoint = first_checkpoint()
    path = folder / checkpoint_name(0)
    save_checkpoint(path, checkpoint)
    port.checkpoint(round_number=0, next_sequence=checkpoint.next_sequence, name=path.name)
    return checkpoint


def _failures(replies: Sequence[Message]) -> dict[str, str]:
    """Return the reason of every reply that failed, by node id."""
    return {
        str(reply.metadata.src_node_id): str(reply.error.reason or reply.error.code)
        for reply in replies
        if reply.has_error()
    }


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
