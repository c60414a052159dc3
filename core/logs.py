"""Structured logs on standard error, for people (``text``) or for machines (``json``).

A module logs through ``logging.getLogger("tacit.<package>.<module>")``: the message is the name of
what happened, the details travel in ``extra={"fields": {...}}``. Before a line is written, whatever
looks like a token or a private key is struck out: a second line of defence, since neither may be
logged in the first place.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
from typing import IO, Any, Literal

Form = Literal["json", "text"]

NOTE = "note: "  # begins what a worker says of a run's model, for the owner to read

_SECRETS = re.compile(
    r"tacit1_[A-Za-z0-9_-]{8,}"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_STRUCK_OUT = "[redacted]"


def redact(value: Any) -> Any:  # noqa: ANN401 - whatever a log line may carry
    """Return the value with tokens and private keys struck out, as something JSON can hold."""
    if isinstance(value, dict):
        return {redact(str(key)): redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    return _SECRETS.sub(_STRUCK_OUT, str(value))


class _Lines(logging.Formatter):
    """Turns a record into one line of JSON or of text."""

    def __init__(self, component: str, form: Form) -> None:
        super().__init__()
        self._component = component
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        plain: dict[str, Any] = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "event": redact(record.getMessage()),
            "fields": redact(getattr(record, "fields", {})),
        }
        if record.exc_info:
            plain["exception"] = redact(self.formatException(record.exc_info))
        if self._form == "json":
            return json.dumps(plain, ensure_ascii=False)
        return _as_text(plain)


def configure_logging(
    component: str,
    *,
    level: str = "INFO",
    form: Form = "text",
    stream: IO[str] | None = None,
) -> None:
    """Send this process' logs to standard error (or ``stream``), replacing earlier handlers.

    Args:
        component: ``server``, ``client``, ``run-worker``, ...; stands in every line.
        level: the name of the least severe level that is written.
        form: ``json`` for machines, ``text`` for people.
        stream: where to write instead of standard error.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Lines(component, form))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # other libraries
    logging.getLogger("tacit").setLevel(level.upper())


def _as_text(plain: dict[str, Any]) -> str:
    details = " ".join(f"{key}={_one_line(value)}" for key, value in plain["fields"].items())
    head = f"{plain['ts']} {plain['level']:<7} {plain['component']} {_one_line(plain['event'])}"
    lines = [f"{head} {details}".rstrip()]
    if "exception" in plain:
        lines.append(plain["exception"])
    return "\n".join(lines)


def _one_line(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
