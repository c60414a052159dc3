"""Where the canary part of a report lies: in a run's own folder, or in that of its latest twin."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tacit.audit.report import parse_canaries

if TYPE_CHECKING:
    from tacit.protos.control_client import ControlClient

CANARIES_NAME = "canaries.json"


def canaries_of(client: ControlClient, run_id: str) -> dict[str, Any] | None:
    """Return what canaries said of a run's claim, or None where there were none.

    Canaries in the run itself come first, then those of its latest twin that has a report.
    """
    own = _report_in(client, run_id)
    if own is not None:
        return own
    for other in reversed(client.list_runs()):
        specification = json.loads(client.show(other.run_id).specification)
        if (specification.get("canaries") or {}).get("run") != run_id:
            continue
        found = _report_in(client, other.run_id)
        if found is not None:
            return found
    return None


def _report_in(client: ControlClient, run_id: str) -> dict[str, Any] | None:
    for file in client.list_files(run_id):
        if file.path == CANARIES_NAME:
            with tempfile.TemporaryDirectory() as folder:
                content = client.pull(run_id, file, Path(folder)).read_bytes()
            return parse_canaries(content)
    return None
