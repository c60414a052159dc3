"""`tacit client`: a data owner joins, decides what may happen to their data, and sees what did.

The verbs reach a running daemon over the Unix socket in its state directory. When it is stopped,
`status` reads its store, and `approve` and `deny` write it under the directory's lock; the server
hears of it at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as json_module
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from tacit.cli import members
from tacit.cli.backup import backup, restore
from tacit.cli.node_status import show_status
from tacit.cli.output import Table, emit, plain
from tacit.client.audits import REPORT_NAMES
from tacit.client.canaries import canary_notes
from tacit.client.comparison import Home as ComparisonHome
from tacit.client.comparison import OwnComparison, compare_at_home
from tacit.client.configuration import (
    CONFIG_NAME,
    SAMPLE,
    file_digest,
    load_client_config,
)
from tacit.client.daemon import IDENTITY_FOLDER, SPLIT_KEY_NAME, assembled, run_client
from tacit.client.ledger_view import read_ledger
from tacit.client.link import leave as leave_federation
from tacit.client.local import ask_daemon
from tacit.client.members import PinnedMembers, load_pinned
from tacit.client.preflight import Finding, Grade, check_client
from tacit.client.preparation import Report
from tacit.client.runs import RUNS_FOLDER
from tacit.client.status import (
    Connection,
    as_json,
    cohort_status,
    read_status,
    resting,
    with_lapse,
    worker_notes,
)
from tacit.client.store import STORE_NAME, RunRecord, open_store
from tacit.core.errors import ConfigError, TacitError, TrustError, UnavailableError, UsageError
from tacit.core.files import write_atomic
from tacit.core.fingerprint import fingerprint_of
from tacit.core.identity import Role, parse_token
from tacit.core.logs import Form, configure_logging
from tacit.core.membership import Membership
from tacit.core.state import StateDirectory, default_home, home_option, open_state
from tacit.protos.enrolment_client import enrol

app = typer.Typer(add_completion=False)
app.command()(backup)
app.command()(restore)
app.add_typer(members.app, name="members", help=members.HELP)

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="State directory (default: TACIT_CLIENT_HOME, else ~/.local/state/tacit/client).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

RunId = Annotated[
    str,
    typer.Argument(help="A run id, or a unique beginning of one, from `tacit client status`."),
]


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="The token that the operator handed over.")],
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Enrol this machine with a token; keys are made here and stay here.

    Example: tacit client join "$(cat cleveland.token)"
    """
    parsed = parse_token(token)
    if parsed.role is not Role.CLIENT:
        raise UsageError(
            "E-TOKEN-ROLE",
            f"expected the token of a client, got one of an {parsed.role.value}",
            hint="Operators and auditors use `tacit login TOKEN`.",
        )
    state = open_state(_home(home), create=True)
    with state.lock():
        membership = enrol(parsed, state.path / IDENTITY_FOLDER)
        config = state.path / CONFIG_NAME
        if not config.exists():
            write_atomic(config, SAMPLE.encode())
    identity = membership.identity
    value = {
        "name": identity.name,
        "node_id": identity.node_id,
        "fingerprint": _fingerprint(membership),
        "home": state.path,
        "config": config,
        "addresses": membership.addresses,
        "expires_at": identity.not_after,
    }
    emit(value, json=json)
    if not json:
        at = home_option("client", home)
        typer.echo(f"Next: edit {config}, then tacit client check{at}, then tacit client start{at}")


