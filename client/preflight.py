"""``tacit client check``: what is wrong on this machine, and what to do, one finding per line.

Looks at everything that a run will need, in the order in which it would fail: state directory,
certificate, configuration, isolation, ledger, each data set (and its columns, if a run's contract
is given), then each address of the server, what it knows of the ledger, its version and the clock.
Nothing is changed, and nothing about the data leaves: the server hears what any joining node tells
it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import importlib.metadata
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tacit.client.charges import head_of
from tacit.client.configuration import (
    CHANGED,
    CONFIG_NAME,
    DataSet,
    file_digest,
    load_client_config,
)
from tacit.client.daemon import IDENTITY_FOLDER, PROTOCOL_VERSION
from tacit.client.foreseen import foreseen_refusals
from tacit.client.isolation import probe
from tacit.client.ledger_view import open_to_read, read_ledger
from tacit.client.link import probe_server
from tacit.client.local import ask_daemon
from tacit.client.members import load_pinned
from tacit.client.preparation import Preparation, PrepareJob, Report, Survey
from tacit.core.configuration import load_config
from tacit.core.errors import TacitError
from tacit.core.membership import Membership
from tacit.core.specification import RunSpec, canonical_json
from tacit.privacy.ledger_head import verify_head
from tacit.privacy.spec import BUILT_MODES
from tacit.protos import fleet_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tacit.client.configuration import ClientConfig
    from tacit.client.isolation import Isolation
    from tacit.core.state import StateDirectory

_EXPIRES_SOON = dt.timedelta(days=14)
_CLOCK_TOLERANCE_S = 120.0
_COLUMNS_SHOWN = 20


class Grade(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the check.

    Attributes:
        subject: what was looked at.
        grade: how it is.
        text: what was found; several problems have a line each.
        hint: what to do; empty if nothing.
    """

    subject: str
    grade: Grade
    text: str
    hint: str = ""


async def check_client(
    state: StateDirectory, *, run: Path | None = None, now: Callable[[], float] = time.time
) -> AsyncIterator[Finding]:
    """Look at everything; yield each finding as soon as it is known.

    Args:
        state: the client's state directory.
        run: a run.toml, to be judged as the node will, whose data contract the data set must keep.
        now: seconds since 1970.
    """
    yield Finding(subject="state directory", grade=Grade.OK, text=str(state.path))
    membership = Membership(state.path / IDENTITY_FOLDER)
    enrolled = _certificate(membership, now)
    yield enrolled
    try:
        config = load_client_config(state.path / CONFIG_NAME).value
    except TacitError as error:
        yield _wrong("configuration", error)
        config = None
    else:
        yield Finding(subject="configuration", grade=Grade.OK, text=CONFIG_NAME)
    if enrolled.grade is not Grade.WRONG:
        yield _members(state.path, membership)
    running = await asyncio.to_thread(_running, state)
    if running is not None:
        yield running
    isolation = probe()
    yield _isolation(isolation)
    yield await asyncio.to_thread(_ledger, state.path)
    if config is not None:
        for finding in _configured(config, run, state.path, confined=isolation.available):
            yield finding
    if enrolled.grade is not Grade.WRONG:
        for address in membership.addresses:
            async for finding in _server(membership, address, state.path, now):
                yield finding


def _certificate(membership: Membership, now: Callable[[], float]) -> Finding:
    try:
        identity = membership.identity
        membership.keys  # noqa: B018 - reads and parses the key files
    except TacitError as error:
        return _wrong("certificate", error)
    moment = dt.datetime.fromtimestamp(now(), dt.UTC)
    who = f"{identity.name}, node {identity.node_id}, holds until {identity.not_after:%F}"
    if identity.not_after <= moment:
        return Finding(
            subject="certificate",
            grade=Grade.WRONG,
            text=f"{who}: it has ended",
            hint="Check this machine's clock; then ask the operator for a new token.",
        )
    if identity.not_before > moment:
        return Finding(
            subject="certificate",
            grade=Grade.WRONG,
            text=f"{who}: it begins only on {identity.not_before:%F %T} UTC",
            hint="This machine's clock is behind: set it.",
        )
    if identity.not_after - moment < _EXPIRES_SOON:
        return Finding(
            subject="certificate",
            grade=Grade.WARNING,
            text=who,
            hint="The daemon renews it while it is connected: start it.",
        )
    return Finding(subject="certificate", grade=Grade.OK, text=who)


