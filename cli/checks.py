"""Everything about a run.toml that can be known before an owner is asked.

`tacit run check`, `tacit run submit` and `tacit simulate` begin with it, so that all three say the
same words about the same file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tacit.cli.output import visible
from tacit.core.configuration import load_config, read_config_text
from tacit.core.errors import ConfigError, TacitError
from tacit.core.specification import RunSpec, canonical_json, specification_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tacit.privacy.distributed.plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run.toml that could be submitted.

    Attributes:
        specification: the resolved run, with the size of its model where noise is shared.
        source: the file's text.
        summary: what it means, for people.
        notes: what is replaced in the model for the sake of its privacy, and where its per-example
            gradients come from.
        warnings: what does not hinder the run here, but is likely to hinder it at its owners.
    """

    specification: RunSpec
    source: str
    summary: dict[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def check_run(file: Path, *, records: int) -> Checked:
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
    facts = model_summary(specification)
    specification = with_size(file, specification)
    people = specification.participation
    plan = plan_of(specification, records)
    summary: dict[str, Any] = {
        "name": specification.name,
        "data_set": specification.data_set,
        "model": facts,
        "strategy": specification.strategy.wrapper or specification.strategy.name,
        "rounds": people.rounds,
        "min_clients": people.min_clients,
        "privacy": _privacy_summary(specification, plan, records),
        **secure_summary(specification, plan),
        **evaluation_summary(specification),
        **canary_summary(specification, records),
        "specification_sha256": specification_sha256(canonical_json(specification)),
    }
    warnings = (
        *_warnings(specification, summary["privacy"].get("epsilon"), records),
        *_powerless(summary.get("canaries", {})),
    )
    return Checked(
        specification=specification,
        source=source,
        summary=summary | {"warnings": warnings},
        notes=model_notes(facts),
        warnings=warnings,
    )


def _warnings(specification: RunSpec, epsilon: float | None, records: int) -> Iterator[str]:
    """Yield what an owner's policy refuses unless they change it, and what is not installed here.

    The rules are the node's own, held against a client.toml that says nothing of policy; of secure
    sums the owner is a member who has pinned the others, since nobody else is asked.
    """
    from tacit.client.approvals import Offer, refusals  # noqa: PLC0415 - keeps --help quick
    from tacit.client.configuration import ClientConfig, DataSet  # noqa: PLC0415
    from tacit.core.artifacts import sha256_app_files  # noqa: PLC0415

    data_set = DataSet(path=Path(os.devnull), records=max(1, records))
    config = ClientConfig(data_sets={specification.data_set: data_set})
    secure = specification.secure_aggregation
    members = () if secure is None else secure.members
    offer = Offer(
        specification=specification,
        epsilon=epsilon,
        isolated=True,
        pinned=members,
        own_name=next(iter(members), ""),
    )
    for error in refusals(offer, config):
        yield f"an owner's default policy refuses this run: {error.message} [{error.code}]"
    app = specification.app
    for name in (app.client, app.server) if app is not None else ():
        try:
            if name:
                sha256_app_files(name.partition(":")[0])
        except TacitError as error:
            yield f"{error.message} [{error.code}]"


def _powerless(canaries: Mapping[str, Any]) -> Iterator[str]:
    """Yield which canaries cannot test the claim, whatever comes of them."""
    for kind in ("directions", "mislabelled"):
        told = canaries.get(kind)
        if told is not None and not told["tests_the_claim"]:
            yield (
                f"{told['canaries']} {kind} canaries and {told['guesses']} guesses could show "
                f"epsilon {told['ceiling']:.2f} at most with {canaries['owners']} owners, below "
                f"the claimed {canaries['claim']:.2f}; the best number of guesses is "
                f"{told['best_guesses']}, and {canaries['note']}"
            )


def with_size(file: Path, specification: RunSpec) -> RunSpec:
    """Return a run with the size of one vector counted, where noise is shared.

    Raises:
        ConfigError: the file says another number (``E-SECAGG-DIMENSION``), or the model is wrong.
        AppError: the model's factory is not installed here, or failed.
        UnavailableError: the initial weights cannot be read.
    """
    if not specification.privacy.mode.is_distributed:
        return specification
    from tacit.learning.resolved import resolved_beside  # noqa: PLC0415 - torch, and only here

    return resolved_beside(file, specification)


def _verify_initial(file: Path, specification: RunSpec) -> None:
    if specification.app is None or specification.app.server:
        return
    if not specification.initial or not (file.parent / specification.initial).is_file():
        raise ConfigError(
            "E-INITIAL-MISSING",
            "expected initial weights for a run with an app of its own and a named strategy",
            hint='name a safetensors file: initial = "initial.safetensors"',
        )


def model_summary(specification: RunSpec) -> dict[str, Any] | str:
    """Return what will be trained; for an app of one's own its name, since it alone knows.

    Raises:
        ConfigError: the model does not fit the data, or cannot be trained record by record.
        AppError: its factory is not installed here, or failed.
    """
    if specification.model is None or specification.data is None:
        return specification.app.client if specification.app is not None else "-"
    # torch: a second and a half, and only here
    from tacit.learning.models import model_facts  # noqa: PLC0415

    private = specification.privacy.trains_with_noise
    facts = model_facts(specification.model, specification.data, private=private)
    summary: dict[str, Any] = {"kind": facts.kind, "parameters": facts.parameters}
    if private:
        summary |= {"replaced": list(facts.replaced), "gradients": list(facts.gradients)}
    return summary


def model_notes(summary: dict[str, Any] | str) -> tuple[str, ...]:
    """Return what a :func:`model_summary` says besides kind and size, a sentence each."""
    if isinstance(summary, str):
        return ()
    return (*summary.get("replaced", ()), *summary.get("gradients", ()))


def show_notes(notes: Iterable[str]) -> None:
    """Tell people, beside a result, what is trained in the place of what."""
    for text in notes:
        typer.echo(f"note: {visible(text)}", err=True)


def plan_of(specification: RunSpec, records: int) -> RunPlan:
    """Return a run's mechanism at an owner of so many records; 0: the most that delta allows.

    Raises:
        ConfigError, RefusedError: there is no such mechanism.
    """
    from tacit.privacy.distributed.plan import plan_of_run  # noqa: PLC0415 - half a second

    delta = specification.privacy.delta
    assumed = records or (int(0.5 / delta) if delta else 1)
    return plan_of_run(specification, records=max(1, assumed))


def _privacy_summary(specification: RunSpec, plan: RunPlan, records: int) -> dict[str, Any]:
    if not plan.is_private:
        secure = specification.secure_aggregation is not None
        what = "the sum" if secure else "every reply"
        return {"mode": plan.mode, "note": f"no noise: {what} is exact"}
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
    if plan.normaliser and (records or specification.privacy.normaliser):
        summary["normaliser"] = plan.normaliser
    return summary


def canary_summary(specification: RunSpec, records: int) -> dict[str, Any]:
    """Return, under ``canaries``, what they can show of the claim at most, and what it takes.

    Args:
        specification: of the run.
        records: that an owner declares; 0: the most that delta allows.
    """
    canaries = specification.canaries
    if canaries is None:
        return {}
    from tacit.attacks.canary_plan import canary_power  # noqa: PLC0415 - scipy
    from tacit.privacy.plan import PrivacyPlan  # noqa: PLC0415 - half a second

    plan = plan_of(specification, records)
    if not isinstance(plan, PrivacyPlan):  # canaries are for noise of the owner's own
        return {}
    return {
        "canaries": canary_power(canaries, plan, owners=specification.participation.min_clients)
    }


def secure_summary(specification: RunSpec, plan: RunPlan) -> dict[str, Any]:
    """Return, under ``secure_aggregation``, among whom updates are summed unseen; or nothing.

    Where the members share noise: what it is against one noise added by a trusted server, and what
    the run costs as it is reserved, with the threshold's survivors, and as it is settled if all
    members stay in every sum.
    """
    from tacit.privacy.distributed.plan import DistributedPlan  # noqa: PLC0415 - see plan_of

    secure = specification.secure_aggregation
    if secure is None:
        return {}
    summary: dict[str, Any] = {
        "members": list(secure.members),
        "threshold": secure.threshold,
        "colluders": secure.colluders,
        "steps_per_round": secure.steps_per_round,
    }
    if isinstance(plan, DistributedPlan):
        summary |= {
            "dimension": secure.dimension,
            "noise_to_central": plan.central_ratio,
            "epsilon_reserved": plan.epsilon,
            "epsilon_settled": plan.settled_epsilon(survivors=len(secure.members)),
        }
    return {"secure_aggregation": summary}


def evaluation_summary(specification: RunSpec) -> dict[str, Any]:
    """Return, under ``evaluation``, how often a run evaluates and what that costs; or nothing.

    Raises:
        RefusedError: this version has no mechanism for it.
    """
    if specification.evaluation.every == 0:
        return {}
    if not specification.noises("evaluate"):
        exact = "exact: every answer leaves without noise"
        return {"evaluation": {"evaluations": specification.evaluations, "note": exact}}
    from tacit.privacy.evaluation_plan import evaluation_plan  # noqa: PLC0415 - half a second

    plan = evaluation_plan(specification)
    summary = {
        "evaluations": plan.releases,
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "loss_bound": plan.loss_bound,
    }
    return {"evaluation": summary}
