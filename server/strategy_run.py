"""A named strategy, round by round, in a run's worker; and what makes it resumable.

It holds no data and cannot train: it moves arrays between the strategy and the grid.

The rules:

1. Before round 1 a checkpoint records the run's seed; every (round, attempt) seeds the generators
   from it, so a repeated attempt samples the same nodes and draws the same noise.
2. An attempt sees one membership: the nodes that were approved and connected when it began.
3. A round ends well with at least ``min_clients`` replies and an aggregate; otherwise it is tried
   again, and after ``max_attempts`` the run fails.
4. The aggregate keeps the model's names, shapes and dtypes (some strategies compute in float64) and
   is finite, or the run fails.
5. Weights are written first, then the manifest, then the checkpoint; only then does the port hear
   of it. A death in between repeats the round from the journal's answers, with the same outcome.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.errors import AppError
from tacit.core.events import EventKind
from tacit.protos.flower import array_record
from tacit.server.canary_run import CanaryRun
from tacit.server.checkpoint import (
    KEY_BYTES,
    Checkpoint,
    checkpoint_name,
    save_checkpoint,
    seed_generators,
)
from tacit.server.manifest import RoundEntry, RunManifest, read_cohort
from tacit.server.noised_metrics import merge_noised_metrics
from tacit.server.round_failure import failures_of, failures_text, round_failed
from tacit.server.secure_round import SecureRounds
from tacit.server.strategies import build_strategy, restore_state, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message, MetricRecord
    from flwr.serverapp.strategy import Strategy

    from tacit.core.artifacts import Arrays, RunFolder
    from tacit.core.specification import RunSpec
    from tacit.server.grid import TacitGrid

log = logging.getLogger("tacit.server.strategy_run")

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
        durable: whether what a round leaves survives a power cut (``journal = "power"``), not only
            a kill; the final model always does.
        pause: waits between two questions for connected nodes.
    """

    run_id: str
    specification: RunSpec
    specification_sha256: bytes
    folder: RunFolder
    checkpoint: str = ""
    durable: bool = True
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)


