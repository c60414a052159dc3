"""What owners opened, verified and scored: from bits, salt and sums to the evidence of a report.

Trusts: each owner committed to bits before the run started, which the server noted. What an owner
opens is held against that; products of directions are the owner's word, mislabelled records are
scored here, from the contract, the seed and the final model. Loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tacit.attacks.canaries import mislabelled_scores
from tacit.attacks.canary_report import Evidence, claim_from, report_of
from tacit.attacks.inclusion import Opening, owner_design, verify_opening
from tacit.core.errors import TrustError
from tacit.core.results import (
    CANARY_BITS,
    CANARY_PARAMETERS,
    CANARY_PRODUCTS,
    CANARY_SALT,
    CANARY_SQUARED_NORM,
    CANARY_STEPS,
)
from tacit.learning.mislabelled import mislabelled_from_ranges
from tacit.learning.models import build_model, load_model_arrays
from tacit.privacy.dpsgd.canaries import CanaryScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.attacks.points import Float64Array
    from tacit.core.artifacts import Arrays
    from tacit.core.canary_spec import CanarySpec
    from tacit.core.specification import RunSpec


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One owner's opening as it came, and what it is held against.

    Attributes:
        node_id, member: whose.
        commitment: what the owner committed to before the run started, in hex.
        claim: of the owner's ledger, as the manifest has it.
        values: the reply's metrics.
        bytes: of the reply, as it travelled.
    """

    node_id: int
    member: str
    commitment: str
    claim: Mapping[str, Any]
    values: Mapping[str, Any]
    bytes: int


def verified_opening(answer: Answered, canaries: CanarySpec) -> Opening:
    """Return an owner's bits, which are those that the owner committed to.

    Raises:
        TrustError: they are others, or none (``E-CANARY-COMMITMENT``); it names the owner.
    """
    design = owner_design(canaries, answer.node_id)
    try:
        bits = np.array(answer.values[CANARY_BITS])
        if not np.isin(bits, (0, 1)).all():
            raise ValueError("a bit is 0 or 1")  # noqa: TRY301 - one way out
        opening = Opening(
            design=design,
            salt=bytes(answer.values[CANARY_SALT]),
            included=bits.astype(np.bool_),
        )
        verify_opening(opening, commitment=answer.commitment)
    except (KeyError, TypeError, ValueError, TrustError) as error:
        raise TrustError(
            "E-CANARY-COMMITMENT",
            f"expected from {answer.member} the canaries' bits that were committed to before "
            "training, got others",
            hint=f"The audit is void: {answer.member} may have chosen the bits after seeing the "
            "model, or had their node restored from a backup, which holds none. Ask the owner, and "
            "submit another twin.",
        ) from error
    return opening


def canary_report(
    spec: RunSpec,
    model: Arrays,
    answers: Sequence[Answered],
    *,
    unopened: Mapping[str, str],
    absent: Sequence[str],
) -> dict[str, Any]:
    """Return the canary part of a report: each owner's figures with their ceilings, and a verdict.

    Args:
        spec: of the run that the canaries were in.
        model: its final weights.
        answers: one per owner who opened.
        unopened: why others who took part did not open, by member.
        absent: members who had committed when the run started, and took no part in it.

    Raises:
        TrustError: an owner opened other bits than were committed to.
        DataError: scores cannot be used.
    """
    canaries = spec.canaries
    if canaries is None:
        raise ValueError("expected a run with canaries")
    openings = [verified_opening(answer, canaries) for answer in answers]
    evidence = [
        Evidence(
            node_id=answer.node_id,
            member=answer.member,
            commitment=answer.commitment,
            claim=claim_from(answer.claim),
            opening=opening,
            directions=_scores_of(answer) if canaries.directions else None,
            mislabelled=_mislabelled(spec, model, opening) if canaries.mislabelled else None,
            bytes=answer.bytes,
        )
        for answer, opening in zip(answers, openings, strict=True)
    ]
    return report_of(canaries, evidence, unopened=unopened, absent=absent)


def _scores_of(answer: Answered) -> CanaryScores:
    values = answer.values
    return CanaryScores(
        products=np.array(values[CANARY_PRODUCTS], dtype=np.float64),
        squared_norm=float(values[CANARY_SQUARED_NORM]),
        steps=int(values[CANARY_STEPS]),
        parameters=int(values[CANARY_PARAMETERS]),
    )


def _mislabelled(spec: RunSpec, weights: Arrays, opening: Opening) -> Float64Array:
    """Score an owner's mislabelled records, made again from contract and seed, on a model."""
    if spec.data is None or spec.model is None:
        raise ValueError("expected a run of the built-in app")
    design = opening.design
    rows = mislabelled_from_ranges(spec.data, design.mislabelled, seed=design.seed)
    model = build_model(spec.model, spec.data, private=True)
    load_model_arrays(model, weights)
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(rows.features)).numpy().astype(np.float64)
    return mislabelled_scores(logits, rows.labels)