def _members(folder: Path, membership: Membership) -> Finding:
    """Say how many members are pinned, if members.toml can be read."""
    try:
        others = load_pinned(folder, membership).others
    except TacitError as error:
        return _wrong("members", error)
    text = f"{len(others)} pinned beside this node"
    return Finding(subject="members", grade=Grade.OK, text=text)


def _running(state: StateDirectory) -> Finding | None:
    """Say whether a daemon that runs goes by client.toml as it is now; None if none runs."""
    try:
        connection = ask_daemon(state, "status")["connection"]
    except TacitError:
        return None
    if connection.get("config_sha256") == file_digest(state.path / CONFIG_NAME):
        return Finding(subject="node", grade=Grade.OK, text=f"it runs, by this {CONFIG_NAME}")
    hint = "Stop it (Ctrl-C or SIGTERM loses nothing), then: tacit client start"
    return Finding(subject="node", grade=Grade.WARNING, text=CHANGED, hint=hint)


def _ledger(folder: Path) -> Finding:
    """Walk the ledger, and hold it against the heads that the node has noted."""
    status = read_ledger(folder)
    if status.problem:
        return Finding(subject="ledger", grade=Grade.WRONG, text=status.problem, hint=status.hint)
    spent = "; ".join(
        f"{each.data_set}: "
        + ("no epsilon holds" if each.epsilon is None else f"epsilon {each.epsilon:.4g} spent")
        + f", budget {each.budget:g}"
        + (f" ({each.note})" if each.note else "")
        for each in status.data_sets
    )
    text = f"{status.entries} entries" + (f"; {spent}" if spent else "")
    refused = [each for each in status.data_sets if each.is_refused]
    if refused:
        names = ", ".join(each.data_set for each in refused)
        hint = f"Correct {CONFIG_NAME} for {names}: nothing more is charged as it stands."
        return Finding(subject="ledger", grade=Grade.WRONG, text=text, hint=hint)
    if status.restored:
        text, hint = f"{text}; {status.restored}", "Start it, with the server running."
        return Finding(subject="ledger", grade=Grade.WARNING, text=text, hint=hint)
    return Finding(subject="ledger", grade=Grade.OK, text=text)


def _known_ledger(
    membership: Membership, folder: Path, known: fleet_pb2.LedgerHead, address: str
) -> Finding:
    """Hold the ledger against the furthest head that a server has seen."""
    subject = f"ledger at {address}"
    try:
        head = verify_head(head_of(known), membership.keys.enrolment_public_key)
        with open_to_read(folder) as ledger:
            ledger.check_against(head)
    except TacitError as error:
        return _wrong(subject, error)
    return Finding(
        subject=subject, grade=Grade.OK, text=f"entry {head.count}, which it knows, is here"
    )


def _isolation(isolation: Isolation) -> Finding:
    if isolation.available:
        grade = Grade.OK if not isolation.missing else Grade.WARNING
        text = ", ".join(isolation.what)
        return Finding(
            subject="isolation",
            grade=grade,
            text=text,
            hint="; ".join(f"not here: {each}" for each in isolation.missing),
        )
    return Finding(
        subject="isolation",
        grade=Grade.WARNING,
        text=f"a worker cannot be confined here: {'; '.join(isolation.missing)}",
        hint="Only Tacit's own app runs here. A kernel with Landlock (5.13 or later), and a "
        "container that allows it, confine the others.",
    )


def _configured(
    config: ClientConfig, run: Path | None, folder: Path, *, confined: bool
) -> Iterator[Finding]:
    yield from _modes(config)
    yield _audits(config)
    yield _canaries(config)
    yield from _data_sets(config)
    if run is not None:
        yield from _run(config, run, folder, confined=confined)


def _modes(config: ClientConfig) -> Iterator[Finding]:
    missing = [mode.value for mode in config.policy.modes if mode not in BUILT_MODES]
    if missing:
        yield Finding(
            subject="policy",
            grade=Grade.WARNING,
            text=f"this version does not build {', '.join(missing)}: such runs are denied",
            hint=f"Built are {', '.join(mode.value for mode in BUILT_MODES)}; correct `modes`.",
        )


