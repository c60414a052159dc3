"""The frame of an audit's report, wherever it was made: on files, at an owner's node, merged.

``audit/report_schema.json`` says what a report holds; ``audit/report.py`` writes and reads those of
audits on files. This is the part that nodes and servers share with it. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tacit.core.specification import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.specification import RunSpec

SCHEMA, VERSION = "tacit-audit-report", 1
CANARY_SCHEMA, CANARY_VERSION = "tacit-canary-report", 1


def split_sha256(run: RunSpec) -> str:
    """Return the hash, in hex, of all that decides which of an owner's records a run trains on.

    Two runs of the same, at the same owner with the same records, have the same members
    (learning/splits.py).
    """
    training = run.training
    decides = {
        "data_set": run.data_set,
        "data": to_plain(run.data),
        "unit": to_plain(run.privacy.unit),
        "split": None if training is None else [training.seed, training.validation_fraction],
    }
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def as_report(
    result: Mapping[str, Any], *, scope: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a result, as JSON, in the frame of a report.

    Args:
        result: of :func:`tacit.attacks.findings.to_json`.
        scope: who ran it on whose records, and what kind of figures these are.
        provenance: hashes of what went in, and versions; the plan's hash is added.
    """
    text = json.dumps(result["plan"], sort_keys=True, separators=(",", ":"))
    plan_sha256 = hashlib.sha256(text.encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "version": VERSION,
        **result,
        "scope": dict(scope),
        "provenance": {**provenance, "plan_sha256": plan_sha256},
    }


def report_text(report: Mapping[str, Any]) -> bytes:
    """Return the bytes of a report; the same report gives the same bytes."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
