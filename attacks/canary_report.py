"""The report on one run's canaries: made from what owners opened, and made again from itself.

Each owner's canaries are held against that owner's own claim; the run's verdict is the worst. The
chance of 5 % that a true claim fails is shared among all who had committed when the run started, so
that nobody moves it by what they do later. The report holds what it is computed from: whoever reads
it computes commitments, bounds and verdicts again, and need not trust the server's arithmetic.

What verifying trusts all the same: that the commitments were told before the run started, the
owners' products of directions, and the scores of mislabelled records on a final model that is gone
where it was a twin's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.attacks.bounds.bound import ALPHA, Method
from tacit.attacks.canaries import CanaryKind, ScoredCanaries, Verdict, audit_canaries
from tacit.attacks.claim import Claim
from tacit.attacks.inclusion import SALT_BYTES, Opening, owner_design, verify_opening
from tacit.attacks.report_form import CANARY_SCHEMA, CANARY_VERSION
from tacit.core.canary_spec import CanarySpec
from tacit.core.errors import TrustError
from tacit.core.privacy_spec import PrivacyUnit, Relation
from tacit.privacy.dpsgd.canaries import CanaryScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.attacks.bounds.bound import Bound
    from tacit.attacks.canaries import KindFindings
    from tacit.attacks.points import Float64Array

_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
LIMITS = (
    "An owner who treats canaries unlike records, or reports false products, is not found out.",
    "A violation smaller than the distance between a bound and its ceiling is not seen.",
)
_UNTESTED = {
    "directions": "without directions, too little noise was hardly tested",
    "mislabelled": "without mislabelled records, missing or wrong clipping was not tested",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """One owner's canaries, opened and scored.

    Attributes:
        node_id, member: whose.
        commitment: what the owner committed to before the run started, in hex.
        claim: of the owner's ledger.
        opening: salt, bits and design.
        directions: what released gradients say of them, by the owner's word; None without any.
        mislabelled: float64 ``(m,)``, their scores on the final model; None without any.
        bytes: that left the owner for the opening.
    """

    node_id: int
    member: str
    commitment: str
    claim: Claim
    opening: Opening
    directions: CanaryScores | None
    mislabelled: Float64Array | None
    bytes: int


def report_of(
    canaries: CanarySpec,
    evidence: Sequence[Evidence],
    *,
    unopened: Mapping[str, str],
    absent: Sequence[str],
) -> dict[str, Any]:
    """Return the canary part of a report: each owner's figures with their ceilings, and a verdict.

    Args:
        canaries: of the run that they were in.
        evidence: of each owner who opened.
        unopened: why others who took part did not open, by member.
        absent: members who had committed when the run started, and took no part in it.

    Raises:
        DataError: scores cannot be used.
    """
    committed = len(evidence) + len(unopened) + len(absent)
    owners = [_owner(each, alpha=ALPHA / committed) for each in evidence]
    verdicts = [Verdict(owner["verdict"]) for owner in owners]
    if unopened or not verdicts:
        verdicts.append(Verdict.INCONCLUSIVE)
    verdict = min(verdicts, key=_WORST.index)
    return {
        "schema": CANARY_SCHEMA,
        "version": CANARY_VERSION,
        "run": canaries.run,
        "twin": canaries.twin,
        "design": _design(canaries),
        "verdict": verdict.value,
        "line": _line(verdict, canaries, owners),
        "owners": owners,
        "unopened": [{"member": name, "why": unopened[name]} for name in sorted(unopened)],
        "absent": sorted(absent),
        "limits": list(LIMITS),
    }


def verify_report(report: Mapping[str, Any]) -> int:
    """Compute a report again from what was opened; return how many bounds came out as it says.

    Args:
        report: that keeps its schema.

    Raises:
        TrustError: an opening is not what its owner committed to (``E-CANARY-COMMITMENT``), or a
            figure or verdict does not follow from the openings (``E-CANARY-REPORT``).
        DataError: scores cannot be used.
    """
    try:
        design = CanarySpec(run=report["run"], twin=report["twin"], **report["design"])
        evidence = [_evidence(owner, design) for owner in report["owners"]]
    except ValueError as error:
        raise _other("openings", "openings of this design") from error
    unopened = {each["member"]: each["why"] for each in report["unopened"]}
    again = report_of(design, evidence, unopened=unopened, absent=report["absent"])
    for key in again:
        if key not in ("run", "limits") and not _same(again[key], report[key]):
            raise _other(key, "what follows from the openings")
    return sum(len(kind["bounds"]) for owner in report["owners"] for kind in owner["kinds"])


def _other(key: str, expected: str) -> TrustError:
    return TrustError(
        "E-CANARY-REPORT",
        f"expected in {key} of the report {expected}, got something else",
        hint="The file was changed, or the server computed otherwise: do not rely on it.",
    )


def _same(one: object, other: object) -> bool:
    """Whether two JSON values are equal, numbers up to the last digits of another machine."""
    match one, other:
        case dict(), dict():
            return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(_same, one, other))
        case float() | int(), float() | int():
            return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
        case _:
            return one == other


def _design(canaries: CanarySpec) -> dict[str, int]:
    plain: dict[str, int] = asdict(canaries)
    return {key: value for key, value in plain.items() if key not in ("run", "twin")}


def _evidence(owner: Mapping[str, Any], canaries: CanarySpec) -> Evidence:
    """Read an owner's opening back from a report; the design is computed, not read."""
    told = owner["opening"]
    design = owner_design(canaries, int(told["node_id"]))
    packed = np.frombuffer(bytes.fromhex(told["bits"]), dtype=np.uint8)
    included = np.unpackbits(packed, count=design.canaries).astype(np.bool_)
    opening = Opening(design=design, salt=bytes.fromhex(told["salt"]), included=included)
    verify_opening(opening, commitment=owner["commitment"])
    scores, directions = told["mislabelled_scores"], told["directions"]
    return Evidence(
        node_id=int(told["node_id"]),
        member=owner["member"],
        commitment=owner["commitment"],
        claim=claim_from(owner["claim"]),
        opening=opening,
        directions=directions
        and CanaryScores(
            products=np.array(directions["products"], dtype=np.float64),
            squared_norm=directions["squared_norm"],
            steps=directions["steps"],
            parameters=directions["parameters"],
        ),
        mislabelled=None if scores is None else np.array(scores, dtype=np.float64),
        bytes=owner["left"]["bytes"],
    )


