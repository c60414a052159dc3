"""`tacit privacy plan` for noise that several owners share: what each adds, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from tacit.cli.checks import model_notes, model_summary, show_notes, with_size
from tacit.cli.output import Table, emit, foreign_output_aside, table_text
from tacit.core.errors import UsageError
from tacit.core.secagg_spec import least_threshold
from tacit.core.specification import (
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    RunSpec,
    SecureAggregationSpec,
    TrainingSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.privacy.distributed.plan import DistributedPlan

_SHARED = (PrivacyMode.RECORD_DISTRIBUTED, PrivacyMode.CLIENT_DISTRIBUTED)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the command line says of the owners who share noise; None where it says nothing.

    Attributes:
        members: how many there are.
        threshold: the fewest that must stay.
        parameters: numbers in one sum.
        records: the public bound on one owner's records.
    """

    members: int | None
    threshold: int | None
    parameters: int | None
    records: int | None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names for so many members, of whom nothing else is known."""
        if self.members is None:
            return None
        return tuple(f"member-{number}" for number in range(1, self.members + 1))

    def overrides(self) -> dict[str, Any]:
        """Return what replaces values of a run.toml."""
        names = self.names
        least = self.threshold
        if least is None and names is not None:
            least = least_threshold(len(names))
        return {
            "secure_aggregation.members": None if names is None else list(names),
            "secure_aggregation.threshold": self.threshold,
            "participation.min_clients": least,  # the file's is for its own members
        }


def is_shared(specification: RunSpec) -> bool:
    """Whether a run's noise is shared by its members."""
    return specification.privacy.mode in _SHARED


def run_of_members(given: dict[str, Any], asked: Shared) -> RunSpec:
    """Return a run by record, in units of the clip, that has no data contract.

    Args:
        given: values by their key in run.toml; None where the command line has none.
        asked: of the members, whose number is known.

    Raises:
        UsageError: delta, rounds or the size of a sum is missing.
        ConfigError: the values do not belong together.
    """
    needed = {
        "--delta": given["privacy.delta"],
        "--rounds": given["participation.rounds"],
        "--parameters": asked.parameters,
    }
    if missing := [name for name, value in needed.items() if value is None]:
        raise UsageError("E-USAGE", f"expected a run.toml, or {' and '.join(missing)}")
    if given["privacy.sample_rate"] is not None:
        raise UsageError("E-USAGE", "--sample-rate: shared noise has no account of samples")
    names = asked.names or ()
    delta = given["privacy.delta"]
    records = _records(asked, delta)
    return verified(
        RunSpec(
            name="plan",
            training=TrainingSpec(learning_rate=1.0),
            privacy=PrivacySpec(
                mode=PrivacyMode.RECORD_DISTRIBUTED,
                clip=1.0,
                epsilon=given["privacy.epsilon"],
                noise_multiplier=given["privacy.noise_multiplier"],
                delta=delta,
                normaliser=float(len(names) * records),
            ),
            secure_aggregation=SecureAggregationSpec(
                members=names,
                threshold=asked.threshold or 0,
                steps_per_round=given["training.local_steps"] or 1,
                max_records=records,
            ),
            participation=ParticipationSpec(rounds=given["participation.rounds"]),
        )
    )


def verified(specification: RunSpec) -> RunSpec:
    """Return a run that was made from options, if its secure sums can be.

    Raises:
        UsageError: they cannot.
    """
    secure = specification.secure_aggregation
    problems = [] if secure is None else [f"{key}: {text}" for key, text in secure.problems()]
    if problems:
        raise UsageError("E-USAGE", "; ".join(problems))
    return specification


def plan_of_shared(
    specification: RunSpec, asked: Shared, *, file: Path | None = None
) -> DistributedPlan:
    """Return a run's plan for its model, or for as many numbers as the command line says.

    Args:
        specification: the run.
        asked: of the members, on the command line.
        file: the run.toml, beside which initial weights may lie.

    Raises:
        UsageError: the model is not known here.
        UnavailableError: the initial weights cannot be read.
        ConfigError: a value that the mode needs is missing, or the model does not fit the data.
        RefusedError: there is no such mechanism.
    """
    from tacit.privacy.distributed.plan import distributed_plan  # noqa: PLC0415 - half a second

    dimension = asked.parameters
    if dimension is None:
        dimension = _counted(specification, file)
    records = _records(asked, specification.privacy.delta)
    return distributed_plan(specification, records=records, dimension=dimension)


def _counted(specification: RunSpec, file: Path | None) -> int:
    """Return how many numbers a vector of the run has, by its initial weights."""
    if file is None or (specification.app is not None and not specification.initial):
        raise UsageError("E-USAGE", "expected --parameters: an app alone knows its model")
    with foreign_output_aside():  # a factory of somebody's own may print
        notes = model_notes(model_summary(specification))
        secure = with_size(file, specification).secure_aggregation
    show_notes(notes)
    return 0 if secure is None else secure.dimension


