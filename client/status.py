"""What an owner sees of their node: runs and verdicts, what left and when, refusals with reasons.

Built from the store alone, so that it can be shown while the daemon is stopped; the daemon adds
whether it is connected.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.client.approvals import Verdict, app_of, apps_of, fingerprint_apps
from tacit.client.members import Standing
from tacit.client.runs import APP_CHANGED, parse_specification
from tacit.core.errors import TacitError
from tacit.core.logs import NOTE
from tacit.core.members import MEMBERS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.members import PinnedMembers
    from tacit.client.store import Decision, OutboxEntry, Repeat, RunRecord, Store


REVOKED = "revoked"
LOGS_FOLDER = "logs"
_NOTE = re.compile(rf"\S+ info +worker {NOTE}(.+)")  # a line of core/logs.py
_MOST_NOTES = 50


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The daemon's link to the server.

    Attributes:
        state: ``connected``, ``connecting``, ``stopped``, or ``revoked``, which is stopped too.
        address: where the server is, or was last tried.
        problem: why it is not connected; while it is, that another node has its keys.
        hint: what to do about it; empty if nothing.
        isolation: the means by which workers are confined here.
        config_sha256: of client.toml when the daemon read it; empty while none runs.
    """

    state: str
    address: str = ""
    problem: str = ""
    hint: str = ""
    isolation: tuple[str, ...] = ()
    config_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run at this node.

    Attributes:
        mode, unit, app, rounds: what it asks.
        verdict, decided_by, code, reason: the owner's word on it; an approval that no longer holds,
            since the app's files have changed, is shown as pending.
        epsilon: what the whole run costs each ``unit``; None without an account.
        released, refused, failed: messages by outcome.
        ended: how the run ended; empty while it has not.
        ended_reason: what the operator said who stopped it.
    """

    run_id: str
    name: str
    mode: str
    unit: str
    app: str
    rounds: int
    verdict: str
    decided_by: str
    code: str
    reason: str
    epsilon: float | None
    released: int
    refused: int
    failed: int
    offered_at_s: float
    ended: str
    ended_reason: str


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A reply that has been made and is kept until its round is committed."""

    message_id: str
    payload_bytes: int
    stored_at_s: float
    received_at_s: float | None


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """Everything that ``tacit client status`` shows."""

    member: str
    node_id: int
    connection: Connection
    runs: tuple[RunStatus, ...]
    repeats: tuple[Repeat, ...]
    outbox: tuple[Waiting, ...]
    decisions: tuple[Decision, ...]


def read_status(
    store: Store, *, member: str, node_id: int, connection: Connection, limit: int = 50
) -> NodeStatus:
    """Collect what the node knows: the latest ``limit`` runs, and all that have not ended."""
    runs = store.list_runs()
    runs = [run for place, run in enumerate(runs) if place < limit or not run.ended]
    fingerprints: dict[tuple[str, ...], bytes] = {}
    runs = [with_lapse(run, fingerprints) for run in runs]
    return NodeStatus(
        member=member,
        node_id=node_id,
        connection=connection,
        runs=tuple(_run_status(run, store) for run in runs),
        repeats=tuple(store.list_repeats()),
        outbox=tuple(_waiting(entry) for entry in store.list_replies()),
        decisions=tuple(store.list_decisions(limit=limit)),
    )


def with_lapse(run: RunRecord, fingerprints: dict[tuple[str, ...], bytes]) -> RunRecord:
    """Return a run as it stands now: one whose app's files have changed is approved no longer.

    The node finds the same before each message; here it is found before one comes.

    Args:
        run: as it was decided.
        fingerprints: by apps, what was computed before; the run's is added.
    """
    if run.verdict is not Verdict.APPROVED or run.ended:
        return run
    try:
        specification = parse_specification(run.specification)
        apps = apps_of(specification)
        if apps not in fingerprints:
            fingerprints[apps] = fingerprint_apps(specification)
        holds = fingerprints[apps] == run.app_sha256
    except TacitError:  # not installed any more, or not as it can be covered
        holds = False
    if holds:
        return run
    return dataclasses.replace(
        run,
        verdict=Verdict.PENDING,
        code="E-APPROVAL-APP",
        reason=APP_CHANGED.format(run_id=run.run_id),
    )


def cohort_status(run: RunRecord, pinned: PinnedMembers | None) -> dict[str, Any]:
    """Return among whom a run sums unseen, and how each stands here; nothing where it does not sum.

    Args:
        run: as it was offered.
        pinned: whom the owner has pinned; None if that cannot be read.
    """
    try:
        secure = parse_specification(run.specification).secure_aggregation
    except TacitError:  # it was denied for this very reason, which is shown
        return {}
    if secure is None:
        return {}
    stands = {name: _standing(name, pinned) for name in secure.members}
    return {"members": stands, "threshold": secure.threshold, "colluders": secure.colluders}


def _standing(name: str, pinned: PinnedMembers | None) -> str:
    if pinned is None:
        return f"unknown: {MEMBERS_FILE} cannot be read"
    if name == pinned.own_name:
        return str(Standing.OWN.value)
    standing = Standing.PINNED if name in pinned.keys else Standing.UNPINNED
    return str(standing.value)


def worker_notes(folder: Path, run_id: str) -> tuple[str, ...]:
    """Return what a run's worker noted on its model, each note once.

    They come from the log that also holds what the app printed: an app can write such lines as
    well, so they inform and prove nothing.

    Args:
        folder: the state directory.
        run_id: which run.
    """
    try:
        with (folder / LOGS_FOLDER / f"{run_id}.log").open(
            encoding="utf-8", errors="replace"
        ) as log:
            found = [match.group(1) for match in map(_NOTE.match, log) if match]
    except OSError:  # nothing has run yet
        return ()
    return tuple(dict.fromkeys(found))[:_MOST_NOTES]


def resting(store: Store, *, serial: str) -> Connection:
    """Return the link of a node that does not run: stopped, for good if this was revoked.

    Args:
        store: what the node remembers.
        serial: of the certificate that it holds now.
    """
    for line in store.list_decisions(limit=50):
        if line.outcome == REVOKED and line.reason == f"certificate {serial}":
            return Connection(
                state=REVOKED,
                problem="the server has revoked this node; ask the operator for a new token",
            )
    return Connection(state="stopped")


def as_json(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a status, or a part of one, in terms that JSON has: bytes as hex."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def _run_status(run: RunRecord, store: Store) -> RunStatus:
    outcomes = store.count_outcomes(run.run_id)
    mode, unit, app, rounds = "", "", "", 0
    try:
        specification = parse_specification(run.specification)
        mode, app = specification.privacy.mode.value, app_of(specification)
        unit = specification.privacy.unit.value if specification.privacy.unit else ""
        rounds = specification.participation.rounds
    except TacitError:  # it was denied for this very reason, which is shown
        pass
    return RunStatus(
        run_id=run.run_id,
        name=run.name,
        mode=mode,
        unit=unit,
        app=app,
        rounds=rounds,
        verdict=run.verdict.value,
        decided_by=run.decided_by,
        code=run.code,
        reason=run.reason,
        epsilon=run.epsilon,
        released=outcomes.get("released", 0),
        refused=outcomes.get("refused", 0),
        failed=outcomes.get("failed", 0),
        offered_at_s=run.offered_at_s,
        ended=run.ended,
        ended_reason=run.ended_reason,
    )


def _waiting(entry: OutboxEntry) -> Waiting:
    return Waiting(
        message_id=entry.message_id,
        payload_bytes=entry.payload_bytes,
        stored_at_s=entry.stored_at_s,
        received_at_s=entry.received_at_s,
    )
