"""``python -m tacit.client.compare``: trains an owner's alternatives and scores them, confined.

Reads a job from standard input and answers with one line of JSON: exact scores on the owner's
held-out records, for the owner alone. Of the machine it sees the cleaned data set and the federated
weights; it has no network where the kernel lets us take it away. Its noise comes from the operating
system's generator and is drawn afresh each time.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tacit.client.isolation import Confinement, isolate
from tacit.core.artifacts import load_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import RefusedError, TacitError, UnavailableError
from tacit.core.plain import plain
from tacit.core.specification import PrivacyMode, RunSpec

_FILE_BYTES = 1 << 30  # what a library may want to cache while it works
_OWNER = "this owner"
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """What the process compares.

    Attributes:
        specification: canonical JSON.
        prepared: the owner's cleaned, split records.
        model: the federated weights.
        writable: the only folder that the process may write.
        memory_bytes: largest private memory.
        required: refuse where the process cannot be confined.
    """

    specification: str
    prepared: str
    model: str
    writable: str
    memory_bytes: int
    required: bool


@dataclass(frozen=True, kw_only=True)
class OwnRow:
    """One model on the owner's held-out records.

    Attributes:
        model, kind: which; ``kind`` is federated, alone or trivial.
        epsilon: what its training cost each unit of the run at its delta; None without noise.
        accuracy, standard_error: share of right classes, and its binomial standard error.
        loss: mean cross-entropy, in nats.
    """

    model: str
    kind: str
    epsilon: float | None
    accuracy: float
    standard_error: float
    loss: float


def compared(job: CompareJob) -> dict[str, Any]:
    """Return the rows of the table, the number of held-out records, and delta.

    Raises:
        TacitError: weights that do not fit, nothing held out, training that fails.
    """
    # torch loads after confinement, and never in a daemon that imports this module
    import torch  # noqa: PLC0415

    from tacit.learning.comparison import (  # noqa: PLC0415
        federated_row,
        standard_error,
        trained_row,
        trivial_row,
    )
    from tacit.learning.prepared import load_prepared  # noqa: PLC0415

    torch.set_num_threads(1)
    specification = from_plain(json.loads(job.specification), RunSpec)
    sets = {_OWNER: load_prepared(Path(job.prepared))}
    held_out = len(sets[_OWNER].validation)
    if held_out == 0:
        raise UnavailableError(
            "E-NO-VALIDATION",
            "expected held-out records to compare models on, got none",
            hint="The run's training.validation_fraction says how many are held out.",
        )
    private = specification.privacy.mode is not PrivacyMode.NONE
    key = os.urandom(32) if private else None
    rows = (
        federated_row(specification, sets, load_arrays(Path(job.model))),
        trained_row(specification, sets, of=_OWNER, noise_key=key),
        trivial_row(specification, sets),
    )
    models = [
        OwnRow(
            model=row.model,
            kind=row.kind,
            epsilon=row.epsilon,
            accuracy=row.overall.accuracy,
            standard_error=standard_error(row.overall),
            loss=row.overall.loss,
        )
        for row in rows
    ]
    delta = specification.privacy.delta if private else None
    return {"held_out": held_out, "delta": delta, "models": plain(models)}


def main() -> int:
    """Do the job on standard input, and answer on standard output."""
    descriptor = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # a model factory may print: its words must not mix with the answer
    job = from_plain(json.loads(sys.stdin.buffer.read()), CompareJob)
    isolation = isolate(
        Confinement(
            readable=(Path(job.prepared), Path(job.model)),
            writable=(Path(job.writable),),
            memory_bytes=job.memory_bytes,
            file_bytes=_FILE_BYTES,
        )
    )
    answer: dict[str, Any] = {"error": None}
    try:
        if job.required and not isolation.available:
            raise RefusedError("E-POLICY-ISOLATION", "; ".join(isolation.missing))
        answer |= compared(job)
    except TacitError as error:
        answer["error"] = {
            "family": type(error).__name__,
            "code": error.code,
            "message": error.message,
            "problems": list(getattr(error, "problems", ())),
            "hint": error.hint,
        }
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