class StrategyRun:
    """A named strategy, from its checkpoint to the last round."""

    def __init__(self, task: RunTask, grid: TacitGrid, checkpoint: Checkpoint) -> None:
        self._task = task
        self._run = task.specification
        self._folder = task.folder
        self._grid = grid
        self._checkpoint = checkpoint
        self._strategy: Strategy = build_strategy(self._run)
        self._secure = None
        if self._run.secure_aggregation is not None:
            self._secure = SecureRounds(
                task.run_id,
                self._run,
                task.specification_sha256,
                grid=grid,
                members=read_cohort(task.folder, self._run.secure_aggregation.members),
                state=checkpoint.arrays,
            )
        if checkpoint.round_number:
            restore_state(self._run, self._strategy, checkpoint.arrays, checkpoint.numbers)
        self._weights = load_arrays(self._weights_file(checkpoint.round_number))
        self._form = {name: (array.dtype, array.shape) for name, array in self._weights.items()}
        self._model_bytes = sum(array.nbytes for array in self._weights.values())
        self._arrays = array_record(self._weights)
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
        if not self._run.discards_model:
            save_arrays(self._folder.model, self._weights)
        if self._run.canaries is not None:
            self._open_canaries()
        if self._run.discards_model:
            self._folder.forget_weights()
        self._manifest.finish(self._grid.claims)
        self._forget_rounds()
        last = replace(self._checkpoint, key=bytes(KEY_BYTES))
        self._save_checkpoint(replace(last, arrays={}) if self._run.discards_model else last)

    def _open_canaries(self) -> None:
        CanaryRun(
            task=self._task,
            grid=self._grid,
            manifest=self._manifest,
            weights=self._weights,
        ).open()

    def _train(self, number: int) -> RoundEntry:
        people = self._run.participation
        reason, codes = "", dict[str, str]()
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
                replies, survivors, why = self._replies(messages, number, attempt)
            failed = failures_of(replies)
            good = len(replies) - len(failed) if survivors is None else len(survivors)
            if good >= people.min_clients:
                arrays, metrics = self._strategy.aggregate_train(number, replies)
                if arrays is not None:
                    self._weights = self._checked(arrays, number)
                    self._arrays = array_record(self._weights)
                    return RoundEntry(
                        round=number,
                        attempt=attempt,
                        cohort=cohort,
                        failed=failed,
                        survivors=survivors,
                        metrics=plain_metrics(metrics),
                        seconds=time.monotonic() - began,
                    )
                reason = "the strategy made no aggregate of them"
            else:
                reason = f"{people.min_clients} are needed"
            reason = f"{good} of {len(cohort)} replies are good and {reason}{why}"
            codes = {self._manifest.member(node): code for node, code in failed.items()}
            if codes:
                reason += "; " + failures_text(codes)
            log.warning("round attempt failed", extra={"fields": {"round": number, "why": reason}})
        raise round_failed(number, attempts=people.max_attempts, reason=reason, failed=codes)

    def _replies(
        self, messages: list[Message], number: int, attempt: int
    ) -> tuple[list[Message], list[int] | None, str]:
        """Return the replies to an attempt, whose vectors are in a sum, and why there is none."""
        timeout_s = self._run.participation.round_deadline_s
        if self._secure is None:
            return list(self._grid.send_and_receive(messages, timeout=timeout_s)), None, ""
        secured = self._secure.attempt(
            messages, round_number=number, attempt=attempt, timeout_s=timeout_s
        )
        why = f" ({secured.reason})" if secured.reason else ""
        return secured.replies, sorted(secured.survivors), why

    def _wait_for_nodes(self, number: int) -> list[int]:
        needed = self._run.participation.min_clients
        pause_s = 0.25
        told = False
        while len(nodes := self._grid.get_node_ids()) < needed:
            if not told:
                self._event(
                    EventKind.RUN_WAITING,
                    reason=f"{len(nodes)} of {needed} needed clients are ready, for round {number}",
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
        metrics: Metrics | None = None
        if self._run.noises("evaluate"):
            metrics = merge_noised_metrics(self._run, list(replies))
        elif any(not reply.has_error() for reply in replies):
            metrics = plain_metrics(self._strategy.aggregate_evaluate(number, replies))
        self._event(
            EventKind.EVALUATION_FINISHED,
            round=number,
            cohort=sorted(message.metadata.dst_node_id for message in messages),
            metrics=metrics,
            failed=failures_of(replies),
            seconds=round(time.monotonic() - began, 3),
        )
        return metrics

    def _commit(self, number: int, entry: RoundEntry) -> None:
        if number > 2 and not self._keeps(number - 2):  # now: its pages serve for the next file
            self._folder.round(number - 2).unlink(missing_ok=True)
        save_arrays(self._folder.round(number), self._weights, durable=self._task.durable)
        self._manifest.add(entry, self._grid.claims, durable=self._task.durable)
        arrays, numbers = state_of(self._run, self._strategy)
        if self._secure is not None:
            arrays |= self._secure.state()
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
            **self._sum_of(entry),
        )
        self._checkpoint_path(number - 1).unlink(missing_ok=True)

    def _sum_of(self, entry: RoundEntry) -> dict[str, object]:
        """Return, by name, who is in a round's sum and who was lost, where updates are summed."""
        if entry.survivors is None:
            return {}
        member = self._manifest.member
        return {
            "survivors": [member(str(node)) for node in entry.survivors],
            "lost": {member(node): code for node, code in entry.failed.items()},
        }

    def _save_checkpoint(self, checkpoint: Checkpoint) -> None:
        path = self._checkpoint_path(checkpoint.round_number)
        save_checkpoint(path, checkpoint, durable=self._task.durable)
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

    def _checked(self, arrays: ArrayRecord, number: int) -> Arrays:
        """Return the aggregate with the model's dtypes; refuse another form, NaN and infinity."""
        if set(arrays) != set(self._form):
            raise AppError("E-AGGREGATE-FORM", f"round {number}: the aggregate has other arrays")
        checked: Arrays = {}
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
            checked[name] = values if values.dtype == dtype else _cast(values, dtype)
        return checked

    def _event(self, kind: EventKind, **fields: object) -> None:
        self._grid.port.event(kind.value, fields)


def plain_metrics(metrics: MetricRecord | None) -> dict[str, float | list[float] | None] | None:
    """Return metrics as JSON values; what is not finite becomes null."""
    if metrics is None:
        return None
    return {
        key: [float(item) for item in value] if isinstance(value, list) else _finite(value)
        for key, value in metrics.items()
    }


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
