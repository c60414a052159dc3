"""`tacit run`: check a run.toml, submit it, watch it, and pull what it left."""

from __future__ import annotations

import contextlib
import datetime as dt
import json as json_module
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tacit.cli.checks import check_run, show_notes
from tacit.cli.output import Table, emit, foreign_output_aside, table_text, visible
from tacit.cli.progress import RoundProgress, metric_texts
from tacit.core.errors import AppError, UnavailableError
from tacit.core.specification import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.cli.checks import Checked
    from tacit.core.specification import RunSpec
    from tacit.protos.control_client import ControlClient
    from tacit.protos.control_pb2 import Run

app = typer.Typer(add_completion=False)

RETRY_S = 2.0

File = Annotated[Path, typer.Argument(help="A run.toml.")]
RunId = Annotated[
    str, typer.Argument(help="A run's id, or a unique beginning of it (default: the latest).")
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="As whom: a profile of `tacit server init` or `tacit login` (default: TACIT_PROFILE, "
        "else default, else the only one).",
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home", help="State directory of a server on this machine, in place of a profile."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def check(
    file: File,
    records: Annotated[
        int,
        typer.Option(
            help="Records that an owner declares, for the figures; 0: the most that delta allows."
        ),
    ] = 0,
    *,
    json: Json = False,
) -> None:
    """Check a run.toml, the strategy and the model, and say what the run would cost in privacy."""
    with foreign_output_aside():  # a model factory of the operator's own may print
        checked = check_run(file, records=records)
    emit(checked.summary if json else _without_warnings(checked), json=json)
    if not json:
        _warn(checked)


@app.command()
def submit(
    file: File,
    profile: ProfileName = None,
    home: Home = None,
    *,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Stay and show how it goes on, as `tacit run watch` does."),
    ] = False,
    json: Json = False,
) -> None:
    """Check a run.toml, make the initial weights, and queue the run at the server."""
    with foreign_output_aside():
        checked = check_run(file, records=0)
    from tacit.protos.control_client import Submission  # noqa: PLC0415 - grpc

    if not json:
        show_notes(checked.notes)
    _warn(checked)
    with connected(profile, home) as client, tempfile.TemporaryDirectory() as folder:
        with foreign_output_aside():
            initial = _initial_file(file, checked.specification, Path(folder))
        submission = Submission(
            canonical=canonical_json(checked.specification),
            source_toml=checked.source.encode(),
            initial=initial,
        )
        run_id = client.submit(submission)
        if watch:
            typer.echo(run_id, err=True)
            watch_run(client, run_id, json=json)
            return
    emit({"run_id": run_id, "notes": checked.notes} if json else run_id, json=json)
    if not json:
        typer.echo(f"Queued. It begins when its owners approve: tacit run watch {run_id}", err=True)


@app.command("list")
def list_(profile: ProfileName = None, home: Home = None, *, json: Json = False) -> None:
    """List all runs of the server, the oldest first."""
    with connected(profile, home) as client:
        runs = client.list_runs()
    rows = [
        (
            run.run_id,
            run.name,
            run.status,
            f"{run.round}/{run.rounds}",
            _when(run.submitted_at_s),
            run.submitted_by,
            run.reason,
        )
        for run in runs
    ]
    columns = ("run", "name", "status", "round", "submitted", "by", "reason")
    table = Table(columns=columns, rows=rows, empty="No runs yet.")
    emit([_plain(run) for run in runs], json=json, table=table)


