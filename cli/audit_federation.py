"""The work behind `tacit audit run RUN`: an audit of records that nobody here may see.

It takes a finished run's recipe and model from the server, submits what is to be asked of its
owners as a run of its own, and waits. Loads no torch: everything is computed where the records are,
and from their sums at the server.
"""

from __future__ import annotations

import json as json_module
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tacit.audit.claims import claims_in
from tacit.audit.report import parse_report, write_report
from tacit.cli.audit_view import plot_report, show_report
from tacit.cli.canary_files import canaries_of
from tacit.cli.output import EXIT_INTERRUPTED, emit
from tacit.cli.run import connected, watch_run
from tacit.core.audit_spec import SENT_PROBES, AuditSpec
from tacit.core.configuration import from_plain
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.specification import RunSpec, audit_of, canonical_json

if TYPE_CHECKING:
    from tacit.protos.control_client import ControlClient
    from tacit.protos.control_pb2 import ShowRunReply

_MODEL, _REPORT = "model.safetensors", "report.json"
_RUN = re.compile(r"r-[0-9a-f]{1,8}")
_DEADLINES_S = {"quick": 3600.0, "standard": 6 * 3600.0, "full": 3 * 24 * 3600.0}
_BINS_NOISED, _BINS_EXACT = 16, 32  # noise on each count: few bins; without, they cost nothing


@dataclass(frozen=True, kw_only=True)
class FederatedTerms:
    """What is asked; the options of the verb.

    Attributes:
        run: the audited run's id, or a unique beginning of it.
        plan: which probes the owners' nodes run for their owners.
        probes: whose histograms are asked for; empty for all that can be.
        epsilon, delta: what they may cost; epsilon 0 for exact counts, delta None for the run's.
        bins: of a histogram; 0 for the default.
        min_owners: so many answers are merged, or none.
        seed: of all that is drawn, except noise.
    """

    run: str
    plan: str
    probes: tuple[str, ...]
    epsilon: float
    delta: float | None
    bins: int
    min_owners: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Where:
    """The server, and where a report goes.

    Attributes:
        profile, home: see :func:`tacit.cli.run.connected`.
        out: the folder of the report; None for ``audits/RUN``.
    """

    profile: str | None = None
    home: Path | None = None
    out: Path | None = None


def is_run(text: str) -> bool:
    """Whether an argument names a run of the server, rather than a file that is here."""
    return _RUN.fullmatch(text) is not None and not Path(text).exists()


def audit_run(terms: FederatedTerms, where: Where, *, detach: bool, json: bool) -> None:
    """Ask the owners of a run, wait for the merged report, and show it.

    Raises:
        UsageError: the run cannot be audited with these options.
        AppError: the audit failed or was stopped.
        TacitError: the server cannot be reached, or refuses.
    """
    with connected(where.profile, where.home) as client:
        audit_id = _submitted(client, terms)
        typer.echo(f"Asked in {audit_id}; owners who have to agree first see it there.", err=True)
        if detach:
            typer.echo(
                f"Its report and curves, once it is over: tacit audit show {audit_id}", err=True
            )
            emit({"run_id": audit_id} if json else audit_id, json=json)
            return
        wait_for(client, audit_id, what="audit", json=json)
        report = _fetched(client, audit_id)
    show_kept(report, where, json=json)


def wait_for(client: ControlClient, run_id: str, *, what: str, json: bool) -> None:
    """Show how an audit or a twin goes on until it has finished; Ctrl-C leaves it running.

    Raises:
        AppError: it failed or was stopped.
        typer.Exit: nobody waits for it any more.
        KeyboardInterrupt: likewise, for whoever reads JSON.
    """
    typer.echo(f"It waits until enough owners agree. To end it: tacit run stop {run_id}", err=True)
    try:
        watch_run(client, run_id, stream=sys.stderr)
    except KeyboardInterrupt:
        typer.echo(
            f"\nThe {what} goes on. To wait again: tacit run watch {run_id}; "
            f"its report: tacit audit show {run_id}",
            err=True,
        )
        if json:
            raise  # ends with the error as an object
        raise typer.Exit(EXIT_INTERRUPTED) from None


def show_kept(report: dict[str, Any], where: Where, *, json: bool) -> None:
    """Write the files of a merged report, its curves too, and show it: however it was fetched.

    Raises:
        UnavailableError: the folder that was asked for cannot be written.
    """
    folder = where.out or Path("audits") / report["federation"]["audit_run"]
    kept = f"Report: {folder.resolve()}"
    try:
        make_private_folder(folder)
        write_report(folder, report)
        plot_report(folder, report)
    except UnavailableError as error:
        if where.out is not None:
            raise
        kept = f"Not kept: {error.message}; name another folder: --out"
    if json:
        emit(report, json=True)
        return
    show_report(report)
    typer.echo(kept)


