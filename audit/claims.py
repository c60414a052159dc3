"""What a model claims: an epsilon at a delta, and of what; a report's curves are drawn against it.

Trusts: a run's manifest, which has the owners' own words, or whoever names a claim. Promises: of
several claims the weakest is drawn, under its owner's name; a run that claims nothing has no line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tacit.core.errors import UsageError
from tacit.core.privacy_spec import PrivacyUnit, Relation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Claim = dict[str, Any]  # as `claims` of the report's schema has it


def claims_in(manifest: Mapping[str, Any]) -> list[Claim]:
    """Return what each owner's ledger says that a run costs the records it trained on.

    Args:
        manifest: ``manifest.json`` of the run; sides without an epsilon claim nothing.
    """
    names = manifest.get("members", {})
    return [
        {
            "member": names.get(node, node),
            **{key: sides["train"][key] for key in ("epsilon", "delta", "unit", "relation")},
        }
        for node, sides in sorted(
            manifest.get("claims", {}).items(), key=lambda each: str(names.get(each[0], each[0]))
        )
        if sides.get("train", {}).get("epsilon") is not None
    ]


def parse_claim(text: str) -> Claim:
    """Return a claim from ``EPSILON,DELTA`` or ``EPSILON,DELTA,UNIT``; the unit is a record.

    Raises:
        UsageError: it is none (``E-AUDIT-CLAIM``).
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        epsilon, delta = map(float, parts[:2])
        (unit,) = map(PrivacyUnit, parts[2:] or ["record"])
    except ValueError:
        epsilon, delta, unit = math.nan, math.nan, PrivacyUnit.RECORD
    if not (0 <= epsilon < math.inf and 0 <= delta < 1):
        units = ", ".join(each.value for each in PrivacyUnit)
        raise UsageError(
            "E-AUDIT-CLAIM",
            f"expected EPSILON,DELTA or EPSILON,DELTA,UNIT, got {text!r}",
            hint=f"For example 3.2,1e-5,record; units: {units}.",
        )
    relation = Relation.REPLACE_ONE if unit is PrivacyUnit.CLIENT else Relation.ADD_REMOVE
    return {
        "member": None,
        "epsilon": epsilon,
        "delta": delta,
        "unit": unit.value,
        "relation": relation.value,
    }


def weakest(claims: Sequence[Claim]) -> Claim | None:
    """Return the claim of the largest epsilon; None of none."""
    return max(claims, key=lambda claim: (claim["epsilon"], claim["delta"]), default=None)


def said(claims: Sequence[Claim]) -> str:
    """Name the weakest claim, and of how many it is."""
    claim = weakest(claims)
    if claim is None:
        return "none"
    text = f"epsilon = {claim['epsilon']:.3g}, delta = {claim['delta']:.3g} per {claim['unit']}"
    return text if len(claims) == 1 else f"{text}, the weakest of {len(claims)} owners'"