def _records(asked: Shared, delta: float | None) -> int:
    assumed = int(0.5 / delta) if delta and 0 < delta < 1 else 1
    return asked.records or max(1, assumed)


def show_shared(
    plan: DistributedPlan, *, evaluation: dict[str, Any], budget: float | None, json: bool
) -> None:
    """Show what each member adds, what the run costs at the worst and at best, and by rounds.

    Args:
        plan: the run's.
        evaluation: what `tacit run check` says of its evaluation; empty if there is none.
        budget: epsilon that may be spent; None for the run's own.
        json: for scripts.
    """
    from tacit.privacy.outlook import milestones, outlook_of  # noqa: PLC0415 - as above
    from tacit.privacy.profiles import SOURCE, tier_of  # noqa: PLC0415

    noise = plan.noise
    cohort = noise.cohort
    outlook = outlook_of(plan, budget=budget)
    rounds = [(at, at * plan.local_steps, plan.epsilon_after(at)) for at in milestones(plan)]
    values: dict[str, Any] = {
        "mode": plan.mode,
        "unit": plan.unit,
        "most_records": plan.most_records,
        "relation": plan.relation,
        "members": cohort.members,
        "threshold": cohort.threshold,
        "colluders": cohort.colluders,
        "parameters": noise.dimension,
        "clip": plan.clip,
        "bound": noise.bound,
        "scale": noise.scale,
        "sensitivity": noise.sensitivity,
        "noise_multiplier": plan.noise_multiplier,
        "local_deviation": noise.local_deviation,
        "noise_deviation": noise.released_deviation(cohort.members),
        "rounding_overhead": noise.rounding_overhead,
        "central_ratio": plan.central_ratio,
        "steps": plan.steps,
        "normaliser": plan.normaliser,
        "delta": plan.delta,
        "epsilon": plan.epsilon,
        "epsilon_settled": plan.settled_epsilon(survivors=cohort.members),
        "tier": tier_of(plan.epsilon),
        "tier_source": SOURCE,
        **evaluation,
        "budget": outlook,
        "rounds": [{"rounds": a, "steps": b, "epsilon": c} for a, b, c in rounds],
    }
    if json:
        emit(values, json=True)
        return
    facts = [*_facts(values), *evaluation_facts(evaluation, plan.unit)]
    typer.echo(table_text(Table(columns=("WHAT", "VALUE", "MEANING"), rows=facts)))
    typer.echo()
    typer.echo(table_text(Table(columns=("ROUNDS", "STEPS", "EPSILON"), rows=rounds)))


def evaluation_facts(evaluation: dict[str, Any], unit: PrivacyUnit) -> list[tuple[object, ...]]:
    """Return the row for a run's evaluation, if there is one."""
    found = evaluation.get("evaluation")
    if found is None:
        return []
    held_out = f"of each {unit.value} that is held out, not trained on"
    if "epsilon" not in found:
        return [("evaluation", "exact", f"no epsilon holds {held_out}")]
    times = f"{found['evaluations']} time" + "s" * (found["evaluations"] != 1)
    meaning = f"{held_out}: {times}, noise multiplier {_number(found['noise_multiplier'])}"
    return [("evaluation epsilon", _number(found["epsilon"]), meaning)]


def _facts(values: dict[str, Any]) -> list[tuple[object, ...]]:
    most = values["most_records"]
    whole = f", of at most {most} records" if most > 1 else ""
    who = f"{values['relation'].value}, {values['mode'].value}{whole}"
    sums = f"of {values['threshold']} and more, {values['colluders']} of whom may collude"
    central = "times what a trusted server would add, when all stay"
    return [
        ("epsilon", _number(values["epsilon"]), "of the whole run, at the reserve"),
        ("  if all stay", _number(values["epsilon_settled"]), "settled, with no member lost"),
        ("delta", _number(values["delta"]), "probability that epsilon does not hold"),
        ("tier", values["tier"], values["tier_source"]),
        ("protects", values["unit"].value, who),
        ("members", str(values["members"]), sums),
        ("parameters", str(values["parameters"]), "numbers in each sum"),
        ("noise multiplier", _number(values["noise_multiplier"]), "sigma / sensitivity"),
        ("scale", _number(values["scale"]), "integers for one unit of a coordinate"),
        ("sensitivity", _number(values["sensitivity"]), "of the integers, rounding included"),
        ("  by rounding", _number(values["rounding_overhead"]), "times that without rounding"),
        ("sigma of a member", _number(values["local_deviation"]), "integers, on each coordinate"),
        ("sigma", _number(values["noise_deviation"]), f"of a sum, at clip {values['clip']:g}"),
        ("  against central", _number(values["central_ratio"]), central),
        ("steps", str(values["steps"]), "noised sums, each over every unit"),
        ("one more round", "+" + _number(values["budget"].next_round_epsilon), "of epsilon"),
        ("rounds allowed", str(values["budget"].rounds_allowed), "by the budget"),
    ]


def _number(value: float) -> str:
    return f"{value:.5g}"