@app.command()
def check(
    home: Home = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Also hold the records against this run.toml.")
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Say what is wrong on this machine, and what to do; exit code 3 if something is."""
    state = _opened(home)
    findings = asyncio.run(_check(state, run, quiet=json))
    if json:
        emit(findings, json=True)
    if any(finding.grade is Grade.WRONG for finding in findings):
        raise typer.Exit(ConfigError.exit_code)


async def _check(state: StateDirectory, run: Path | None, *, quiet: bool) -> list[Finding]:
    findings = []
    async for finding in check_client(state, run=run):
        findings.append(finding)
        if not quiet:
            text = finding.text.replace("\n", "\n           ")
            typer.echo(f"{finding.grade.value:<8} {finding.subject}: {text}")
            if finding.hint:
                typer.echo(f"         {finding.hint}")
    return findings


@app.command()
def start(
    home: Home = None,
    *,
    log_format: Annotated[
        str,
        typer.Option(
            help="text for people, json for machines.", click_type=click.Choice(["text", "json"])
        ),
    ] = "text",
    log_level: Annotated[
        str,
        typer.Option(
            help="The least that is logged.", click_type=click.Choice(LEVELS, case_sensitive=False)
        ),
    ] = "INFO",
) -> None:
    """Run the node in the foreground; Ctrl-C or SIGTERM stops it without losing anything.

    client.toml is read now, and only now: restart the node after changing it.
    """
    form: Form = "json" if log_format == "json" else "text"
    configure_logging("client", level=log_level, form=form)
    run_client(_opened(home).path)


@app.command()
def status(
    run_id: Annotated[
        str | None,
        typer.Argument(
            help="One run, from the list: all that it asks, to read before you say yes."
        ),
    ] = None,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Show runs, the verdicts on them, what left and when, and what was refused and why.

    Exit code 5 if the ledger is not what it must be.
    """
    state = _opened(home)
    if run_id is not None:
        asked = _asked(state, _found(state, run_id))
        emit(asked if json else _said(asked), json=json)
        return
    membership = Membership(state.path / IDENTITY_FOLDER)
    value = _status(state) | {"fingerprint": _fingerprint(membership)}
    if json:
        emit(value, json=True)
    else:
        show_status(value)
    if value["ledger"]["problem"]:
        raise typer.Exit(TrustError.exit_code)


@app.command()
def approve(
    run_id: RunId,
    home: Home = None,
    *,
    repeat: Annotated[
        bool,
        typer.Option(
            "--repeat",
            help="Also later runs of this very specification and these app files, while policy "
            "and budget admit them; `tacit client deny` of any of them withdraws it.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Say yes to a run that the policy admits; read it first: `tacit client status RUN_ID`.

    You approve this specification and the app as it is installed here: change either, and you are
    asked again. A run that is submitted again costs again, and you are asked again as well.
    """
    state = _opened(home)
    value = _decide(state, "approve", run_id=_found(state, run_id).run_id, repeat=repeat)
    emit(value if json else _said(value), json=json)


@app.command()
def deny(
    run_id: RunId,
    home: Home = None,
    reason: Annotated[str, typer.Option(help="For your own log; it does not leave.")] = "",
    *,
    json: Json = False,
) -> None:
    """Say no to a run; if it is under way here, it stops at once.

    Withdraws `approve --repeat` for its specification as well, also where the run is over; what
    was approved by it before and is under way goes on, until it is denied itself.
    """
    state = _opened(home)
    value = _decide(state, "deny", run_id=_found(state, run_id).run_id, reason=reason)
    emit(value if json else _said(value), json=json)


@app.command()
def compare(
    run_id: RunId,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The run's model.safetensors, from the operator (default: what came last).",
        ),
    ] = None,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Show what a run brought you: its model, training alone, and a guess, on your own records.

    Trains here, on your training records, with the run's recipe and privacy; scores on your
    held-out ones. Sends nothing, and works while the node runs or not. The numbers are exact and
    not charged to the ledger, since nothing leaves: what you pass on of them is on no account.
    """
    state = _opened(home)
    run = _found(state, run_id)
    at_home = ComparisonHome(
        config=load_client_config(state.path / CONFIG_NAME).value,
        folder=state.path / RUNS_FOLDER / run.run_id,
        split_key=state.path / SPLIT_KEY_NAME,
    )
    value = compare_at_home(run, at_home, model=model)
    emit(value, json=json, table=_comparison_table(value))
    if not json:
        typer.echo(
            f"\nOn {value.held_out} held-out records of your own; federated: {value.federated}."
        )


@app.command()
def leave(home: Home = None, *, json: Json = False) -> None:
    """Leave the federation for good: the certificate is revoked and removed, the records stay."""
    state = _opened(home)
    with state.lock():
        membership = Membership(state.path / IDENTITY_FOLDER)
        name = membership.identity.name
        try:
            address = asyncio.run(leave_federation(membership))
        except TrustError as error:
            if error.code not in ("E-MEMBER-REVOKED", "E-CERTIFICATE-EXPIRED"):
                raise
            address = ""  # it is out already
        for path in (state.path / IDENTITY_FOLDER).iterdir():
            path.unlink()
        (state.path / IDENTITY_FOLDER).rmdir()
    value = {"left": name, "server": address, "home": state.path}
    emit(value if json else _said(value), json=json)


def _fingerprint(membership: Membership) -> str:
    """Return the six words that this node's owner tells the others."""
    return fingerprint_of(membership.keys.enrolment_public_key)


def _home(home: Path | None) -> Path:
    return home if home is not None else default_home("client")


def _opened(home: Path | None) -> StateDirectory:
    return open_state(_home(home), create=False)


def _found(state: StateDirectory, run_id: str) -> RunRecord:
    """Return the run of this id, or whose id alone begins so."""
    path = state.path / STORE_NAME
    store = open_store(path, read_only=True) if path.exists() else None
    try:
        runs = [] if store is None else store.list_runs()
    finally:
        if store is not None:
            store.close()
    found = [run for run in runs if run.run_id.startswith(run_id)]
    if len(found) != 1:
        raise UsageError(
            "E-RUN-UNKNOWN",
            f"expected the id of one run, or a unique beginning of it; {run_id!r} fits "
            f"{len(found)}",
            hint="`tacit client status` lists the runs that were offered to this node.",
        )
    return found[0]


def _asked(state: StateDirectory, run: RunRecord) -> dict[str, Any]:
    """Return the node's word on one run, and the specification that the word covers."""
    folder = state.path / RUNS_FOLDER / run.run_id
    report = Report.load(folder)
    run = with_lapse(run, {})
    return {
        "run_id": run.run_id,
        "name": run.name,
        "verdict": run.verdict.value,
        "code": run.code,
        "reason": run.reason,
        "repeat_of": _repeated_by(state, run),
        "unit": (json_module.loads(run.specification).get("privacy") or {}).get("unit"),
        "epsilon": run.epsilon,
        **_evaluation_cost(run),
        **cohort_status(run, _pinned(state)),
        "cleaning": list(report.cleaning),
        "warnings": list(report.warnings),
        "model_notes": list(worker_notes(state.path, run.run_id)),
        "ended": run.ended,
        "ended_reason": run.ended_reason,
        **_canary_notes(state, run),
        **_own_report(folder),
        "specification_sha256": run.specification_sha256.hex(),
        "asks": json_module.loads(run.specification),
    }


def _pinned(state: StateDirectory) -> PinnedMembers | None:
    """Return whom the owner has pinned; None if that cannot be read."""
    with contextlib.suppress(TacitError):
        return load_pinned(state.path, Membership(state.path / IDENTITY_FOLDER))
    return None


def _repeated_by(state: StateDirectory, run: RunRecord) -> str | None:
    """Return the run whose approval covers later ones of the same specification, if there is."""
    with contextlib.closing(open_store(state.path / STORE_NAME, read_only=True)) as store:
        repeats = {each.specification_sha256: each.run_id for each in store.list_repeats()}
    return repeats.get(run.specification_sha256)


def _canary_notes(state: StateDirectory, run: RunRecord) -> dict[str, Any]:
    with contextlib.closing(open_store(state.path / STORE_NAME, read_only=True)) as store:
        return canary_notes(store, run)


def _evaluation_cost(run: RunRecord) -> dict[str, Any]:
    """Return what the run's noised evaluations cost each of its units that is not trained on."""
    evaluation = json_module.loads(run.specification).get("evaluation") or {}
    epsilon = evaluation.get("epsilon", 0.0) if isinstance(evaluation, dict) else 0.0
    return {"evaluation_epsilon": epsilon} if epsilon else {}


def _own_report(folder: Path) -> dict[str, Any]:
    """Return what an audit found at this node, which its owner alone sees; nothing without one."""
    report, text = (folder / name for name in REPORT_NAMES)
    if not text.is_file():
        return {}
    lines = text.read_text("utf-8", errors="replace").splitlines()
    return {"own_report": str(report if report.is_file() else text), "own_findings": lines}


def _said(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a specification without what says nothing: keys that are empty or not given."""
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items() if item not in (None, "", [], {})}
    return value


def _status(state: StateDirectory) -> dict[str, Any]:
    ledger: dict[str, Any] = as_json(read_ledger(state.path))
    try:
        value = ask_daemon(state, "status")
    except UnavailableError:
        return _stopped(state) | {"ledger": ledger}
    digest = value["connection"].get("config_sha256")
    value["config_changed"] = digest != file_digest(state.path / CONFIG_NAME)
    return value | {"ledger": ledger}


def _stopped(state: StateDirectory) -> dict[str, Any]:
    """Return the status of a node that does not run, from what it remembers."""
    identity = Membership(state.path / IDENTITY_FOLDER).identity
    path = state.path / STORE_NAME
    if not path.exists():
        return {
            "member": identity.name,
            "node_id": identity.node_id,
            "connection": plain(Connection(state="stopped")),
            "runs": [],
            "repeats": [],
            "outbox": [],
            "decisions": [],
        }
    store = open_store(path, read_only=True)
    try:
        value: dict[str, Any] = as_json(
            read_status(
                store,
                member=identity.name,
                node_id=identity.node_id,
                connection=resting(store, serial=identity.serial),
            )
        )
    finally:
        store.close()
    return value


def _decide(
    state: StateDirectory, verb: str, *, run_id: str, **fields: str | bool
) -> dict[str, Any]:
    if state.holder() is not None:
        return ask_daemon(state, verb, run_id=run_id, **fields)
    with state.lock(), assembled(state) as parts:
        if verb == "approve":
            judgement = parts.node.approve(run_id, repeat=fields["repeat"] is True)
        else:
            judgement = parts.node.deny(run_id, str(fields["reason"]))
    value: dict[str, Any] = as_json(judgement)
    return value


def _comparison_table(value: OwnComparison) -> Table:
    private = value.delta is not None
    rows = [
        (
            row.model,
            *([] if not private else ["-" if row.epsilon is None else f"{row.epsilon:.2f}"]),
            f"{row.accuracy:.3f}",
            f"{row.standard_error:.3f}",
        )
        for row in value.models
    ]
    columns = ("model", *(["epsilon"] if private else []), "accuracy", "standard error")
    return Table(columns=columns, rows=rows)
