"""What the daemon tells nodes about runs, as it travels in a Watch stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.protos import fleet_pb2
from tacit.server.catalogue import RunStatus

if TYPE_CHECKING:
    from tacit.server.catalogue import RunRecord


def run_offer(record: RunRecord) -> fleet_pb2.Task:
    """Offer a run to an owner's node."""
    offer = fleet_pb2.RunOffer(
        run_id=record.run_id,
        specification=record.specification,
        specification_sha256=record.specification_sha256,
    )
    return fleet_pb2.Task(offer=offer)


def run_ended(run_id: str, status: RunStatus, reason: str) -> fleet_pb2.Task:
    """Tell a node that a run is over: who stopped it said why, or what its canaries said."""
    said = "" if status is RunStatus.FAILED else reason  # a failure's text stays here
    return fleet_pb2.Task(ended=fleet_pb2.RunEnded(run_id=run_id, status=status.value, reason=said))
