"""`tacit audit`: attack a model as an adversary would, and read what came of it.

`tacit audit run` works on files at hand: whoever runs it must be allowed to see the records.
Exit codes: 0 for an audit that was made, whatever it found; 2 and 3 for what cannot be audited;
130 after Ctrl-C, with the report of what was finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tacit.attacks.plans import PLANS
from tacit.audit.compare import compare_reports
from tacit.audit.report import read_report
from tacit.cli.audit_view import show_comparison, show_probes, show_report
from tacit.cli.output import EXIT_INTERRUPTED, emit, foreign_output_aside
from tacit.core.errors import UsageError
from tacit.core.logs import configure_logging

app = typer.Typer(add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ReportArgument = Annotated[
    Path, typer.Argument(help="A folder that an audit wrote, or report.json.")
]


@app.command()
def run(
    *,
    members: Annotated[
        Path | None, typer.Option("--members", help="Records that the model was trained on.")
    ] = None,
    nonmembers: Annotated[
        Path | None,
        typer.Option("--nonmembers", help="Records of the same source that it was not trained on."),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(
            "--population", help="Further such records that nobody audits; RMIA needs them."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The model's weights, model.safetensors.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="The run.toml that made the model.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="A run folder, as `tacit run pull` makes it: model and recipe."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Saved predictions instead of model and records: an NPZ file with "
            "member_probabilities (or member_logits), member_labels, and the same of nonmember_ "
            "and, if there is one, population_.",
        ),
    ] = None,
    owners: Annotated[
        int | None,
        typer.Option(
            "--owners",
            min=1,
            help="How many owners the run averaged in a round (default: what the run folder's "
            "manifest says, else 1).",
        ),
    ] = None,
    plan: Annotated[
        str, typer.Option("--plan", help=f"How hard to look: {', '.join(PLANS)}.")
    ] = "quick",
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", help="Only this one; may be repeated. See `tacit audit probes`."),
    ] = None,
    slice_by: Annotated[
        list[str] | None,
        typer.Option("--slice", help="A column to tell findings apart by; may be repeated."),
    ] = None,
    drop_overlap: Annotated[
        bool,
        typer.Option(
            "--drop-overlap",
            help="Leave out records that stand on two sides, from both, instead of refusing.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the report (default: audits/PLAN-XXXXXXXX)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder that keeps reference models for the next audit."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that train reference models.")
    ] = 1,
    json: Json = False,
) -> None:
    """Attack a model, on files at hand, and write report.json and roc.svg.

    It takes records that the model was trained on and records that it was not, and asks each probe
    which are which. Files are NPZ with the arrays features and labels, as the model takes them, or
    CSV or Parquet that keep the recipe's data contract. With a recipe, reference models are trained
    as the target was, and the strongest attacks can run. What is found is evidence; finding nothing
    is stated with what would have been seen, and is no proof of anything.
    """
    from tacit.cli.audit_run import Request, audit_files  # noqa: PLC0415 - torch: two seconds

    if plan not in PLANS:
        raise UsageError("E-AUDIT-PLAN", f"expected a plan, {', '.join(PLANS)}, got {plan!r}")
    configure_logging("audit", level="WARNING")
    request = Request(
        members=members,
        non_members=nonmembers,
        population=population,
        model=model,
        recipe=recipe,
        run_folder=folder,
        predictions=predictions,
        owners=owners,
        plan=PLANS[plan],
        probes=tuple(probe or ()),
        slices=tuple(slice_by or ()),
        drop_overlap=drop_overlap,
        out=out,
        seed=seed,
        cache=cache,
        workers=workers,
    )
    with foreign_output_aside():
        report, place = audit_files(request, quiet=json)
    if json:
        emit(report, json=True)
    else:
        show_report(report)
        typer.echo(f"Report: {place}")
    if report["interrupted"]:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def show(report: ReportArgument, *, json: Json = False) -> None:
    """Show a report: the strongest finding, its power, what was skipped, then every probe."""
    value = read_report(report)
    if json:
        emit(value, json=True)
    else:
        show_report(value)


@app.command()
def compare(first: ReportArgument, second: ReportArgument, *, json: Json = False) -> None:
    """Put two reports side by side: each figure, the difference, and how sure it is."""
    comparison = compare_reports(read_report(first), read_report(second))
    if json:
        emit(comparison, json=True)
    else:
        show_comparison(comparison)


@app.command()
def probes(*, json: Json = False) -> None:
    """List every probe, what it needs, which plans run it, and the paper it is from."""
    from tacit.attacks.registry import MEMBERSHIP  # noqa: PLC0415 - torch: two seconds

    rows = [
        {
            "probe": name,
            "needs": ", ".join(sorted(need.value for need in probe.needs)),
            "plans": ", ".join(plan.name for plan in PLANS.values() if name in plan.probes),
            "source": probe.source,
        }
        for name, probe in MEMBERSHIP.items()
    ]
    if json:
        emit(rows, json=True)
    else:
        show_probes(rows)