def report_of_run(run: str, where: Where) -> dict[str, Any]:
    """Return the report of an audit, or of the latest finished audit of a run.

    Where canaries alone were asked, their part alone.

    Raises:
        UnavailableError: there is none (``E-AUDIT-NONE``).
    """
    with connected(where.profile, where.home) as client:
        found = client.find_run(run)
        if _audited_by(client.show(found.run_id)) is not None:
            return _fetched(client, found.run_id)
        for other in reversed(client.list_runs()):
            if other.status != "finished":
                continue
            if _audited_by(client.show(other.run_id)) == found.run_id:
                return _fetched(client, other.run_id)
        canaries = canaries_of(client, found.run_id)
        if canaries is not None:
            return canaries
        twins = _twins_of(client, found.run_id)
    hint = f"Make one: tacit audit run {found.run_id}"
    if twins:
        hint += f". Its canaries have not reported yet: tacit run watch {twins[-1]}"
    raise UnavailableError(
        "E-AUDIT-NONE", f"expected a finished audit of {found.run_id}, got none", hint=hint
    )


def _twins_of(client: ControlClient, run_id: str) -> list[str]:
    """Return the twins of a run, whatever became of them, in the order of submission."""
    found = []
    for other in client.list_runs():
        canaries = json_module.loads(client.show(other.run_id).specification).get("canaries")
        if canaries and canaries["run"] == run_id:
            found.append(other.run_id)
    return found


def _submitted(client: ControlClient, terms: FederatedTerms) -> str:
    from tacit.core.artifacts import load_arrays, weights_sha256  # noqa: PLC0415 - numpy
    from tacit.protos.control_client import Submission  # noqa: PLC0415 - grpc

    found = client.find_run(terms.run)
    shown = client.show(found.run_id)
    run = from_plain(json_module.loads(shown.specification), RunSpec)
    _verify_trained(found.run_id, run)
    with tempfile.TemporaryDirectory() as folder:
        model = _pulled(client, found.run_id, _MODEL, Path(folder))
        audit = AuditSpec(
            run=found.run_id,
            model_sha256=weights_sha256(load_arrays(model)),
            rounds=run.participation.rounds,
            owners=_owners(shown),
            plan=terms.plan,
            probes=terms.probes or SENT_PROBES,
            bins=terms.bins or (_BINS_NOISED if terms.epsilon > 0 else _BINS_EXACT),
            epsilon=terms.epsilon,
            delta=_delta(terms, run),
            seed=terms.seed,
        )
        spec = audit_of(
            run, audit, min_clients=terms.min_owners, round_deadline_s=_DEADLINES_S[terms.plan]
        )
        problems = (*audit.problems(), *spec.problems())
        if problems:
            raise UsageError("E-AUDIT-TERMS", "; ".join(f"{key}: {text}" for key, text in problems))
        canonical = canonical_json(spec)
        return client.submit(Submission(canonical=canonical, source_toml=b"", initial=model))


def _verify_trained(run_id: str, run: RunSpec) -> None:
    """Refuse to audit an audit, or a twin, whose model is discarded.

    Raises:
        UsageError: as said (``E-AUDIT-RUN``).
    """
    if run.audit is not None:
        of, what, hint = run.audit.run, "an audit", f"Its report: tacit audit show {run_id}. "
    elif run.canaries is not None and run.canaries.run:
        of, what, hint = run.canaries.run, "a twin with canaries", ""
    else:
        return
    raise UsageError(
        "E-AUDIT-RUN",
        f"expected a run that trained a model, got {run_id}, which is {what} of {of}",
        hint=f"{hint}To audit the model: tacit audit run {of}",
    )


def _delta(terms: FederatedTerms, run: RunSpec) -> float | None:
    if terms.epsilon == 0:
        return None
    delta = terms.delta if terms.delta is not None else run.privacy.delta
    if delta is None:
        raise UsageError(
            "E-AUDIT-DELTA",
            f"expected a delta: {terms.run} was trained without noise, and has none",
            hint="Name that of the owners' data sets, --delta 1e-4, or ask for exact counts, "
            "--epsilon 0, which owners rarely allow.",
        )
    return delta


def _owners(shown: ShowRunReply) -> int:
    """Return how many owners' updates the run's last round averaged."""
    manifest = json_module.loads(shown.manifest_json) if shown.manifest_json else {}
    rounds = manifest.get("rounds") or [{"cohort": [], "failed": {}}]
    return max(1, len(rounds[-1]["cohort"]) - len(rounds[-1]["failed"]))


def _audited_by(shown: ShowRunReply) -> str | None:
    """Return which run an audit is of; None for a run that is none."""
    audit = json_module.loads(shown.specification).get("audit")
    return None if audit is None else str(audit["run"])


def _fetched(client: ControlClient, audit_id: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = parse_report(_pulled(client, audit_id, _REPORT, Path(folder)).read_bytes())
    audited = report["federation"]["run"]
    manifest = client.show(audited).manifest_json
    claims = claims_in(json_module.loads(manifest)) if manifest else []
    canaries = canaries_of(client, audited)
    parts = {"claims": claims or None, "canaries": canaries}
    return {**report, **{name: part for name, part in parts.items() if part is not None}}


def _pulled(client: ControlClient, run_id: str, name: str, folder: Path) -> Path:
    for file in client.list_files(run_id):
        if file.path == name:
            return client.pull(run_id, file, folder)
    raise UnavailableError(
        "E-FILE-UNKNOWN",
        f"expected {name} of {run_id}, which has left none",
        hint=f"`tacit run show {run_id}` tells where it stands.",
    )
