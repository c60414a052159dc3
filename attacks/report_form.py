"""The frame of an audit's report, wherever it was made: on files, at an owner's node, merged.

``audit/report_schema.json`` says what a report holds; ``audit/report.py`` writes and reads those of
audits on files. This is the part that nodes and servers share with it. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA, VERSION = "tacit-audit-report", 1
CANARY_SCHEMA, CANARY_VERSION = "tacit-canary-report", 1


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
