"""Whether a subject can have reference models, how many, and what they are trained as.

What is trained, and how it is kept, is in ``references.py``; here is what a plan makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.attacks.design import Design
from tacit.attacks.findings import ReferenceFinding
from tacit.attacks.recipe_check import MOST_POINTS_APART, check_recipe
from tacit.attacks.references import Material, train_references
from tacit.core.errors import ConfigError, RefusedError
from tacit.learning.models import build_model
from tacit.learning.shadow_recipe import derived_seed, shadow_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from tacit.attacks.arrangement import Arrangement
    from tacit.attacks.plans import AuditPlan
    from tacit.attacks.probe import References
    from tacit.attacks.reference_cache import ReferenceCache
    from tacit.attacks.subject import Subject
    from tacit.learning.shadow_recipe import ShadowRecipe


_DEVIATIONS = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferencePlan:
    """What reference models are to be trained.

    Attributes:
        model: the target's architecture and first weights.
        recipe: how each is trained.
        models: how many.
    """

    model: nn.Module
    recipe: ShadowRecipe
    models: int


def why_no_references(
    subject: Subject, plan: AuditPlan, wanting: Sequence[str]
) -> ReferencePlan | str:
    """Return what is to be trained, or in words why nothing is.

    Args:
        subject: what was handed in.
        plan: how many references, for small and for large models.
        wanting: the probes that need them.

    Raises:
        AppError: the recipe's factory is not installed, or failed.
    """
    if not wanting:
        return "no probe needs them"
    spec = subject.recipe
    if subject.members.examples is None:
        return "only predictions were handed in"
    if spec is None:
        return "no recipe was handed in"
    share = 1.0 - (spec.training.validation_fraction if spec.training is not None else 0.0)
    try:
        recipe = shadow_recipe(
            spec, records=round(subject.trained_on / share), owners=subject.owners
        )
        if spec.model is None or spec.data is None:
            return "the run brings its own app"
        model = build_model(spec.model, spec.data, private=spec.privacy.trains_with_noise)
    except (ConfigError, RefusedError) as error:
        return f"{error.message} [{error.code}]"
    size = sum(parameter.numel() for parameter in model.parameters())
    large = size > plan.large_parameters
    models = plan.references_if_large if large else plan.references
    return ReferencePlan(model=model, recipe=recipe, models=models)


def train(
    references: ReferencePlan,
    arrangement: Arrangement,
    *,
    seed: int,
    cache: ReferenceCache | None,
    workers: int,
    progress: Callable[[int, int], None],
) -> tuple[References, ReferenceFinding]:
    """Train the references on the audited records, and compare them with the target."""
    evidence = arrangement.evidence
    if evidence.examples is None:
        raise ValueError("expected records")
    trained = train_references(
        Material(
            audited=evidence.examples,
            always=arrangement.always,
            population=evidence.population_examples,
        ),
        model=references.model,
        recipe=references.recipe,
        design=Design(models=references.models, seed=derived_seed(seed, "references")),
        cache=cache,
        workers=workers,
        progress=progress,
    )
    check = check_recipe(trained, evidence.outputs, arrangement.is_member)
    # Of a few hundred records, one accuracy strays further than two points by itself: a recipe is
    # held against what its own models vary by, or every small audit would be called off.
    allowed = max(MOST_POINTS_APART, 100.0 * _DEVIATIONS * check.test_deviation)
    finding = ReferenceFinding(
        models=references.models,
        train_accuracy=check.train_accuracy,
        test_accuracy=check.test_accuracy,
        target_train_accuracy=check.target_train_accuracy,
        target_test_accuracy=check.target_test_accuracy,
        test_deviation=check.test_deviation,
        points_apart=check.points_apart,
        allowed_points=allowed,
        agrees=check.points_apart <= allowed,
        notes=references.recipe.notes,
    )
    return trained, finding
