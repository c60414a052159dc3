"""What happens in a run, as a numbered list that people watch and the run folder keeps.

The journal numbers events; ``tacit run watch`` streams them; ``events.jsonl`` holds one per line.
Events carry counts, metrics and names of members, never a value of somebody's record.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_LINE_BYTES = 1 << 20  # a cohort of thousands of names still fits


class EventKind(enum.Enum):
    """The kinds of event, with the fields that each carries.

    ``run_queued``: name, submitted_by. ``run_waiting``: reason, approved, needed.
    ``run_started``: rounds, cohort. ``round_started``: round, attempt, cohort.
    ``reply_received``: round, member, message_id, bytes.
    ``reply_failed``: round, member, message_id, code.
    ``round_finished``: round, cohort, metrics, seconds; where updates are summed unseen, also
    survivors, whose vectors are in the sum, and lost, the reason by member.
    ``evaluation_finished``: round, cohort, metrics, seconds. ``checkpoint``: round.
    ``run_finished``: rounds, seconds. ``run_failed``: code, reason, hint.
    ``run_stopped``: reason, by.
    ``node_joined``: member, node_id: an approved node is connected again.
    ``node_left``: member, node_id, code: its connection is lost, or it is out for good (the code
    says why; empty otherwise). ``node_refused``: member, node_id, code.
    ``node_decided``: member, node_id, verdict, code.
    ``canaries_committed``: member, node_id, commitment: before ``run_started``.
    ``canaries_asked``: members, wait_s: who is to open, and how long that is waited for.
    ``canaries_opened``: members, failed, verdict, line. ``replayed``: round, messages.
    """

    RUN_QUEUED = "run_queued"
    RUN_WAITING = "run_waiting"
    RUN_STARTED = "run_started"
    ROUND_STARTED = "round_started"
    REPLY_RECEIVED = "reply_received"
    REPLY_FAILED = "reply_failed"
    ROUND_FINISHED = "round_finished"
    EVALUATION_FINISHED = "evaluation_finished"
    CHECKPOINT = "checkpoint"
    RUN_FINISHED = "run_finished"
    RUN_FAILED = "run_failed"
    RUN_STOPPED = "run_stopped"
    NODE_JOINED = "node_joined"
    NODE_LEFT = "node_left"
    NODE_REFUSED = "node_refused"
    NODE_DECIDED = "node_decided"
    CANARIES_COMMITTED = "canaries_committed"
    CANARIES_ASKED = "canaries_asked"
    CANARIES_OPENED = "canaries_opened"
    REPLAYED = "replayed"

    @property
    def ends_run(self) -> bool:
        """Whether nothing of the run follows this event."""
        return self in (EventKind.RUN_FINISHED, EventKind.RUN_FAILED, EventKind.RUN_STOPPED)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of one run.

    Attributes:
        sequence: 1, 2, 3, ... within the run.
        at_s: when, in seconds since 1970 (UTC).
        kind: what happened.
        fields: the details, as :class:`EventKind` lists them; JSON values.
    """

    sequence: int
    at_s: float
    kind: EventKind
    fields: Mapping[str, Any] = field(default_factory=dict)


def fields_json(fields: Mapping[str, Any]) -> bytes:
    """Return an event's fields as compact JSON (UTF-8, sorted keys; NaN is refused)."""
    text = json.dumps(
        dict(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def event_line(event: Event) -> bytes:
    """Return the line of ``events.jsonl``, with its line end."""
    plain = {
        "sequence": event.sequence,
        "at_s": event.at_s,
        "kind": event.kind.value,
        "fields": dict(event.fields),
    }
    return fields_json(plain) + b"\n"


def parse_event(line: bytes) -> Event:
    """Read one line of ``events.jsonl``.

    Raises:
        ProtocolError: the line is no event that this version knows.
    """
    try:
        if len(line) > _MAX_LINE_BYTES:
            raise ValueError("too long")  # noqa: TRY301 - one way out for every bad line
        plain = json.loads(line)
        return Event(
            sequence=int(plain["sequence"]),
            at_s=float(plain["at_s"]),
            kind=EventKind(plain["kind"]),
            fields=dict(plain["fields"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(
            "E-EVENT-MALFORMED",
            "expected one event in JSON per line, got something else",
            hint="The file is cut off or comes from a later version of tacit.",
        ) from error