def claim_from(told: Mapping[str, Any]) -> Claim:
    """Return a claim from its JSON: a manifest's or a report's."""
    return Claim(
        epsilon=math.inf if told["epsilon"] is None else told["epsilon"],
        delta=told["delta"],
        unit=PrivacyUnit(told["unit"]),
        relation=Relation(told["relation"]),
    )


def _owner(evidence: Evidence, *, alpha: float) -> dict[str, Any]:
    opening, claim = evidence.opening, evidence.claim
    scored = []
    if evidence.directions is not None:
        scored.append(_directions(evidence.directions, opening))
    if evidence.mislabelled is not None:
        scored.append(
            ScoredCanaries(
                kind=CanaryKind.MISLABELLED,
                scores=evidence.mislabelled,
                included=opening.mislabelled,
                guesses=opening.design.mislabelled_guesses,
            )
        )
    rng = np.random.default_rng([opening.design.seed[0], evidence.node_id % (1 << 62)])
    findings = audit_canaries(scored, claim, rng=rng, alpha=alpha)
    return {
        "member": evidence.member,
        "commitment": evidence.commitment,
        "verdict": findings.verdict.value,
        "reasons": list(findings.reasons),
        "claim": {
            "epsilon": claim.epsilon,
            "delta": claim.delta,
            "unit": claim.unit.value,
            "relation": claim.relation.value,
        },
        "steps": None if evidence.directions is None else evidence.directions.steps,
        "kinds": [_kind(kind) for kind in findings.kinds],
        "left": {
            "bytes": evidence.bytes,
            "bits": opening.design.canaries,
            "salt_bytes": SALT_BYTES,
            "sums": opening.design.directions,
        },
        "opening": _opening(evidence),
    }


def _opening(evidence: Evidence) -> dict[str, Any]:
    opening, directions, scores = evidence.opening, evidence.directions, evidence.mislabelled
    return {
        "node_id": str(evidence.node_id),  # of 63 bits: more than some readers of JSON keep
        "salt": opening.salt.hex(),
        "bits": np.packbits(opening.included).tobytes().hex(),
        "directions": directions
        and {
            "products": directions.products.tolist(),
            "squared_norm": directions.squared_norm,
            "steps": directions.steps,
            "parameters": directions.parameters,
        },
        "mislabelled_scores": None if scores is None else scores.tolist(),
    }


def _directions(scores: CanaryScores, opening: Opening) -> ScoredCanaries:
    return ScoredCanaries(
        kind=CanaryKind.DIRECTIONS,
        scores=scores.products,
        included=opening.directions,
        guesses=opening.design.direction_guesses,
        cosines=scores.cosines(),
        dimension=scores.dimension,
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


def _line(verdict: Verdict, canaries: CanarySpec, owners: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the canaries say of the claims, and which fault they say nothing of."""
    if not owners:
        return "Canaries: inconclusive: no owner opened any"
    claims = [owner["claim"]["epsilon"] for owner in owners]
    claimed = " to ".join(sorted({f"{min(claims):.2f}", f"{max(claims):.2f}"}, key=float))
    found = [
        bound
        for owner in owners
        for kind in owner["kinds"]
        for bound in kind["bounds"]
        if bound["method"] == Method.ONE_RUN.value
    ]
    best = max(found, key=lambda bound: bound["epsilon"] or 0.0)
    untested = "".join(
        f"; {text}" for kind, text in _UNTESTED.items() if not getattr(canaries, kind)
    )
    return (
        f"Canaries: {verdict.value}: of {len(owners)} owners who claim epsilon {claimed}, the "
        f"highest one-run bound is {best['epsilon']:.2f}, of at most {best['ceiling']:.2f} that "
        f"these canaries could show{untested}"
    )
