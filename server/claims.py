"""What owners say that a run has cost their records, by their own ledgers: read, checked, kept.

A claim is the owner's word: the server checks its form and where the ledger stands, and keeps the
latest one of each owner and side for the manifest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ProtocolError
from tacit.core.specification import Relation
from tacit.privacy.ledger_entries import Side, Unit

if TYPE_CHECKING:
    from tacit.protos import fleet_pb2

_UNITS = frozenset(unit.value for unit in Unit)
_RELATIONS = frozenset(relation.value for relation in Relation)
_SIDES = frozenset(side.value for side in Side)


def verify_claim(claim: fleet_pb2.Claim) -> None:
    """Check a claim's form.

    Raises:
        ProtocolError: E-CLAIM-MALFORMED.
    """
    known = claim.unit in _UNITS and claim.relation in _RELATIONS and claim.side in _SIDES
    if not known or not claim.epsilon >= 0 or not 0 <= claim.delta < 1:
        raise ProtocolError(
            "E-CLAIM-MALFORMED", "expected a claim of unit, relation, side, epsilon and delta"
        )


def plain_epsilon(claim: fleet_pb2.Claim) -> float | None:
    """Return a claim's epsilon as JSON has it: null where nothing bounds it."""
    return claim.epsilon if math.isfinite(claim.epsilon) else None


def plain_claim(claim: fleet_pb2.Claim) -> dict[str, Any]:
    """Return a claim as the manifest shows it; bytes in hex."""
    head = claim.ledger
    return {
        "unit": claim.unit,
        "relation": claim.relation,
        "epsilon": plain_epsilon(claim),
        "delta": claim.delta,
        "ledger": {
            "ledger_id": head.ledger_id.hex(),
            "entries": head.entries,
            "sha256": head.sha256.hex(),
            "public_key": head.public_key.hex(),
            "signature": head.signature.hex(),
        },
    }
