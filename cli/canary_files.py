"""Where the canary part of a report lies: in a run's own folder, and in those of its twins.

Every audit of a run by canaries counts. The worst verdict is the run's, whatever a later one found:
each is a test with a level of its own, and a claim that one has failed is not mended by the next.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tacit.audit.report import parse_canaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.protos.control_client import ControlClient

CANARIES_NAME = "canaries.json"
_WORST = ("fail", "inconclusive", "no violation found at this power")


@dataclass(frozen=True, kw_only=True)
class CanaryAudit:
    """One audit of a run by canaries.

    Attributes:
        run_id: which they were in: the run itself, or a twin.
        state: of that run, in words.
        report: what they said; None where they have not.
    """

    run_id: str
    state: str
    report: dict[str, Any] | None


def canaries_of(client: ControlClient, run_id: str) -> dict[str, Any] | None:
    """Return what canaries said of a run's claim, or None where none has said anything.

    See :func:`worst_of`.
    """
    audits = []
    for other in client.list_runs():
        canaries = json.loads(client.show(other.run_id).specification).get("canaries")
        if canaries and run_id in (other.run_id, canaries["run"]):
            state = f"{other.status}: {other.reason}".removesuffix(": ")
            report = _report_in(client, other.run_id)
            audits.append(CanaryAudit(run_id=other.run_id, state=state, report=report))
    return worst_of(audits)


def worst_of(audits: Sequence[CanaryAudit]) -> dict[str, Any] | None:
    """Return the report with the worst verdict, the latest of these; it lists them all.

    Args:
        audits: of one run, in the order of submission.
    """
    told = [each.report for each in audits if each.report is not None]
    if not told:
        return None
    worst: dict[str, Any] = min(reversed(told), key=lambda report: _WORST.index(report["verdict"]))
    if len(audits) == 1:
        return worst
    lines = [
        {
            "canary_run": each.run_id,
            "verdict": "none" if each.report is None else each.report["verdict"],
            "line": each.state if each.report is None else each.report["line"],
        }
        for each in audits
    ]
    return {**worst, "audits": lines}


def _report_in(client: ControlClient, run_id: str) -> dict[str, Any] | None:
    for file in client.list_files(run_id):
        if file.path == CANARIES_NAME:
            with tempfile.TemporaryDirectory() as folder:
                content = client.pull(run_id, file, Path(folder)).read_bytes()
            return parse_canaries(content)
    return None
