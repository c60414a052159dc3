"""What a federated model is compared with: each owner alone, all data pooled, the trivial guess.

Trains with the run's own recipe: as many rounds of as many steps, and the same privacy per record.
Where a run shares its noise among members, one place adds all of it: as a trusted server would.
Pooling is only possible where somebody may hold all the data (simulation, the demo); in a real run
an owner compares with their own records, at their own machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.specification import PrivacyMode
from tacit.learning.evaluation import evaluate_model
from tacit.learning.models import Arrays, build_model, load_model_arrays, model_arrays
from tacit.learning.prepared import Examples, PreparedSets
from tacit.learning.training import Recipe, train_model
from tacit.privacy.noise import derive_key
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.core.specification import RunSpec
    from tacit.learning.contract import Int64Array


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one model does on one set of records.

    Attributes:
        accuracy: share of records whose most likely class is right.
        loss: mean cross-entropy, in nats.
        examples: records evaluated on.
    """

    accuracy: float
    loss: float
    examples: int


def union(parts: Sequence[Examples]) -> Examples:
    """Return all records of several sets, in order; no two sets share a subject."""
    return Examples(
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        subjects=_renumbered([part.subjects for part in parts]),
    )


def _renumbered(parts: Sequence[Int64Array | None]) -> Int64Array | None:
    """Number the subjects of several sets through; None where a set has none."""
    numbered, first = [], 0
    for part in parts:
        if part is None:
            return None
        numbered.append(part + first)
        first += int(part.max(initial=-1)) + 1
    return np.concatenate(numbered)


def score_arrays(spec: RunSpec, arrays: Arrays, evaluation: Examples) -> Score:
    """Score given weights of the run's model, such as the federated ones."""
    if spec.model is None or spec.data is None:
        raise ValueError("expected a run with [data] and [model]")
    model = build_model(spec.model, spec.data, private=spec.privacy.trains_with_noise)
    load_model_arrays(model, arrays)
    metrics = evaluate_model(model, evaluation)
    return Score(
        accuracy=metrics["accuracy"], loss=metrics["loss"], examples=int(metrics["num-examples"])
    )


def specification_alone(spec: RunSpec) -> RunSpec:
    """Return the run as one place trains it: nothing is summed unseen, and no noise is shared.

    A run by record becomes one round of all its steps, since its optimiser lives as long as it
    does; a run by client trains without noise, as under ``client-local``.
    """
    privacy = dataclasses.replace(spec.privacy, normaliser=0.0)
    alone = dataclasses.replace(spec, privacy=privacy, secure_aggregation=None)
    if spec.privacy.mode is PrivacyMode.CLIENT_DISTRIBUTED:
        privacy = dataclasses.replace(privacy, mode=PrivacyMode.CLIENT_LOCAL)
        return dataclasses.replace(alone, privacy=privacy)
    if spec.privacy.mode is not PrivacyMode.RECORD_DISTRIBUTED or spec.training is None:
        return alone
    steps = spec.participation.rounds * spec.secure_steps
    return dataclasses.replace(
        alone,
        privacy=dataclasses.replace(privacy, mode=PrivacyMode.RECORD_LOCAL),
        training=dataclasses.replace(spec.training, local_steps=steps),
        participation=dataclasses.replace(spec.participation, rounds=1),
    )


def train_alone(
    spec: RunSpec, sets: Sequence[PreparedSets], *, noise_key: bytes | None = None
) -> Arrays:
    """Train the run's model in one place, on one owner's training records or on several pooled.

    What is trained is :func:`specification_alone`. The mean gradient's public divisor follows the
    declared records of these owners: the run's own normaliser is chosen for a mean over the whole
    federation. Under ``client-local`` the training adds no noise, and here no node does.

    Raises:
        RefusedError: the run's mode has no mechanism, or needs a noise key.
    """
    spec = specification_alone(spec)
    if spec.model is None or spec.data is None or spec.training is None:
        raise ValueError("expected a run with [data], [model] and [training]")
    plan = privacy_plan(spec, records=sum(owner.records for owner in sets))
    model = build_model(spec.model, spec.data, private=plan.trains_with_noise)
    examples = union([owner.train for owner in sets])
    arrays = model_arrays(model)
    for round_number in range(spec.participation.rounds):
        # A fresh model per round, as at a node: hooks and optimiser state do not outlive a message.
        model = build_model(spec.model, spec.data, private=plan.trains_with_noise)
        load_model_arrays(model, arrays)
        recipe = Recipe(
            training=spec.training,
            plan=plan,
            proximal_mu=0.0,
            batch_seed=spec.training.seed + round_number,
        )
        key = None if noise_key is None else derive_key(noise_key, purpose=f"round {round_number}")
        train_model(model, examples, recipe, noise_key=key)
        arrays = model_arrays(model)
    return arrays


def trivial_score(training: Examples, evaluation: Examples, *, classes: int) -> Score:
    """Score the guess that ignores the features: the classes' shares in the training records."""
    counts = np.bincount(training.labels, minlength=classes).astype(np.float64) + 1.0
    shares = counts / counts.sum()  # one made-up record per class keeps the loss finite
    return Score(
        accuracy=float(np.mean(evaluation.labels == int(shares.argmax()))),
        loss=float(-np.log(shares[evaluation.labels]).mean()),
        examples=len(evaluation),
    )
