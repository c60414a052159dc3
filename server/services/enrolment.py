"""Enrolment on the wire: a token and a certificate request in, a certificate out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tacit.protos import enrolment_pb2, enrolment_pb2_grpc
from tacit.server.services.access import caller

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from tacit.server.authority import Enrolled, Membership


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServicer):
    """``Enrol`` on the enrolment port, ``Renew`` on the main one; the doors keep them apart."""

    def __init__(self, membership: Membership, *, enrolled: Callable[[], None]) -> None:
        self._membership = membership
        self._enrolled = enrolled

    async def Enrol(  # noqa: N802 - the name on the wire
        self,
        request: enrolment_pb2.EnrolRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> enrolment_pb2.EnrolReply:
        """Spend a token."""
        del context
        enrolled = self._membership.enrol(
            request.invitation_id,
            request.secret,
            request_der=request.certificate_request_der,
            signature=request.possession_signature,
            software_version=request.software_version,
        )
        self._enrolled()
        return self._reply(enrolled)

    async def Renew(  # noqa: N802 - the name on the wire
        self,
        request: enrolment_pb2.RenewRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> enrolment_pb2.EnrolReply:
        """Give a fresh certificate for the same enrolment key."""
        del context
        enrolled = self._membership.renew(
            caller().verified_identity,
            request_der=request.certificate_request_der,
            signature=request.possession_signature,
        )
        return self._reply(enrolled)

    def _reply(self, enrolled: Enrolled) -> enrolment_pb2.EnrolReply:
        return enrolment_pb2.EnrolReply(
            certificate_der=enrolled.certificate_der,
            authority_der=self._membership.authority.der,
            member_name=enrolled.name,
            role=enrolled.role.value,
            node_id=enrolled.node_id,
        )
