"""A run that is an audit: one question to every owner who approved, and what the answers add up to.

It holds no data: the owners' nodes ask the model about their own records, and answer with
histograms. It trusts what strategy runs trust; the report names whatever it rests on.

The rules:

1. The weights are those that the auditor submitted, which the daemon has compared with the run's.
2. Every owner who has approved and is connected is asked, once: each answer costs its owner.
3. Fewer than ``min_clients`` answers are merged into nothing: the audit fails.
4. The report is written before the port hears that the run has got anywhere, so that a death in
   between makes it again from the journal's answers, with the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message, RecordDict

from tacit.core.artifacts import load_arrays, write_atomic
from tacit.core.errors import ConfigError
from tacit.core.events import EventKind
from tacit.core.results import histogram_name
from tacit.core.specification import audited_run, canonical_json, specification_sha256
from tacit.protos.flower import array_record
from tacit.server.checkpoint import KEY_BYTES, Checkpoint, checkpoint_name, save_checkpoint
from tacit.server.manifest import RoundEntry, RunManifest, read_decisions
from tacit.server.round_failure import failures_of, failures_text, round_failed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.core.audit_spec import AuditSpec
    from tacit.server.grid import TacitGrid
    from tacit.server.strategy_run import RunTask

_ROUND = 1
_BYTES_PER_COUNT = 8  # a double, on the wire


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One owner's histograms, by probe: float64, ``(2 * bins,)``."""

    node_id: str
    counts: Mapping[str, np.ndarray]


def run_audit_task(task: RunTask, grid: TacitGrid, checkpoint: Checkpoint) -> None:
    """Ask, merge, and leave ``report.json`` in the run's folder.

    Raises:
        AppError: too few owners answered.
        TacitError: the folder cannot be read or written, or the port is gone.
    """
    audit = task.specification.audit
    if audit is None:
        raise ConfigError("E-AUDIT-MISSING", "expected the specification of an audit, got another")
    manifest = RunManifest.begin(
        task.folder, task.run_id, task.specification, finished_rounds=checkpoint.round_number
    )
    run = _AuditRun(task=task, audit=audit, grid=grid, manifest=manifest)
    if checkpoint.round_number < _ROUND:
        entry, answers = run.ask()
        write_atomic(task.folder.report, run.report(entry, answers))
        manifest.add(entry, grid.claims, durable=task.durable)
        run.commit(entry)
    manifest.finish(grid.claims)


