"""What owners commit to for their canaries, in the daemon: before a run starts, and never after.

A commitment is worth something only if nobody could choose the bits by what the run has shown. So
it comes with the owner's yes, and before the run starts, hence before any weights of the run are
sent to anybody.

The rules:

1. A yes to a run with canaries carries a commitment of 32 bytes, or is no yes.
2. The first one of a node stands: it is an event of the run, which a restart reads again. A node
   that brings another one takes no part (``E-CANARY-COMMITMENT``): it could not open the first.
3. A node that has committed to nothing when the run starts takes no part (``E-CANARIES-LATE``). It
   could train without its canaries counting, but a twin is there for nothing else: its owner would
   pay for a run that says nothing of them. So the run starts when every connected owner has said
   yes or no, and not merely when there are enough.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.core.events import EventKind
from tacit.server.catalogue import NodeVerdict, RunStatus, Verdict
from tacit.server.grid_messages import DENIED

if TYPE_CHECKING:
    from tacit.core.artifacts import RunFolder
    from tacit.server.driver import ActiveRun

OTHER = "E-CANARY-COMMITMENT"
LATE = "E-CANARIES-LATE"
_BYTES = 32


def with_commitment(run: ActiveRun, decision: NodeVerdict, commitment: bytes) -> NodeVerdict:
    """Note what a node commits to with its yes; return its decision, or the no that it comes to.

    Raises:
        ProtocolError: a yes to canaries without a commitment (``E-DECISION-COMMITMENT``).
    """
    if run.specification.canaries is None or decision.verdict is not Verdict.APPROVED:
        return decision
    if len(commitment) != _BYTES:
        raise ProtocolError(
            "E-DECISION-COMMITMENT",
            f"expected {_BYTES} bytes that commit to canaries with the yes, got {len(commitment)}",
        )
    known = run.commitments.get(decision.node_id)
    if known == commitment.hex():
        return decision
    if known is not None or run.status is RunStatus.RUNNING:
        code = LATE if known is None else OTHER
        return replace(decision, verdict=Verdict.DENIED, code=code)
    fields = {
        "member": run.journal.around.member(decision.node_id),
        "node_id": decision.node_id,
        "commitment": commitment.hex(),
    }
    run.journal.note(EventKind.CANARIES_COMMITTED, fields)
    run.commitments[decision.node_id] = commitment.hex()
    return decision


def drop_code(decision: NodeVerdict) -> str:
    """Return why a node owes no answer any more: its owner's no, or other bits than before."""
    return OTHER if decision.code == OTHER else DENIED


def verdict_line(folder: RunFolder) -> str:
    """Return what canaries said of a finished run's claims; empty for a run without any."""
    try:
        return str(json.loads(folder.canaries.read_bytes())["line"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
