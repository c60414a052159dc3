"""What owners opened, verified and scored: from bits, salt and products to one report.

Each owner's canaries are held against that owner's own claim; the run's verdict is the worst. The
chance of 5 % that a true claim fails is shared among the owners.

Trusts: each owner committed to bits before the first round was aggregated, which the server noted.
What an owner opens is held against that; products of directions are the owner's word, mislabelled
records are scored here, from the contract, the seed and the final model. Loads torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tacit.attacks.bounds.bound import ALPHA
from tacit.attacks.canaries import (
    CanaryKind,
    ScoredCanaries,
    Verdict,
    audit_canaries,
    mislabelled_scores,
)
from tacit.attacks.claim import Claim
from tacit.attacks.inclusion import Opening, owner_design, verify_opening
from tacit.attacks.report_form import CANARY_SCHEMA, CANARY_VERSION
from tacit.core.errors import TrustError
from tacit.core.privacy_spec import PrivacyUnit, Relation
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

    from tacit.attacks.bounds.bound import Bound
    from tacit.attacks.canaries import KindFindings
    from tacit.core.artifacts import Arrays
    from tacit.core.canary_spec import CanarySpec
    from tacit.core.specification import RunSpec

_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
LIMITS = (
    "An owner who treats canaries unlike records, or reports false products, is not found out.",
    "A violation smaller than the distance between a bound and its ceiling is not seen.",
)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One owner's opening as it came, and what it is held against.

    Attributes:
        node_id, member: whose.
        commitment: what the owner committed to before the first round, in hex.
        claim: of the owner's ledger, as the manifest has it.
        values: the reply's metrics.
    """

    node_id: int
    member: str
    commitment: str
    claim: Mapping[str, Any]
    values: Mapping[str, Any]


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
) -> dict[str, Any]:
    """Return the canary part of a report: each owner's figures with their ceilings, and a verdict.

    Args:
        spec: of the run that the canaries were in.
        model: its final weights.
        answers: one per owner who opened.
        unopened: why each other owner who had committed did not, by member.

    Raises:
        TrustError: an owner opened other bits than were committed to.
        DataError: scores cannot be used.
    """
    canaries = spec.canaries
    if canaries is None:
        raise ValueError("expected a run with canaries")
    openings = [verified_opening(answer, canaries) for answer in answers]
    owners = [
        _owner(spec, model, answer, opening, alpha=ALPHA / len(answers))
        for answer, opening in zip(answers, openings, strict=True)
    ]
    verdicts = [Verdict(owner["verdict"]) for owner in owners]
    if unopened or not verdicts:
        verdicts.append(Verdict.INCONCLUSIVE)
    verdict = min(verdicts, key=_WORST.index)
    return {
        "schema": CANARY_SCHEMA,
        "version": CANARY_VERSION,
        "run": canaries.run,
        "twin": canaries.twin,
        "verdict": verdict.value,
        "line": _line(verdict, owners),
        "owners": owners,
        "unopened": [{"member": name, "why": unopened[name]} for name in sorted(unopened)],
        "limits": list(LIMITS),
    }


def _owner(
    spec: RunSpec, model: Arrays, answer: Answered, opening: Opening, *, alpha: float
) -> dict[str, Any]:
    claim = Claim(
        epsilon=math.inf if answer.claim["epsilon"] is None else answer.claim["epsilon"],
        delta=answer.claim["delta"],
        unit=PrivacyUnit(answer.claim["unit"]),
        relation=Relation(answer.claim["relation"]),
    )
    scored = []
    steps = None
    if opening.design.directions:
        scores = _scores_of(answer)
        steps = scores.steps
        scored.append(_directions(scores, opening))
    if opening.design.mislabelled:
        scored.append(_mislabelled(spec, model, opening))
    rng = np.random.default_rng([opening.design.seed[0], answer.node_id % (1 << 62)])
    findings = audit_canaries(scored, claim, rng=rng, alpha=alpha)
    return {
        "member": answer.member,
        "commitment": answer.commitment,
        "verdict": findings.verdict.value,
        "reasons": list(findings.reasons),
        "claim": {
            "epsilon": claim.epsilon,
            "delta": claim.delta,
            "unit": claim.unit.value,
            "relation": claim.relation.value,
        },
        "steps": steps,
        "kinds": [_kind(kind) for kind in findings.kinds],
    }


def _scores_of(answer: Answered) -> CanaryScores:
    values = answer.values
    return CanaryScores(
        products=np.array(values[CANARY_PRODUCTS], dtype=np.float64),
        squared_norm=float(values[CANARY_SQUARED_NORM]),
        steps=int(values[CANARY_STEPS]),
        parameters=int(values[CANARY_PARAMETERS]),
    )


def _directions(scores: CanaryScores, opening: Opening) -> ScoredCanaries:
    return ScoredCanaries(
        kind=CanaryKind.DIRECTIONS,
        scores=scores.products,
        included=opening.directions,
        guesses=opening.design.direction_guesses,
        cosines=scores.cosines(),
        dimension=scores.dimension,
    )


def _mislabelled(spec: RunSpec, weights: Arrays, opening: Opening) -> ScoredCanaries:
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
    return ScoredCanaries(
        kind=CanaryKind.MISLABELLED,
        scores=mislabelled_scores(logits, rows.labels),
        included=opening.mislabelled,
        guesses=design.mislabelled_guesses,
    )


def _kind(kind: KindFindings) -> dict[str, Any]:
    return {
        "kind": kind.kind.value,
        "canaries": kind.canaries,
        "included": kind.included,
        "self_test_passed": kind.self_test.passed,
        "bounds": [_bound(bound) for bound in kind.bounds],
    }


def _bound(bound: Bound) -> dict[str, Any]:
    return {
        "method": bound.method.value,
        "epsilon": _finite(bound.value),
        "ceiling": _finite(bound.ceiling),
        "estimate": None if bound.point is None else _finite(bound.point),
        "is_proof": bound.is_proof,
        "alpha": bound.alpha,
        "guesses": bound.guesses,
        "correct": bound.correct,
    }


def _finite(value: float) -> float | None:
    """Return a figure as JSON has it: null where nothing bounds it."""
    return float(value) if math.isfinite(value) else None


def _line(verdict: Verdict, owners: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the canaries say of the claims."""
    if not owners:
        return "Canaries: inconclusive: no owner opened any"
    claims = [owner["claim"]["epsilon"] for owner in owners]
    claimed = " to ".join(sorted({f"{min(claims):.2f}", f"{max(claims):.2f}"}, key=float))
    proofs = [
        bound
        for owner in owners
        for kind in owner["kinds"]
        for bound in kind["bounds"]
        if bound["is_proof"] and bound["method"] == "one-run"
    ]
    best = max(proofs, key=lambda bound: bound["epsilon"] or 0.0)
    return (
        f"Canaries: {verdict.value}: of {len(owners)} owners who claim epsilon {claimed}, the "
        f"highest one-run bound is {best['epsilon']:.2f}, of at most {best['ceiling']:.2f} that "
        "these canaries could show"
    )
