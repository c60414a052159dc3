"""An owner's canaries between two messages: which go into this round, what the rounds say of them.

Scores stand in the app's state (``Context.state``), which the node stores in one act with a reply
and never sends: a worker that starts again finds those of the last reply that left. They are kept
as two sums, of all rounds before the latest and of the latest itself, so that another attempt at
the latest round takes the place of the one that was discarded.

The opening at the end costs no record anything. Bits and salt come from the operating system, no
record has part in them. Scores are sums over the noised gradients of every step; the accountant
charges each step as if its noised gradient were shown, so a function of them is post-processing
(Dwork & Roth 2014, proposition 2.1). Canaries are nobody's records.

Trusts: the round's number, the server's word. A wrong one can spoil the scores and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from tacit.core.errors import AppError
from tacit.core.results import (
    CANARY_BITS,
    CANARY_PARAMETERS,
    CANARY_PRODUCTS,
    CANARY_SALT,
    CANARY_SQUARED_NORM,
    CANARY_STEPS,
)
from tacit.privacy.dpsgd.canaries import Canaries, CanaryScores

if TYPE_CHECKING:
    from tacit.learning.prepared import HeldCanaries

STATE = "tacit-canaries"
_ROUND = "round"
_BEFORE, _LATEST = "before", "latest"

Metrics = dict[str, int | float | list[int] | list[float]]


def directions_of_round(
    held: HeldCanaries | None, round_number: int, *, local_steps: int
) -> Canaries | None:
    """Return the directions that go into a round's release; None without any.

    Raises:
        AppError: the instruction names no round (``E-APP-MESSAGE``).
    """
    if held is None or held.directions == 0:
        return None
    if round_number < 1:
        raise AppError(
            "E-APP-MESSAGE", f"expected the round's number in the instruction, got {round_number}"
        )
    return Canaries(
        seed=held.seed,
        included=held.included[: held.directions],
        first_step=(round_number - 1) * local_steps,
    )


def keep_scores(state: RecordDict, round_number: int, scores: CanaryScores) -> None:
    """Add a round's scores to what is kept; those of an earlier attempt at it go.

    Raises:
        AppError: a later round has been scored (``E-APP-MESSAGE``).
    """
    known = _kept(state)
    latest = 0 if known is None else _integer(known[_ROUND])
    if round_number < latest:
        raise AppError(
            "E-APP-MESSAGE", f"expected round {latest} or a later one, got {round_number}"
        )
    before = None if known is None else _scores(known, _BEFORE)
    if known is not None and round_number > latest:
        done = _scores(known, _LATEST)
        before = done if before is None or done is None else before + done
    record = ConfigRecord({_ROUND: round_number})
    _write(record, _LATEST, scores)
    if before is not None:
        _write(record, _BEFORE, before)
    state[STATE] = record


def kept_scores(state: RecordDict) -> CanaryScores | None:
    """Return the scores of every round so far; None where none is kept."""
    known = _kept(state)
    if known is None:
        return None
    before, latest = _scores(known, _BEFORE), _scores(known, _LATEST)
    return latest if before is None or latest is None else before + latest


def opening_metrics(held: HeldCanaries, scores: CanaryScores | None) -> Metrics:
    """Return what an owner says of the canaries once the run is over, and nothing else.

    Raises:
        AppError: there are directions and no scores of them (``E-CANARY-SCORES``).
    """
    metrics: Metrics = {
        CANARY_BITS: [int(bit) for bit in held.included],
        CANARY_SALT: list(held.salt),
    }
    if held.directions == 0:
        return metrics
    if scores is None:
        raise AppError("E-CANARY-SCORES", "expected the scores of the rounds before, got none")
    return metrics | {
        CANARY_PRODUCTS: scores.products.tolist(),
        CANARY_SQUARED_NORM: scores.squared_norm,
        CANARY_STEPS: scores.steps,
        CANARY_PARAMETERS: scores.parameters,
    }


def _kept(state: RecordDict) -> ConfigRecord | None:
    record = state.get(STATE)
    return record if isinstance(record, ConfigRecord) else None


def _write(record: ConfigRecord, part: str, scores: CanaryScores) -> None:
    record[f"{part}-products"] = scores.products.tolist()
    record[f"{part}-squared-norm"] = scores.squared_norm
    record[f"{part}-steps"] = scores.steps
    record[f"{part}-parameters"] = scores.parameters


def _scores(record: ConfigRecord, part: str) -> CanaryScores | None:
    if f"{part}-steps" not in record:
        return None
    return CanaryScores(
        products=np.array(record[f"{part}-products"], dtype=np.float64),
        squared_norm=_real(record[f"{part}-squared-norm"]),
        steps=_integer(record[f"{part}-steps"]),
        parameters=_integer(record[f"{part}-parameters"]),
    )


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise AppError("E-CANARY-SCORES", "expected kept scores, the app's state holds others")
    return value


def _real(value: object) -> float:
    if not isinstance(value, float):
        raise AppError("E-CANARY-SCORES", "expected kept scores, the app's state holds others")
    return value