def _audits(config: ClientConfig) -> Finding:
    """Say what auditors may ask, and by which keys."""
    audit = config.policy.audit
    if not audit.allow:
        return Finding(
            subject="audits",
            grade=Grade.OK,
            text="none is answered (policy.audit.allow = false)",
        )
    exact = "also exact counts of open runs" if audit.allow_exact else "noised counts only"
    return Finding(
        subject="audits",
        grade=Grade.OK,
        text=f"answered where at least {audit.min_members} owners are merged "
        f"(policy.audit.min_members), at epsilon {audit.epsilon_for_results:g} at most "
        f"(epsilon_for_results), {exact} (allow_exact)",
    )


def _canaries(config: ClientConfig) -> Finding:
    """Say whether made-up records may be put into a run."""
    room = [f"{one.max_canaries} in {name}" for name, one in config.data_sets.items()]
    if any(one.max_canaries for one in config.data_sets.values()):
        text = f"at most so many go into a run that is approved (max_canaries): {', '.join(room)}"
    else:
        text = "none go into a run (max_canaries = 0)"
    return Finding(subject="canaries", grade=Grade.OK, text=text)


def _data_sets(config: ClientConfig) -> Iterator[Finding]:
    if not config.data_sets:
        yield Finding(
            subject="data sets",
            grade=Grade.WARNING,
            text="none is declared",
            hint="Declare one in client.toml: [data_sets.default] with path, format and records.",
        )
    for name, data_set in config.data_sets.items():
        yield from _data_set(name, data_set)


def _data_set(name: str, data_set: DataSet) -> Iterator[Finding]:
    subject = f"data set {name}"
    if not data_set.path.exists():
        yield Finding(
            subject=subject,
            grade=Grade.WRONG,
            text=f"nothing at {data_set.path}",
            hint="Correct `path` in client.toml; it is relative to that file.",
        )
    elif not os.access(data_set.path, os.R_OK):
        yield Finding(
            subject=subject,
            grade=Grade.WRONG,
            text=f"{data_set.path} cannot be read by user {os.geteuid()}",
            hint="Give this user the right to read it.",
        )
    else:
        yield from _survey(subject, data_set)


def _survey(subject: str, data_set: DataSet) -> Iterator[Finding]:
    """Read the data set as a run would, without a run's contract."""
    try:
        survey = Preparation().survey(data_set)
    except TacitError as error:
        yield _wrong(subject, error)
        return
    yield _surveyed(subject, data_set, survey)
    if survey is not None:
        yield from _reported(subject, survey.report)


def _reported(subject: str, report: Report) -> Iterator[Finding]:
    """Say what cleaning did, and what the owner should think about."""
    if report.cleaning:
        yield Finding(
            subject=f"cleaning of {subject}", grade=Grade.OK, text="; ".join(report.cleaning)
        )
    for warning in report.warnings:
        yield Finding(subject=f"columns of {subject}", grade=Grade.WARNING, text=warning)


def _surveyed(subject: str, data_set: DataSet, survey: Survey | None) -> Finding:
    most, kept = data_set.records - data_set.max_canaries, ""
    if data_set.max_canaries:
        kept = f", {data_set.max_canaries} more declared for canaries (max_canaries)"
    what = f"{data_set.path} ({data_set.format.value}, at most {most} records{kept})"
    if survey is None:
        return Finding(subject=subject, grade=Grade.OK, text=f"{what}: exists; not read: use --run")
    more = ", ..." if len(survey.columns) > _COLUMNS_SHOWN else ""
    columns = ", ".join(survey.columns[:_COLUMNS_SHOWN]) + more
    text = f"{what}: {survey.records} records, {len(survey.columns)} columns ({columns})"
    if survey.records == 0:
        hint = "A run needs records: see `path`, `separator` and `header` in client.toml."
        return Finding(subject=subject, grade=Grade.WRONG, text=text, hint=hint)
    if survey.records > most:
        hint = "More than declared: raise `records`; it bounds delta and scales every step."
        return Finding(subject=subject, grade=Grade.WRONG, text=text, hint=hint)
    return Finding(subject=subject, grade=Grade.OK, text=text)