@app.command()
def show(
    run: RunId = "", profile: ProfileName = None, home: Home = None, *, json: Json = False
) -> None:
    """Show one run: where it stands, what its owners said, who is missing, how its rounds went."""
    with connected(profile, home) as client:
        reply = client.show(client.find_run(run).run_id)
    manifest = with_names(json_module.loads(reply.manifest_json)) if reply.manifest_json else None
    if json:
        specification = json_module.loads(reply.specification)
        value = {**_plain(reply.run), "specification": specification, "manifest": manifest}
        emit(value, json=True)
        return
    emit(_plain(reply.run), json=False)
    if manifest is not None and manifest.get("rounds"):
        last = manifest["rounds"][-1]
        shown = {k: v for k, v in last.items() if v not in (None, {}, []) and k != "cohort"}
        shown |= {k: metric_texts(shown[k]) for k in ("metrics", "evaluation") if k in shown}
        emit({"last round": shown}, json=False)
    if manifest is not None and manifest.get("claims"):
        typer.echo("\nClaims by the owners' own ledgers: what the run has cost so far")
        typer.echo(table_text(claims_table(manifest["claims"])))


@app.command()
def watch(
    run: RunId = "", profile: ProfileName = None, home: Home = None, *, json: Json = False
) -> None:
    """Show a run's events as they come, until it ends; `--json` gives one object per line.

    Exit code 1 when the run has failed or was stopped. A server that restarts is waited for.
    """
    with connected(profile, home) as client:
        watch_run(client, client.find_run(run).run_id, json=json)


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="The run's id, or a unique beginning of it.")],
    reason: Annotated[str, typer.Option(help="Why; its owners' nodes and the log see it.")] = "",
    profile: ProfileName = None,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Stop a run for good; what its rounds made so far stays in its folder."""
    with connected(profile, home) as client:
        run_id = client.find_run(run).run_id
        client.stop(run_id, reason)
    emit({"run_id": run_id, "status": "stopped"}, json=json)


@app.command()
def pull(
    run: RunId = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to put it (default: runs/<run id>).")
    ] = None,
    profile: ProfileName = None,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Fetch a run's folder: specification, weights, manifest and events; resumes where it broke.

    The folder must be new, empty, or that of the same run.
    """
    with connected(profile, home) as client:
        run_id = client.find_run(run).run_id
        folder = out or Path("runs") / run_id
        files = client.pull_run(run_id, folder)
    total = sum(file.bytes for file in files)
    value = {"run_id": run_id, "folder": folder.resolve(), "files": len(files), "bytes": total}
    emit(value, json=json)


def _without_warnings(checked: Checked) -> dict[str, Any]:
    return {key: value for key, value in checked.summary.items() if key != "warnings"}


def _warn(checked: Checked) -> None:
    for text in checked.warnings:
        typer.echo(f"warning: {visible(text)}", err=True)


def _initial_file(file: Path, specification: RunSpec, folder: Path) -> Path:
    from tacit.core.artifacts import save_arrays  # noqa: PLC0415 - numpy

    if specification.initial:
        return file.parent / specification.initial
    path = folder / "initial.safetensors"
    if specification.app is None:
        from tacit.learning.models import initial_arrays  # noqa: PLC0415 - torch

        save_arrays(path, initial_arrays(specification))
    else:
        save_arrays(path, {})
    return path


@contextlib.contextmanager
def connected(profile: str | None, home: Path | None) -> Iterator[ControlClient]:
    """Connect to the server of a profile, or to the daemon of a state directory.

    Raises:
        UnavailableError: it does not answer.
        TacitError: the profile cannot be used.
    """
    from tacit.core.profiles import load_profile  # noqa: PLC0415 - cryptography
    from tacit.core.state import open_state  # noqa: PLC0415
    from tacit.protos.control_client import open_local, open_profile  # noqa: PLC0415 - grpc

    if home is None:
        with open_profile(load_profile(profile)) as client:
            yield client
        return
    state = open_state(home, create=False)
    if state.holder() is None:
        raise UnavailableError(
            "E-SERVER-STOPPED",
            f"expected a running daemon for {state.path}",
            hint="Start it with `tacit server start`.",
        )
    with open_local(state.socket) as client:
        yield client


