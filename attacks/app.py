"""The Flower ClientApp of audits, ``tacit.attacks.app:app``: asks a model about its own records.

It answers ``query`` messages that carry a finished run's model, and trains nothing for anybody.
What it is given is what the built-in app is given (learning/task.py), and a folder that its node
reads afterwards: there it leaves the owner's report, which never travels.

What it sends is one histogram of scores for each probe of the audit, members' bins first: noised
under the node's fresh key, or exact where the approved specification says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tacit.attacks.owner_audit import local_report, score_counts, subjects_of
from tacit.attacks.report_form import report_text
from tacit.attacks.wording import probe_lines, selection_line
from tacit.core.errors import AppError, ConfigError, RefusedError, TacitError
from tacit.core.results import histogram_name
from tacit.learning.task import Task, open_task, take_noise_key
from tacit.privacy.audit_plan import audit_release
from tacit.privacy.noise import derive_key
from tacit.privacy.sums import noised_sums

if TYPE_CHECKING:
    from tacit.core.audit_spec import AuditSpec

REPORT_FOLDER = "tacit-report-folder"
REPORT_NAME, TEXT_NAME = "report.json", "report.txt"

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Leave the owner's report in its folder, and answer with the histograms."""
    key = take_noise_key(context)
    task = open_task(message, context)
    audit = task.spec.audit
    if audit is None:
        raise ConfigError("E-APP-CONTEXT", "expected the specification of an audit, got another")
    folder = context.node_config.get(REPORT_FOLDER)
    if not isinstance(folder, str):
        raise AppError("E-APP-CONTEXT", f"expected {REPORT_FOLDER} from the node")
    task.model.eval()
    sent = _histograms(task, audit, key)
    _leave_report(task, Path(folder))
    content = RecordDict({"metrics": MetricRecord(dict(sent))})
    return Message(content=content, reply_to=message)


def _histograms(task: Task, audit: AuditSpec, key: bytes | None) -> dict[str, list[float]]:
    if task.spec.data is None:
        raise ConfigError("E-APP-CONTEXT", "expected a specification with a data contract")
    counts = score_counts(task.model, task.sets, audit, data=task.spec.data)
    names = [histogram_name(probe) for probe in audit.probes]
    if not audit.is_noised:
        parts = np.split(counts.sum(axis=0), len(names))
        return {name: part.tolist() for name, part in zip(names, parts, strict=True)}
    if key is None:
        raise RefusedError(
            "E-NOISE-KEY-MISSING",
            "expected a noise key from the node, got none: without noise no count may leave",
        )
    sums = noised_sums(
        audit_release(audit).query,
        counts,
        key=derive_key(key, purpose=f"audit {task.weights_sha256()}"),
        purpose="audit",
        subjects=subjects_of(task.sets),
    )
    return {name: sums.values[name].tolist() for name in names}


def _leave_report(task: Task, folder: Path) -> None:
    """Write the owner's report, or why there is none.

    Whether there is one depends on the records, and so must not show in whether an answer leaves.
    """
    try:
        report = local_report(task.model, task.sets, task.spec)
    except TacitError as error:
        (folder / TEXT_NAME).write_text(f"No report of your own: {error.message} [{error.code}]\n")
        return
    except Exception as error:  # noqa: BLE001 - see above; the text could quote a record
        (folder / TEXT_NAME).write_text(f"No report of your own: a bug, {type(error).__name__}\n")
        return
    (folder / REPORT_NAME).write_bytes(report_text(report))
    lines = [report["line"], selection_line(report["audited"]), *probe_lines(report)]
    text = "\n".join(line for line in lines if line)
    (folder / TEXT_NAME).write_text(text + "\n", encoding="utf-8")
