"""``report.json``: one audit, in a form that other programs can rely on.

The form is ``audit/report_schema.json`` (JSON Schema, schema "tacit-audit-report", version 1).
A change that breaks readers raises the version. Promises: what is written, and what is read, fits
the schema; the same inputs give the same bytes; nothing in it tells the time, a path or a value of
a record. Row numbers of exposed members are in it: it belongs to whoever may see the records.

Runs nothing on records, and loads no torch.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from tacit.attacks.findings import to_json
from tacit.attacks.report_form import SCHEMA, VERSION, as_report, report_text
from tacit.audit.schema import schema_problems
from tacit.core.errors import DataError, UnavailableError
from tacit.core.files import write_atomic
from tacit.core.plain import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tacit.attacks.findings import AuditResult
    from tacit.audit.claims import Claim

REPORT_NAME = "report.json"
CANARIES_NAME = "canaries.json"

_MAX_BYTES = 64 << 20
_SHOWN_PROBLEMS = 10

Report = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What an audit was made of.

    Attributes:
        files: SHA-256 in hex by what a file is: model, recipe, members, non-members, population,
            predictions.
        dropped_overlap: records that were left out since they stood on two sides.
        versions: of what ran: tacit, torch, numpy, python.
    """

    files: Mapping[str, str]
    dropped_overlap: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


def report_of(
    result: AuditResult, provenance: Provenance, *, claims: Sequence[Claim] = ()
) -> dict[str, Any]:
    """Return the report of an audit as plain JSON.

    Args:
        result: of :func:`tacit.attacks.runner.run_audit`, on files at hand.
        provenance: what it was made of.
        claims: what the model claims (audit/claims.py); may be none.
    """
    scope = {"records": "files at hand", "is_merged": False, "is_noised": False}
    report = as_report(to_json(result), scope=scope, provenance=plain(provenance))
    return {**report, "claims": list(claims)} if claims else report


def report_bytes(report: Report) -> bytes:
    """Return the bytes of a report.

    Raises:
        ValueError: it does not fit the schema, which is a fault of whoever made it.
    """
    problems = list(schema_problems(report, report_schema()))
    if problems:
        raise ValueError(f"expected a report that fits its schema: {'; '.join(problems[:5])}")
    return report_text(report)


def write_report(folder: Path, report: Report) -> Path:
    """Write ``report.json`` into a folder that is there; return its path.

    Raises:
        UnavailableError: it cannot be written.
    """
    path = folder / REPORT_NAME
    write_atomic(path, report_bytes(report))
    return path


def read_report(path: Path) -> dict[str, Any]:
    """Read a report from its file, or from the folder that holds it; also a canary part by itself.

    Raises:
        UnavailableError: there is none, or it cannot be read (``E-FILE-UNREADABLE``).
        DataError: it is no report, or of a version that this one does not know
            (``E-AUDIT-REPORT``).
    """
    file = path / REPORT_NAME if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / CANARIES_NAME).exists():
        file = path / CANARIES_NAME  # of `tacit audit canaries`
    try:
        content = file.read_bytes()[: _MAX_BYTES + 1]
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE",
            f"expected a report at {file}: {error.strerror or error}",
            hint="Name the folder that `tacit audit run --out` wrote, or the report.json in it.",
        ) from error
    if file.name == CANARIES_NAME:
        return parse_canaries(content)
    return parse_report(content, source=file.name)


def parse_report(content: bytes, *, source: str = REPORT_NAME) -> dict[str, Any]:
    """Return a report from its bytes; see :func:`read_report`."""
    try:
        report = json.loads(content) if len(content) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise DataError(
            "E-AUDIT-REPORT",
            f"expected a report of schema {SCHEMA} in {source}, got something else",
        )
    if report.get("version") != VERSION:
        raise DataError(
            "E-AUDIT-REPORT",
            f"expected version {VERSION} of {SCHEMA} in {source}, "
            f"got {str(report.get('version'))[:20]}",
            hint="Read it with the version of tacit that wrote it, or a later one.",
        )
    problems = list(schema_problems(report, report_schema()))
    if problems:
        raise DataError(
            "E-AUDIT-REPORT",
            f"expected a report that fits its schema in {source}, got {len(problems)} problems",
            problems=tuple(problems[:_SHOWN_PROBLEMS]),
            hint="The file was changed or cut; make it again.",
        )
    return report


def canaries_bytes(canaries: Report) -> bytes:
    """Return the bytes of the canary part of a report by itself, ``canaries.json``.

    Raises:
        ValueError: it does not fit the schema.
    """
    problems = list(schema_problems(canaries, _canaries_schema()))
    if problems:
        raise ValueError(f"expected canaries that fit their schema: {'; '.join(problems[:5])}")
    return report_text(canaries)


def parse_canaries(content: bytes) -> dict[str, Any]:
    """Return the canary part of a report from its own file.

    Raises:
        DataError: it is something else (``E-AUDIT-REPORT``).
    """
    try:
        canaries = json.loads(content) if len(content) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        canaries = None
    problems = list(schema_problems(canaries, _canaries_schema()))
    if not isinstance(canaries, dict) or problems:
        raise DataError(
            "E-AUDIT-REPORT",
            f"expected what canaries said, by its schema, got {len(problems)} problems",
            problems=tuple(problems[:_SHOWN_PROBLEMS]),
        )
    return canaries


def _canaries_schema() -> Mapping[str, Any]:
    return {"$ref": "#/$defs/canaries", "$defs": report_schema()["$defs"]}


@cache
def report_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of this version's reports."""
    text = (importlib.resources.files("tacit.audit") / "report_schema.json").read_text("utf-8")
    schema: Mapping[str, Any] = json.loads(text)
    return schema