def watch_run(
    client: ControlClient, run_id: str, *, json: bool = False, stream: TextIO | None = None
) -> None:
    """Show events until the run ends.

    Args:
        client: the server.
        run_id: which run.
        json: one object per line instead of progress.
        stream: where progress is shown instead of standard output.

    Raises:
        AppError: the run failed or was stopped.
    """
    from tacit.core.events import EventKind, event_line  # noqa: PLC0415

    rounds = client.find_run(run_id).rounds
    sequence, last, told = 0, None, False
    with RoundProgress(rounds, stream=stream or sys.stdout, quiet=json) as progress:
        while last is None or not last.kind.ends_run:
            try:
                for event in client.watch(run_id, after=sequence):
                    sequence, last, told = event.sequence, event, False
                    if json:
                        typer.echo(event_line(event), nl=False)
                    else:
                        progress.show(event)
                if last is None or not last.kind.ends_run:
                    return  # ended without an event: an old run whose events are gone
            except UnavailableError as error:
                if not told:
                    typer.echo(f"{error.message}; waiting for the server", err=True)
                told = True
                time.sleep(RETRY_S)
    if last.kind is not EventKind.RUN_FINISHED:
        fields = last.fields
        code = str(fields.get("code") or "E-RUN-STOPPED")
        reason = f"run {run_id} {last.kind.value[4:]}: {fields.get('reason') or '-'}"
        raise AppError(code, reason, hint=str(fields.get("hint") or ""))


def with_names(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest whose rounds also say what the nodes' members are called.

    Beside ``cohort``, which holds node ids, each round gets ``members``; ``failed``, ``survivors``
    and ``claims`` go by name.
    """
    names: dict[str, str] = manifest.get("members", {})
    rounds = []
    for entry in manifest["rounds"]:
        members = [names.get(str(node_id), str(node_id)) for node_id in entry["cohort"]]
        failed = {names.get(node_id, node_id): code for node_id, code in entry["failed"].items()}
        named = entry | {"members": members, "failed": failed}
        if entry.get("survivors") is not None:
            named["survivors"] = [names.get(str(node), str(node)) for node in entry["survivors"]]
        rounds.append(named)
    claims = {names.get(node, node): sides for node, sides in manifest.get("claims", {}).items()}
    return manifest | {"rounds": rounds, "claims": claims}


def claims_table(claims: dict[str, dict[str, Any]]) -> Table:
    """Return what the owners' ledgers say that a run has cost, by member and side."""
    rows = [
        (
            member,
            side,
            claim["unit"],
            claim["relation"],
            "none holds" if claim["epsilon"] is None else f"{claim['epsilon']:.4g}",
            f"{claim['delta']:g}",
            claim["ledger"]["entries"],
        )
        for member, sides in sorted(claims.items())
        for side, claim in sorted(sides.items())
    ]
    columns = ("member", "side", "unit", "relation", "epsilon", "delta", "ledger entry")
    return Table(columns=columns, rows=rows)


def missing_nodes(run: Run) -> list[dict[str, Any]]:
    """Return who has approved a run that goes on, and is not connected, with the last sign."""
    if run.ended_at_s:
        return []
    return [
        {"member": decision.member, "since": _when(decision.last_seen_at_s)}
        for decision in run.decisions
        if decision.verdict == "approved" and not decision.connected
    ]


def _plain(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "name": run.name,
        "status": run.status,
        "round": run.round,
        "rounds": run.rounds,
        "submitted_at": _when(run.submitted_at_s),
        "started_at": _when(run.started_at_s),
        "ended_at": _when(run.ended_at_s),
        "submitted_by": run.submitted_by,
        "reason": run.reason,
        "specification_sha256": run.specification_sha256,
        "missing": missing_nodes(run),
        "decisions": [
            {
                "member": decision.member,
                "verdict": decision.verdict,
                "code": decision.code,
                "connected": decision.connected,
                "last_seen_at": _when(decision.last_seen_at_s),
            }
            for decision in run.decisions
        ],
    }


def _when(seconds: float) -> str | None:
    if not seconds:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
