"""`tacit audit`: attack a model as an adversary would, and read what came of it.

`tacit audit run` works on files at hand: whoever runs it must be allowed to see the records. With a
RUN of the server it asks the nodes of its owners instead, and sees no record.
Exit codes: 0 for an audit that came to its end, whatever it found, since a verdict on a release is
not made here; 2 and 3 for what cannot be audited; 130 after Ctrl-C, with the report of what was
finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.attacks.plans import PLANS
from tacit.attacks.report_form import CANARY_SCHEMA
from tacit.audit.canary_compare import are_canaries, compare_canaries
from tacit.audit.compare import compare_reports
from tacit.audit.report import read_report
from tacit.cli.audit_canaries import TwinTerms, audit_by_canaries, keep_canaries
from tacit.cli.audit_federation import (
    FederatedTerms,
    Where,
    audit_run,
    is_run,
    report_of_run,
    show_kept,
)
from tacit.cli.audit_view import show_comparison, show_probes, show_report
from tacit.cli.canary_view import show_canaries, show_canary_comparison
from tacit.cli.output import EXIT_INTERRUPTED, emit, foreign_output_aside
from tacit.core.errors import UsageError
from tacit.core.logs import configure_logging

app = typer.Typer(add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ReportArgument = Annotated[
    Path, typer.Argument(help="A folder that an audit wrote, or report.json.")
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="With RUN: which profile (see `tacit login`).")
]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="With RUN: state directory of a server on this machine."),
]


@app.command()
def run(
    federated: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="A finished run of the server, whose owners are to be asked; leave it out to "
            "audit files at hand.",
        ),
    ] = "",
    *,
    epsilon: Annotated[
        float,
        typer.Option(
            "--epsilon", help="With RUN: what the answers may cost each record; 0: exact."
        ),
    ] = 1.0,
    delta: Annotated[
        float | None, typer.Option("--delta", help="With RUN: at which delta (default: the run's).")
    ] = None,
    bins: Annotated[
        int, typer.Option("--bins", help="With RUN: of a histogram (default: 16, exact ones 32).")
    ] = 0,
    min_owners: Annotated[
        int,
        typer.Option("--min-owners", help="With RUN: merge so many answers or none (default: 2)."),
    ] = 2,
    detach: Annotated[
        bool, typer.Option("--detach", help="With RUN: ask, and do not wait for the answers.")
    ] = False,
    profile: ProfileName = None,
    home: Home = None,
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
    claim: Annotated[
        str | None,
        typer.Option(
            "--claim",
            metavar="EPSILON,DELTA[,UNIT]",
            help="What the model claims, for the plot (default: what the run folder's manifest "
            "says; of RUN, what its owners' ledgers say).",
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
    """Attack a model, on files at hand or where its owners' records are, and write a report.

    It takes records that the model was trained on and records that it was not, and asks each probe
    which are which. Files are NPZ with the arrays features and labels, as the model takes them, or
    CSV or Parquet that keep the recipe's data contract. With a recipe, reference models are trained
    as the target was, and the strongest attacks can run. What is found is evidence; finding nothing
    is stated with what would have been seen, and is no proof of anything.

    With RUN, each owner who took part and agrees runs the probes at their own node; histograms of
    scores are merged, with noise, and each owner's own report stays with the owner.

    Exit code 0 means that the audit came to its end, whatever it found: whether a model may be
    released is the release gate's matter. Scripts read --json: `outcome` is "evidence", "no
    evidence at this power" or "inconclusive", and `is_conclusive` false where `reasons` says why.
    After Ctrl-C it is 130, and a report on files holds what was finished.
    """
    if plan not in PLANS:
        raise UsageError("E-AUDIT-PLAN", f"expected a plan, {', '.join(PLANS)}, got {plan!r}")
    configure_logging("audit", level="WARNING")
    if federated:
        files = (members, nonmembers, population, model, recipe, folder, predictions, claim)
        if any(each is not None for each in files):
            raise UsageError(
                "E-AUDIT-FILES",
                f"expected RUN or files, got both: the records of {federated} stay where they are, "
                "and its owners say what it claims",
                hint="tacit audit run --help",
            )
        terms = FederatedTerms(
            run=federated,
            plan=plan,
            probes=tuple(probe or ()),
            epsilon=epsilon,
            delta=delta,
            bins=bins,
            min_owners=min_owners,
            seed=seed,
        )
        audit_run(terms, Where(profile=profile, home=home, out=out), detach=detach, json=json)
        return
    from tacit.cli.audit_run import Request, audit_files  # noqa: PLC0415 - torch: two seconds

    request = Request(
        members=members,
        non_members=nonmembers,
        population=population,
        model=model,
        recipe=recipe,
        run_folder=folder,
        predictions=predictions,
        owners=owners,
        claim=claim,
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
        if json:
            raise KeyboardInterrupt  # the error as an object, on standard error
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def canaries(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run whose claim is tested.")],
    *,
    directions: Annotated[
        int | None,
        typer.Option(
            "--directions",
            min=0,
            help="White-box canaries at each owner; 0: none (default: as many as it takes to test "
            "the claim, 600 at least).",
        ),
    ] = None,
    mislabelled: Annotated[
        int | None,
        typer.Option(
            "--mislabelled",
            min=0,
            help="Records with a wrong label at each owner; 0: none (default: as many as it takes, "
            "300 at least).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of directions and rows.")] = 0,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the twin, and do not wait for its end.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Which profile (see `tacit login`).")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="State directory of a server on this machine."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the report (default: audits/TWIN).")
    ] = None,
    json: Json = False,
) -> None:
    """Test a run's epsilon by a twin: the run once more, with canaries in; its model is discarded.

    Each owner who agrees puts in canaries by secret fair bits, commits to the bits with their yes,
    and opens them at the end. It costs each owner as much as the run did once more, and needs the
    room that they keep: `max_canaries` of the `records` that client.toml declares. So few that they
    could not test the claim are refused before anybody is asked.
    """
    configure_logging("audit", level="WARNING")
    terms = TwinTerms(run=run, directions=directions, mislabelled=mislabelled, seed=seed)
    audit_by_canaries(terms, Where(profile=profile, home=home, out=out), detach=detach, json=json)


@app.command()
def show(
    report: Annotated[
        str,
        typer.Argument(help="A folder that an audit wrote, report.json, or an audited RUN's id."),
    ],
    profile: ProfileName = None,
    home: Home = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="With RUN: folder of the report (default: audits/AUDIT)."),
    ] = None,
    *,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compute what canaries said again from what owners opened (exit code 5 if it "
            "comes out otherwise).",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show a report: the strongest finding, its power, what was skipped, then every probe.

    Of a RUN, that of its latest finished audit, with what left each owner for it, and what canaries
    said of its claim: every audit by canaries, of which the worst is shown in full. It is kept with
    its curves in the folder --out, as `tacit audit run` without --detach does.
    """
    if is_run(report):
        where = Where(profile=profile, home=home, out=out)
        value = report_of_run(report, where)
        if verify:
            _verify_canaries(value)
        keep = keep_canaries if value["schema"] == CANARY_SCHEMA else show_kept
        keep(value, where, json=json)
        return
    if out is not None:
        raise UsageError("E-OPTIONS", f"expected --out with a RUN, got the report {report} itself")
    value = read_report(Path(report))
    if verify:
        _verify_canaries(value)
    if json:
        emit(value, json=True)
    elif value["schema"] == CANARY_SCHEMA:
        show_canaries(value)
    else:
        show_report(value)


def _verify_canaries(report: Mapping[str, Any]) -> None:
    """Compute the canary part of a report again, and say so.

    Raises:
        UsageError: it has none.
        TrustError: something does not follow from what was opened.
    """
    from tacit.attacks.canary_report import verify_report  # noqa: PLC0415 - torch: two seconds

    canaries = report if report["schema"] == CANARY_SCHEMA else report.get("canaries")
    if canaries is None:
        raise UsageError("E-OPTIONS", "expected --verify with a report on canaries, got another")
    bounds = verify_report(canaries)
    typer.echo(
        f"Verified {canaries['canary_run']}: the commitments of {len(canaries['owners'])} owners, "
        f"{bounds} bounds and the verdict follow from what was opened.",
        err=True,
    )


@app.command()
def compare(first: ReportArgument, second: ReportArgument, *, json: Json = False) -> None:
    """Put two reports side by side: each figure, the difference, and how sure it is."""
    reports = read_report(first), read_report(second)
    if are_canaries(*reports):
        canaries = compare_canaries(*reports)
        if json:
            emit(canaries, json=True)
        else:
            show_canary_comparison(canaries)
        return
    comparison = compare_reports(*reports)
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