@dataclass(frozen=True, kw_only=True)
class _AuditRun:
    """One audit in its worker."""

    task: RunTask
    audit: AuditSpec
    grid: TacitGrid
    manifest: RunManifest

    def ask(self) -> tuple[RoundEntry, list[_Answer]]:
        """Send the model to every owner who is ready, and wait for their answers."""
        people, began = self.task.specification.participation, time.monotonic()
        content = RecordDict({"arrays": array_record(load_arrays(self.task.folder.initial))})
        nodes = self.grid.get_node_ids()
        started = {"round": _ROUND, "attempt": 1, "cohort": nodes}
        self.grid.port.event(EventKind.ROUND_STARTED.value, started)
        with self.grid.attempt(_ROUND, nodes):
            messages = [Message(content, dst_node_id=n, message_type="query") for n in nodes]
            replies = self.grid.send_and_receive(messages, timeout=people.round_deadline_s)
        failed = failures_of(replies)
        answers = [each for reply in replies if (each := self._answer(reply)) is not None]
        if len(answers) < people.min_clients:
            codes = {self.manifest.member(node): code for node, code in failed.items()}
            needed = f"{people.min_clients} are needed"
            reason = f"{len(answers)} of {len(nodes)} owners answered, {needed}"
            if codes:
                reason += "; " + failures_text(codes)
            raise round_failed(_ROUND, attempts=1, reason=reason, failed=codes)
        seconds = time.monotonic() - began
        return (
            RoundEntry(round=_ROUND, attempt=1, cohort=nodes, failed=failed, seconds=seconds),
            answers,
        )

    def _answer(self, reply: Message) -> _Answer | None:
        """Return an owner's histograms; None for a refusal, or where one of them is not there."""
        if reply.has_error():
            return None
        values = {
            name: np.asarray(value, dtype=np.float64)
            for record in reply.content.metric_records.values()
            for name, value in record.items()
        }
        counts = {probe: values.get(histogram_name(probe)) for probe in self.audit.probes}
        whole = {
            probe: each
            for probe, each in counts.items()
            if each is not None and each.shape == (self.audit.length,)
        }
        node_id = str(reply.metadata.src_node_id)
        return _Answer(node_id=node_id, counts=whole) if len(whole) == len(counts) else None

    def report(self, entry: RoundEntry, answers: Sequence[_Answer]) -> bytes:
        """Return what is written: the merged findings, and what each owner sent for them."""
        # scipy, half a second: for these runs alone
        from tacit.attacks.findings import to_json  # noqa: PLC0415
        from tacit.attacks.merged import MergedAudit, merged_result  # noqa: PLC0415
        from tacit.attacks.report_form import as_report, report_text  # noqa: PLC0415

        data = self.task.specification.data
        merged = MergedAudit(
            audit=self.audit, classes=0 if data is None else len(data.classes), owners=len(answers)
        )
        noise, histograms = self._merged(answers)
        scope = {
            "records": "the owners', each at their own node",
            "is_merged": True,
            "is_noised": self.audit.is_noised,
        }
        report = as_report(
            to_json(merged_result(merged, histograms)), scope=scope, provenance=self._provenance()
        )
        report["federation"] = {
            "audit_run": self.task.run_id,
            "run": self.audit.run,
            "epsilon": self.audit.epsilon if self.audit.is_noised else None,
            "delta": self.audit.delta,
            "noise_per_owner": noise,
            "sent": sorted(map(self._sent, answers), key=lambda each: str(each["member"])),
            "not_merged": self._not_merged(entry),
        }
        return report_text(report)

    def _provenance(self) -> dict[str, Any]:
        from tacit.attacks.report_form import split_sha256  # noqa: PLC0415 - see report

        recipe = audited_run(self.task.specification)
        return {
            "files": {
                "model": self.audit.model_sha256,
                "recipe": specification_sha256(canonical_json(recipe)).hex(),
                "split": split_sha256(recipe),
                "audit": self.task.specification_sha256.hex(),
            },
            "dropped_overlap": 0,
            "versions": {
                "tacit": importlib.metadata.version("tacit"),
                "numpy": np.__version__,
            },
        }

    def _merged(self, answers: Sequence[_Answer]) -> tuple[float, dict[str, Any]]:
        """Return the noise on each owner's counts, and the sums of all owners' by probe."""
        from tacit.attacks.histograms import histogram_of_counts, merge  # noqa: PLC0415
        from tacit.privacy.audit_plan import audit_release  # noqa: PLC0415

        noise = audit_release(self.audit).noise_deviation if self.audit.is_noised else 0.0
        edges = np.arange(1.0, self.audit.bins)  # bins by number: where they are cut, nodes know
        histograms = {}
        for probe in self.audit.probes:
            histograms[probe] = merge(
                [
                    histogram_of_counts(edges, answer.counts[probe], noise_sd=noise)
                    for answer in answers
                ]
            )
        return noise, histograms

    def _sent(self, answer: _Answer) -> dict[str, Any]:
        """List what left one owner, and what their ledger says that it has cost."""
        lists = [
            {"name": histogram_name(probe), "length": len(counts)}
            for probe, counts in answer.counts.items()
        ]
        sides = self.grid.claims.get(answer.node_id, {})
        claim: dict[str, Any] = next(iter(sides.values()), {})
        return {
            "member": self.manifest.member(answer.node_id),
            "lists": lists,
            "bytes": _BYTES_PER_COUNT * sum(len(counts) for counts in answer.counts.values()),
            "epsilon": claim.get("epsilon"),
            "delta": claim.get("delta"),
            "unit": claim.get("unit"),
            "ledger_entry": claim.get("ledger", {}).get("entries"),
        }

    def _not_merged(self, entry: RoundEntry) -> list[dict[str, str]]:
        """Name who had said no, and who was asked and did not answer."""
        named = [
            {"member": member, "why": decision["verdict"], "code": decision["code"]}
            for member, decision in read_decisions(self.task.folder).items()
            if decision["verdict"] != "approved"
        ]
        named += [
            {"member": self.manifest.member(node), "why": "failed", "code": code}
            for node, code in entry.failed.items()
        ]
        return sorted(named, key=lambda each: each["member"])

    def commit(self, entry: RoundEntry) -> None:
        """Let the journal forget the answers: the report stands."""
        checkpoint = Checkpoint(
            round_number=_ROUND, next_sequence=self.grid.next_sequence, key=bytes(KEY_BYTES)
        )
        name = checkpoint_name(_ROUND)
        path = self.task.folder.path / "checkpoints" / name
        save_checkpoint(path, checkpoint, durable=self.task.durable)
        self.grid.port.checkpoint(
            round_number=_ROUND, next_sequence=checkpoint.next_sequence, name=name
        )
        self.grid.port.event(
            EventKind.ROUND_FINISHED.value,
            {
                "round": _ROUND,
                "cohort": list(entry.cohort),
                "metrics": None,
                "seconds": round(entry.seconds, 3),
            },
        )
