"""What a model is worth on given records: mean cross-entropy and accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from tacit.core.errors import AppError
from tacit.core.results import MAX_LOSS

if TYPE_CHECKING:
    from tacit.learning.prepared import Examples

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
    features = torch.from_numpy(examples.features)
    labels = torch.from_numpy(examples.labels)
    training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(labels), _CHUNK_RECORDS):
            stop = start + _CHUNK_RECORDS
            logits = model(features[start:stop]).to(torch.float64)
            loss += nn.functional.cross_entropy(logits, labels[start:stop], reduction="sum").item()
            correct += int((logits.argmax(dim=1) == labels[start:stop]).sum().item())
    model.train(training)
    mean = loss / len(labels)
    return {
        "loss": MAX_LOSS if math.isnan(mean) else min(mean, MAX_LOSS),
        "accuracy": correct / len(labels),
        "num-examples": len(labels),
    }
