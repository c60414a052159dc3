"""`tacit privacy`: noise for a target epsilon, and what a configuration really costs."""

from __future__ import annotations

import contextlib
import json as json_module
import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit.cli.checks import (
    evaluation_summary,
    model_notes,
    model_summary,
    show_notes,
    with_size,
)
from tacit.cli.output import Table, emit, foreign_output_aside, plain, table_text, visible
from tacit.cli.privacy_shared import (
    Shared,
    evaluation_facts,
    is_shared,
    plan_of_shared,
    run_of_members,
    show_shared,
)
from tacit.core.configuration import from_plain, load_config, parse_toml, read_config_text
from tacit.core.errors import (
    AppError,
    ConfigError,
    RefusedError,
    TacitError,
    UnavailableError,
    UsageError,
)
from tacit.core.specification import (
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    Sampling,
    TrainingSpec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.privacy.lint import Report
    from tacit.privacy.outlook import Outlook, Planned
    from tacit.privacy.plan import PrivacyPlan

app = typer.Typer(help="Plan the noise of a run, and see what a training really costs.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PlanArgument = Annotated[
    Path | None, typer.Argument(help="A run.toml; the options then replace its values.")
]
RecordsOption = Annotated[
    int | None, typer.Option("--records", min=1, help="The public bound on one owner's records.")
]
EpsilonOption = Annotated[float | None, typer.Option(help="Target epsilon of the whole run.")]
NoiseOption = Annotated[
    float | None, typer.Option(help="Noise in units of the sensitivity, in place of a target.")
]
DeltaOption = Annotated[float | None, typer.Option(help="Delta of the whole run.")]
RoundsOption = Annotated[int | None, typer.Option(min=1, help="Rounds of the run.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Noised steps in each round.")]
RateOption = Annotated[float | None, typer.Option(help="Poisson's q; without it, all records.")]
MembersOption = Annotated[
    int | None, typer.Option(min=3, help="How many owners share the noise of each sum.")
]
ThresholdOption = Annotated[
    int | None, typer.Option(min=1, help="Fewest of them that must stay; without it, 2n/3 + 1.")
]
ParametersOption = Annotated[
    int | None, typer.Option(min=1, help="Numbers in a shared sum; without it, the model's.")
]
BudgetOption = Annotated[
    float | None, typer.Option(help="Epsilon that may be spent; without it, the run's own.")
]
CheckOption = Annotated[
    bool, typer.Option(help="Ask Opacus' PRV accountant as well, which takes three seconds.")
]
LintArgument = Annotated[
    Path,
    typer.Argument(help="A run.toml, a description (TOML or JSON), or Python that uses Opacus."),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Draw epsilon against rounds into this PNG file.")
]


@app.command("plan")
def plan_command(
    file: PlanArgument = None,
    *,
    records: RecordsOption = None,
    epsilon: EpsilonOption = None,
    noise_multiplier: NoiseOption = None,
    delta: DeltaOption = None,
    rounds: RoundsOption = None,
    local_steps: StepsOption = None,
    sample_rate: RateOption = None,
    members: MembersOption = None,
    threshold: ThresholdOption = None,
    parameters: ParametersOption = None,
    budget: BudgetOption = None,
    cross_check: CheckOption = True,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Show noise, steps and epsilon of a run, and what the same budget would still allow.

    What the run's evaluations cost stands beside it, since it is on other records.

    Takes a run.toml, or the options alone: DP-SGD at record level, in units of the clip; with
    --members and --parameters, noise that so many owners share.

    Example: tacit privacy plan --epsilon 1 --delta 1e-4 --rounds 20
    """
    given = {
        "privacy.epsilon": epsilon,
        "privacy.noise_multiplier": noise_multiplier,
        "privacy.delta": delta,
        "privacy.sample_rate": sample_rate,
        "participation.rounds": rounds,
        "training.local_steps": local_steps,
    }
    asked = Shared(members=members, threshold=threshold, parameters=parameters, records=records)
    if file is not None:
        specification = load_config(file, RunSpec, overrides=given | asked.overrides()).value
    elif members is not None:
        specification = run_of_members(given, asked)
    else:
        specification = _run_of_options(given)
    if is_shared(specification):
        shared = plan_of_shared(specification, asked, file=file)
        evaluation = evaluation_summary(specification)
        show_shared(shared, evaluation=evaluation, budget=budget, json=json)
        if plot is not None:
            draw_epsilon(plot, shared, budget=budget)
        return
    if members is not None or threshold is not None or parameters is not None:
        raise UsageError("E-USAGE", "--members, --threshold and --parameters: no noise is shared")
    plan = _plan_of(specification, records)
    shown = Shown(plan=plan, evaluation=evaluation_summary(specification), budget=budget)
    _show_plan(shown, cross_check=cross_check, json=json)
    if plot is not None:
        draw_epsilon(plot, plan, budget=budget)


def _run_of_options(given: dict[str, Any]) -> RunSpec:
    """Return a run of DP-SGD that has no data contract: only its numbers are looked at."""
    missing = [key for key in ("privacy.delta", "participation.rounds") if given[key] is None]
    if missing:
        options = " and ".join("--" + key.partition(".")[2] for key in missing)
        raise UsageError("E-USAGE", f"expected a run.toml, or {options}")
    rate = given["privacy.sample_rate"]
    privacy = PrivacySpec(
        mode=PrivacyMode.RECORD_LOCAL,
        clip=1.0,
        epsilon=given["privacy.epsilon"],
        noise_multiplier=given["privacy.noise_multiplier"],
        delta=given["privacy.delta"],
        sampling=Sampling.FULL if rate is None else Sampling.POISSON,
        sample_rate=1.0 if rate is None else rate,
    )
    steps = given["training.local_steps"] or 1
    training = TrainingSpec(learning_rate=1.0, local_steps=steps, validation_fraction=0.0)
    participation = ParticipationSpec(rounds=given["participation.rounds"])
    return RunSpec(name="plan", privacy=privacy, training=training, participation=participation)


def _plan_of(specification: RunSpec, records: int | None) -> PrivacyPlan:
    from tacit.privacy.plan import privacy_plan  # noqa: PLC0415 - half a second

    delta = specification.privacy.delta
    assumed = records or (int(0.5 / delta) if delta else 1)
    plan = privacy_plan(specification, records=max(1, assumed))
    if not plan.is_private:
        raise RefusedError(
            "E-NO-NOISE",
            'expected a mode with noise, got "none": every reply is exact, and epsilon infinite',
            hint='choose a mode: mode = "record-local" under [privacy]',
        )
    return plan


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What there is to show of a run.

    Attributes:
        plan: of its training.
        evaluation: what `tacit run check` says of its evaluation; empty if there is none.
        budget: epsilon that may be spent; None for the run's own.
    """

    plan: PrivacyPlan
    evaluation: dict[str, Any]
    budget: float | None


def _show_plan(shown: Shown, *, cross_check: bool, json: bool) -> None:
    from tacit.privacy.outlook import milestones, outlook_of  # noqa: PLC0415 - as above
    from tacit.privacy.profiles import SOURCE, tier_of  # noqa: PLC0415

    plan = shown.plan
    outlook = outlook_of(plan, budget=shown.budget)
    rows = [
        (rounds, rounds * plan.local_steps, plan.epsilon_after(rounds))
        for rounds in milestones(plan)
    ]
    prv = _prv(plan) if cross_check else None
    values: dict[str, Any] = {
        "mode": plan.mode,
        "unit": plan.unit,
        "most_records": plan.most_records,
        "relation": plan.relation,
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
        "sensitivity": plan.sensitivity,
        "noise_deviation": plan.noise_deviation,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
        "normaliser": plan.normaliser,
        "delta": plan.delta,
        "epsilon": plan.epsilon,
        "epsilon_prv": prv,
        "tier": tier_of(plan.epsilon),
        "tier_source": SOURCE,
        **shown.evaluation,
        "budget": outlook,
        "rounds": [{"rounds": a, "steps": b, "epsilon": c} for a, b, c in rows],
    }
    if json:
        emit(values, json=True)
        return
    facts = [*_facts(plan, outlook, prv), *evaluation_facts(shown.evaluation, plan.unit)]
    typer.echo(table_text(Table(columns=("WHAT", "VALUE", "MEANING"), rows=facts)))
    typer.echo()
    typer.echo(table_text(Table(columns=("ROUNDS", "STEPS", "EPSILON"), rows=rows)))


def _facts(plan: PrivacyPlan, outlook: Outlook, prv: float | None) -> list[tuple[object, ...]]:
    from tacit.privacy.profiles import SOURCE, tier_of  # noqa: PLC0415 - as above

    most = f", of at most {plan.most_records} records" if plan.most_records > 1 else ""
    who = f"{plan.relation.value}, {plan.mode.value}{most}"
    sampled = "every unit in every step" if plan.sample_rate == 1.0 else "Poisson's q"
    rows: list[tuple[object, ...]] = [
        ("epsilon", _number(plan.epsilon), "of the whole run, at this delta"),
        ("delta", _number(plan.delta), "probability that epsilon does not hold"),
        ("tier", tier_of(plan.epsilon), SOURCE),
        ("protects", plan.unit.value, who),
        ("noise multiplier", _number(plan.noise_multiplier), "sigma / sensitivity"),
        ("sigma", _number(plan.noise_deviation), f"on each coordinate, at clip {plan.clip:g}"),
        ("sample rate", _number(plan.sample_rate), sampled),
        ("steps", str(plan.steps), f"{plan.releases} rounds of {plan.local_steps}"),
        ("one more round", "+" + _number(outlook.next_round_epsilon), "of epsilon"),
        ("rounds allowed", str(outlook.rounds_allowed), _room(outlook)),
    ]
    if prv is not None:
        rows.insert(1, ("  by PRV", _number(prv), "Opacus' accountant, as a cross-check"))
    return rows


def _room(outlook: Outlook) -> str:
    left = outlook.rounds_left
    found = f"{left} left" if left >= 0 else f"{-left} too many are planned"
    return f"by a budget of epsilon {outlook.budget:.4g}: {found}"


def _number(value: float) -> str:
    return f"{value:.5g}"


def _prv(plan: PrivacyPlan) -> float | None:
    # torch and opacus: three seconds that --no-cross-check saves
    from tacit.privacy.dpsgd.cross_check import prv_epsilon  # noqa: PLC0415

    return prv_epsilon(
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        delta=plan.delta,
        expected=plan.epsilon,
    )


def draw_epsilon(path: Path, plan: Planned, *, budget: float | None = None) -> None:
    """Draw epsilon against rounds as PNG, half as far again as the plan goes.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra

        mpl.use("Agg")  # no display
        from matplotlib import pyplot as plt  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            "E-EXTRA-MISSING",
            "expected matplotlib, for the plot",
            hint='install it: pip install "tacit[audit]"',
        ) from error
    from tacit.privacy.outlook import curve  # noqa: PLC0415 - as above

    points = curve(plan, rounds=max(plan.releases + 1, plan.releases * 3 // 2))
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.plot([at for at, _ in points], [cost for _, cost in points], marker="o", ms=3)
    label = f"planned: epsilon {plan.epsilon:.4g} after {plan.releases} rounds"
    axes.plot([plan.releases], [plan.epsilon], "D", color="tab:red", label=label)
    if budget is not None:
        text = f"budget: epsilon {budget:g}"
        axes.axhline(budget, color="k", linestyle="--", lw=1.2, label=text)
    axes.set_xlabel("rounds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"epsilon at delta {plan.delta:g}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    title = f"one {plan.unit.value} under {plan.relation.value}, {plan.mode.value}"
    axes.set_title(f"{title}, noise multiplier {plan.noise_multiplier:.4g}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNWRITABLE", f"expected to write {path}: {error.strerror or error}"
        ) from error
    finally:
        plt.close(figure)


@app.command("lint")
def lint_command(
    file: LintArgument, *, records: RecordsOption = None, json: JsonOption = False
) -> None:
    """Show what a configuration really costs, with each rule that it breaks.

    Ends with exit code 1 where a claim is broken. docs/pitfalls.md explains the rules, and how to
    describe a training that is not Tacit's. No finding is no proof.
    """
    from tacit.privacy.lint import RULES  # noqa: PLC0415 - half a second

    report, notes = _linted(file, records)
    findings = [
        {
            **plain(finding),
            "advice": RULES[finding.rule].advice,
            "source": RULES[finding.rule].source,
        }
        for finding in report.findings
    ]
    if json:
        values = {"file": file, "broken": report.is_broken, "findings": findings}
        epsilons = {
            "claimed_epsilon": report.claimed_epsilon,
            "epsilon": None if report.epsilon is None else _finite(report.epsilon),
            "unbounded": report.epsilon is not None and report.epsilon == math.inf,
        }
        emit(values | epsilons | {"notes": notes}, json=True)
    else:
        show_notes(notes)
        typer.echo("\n".join(_lines_of(file, report)))
    if report.is_broken:
        raise typer.Exit(TacitError.exit_code)


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _linted(file: Path, records: int | None) -> tuple[Report, tuple[str, ...]]:
    """Return what was found in a file, and notes on the model of a run.toml."""
    from tacit.privacy.lint import lint_run  # noqa: PLC0415 - half a second
    from tacit.privacy.lint_description import (  # noqa: PLC0415
        TrainingDescription,
        lint_description,
    )
    from tacit.privacy.lint_source import lint_source  # noqa: PLC0415

    text = read_config_text(file)
    if file.suffix == ".py":
        return lint_source(text, source=file.name), ()
    if file.suffix != ".json" and _is_run(text):
        run = parse_toml(text, RunSpec, source=file.name)
        notes, sized = _notes_on_model(run.value, file)
        return lint_run(sized, places=run.sources, records=records), notes
    with _described():
        if file.suffix != ".json":
            described = parse_toml(text, TrainingDescription, source=file.name)
            return lint_description(described.value, places=described.sources), ()
        description = from_plain(_parsed_json(text, file), TrainingDescription, source=file.name)
    places = {field.name: file.name for field in fields(description)}
    return lint_description(description, places=places), ()


def _notes_on_model(specification: RunSpec, file: Path) -> tuple[tuple[str, ...], RunSpec]:
    """Return what the training makes of a run's model, and the run with its size counted.

    A model that cannot be built on this machine is said to be so, and counts as the file says.

    Raises:
        ConfigError: no owner could train it as the run asks.
    """
    try:
        with foreign_output_aside():  # a factory of somebody's own may print
            notes = model_notes(model_summary(specification))
            return notes, with_size(file, specification)
    except (AppError, UnavailableError) as error:
        return (f"the model was not looked at: {error.message} [{error.code}]",), specification


@contextlib.contextmanager
def _described() -> Iterator[None]:
    """Say of a wrong description how a right one looks."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            error.code,
            error.message,
            problems=error.problems,
            hint="Answer every question of a description: docs/pitfalls.md shows one, with what "
            "each key means. A run.toml is known by its [privacy], and Python by its .py.",
        ) from error


def _is_run(text: str) -> bool:
    try:
        keys = set(tomllib.loads(text))
    except tomllib.TOMLDecodeError:  # the reader will say what is wrong with it
        return True
    return bool(keys & {"privacy", "participation", "training", "model", "data", "app"})


def _parsed_json(text: str, file: Path) -> dict[str, Any]:
    try:
        value = json_module.loads(text)
    except (json_module.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ConfigError("E-CONFIG", f"expected JSON in {file.name}:{line}") from error
    if not isinstance(value, dict):
        raise ConfigError("E-CONFIG", f"expected a JSON object in {file.name}")
    return value


def _lines_of(file: Path, report: Report) -> list[str]:
    from tacit.privacy.lint import RULES, Severity  # noqa: PLC0415 - as above

    lines = []
    for finding in report.findings:
        rule = RULES[finding.rule]
        lines += [
            f"{visible(finding.place)}: {finding.severity.value} [{finding.rule}] {rule.title}",
            f"    claimed: {visible(finding.claimed)}",
            f"    in fact: {visible(finding.actual)}",
            f"    do this: {rule.advice}",
            f"    source:  {rule.source}",
        ]
    broken = sum(finding.severity is Severity.BROKEN for finding in report.findings)
    count = len(report.findings)
    found = "1 finding" if count == 1 else f"{count} findings"
    said = f"{file.name}: {found}, of which {broken} break the claim."
    if count == 0:
        said = f"{file.name}: no rule was seen to be broken, which proves nothing."
    if report.claimed_epsilon is not None and report.epsilon is not None:
        true = "none can be shown" if report.epsilon == math.inf else f"{report.epsilon:.4g}"
        said += f" Epsilon claimed: {report.claimed_epsilon:.4g}; in fact: {true}."
    return [*lines, said]