def _run(config: ClientConfig, run: Path, folder: Path, *, confined: bool) -> Iterator[Finding]:
    """Look at what a run needs of this machine: a node that admits it, and records to train on."""
    subject = f"contract of {run.name}"
    try:
        specification = load_config(run, RunSpec).value
        if specification.privacy.mode.is_distributed:  # as the operator's own machine counts it
            # torch, and only here
            from tacit.learning.resolved import resolved_beside  # noqa: PLC0415

            specification = resolved_beside(run, specification)
    except TacitError as error:
        yield _wrong(subject, error)
        return
    yield from _judged(f"verdict on {run.name}", specification, config, folder, confined=confined)
    yield from _contract(subject, specification, config)


def _judged(
    subject: str, specification: RunSpec, config: ClientConfig, folder: Path, *, confined: bool
) -> Iterator[Finding]:
    """Say what the node would, by policy, ledger and what it can confine."""
    try:
        refused = foreseen_refusals(specification, config, folder, isolated=confined)
    except TacitError as error:  # the ledger's own line says more
        yield _wrong(subject, error)
        return
    if not refused:
        yield Finding(subject=subject, grade=Grade.OK, text="the policy and the ledger admit it")
        return
    yield Finding(
        subject=subject,
        grade=Grade.WRONG,
        text="\n".join(f"{error.message} [{error.code}]" for error in refused),
        hint=next((error.hint for error in refused if error.hint), ""),
    )


def _contract(subject: str, specification: RunSpec, config: ClientConfig) -> Iterator[Finding]:
    """Prepare the run's data set in a folder that is thrown away."""
    data_set = config.data_sets.get(specification.data_set)
    if specification.data is None:
        yield Finding(subject=subject, grade=Grade.OK, text="the run declares none")
    elif data_set is None:
        yield Finding(
            subject=subject,
            grade=Grade.WRONG,
            text=f"the run asks for a data set {specification.data_set!r}",
            hint="Declare it under [data_sets] in client.toml.",
        )
    else:
        yield from _kept(subject, specification, data_set)


def _kept(subject: str, specification: RunSpec, data_set: DataSet) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        job = PrepareJob(
            specification=canonical_json(specification),
            data_set=data_set,
            folder=Path(folder),
            split_key=bytes(32),
        )
        try:
            Preparation().prepare(job)
        except TacitError as error:
            yield _wrong(subject, error)
            return
        report = Report.load(job.folder)
    yield Finding(subject=subject, grade=Grade.OK, text="the data set keeps it")
    yield from _reported(subject, report)


async def _server(
    membership: Membership, address: str, folder: Path, now: Callable[[], float]
) -> AsyncIterator[Finding]:
    version = importlib.metadata.version("tacit")
    request = fleet_pb2.JoinRequest(
        software_version=version, protocol_version=PROTOCOL_VERSION, unix_time_s=now()
    )
    try:
        joined = await probe_server(membership, address, request)
    except TacitError as error:
        yield _wrong(f"server {address}", error)
        return
    yield Finding(subject=f"server {address}", grade=Grade.OK, text="it knows this node")
    if joined.HasField("ledger"):
        yield await asyncio.to_thread(_known_ledger, membership, folder, joined.ledger, address)
    same = joined.software_version == version
    yield Finding(
        subject="versions",
        grade=Grade.OK if same else Grade.WARNING,
        text=f"client {version}, server {joined.software_version}",
        hint="" if same else "Install the same version at both ends.",
    )
    skew_s = now() - joined.unix_time_s
    right = abs(skew_s) <= _CLOCK_TOLERANCE_S
    yield Finding(
        subject="clock",
        grade=Grade.OK if right else Grade.WARNING,
        text=f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the server",
        hint="" if right else "Set one of the two clocks: certificates and deadlines need them.",
    )


def _wrong(subject: str, error: TacitError) -> Finding:
    problems = getattr(error, "problems", ())
    text = "\n".join((f"{error.message} [{error.code}]", *problems))
    return Finding(subject=subject, grade=Grade.WRONG, text=text, hint=error.hint)
