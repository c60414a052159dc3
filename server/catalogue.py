"""What the database knows of runs: their status, the owners' decisions, and their events.

Writes take a connection, so that the caller can put several into one transaction; reads work on a
read-only store as well.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tacit.core.errors import UsageError
from tacit.core.events import Event, EventKind, fields_json
from tacit.core.wording import some_of
from tacit.server.tables import decisions, events, messages, node_answers, runs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from tacit.server.store import Store


class RunStatus(enum.Enum):
    """Where a run stands."""

    QUEUED = "queued"  # waits for a free place
    WAITING = "waiting"  # waits for owners to approve and connect
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED)


class Verdict(enum.Enum):
    """An owner's word on a run."""

    APPROVED = "approved"
    PENDING = "pending"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True)
class NodeVerdict:
    """One node's decision about one run."""

    node_id: int
    verdict: Verdict
    code: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as the database holds it."""

    run_id: str
    name: str
    status: RunStatus
    round: int
    rounds: int
    submitted_at_s: float
    started_at_s: float
    ended_at_s: float
    submitted_by: str
    reason: str
    specification: bytes = field(repr=False)
    specification_sha256: bytes = field(repr=False)


def add_run(connection: sa.Connection, record: RunRecord) -> None:
    """Store a new run."""
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    connection.execute(sa.insert(runs).values(**values | {"status": record.status.value}))


def change_run(connection: sa.Connection, run_id: str, **values: Any) -> None:  # noqa: ANN401
    """Change columns of a run."""
    connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(**values))


def find_run(store: Store, run_id: str) -> RunRecord:
    """Return one run.

    Raises:
        UsageError: there is none of that id (E-RUN-UNKNOWN).
    """
    with store.reading() as connection:
        row = connection.execute(sa.select(runs).where(runs.c.run_id == run_id)).first()
    if row is None:
        raise UsageError(
            "E-RUN-UNKNOWN",
            f"expected the id of a run, got {run_id!r}",
            hint="`tacit run list` shows them.",
        )
    return _record(row)


def list_runs(store: Store) -> list[RunRecord]:
    """Return all runs, in the order of submission."""
    with store.reading() as connection:
        rows = connection.execute(sa.select(runs).order_by(runs.c.position)).all()
    return [_record(row) for row in rows]


def decide(connection: sa.Connection, run_id: str, decision: NodeVerdict, at_s: float) -> None:
    """Store a node's decision, in place of an earlier one."""
    connection.execute(
        sa.delete(decisions).where(
            decisions.c.run_id == run_id, decisions.c.node_id == decision.node_id
        )
    )
    connection.execute(
        sa.insert(decisions).values(
            run_id=run_id,
            node_id=decision.node_id,
            verdict=decision.verdict.value,
            code=decision.code,
            at_s=at_s,
        )
    )


def decisions_of(store: Store, run_id: str) -> dict[int, NodeVerdict]:
    """Return the decisions about a run, by node."""
    with store.reading() as connection:
        query = sa.select(decisions).where(decisions.c.run_id == run_id)
        return {
            row.node_id: NodeVerdict(
                node_id=row.node_id, verdict=Verdict(row.verdict), code=row.code
            )
            for row in connection.execute(query)
        }


def commitments_of(store: Store, run_id: str) -> dict[int, str]:
    """Return what nodes have committed to for a run's canaries, in hex: each one's first word."""
    query = (
        sa.select(events.c.fields)
        .where(events.c.run_id == run_id, events.c.kind == EventKind.CANARIES_COMMITTED.value)
        .order_by(events.c.sequence.desc())
    )
    with store.reading() as connection:
        told = [_fields(row.fields) for row in connection.execute(query)]
    return {int(fields["node_id"]): str(fields["commitment"]) for fields in told}


def plain_decisions(
    decisions: Mapping[int, NodeVerdict], names: Mapping[int, str]
) -> dict[str, dict[str, str]]:
    """Return verdict and code by member, as JSON has them.

    Args:
        decisions: by node.
        names: of the nodes' members.
    """
    return {
        names[node]: {"verdict": each.verdict.value, "code": each.code}
        for node, each in decisions.items()
    }


def waiting_reason(
    decisions: Iterable[NodeVerdict],
    *,
    ready: Collection[int],
    needed: int,
    member: Callable[[int], str],
) -> str:
    """Say what a run waits for: how many owners are ready, who said what, and with which code.

    Args:
        decisions: of the nodes that have answered.
        ready: ids of the nodes that have approved and are connected.
        needed: how many of those the run needs.
        member: the name of a node's member.
    """
    said: dict[str, list[str]] = {"approved": [], "away": [], "denied": [], "undecided": []}
    for each in decisions:
        name = member(each.node_id)
        if each.verdict is Verdict.APPROVED:
            said["approved" if each.node_id in ready else "away"].append(name)
        elif each.verdict is Verdict.DENIED:
            said["denied"].append(f"{name}: {each.code}")
        else:
            said["undecided"].append(name)
    words = {"away": "approved but not connected"}
    parts = [
        f"{len(names)} {words.get(group, group)} ({some_of(names)})"
        for group, names in said.items()
        if names
    ]
    answers = ", ".join(parts) or "nobody has answered yet"
    return f"{len(ready)} of {needed} needed clients are ready: {answers}"


def add_event(connection: sa.Connection, run_id: str, event: Event) -> None:
    """Store one event."""
    connection.execute(
        sa.insert(events).values(
            run_id=run_id,
            sequence=event.sequence,
            at_s=event.at_s,
            kind=event.kind.value,
            fields=fields_json(event.fields),
        )
    )


def events_after(store: Store, run_id: str, sequence: int, *, limit: int = 500) -> list[Event]:
    """Return the next events of a run."""
    query = (
        sa.select(events)
        .where(events.c.run_id == run_id, events.c.sequence > sequence)
        .order_by(events.c.sequence)
        .limit(limit)
    )
    with store.reading() as connection:
        return [
            Event(
                sequence=row.sequence,
                at_s=row.at_s,
                kind=EventKind(row.kind),
                fields=_fields(row.fields),
            )
            for row in connection.execute(query)
        ]


def last_event_sequence(store: Store, run_id: str) -> int:
    """Return the number of the last event of a run; 0 if there is none."""
    with store.reading() as connection:
        query = sa.select(sa.func.max(events.c.sequence)).where(events.c.run_id == run_id)
        return int(connection.execute(query).scalar() or 0)


def clear_exchange(connection: sa.Connection, run_id: str) -> None:
    """Remove a run's messages and node answers: it has ended."""
    for table in (messages, node_answers):
        connection.execute(sa.delete(table).where(table.c.run_id == run_id))


def _fields(data: bytes) -> Mapping[str, Any]:
    plain = json.loads(data)
    return plain if isinstance(plain, dict) else {}


def _record(row: Any) -> RunRecord:  # noqa: ANN401 - a row of the table
    return RunRecord(
        **{name: getattr(row, name) for name in RunRecord.__dataclass_fields__ if name != "status"},
        status=RunStatus(row.status),
    )
