"""`tacit run`: check a run.toml, submit it, watch it, and pull what it left."""

from __future__ import annotations

import contextlib
import datetime as dt
import json as json_module
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit.cli.output import Table, emit
from tacit.cli.progress import RoundProgress
from tacit.core.configuration import load_config, read_config_text
from tacit.core.errors import AppError, ConfigError, UnavailableError
from tacit.core.specification import RunSpec, canonical_json, specification_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.protos.control_client import ControlClient
    from tacit.protos.control_pb2 import Run

app = typer.Typer(add_completion=False)

RETRY_S = 2.0

File = Annotated[Path, typer.Argument(help="A run.toml.")]
RunId = Annotated[
    str, typer.Argument(help="A run's id, or a unique beginning of it (default: the latest).")
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="Which profile to use (see `tacit login`).")
]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="State directory of a server on this machine, instead of TLS."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run.toml that could be submitted.

    Attributes:
        specification: the resolved run.
        source: the file's text.
        summary: what it means, for people.
    """

    specification: RunSpec
    source: str
    summary: dict[str, Any]


@app.command()
def check(
    file: File,
    records: Annotated[
        int, typer.Option(help="Records that an owner declares, for the privacy figures.")
    ] = 0,
    *,
    json: Json = False,
) -> None:
    """Check a run.toml, the strategy and the model, and say what the run would cost in privacy."""
    emit(_checked(file, records=records).summary, json=json)


@app.command()
def submit(
    file: File,
    profile: ProfileName = None,
    home: Home = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes on.")] = False,
    json: Json = False,
) -> None:
    """Check a run.toml, make the initial weights, and queue the run at the server."""
    checked = _checked(file, records=0)
    from tacit.protos.control_client import Submission  # noqa: PLC0415 - grpc

    with _connected(profile, home) as client, tempfile.TemporaryDirectory() as folder:
        submission = Submission(
            canonical=canonical_json(checked.specification),
            source_toml=checked.source.encode(),
            initial=_initial_file(file, checked.specification, Path(folder)),
        )
        run_id = client.submit(submission)
        if watch:
            typer.echo(run_id, err=True)
            _watch(client, run_id, json=json)
            return
    emit({"run_id": run_id} if json else run_id, json=json)
    if not json:
        typer.echo(f"Queued. It begins when its owners approve: tacit run watch {run_id}", err=True)


@app.command("list")
def list_(profile: ProfileName = None, home: Home = None, *, json: Json = False) -> None:
    """List the runs of the server."""
    with _connected(profile, home) as client:
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
    """Show one run: where it stands, what its owners said, how its rounds went."""
    with _connected(profile, home) as client:
        reply = client.show(client.find_run(run).run_id)
    manifest = json_module.loads(reply.manifest_json) if reply.manifest_json else None
    if json:
        specification = json_module.loads(reply.specification)
        value = {**_plain(reply.run), "specification": specification, "manifest": manifest}
        emit(value, json=True)
        return
    emit(_plain(reply.run), json=False)
    if manifest is not None and manifest.get("rounds"):
        last = manifest["rounds"][-1]
        emit({"last round": {k: v for k, v in last.items() if v not in (None, {}, [])}}, json=False)


@app.command()
def watch(
    run: RunId = "", profile: ProfileName = None, home: Home = None, *, json: Json = False
) -> None:
    """Show a run's events as they come, until it ends; `--json` gives one object per line.

    Exit code 1 when the run has failed or was stopped. A server that restarts is waited for.
    """
    with _connected(profile, home) as client:
        _watch(client, client.find_run(run).run_id, json=json)


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
    with _connected(profile, home) as client:
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
    with _connected(profile, home) as client:
        run_id = client.find_run(run).run_id
        folder = out or Path("runs") / run_id
        files = client.pull_run(run_id, folder)
    total = sum(file.bytes for file in files)
    value = {"run_id": run_id, "folder": folder.resolve(), "files": len(files), "bytes": total}
    emit(value, json=json)


def _checked(file: Path, *, records: int) -> Checked:
    """Check everything that can be known before an owner is asked.

    Raises:
        ConfigError: the file, the strategy, the model or the privacy parameters are wrong.
        RefusedError: this version has no mechanism for what the run promises.
    """
    from tacit.server.strategies import strategy_problems  # noqa: PLC0415 - keeps --help quick

    source = read_config_text(file)
    specification = load_config(file, RunSpec).value
    own_server = specification.app is not None and bool(specification.app.server)
    problems = () if own_server else tuple(strategy_problems(specification))
    if problems:
        raise ConfigError(
            "E-STRATEGY",
            f"{file.name} asks for a strategy that cannot be made",
            problems=tuple(f"{file.name}: {key}: {text}" for key, text in problems),
            hint="Names and parameters are those of Flower's strategy classes.",
        )
    _verify_initial(file, specification)
    people = specification.participation
    summary: dict[str, Any] = {
        "name": specification.name,
        "data_set": specification.data_set,
        "model": _model_summary(specification),
        "strategy": specification.strategy.wrapper or specification.strategy.name,
        "rounds": people.rounds,
        "min_clients": people.min_clients,
        "privacy": _privacy_summary(specification, records),
        "specification_sha256": specification_sha256(canonical_json(specification)),
    }
    return Checked(specification=specification, source=source, summary=summary)


def _verify_initial(file: Path, specification: RunSpec) -> None:
    if specification.app is None or specification.app.server:
        return
    if not specification.initial or not (file.parent / specification.initial).is_file():
        raise ConfigError(
            "E-INITIAL-MISSING",
            "expected initial weights for a run with an app of its own and a named strategy",
            hint='name a safetensors file: initial = "initial.safetensors"',
        )


def _model_summary(specification: RunSpec) -> dict[str, Any] | str:
    if specification.model is None or specification.data is None:
        return specification.app.client if specification.app is not None else "-"
    # torch: a second and a half, and only here
    from tacit.learning.models import build_model, check_model_fits  # noqa: PLC0415

    model = build_model(specification.model, specification.data)
    check_model_fits(model, specification.data)
    parameters = sum(value.numel() for value in model.state_dict().values())
    return {"kind": specification.model.kind, "parameters": parameters}


def _privacy_summary(specification: RunSpec, records: int) -> dict[str, Any]:
    from tacit.privacy.plan import privacy_plan  # noqa: PLC0415 - half a second

    privacy = specification.privacy
    assumed = records or (int(0.5 / privacy.delta) if privacy.delta else 1)
    plan = privacy_plan(specification, records=max(1, assumed))
    if not plan.is_private:
        return {"mode": plan.mode, "note": "no noise: every reply is exact"}
    summary = {
        "mode": plan.mode,
        "unit": plan.unit,
        "relation": plan.relation,
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "steps": plan.steps,
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
    }
    if records or privacy.normaliser:
        summary["normaliser"] = plan.normaliser
    return summary


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
def _connected(profile: str | None, home: Path | None) -> Iterator[ControlClient]:
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


def _watch(client: ControlClient, run_id: str, *, json: bool) -> None:
    """Show events until the run ends.

    Raises:
        AppError: the run failed or was stopped.
    """
    from tacit.core.events import EventKind, event_line  # noqa: PLC0415

    rounds = client.find_run(run_id).rounds
    sequence, last, told = 0, None, False
    with RoundProgress(rounds, quiet=json) as progress:
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
        raise AppError(code, f"run {run_id} {last.kind.value[4:]}: {fields.get('reason') or '-'}")


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
        "decisions": [
            {
                "member": decision.member,
                "verdict": decision.verdict,
                "code": decision.code,
                "connected": decision.connected,
            }
            for decision in run.decisions
        ],
    }


def _when(seconds: float) -> str | None:
    if not seconds:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
