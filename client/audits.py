"""An audit at the node: whether these records were in that run, and the report for its owner.

Members are the records that the node trained on, as its own note of the run says: another split, or
records that have changed since, would call members what never were. So the run must be known here,
be the one that the audit describes, have been answered, and its ``split.json`` must come out again.

The owner's report is made by the worker, next to its answer, in the one folder that it may write;
it is taken from there into the run's folder, and never sent.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

from tacit.client.preparation import SPLIT_NAME
from tacit.core.configuration import from_plain
from tacit.core.errors import RefusedError, TacitError, UnavailableError
from tacit.core.files import write_atomic
from tacit.core.specification import RunSpec, audited_run

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.store import RunRecord, Store

REPORT_NAMES = ("report.json", "report.txt")
REPORT_FOLDER = "tacit-report-folder"  # attacks/app.py

_MAX_REPORT_BYTES = 64 << 20
_SAME = ("data_set", "data", "model", "training", "privacy", "strategy", "app")


def why_unauditable(specification: RunSpec, store: Store, runs: Path) -> RefusedError | None:
    """Say why an audit has no members here, or None if it has.

    Args:
        specification: of the audit.
        store: what the node remembers.
        runs: the folder of its runs.
    """
    if specification.audit is None:
        return None
    run_id = specification.audit.run
    known = store.load_run(run_id)
    if known is None or store.count_releases(run_id, "train") == 0:
        return _not_a_member(f"this node has sent no update in run {run_id}")
    if not (runs / run_id / SPLIT_NAME).is_file():
        return _not_a_member(f"this node has no note of who was trained on in run {run_id}")
    if not _describes(specification, known):
        return _not_a_member(f"the audit does not describe run {run_id} as this node knows it")
    return None


def verify_same_split(before: Path, now: Path, run_id: str) -> None:
    """Check that a data set, divided now, gives the sides that it gave then.

    Args:
        before: the run's folder.
        now: the audit's.
        run_id: the run's.

    Raises:
        RefusedError: it gives others (``E-AUDIT-RECORDS-CHANGED``).
        UnavailableError: a note cannot be read.
    """
    if _sides(before) != _sides(now):
        raise RefusedError(
            "E-AUDIT-RECORDS-CHANGED",
            f"expected the records of run {run_id}, got others: they, or how they are cleaned, "
            "have changed since",
            hint="Who was trained on can be told only with the data set as it was.",
        )


def keep_report(scratch: Path, folder: Path) -> None:
    """Take the owner's report from the worker's folder into the run's.

    Raises:
        UnavailableError: the disk is full.
    """
    for name in REPORT_NAMES:
        content = _untrusted_file(scratch / name)
        if content is not None:
            write_atomic(folder / name, content)


def _describes(specification: RunSpec, known: RunRecord) -> bool:
    try:
        run = from_plain(json.loads(known.specification), RunSpec)
    except (TacitError, ValueError):
        return False
    described = audited_run(specification)
    same = all(getattr(run, name) == getattr(described, name) for name in _SAME)
    return same and run.participation.rounds == described.participation.rounds


def _not_a_member(why: str) -> RefusedError:
    return RefusedError(
        "E-AUDIT-NOT-A-MEMBER",
        f"expected an audit of a run that used records of this node: {why}",
        hint="Only owners who took part in a run can say who was a member.",
    )


def _sides(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / SPLIT_NAME).read_bytes())
        return {key: note[key] for key in ("rule", "seed", "fraction", "train", "validation")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            "E-SPLIT-MALFORMED", f"expected the note of a split at {folder / SPLIT_NAME}"
        ) from error


def _untrusted_file(path: Path) -> bytes | None:
    """Return a plain file's content; None where there is none, a link, or one that is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = file.read(_MAX_REPORT_BYTES + 1)
    return content if len(content) <= _MAX_REPORT_BYTES else None
