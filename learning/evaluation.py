"""What a model is worth on given records: mean loss and accuracy, or noised sums of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tacit.core.errors import AppError, RefusedError
from tacit.core.results import MAX_LOSS, SUM_CORRECT, SUM_LOSS, SUM_WRONG
from tacit.core.specification import PrivacyUnit
from tacit.privacy.evaluation_plan import ANSWERS, LOSS, EvaluationPlan
from tacit.privacy.sums import noised_sums

if TYPE_CHECKING:
    from tacit.learning.prepared import Examples

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

_CHUNK_RECORDS = 4096


def evaluate_model(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Return ``loss``, ``accuracy`` and ``num-examples`` of a model on records.

    These are exact values about the records: whether they may be shown, or leave, is decided
    elsewhere. A loss above ``MAX_LOSS``, or not a number, is given as ``MAX_LOSS``.

    Raises:
        AppError: there are no records to evaluate on (``E-NO-VALIDATION``).
    """
    if len(examples) == 0:
        raise AppError(
            "E-NO-VALIDATION",
            "expected validation records, the split holds none",
            hint="raise training.validation_fraction, or set evaluation.every = 0",
        )
    losses, right = _scores(model, examples)
    mean = float(losses.mean())
    return {
        "loss": MAX_LOSS if math.isnan(mean) else min(mean, MAX_LOSS),
        "accuracy": float(right.mean()),
        "num-examples": len(examples),
    }


def noised_evaluation(
    model: nn.Module,
    examples: Examples,
    plan: EvaluationPlan,
    *,
    key: bytes,
    subjects: Int64Array | None = None,
) -> dict[str, float]:
    """Return the noised sums of right answers, wrong answers and losses: one release.

    A record's loss is cut at ``plan.loss_bound``, which is also the loss where there is none; such
    a record's answer counts as wrong. No records at all is an answer like any other.

    Args:
        model: whose output for one record does not depend on the others.
        examples: the owner's validation records.
        plan: the run's.
        key: a noise key of 32 bytes, of this release alone.
        subjects: a number per record, where the unit of privacy is the subject.

    Raises:
        RefusedError: the unit is the subject, and no subjects are known (``E-UNIT-NOT-BUILT``).
    """
    if (plan.unit is PrivacyUnit.SUBJECT) != (subjects is not None):
        raise RefusedError(
            "E-UNIT-NOT-BUILT",
            f'unit "{plan.unit.value}": expected a subject of each record, there and only there',
        )
    losses, right = _scores(model, examples)
    known = np.isfinite(losses)
    right = right & known
    cut = np.minimum(np.where(known, losses, plan.loss_bound), plan.loss_bound)
    contributions = np.column_stack([right, ~right, cut - plan.loss_bound / 2.0])
    sums = noised_sums(plan.query, contributions, key=key, purpose="evaluation", subjects=subjects)
    answers = sums.values[ANSWERS]
    return {
        SUM_CORRECT: float(answers[0]),
        SUM_WRONG: float(answers[1]),
        SUM_LOSS: float(sums.values[LOSS][0]),
    }


def _scores(model: nn.Module, examples: Examples) -> tuple[Float64Array, BoolArray]:
    """Return each record's loss, and whether its most likely class is right; shapes ``(n,)``."""
    features = torch.from_numpy(examples.features)
    labels = torch.from_numpy(examples.labels)
    losses = [np.zeros(0)]
    right = [np.zeros(0, dtype=np.bool_)]
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(labels), _CHUNK_RECORDS):
            stop = start + _CHUNK_RECORDS
            logits = model(features[start:stop]).to(torch.float64)
            loss = nn.functional.cross_entropy(logits, labels[start:stop], reduction="none")
            losses.append(loss.numpy())
            right.append((logits.argmax(dim=1) == labels[start:stop]).numpy())
    model.train(training)
    return np.concatenate(losses), np.concatenate(right)
