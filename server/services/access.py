"""Who may call what: every call passes here first, and every error leaves through here.

Identity comes from the certificate that TLS has checked, never from a request. A method that is not
in a door's table is refused. Peers learn the stable code of an error and nothing else; the text is
logged here, once.
"""

from __future__ import annotations

import functools
import inspect
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from tacit.core.errors import ProtocolError, TacitError, TrustError
from tacit.core.identity import MemberIdentity, Role, identity_of
from tacit.protos.channel import abort_with, peer_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tacit.server.authority import Membership

log = logging.getLogger("tacit.server.access")

_CLIENT = frozenset({Role.CLIENT})
_OPERATOR = frozenset({Role.OPERATOR})
_READERS = frozenset({Role.OPERATOR, Role.AUDITOR})
_ALL = frozenset(Role)

MAIN_DOOR: Mapping[str, frozenset[Role]] = {
    "/tacit.v1.Enrolment/Renew": _ALL,
    "/tacit.v1.Fleet/Join": _CLIENT,
    "/tacit.v1.Fleet/Watch": _CLIENT,
    "/tacit.v1.Fleet/Decide": _CLIENT,
    "/tacit.v1.Fleet/Fetch": _CLIENT,
    "/tacit.v1.Fleet/Submit": _CLIENT,
    "/tacit.v1.Fleet/SubmitStatus": _CLIENT,
    "/tacit.v1.Fleet/Leave": _CLIENT,
    "/tacit.v1.Fleet/Members": _CLIENT,
    "/tacit.v1.Control/Status": _READERS,
    "/tacit.v1.Control/ListMembers": _READERS,
    "/tacit.v1.Control/Invite": _OPERATOR,
    "/tacit.v1.Control/Revoke": _OPERATOR,
    "/tacit.v1.Control/Drain": _OPERATOR,
    "/tacit.v1.Control/SubmitRun": _READERS,  # an auditor's audits: server/audits.py
    "/tacit.v1.Control/ListRuns": _READERS,
    "/tacit.v1.Control/ShowRun": _READERS,
    "/tacit.v1.Control/WatchRun": _READERS,
    "/tacit.v1.Control/StopRun": _READERS,  # an auditor's own audits
    "/tacit.v1.Control/ListFiles": _READERS,
    "/tacit.v1.Control/PullFile": _READERS,
    "/grpc.health.v1.Health/Check": _ALL,
    "/grpc.health.v1.Health/Watch": _ALL,
}

# Before enrolment nobody has a role; the token is checked by the call itself.
ENROLMENT_DOOR: Mapping[str, frozenset[Role]] = {"/tacit.v1.Enrolment/Enrol": frozenset()}

# Who can open the socket in the state directory is the administrator.
LOCAL_DOOR: Mapping[str, frozenset[Role]] = {
    **{method: roles for method, roles in MAIN_DOOR.items() if "/Fleet/" not in method},
    "/tacit.v1.Control/Stop": _OPERATOR,
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a call; ``identity`` is None for the administrator and before enrolment."""

    name: str
    identity: MemberIdentity | None = None

    @property
    def node_id(self) -> int:
        """The calling client's node."""
        return self.verified_identity.node_id

    @property
    def verified_identity(self) -> MemberIdentity:
        """The calling member's identity.

        Raises:
            TrustError: the call has none (E-ROLE-REFUSED).
        """
        if self.identity is None:
            raise TrustError("E-ROLE-REFUSED", "expected a call with a member's certificate")
        return self.identity


_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return who makes the call that runs in this task."""
    return _CALLER.get()


class MemberDoor:
    """The main port: mutual TLS, roles, expiry and revocation, on every call."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._identity = functools.lru_cache(maxsize=4096)(identity_of)

    def identify(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Return the caller.

        Raises:
            TrustError: no member's certificate, ended, revoked, or of a role that may not.
        """
        certificate = peer_certificate(context)
        if certificate is None:
            raise TrustError("E-CERTIFICATE-MISSING", "expected a certificate")
        identity = self._identity(certificate)
        self._membership.verify(identity)
        if identity.role not in MAIN_DOOR.get(method, frozenset()):
            raise TrustError(
                "E-ROLE-REFUSED", f"{identity.name} ({identity.role.value}) may not call {method}"
            )
        return Caller(name=identity.name, identity=identity)


def identify_administrator(method: str, _context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Return the administrator, for calls over the Unix socket."""
    if method not in LOCAL_DOOR:
        raise TrustError("E-ROLE-REFUSED", f"{method} is not served over the Unix socket")
    return Caller(name="administrator")


def identify_nobody(method: str, _context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Return nobody, for the enrolment port."""
    if method not in ENROLMENT_DOOR:
        raise TrustError("E-ROLE-REFUSED", f"{method} is not served on the enrolment port")
    return Caller(name="")


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a port: identify the caller, run, translate errors."""

    def __init__(
        self, identify: Callable[[str, grpc.aio.ServicerContext[Any, Any]], Caller]
    ) -> None:
        self._identify = identify

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - gRPC's handlers have no common type
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        guarded = self._guard(_behaviour(handler), method, streaming=handler.response_streaming)
        return _HANDLERS[handler.request_streaming, handler.response_streaming](
            guarded, handler.request_deserializer, handler.response_serializer
        )

    def _guard(self, behaviour: Any, method: str, *, streaming: bool) -> Any:  # noqa: ANN401
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
            try:
                who = self._identify(method, context)
                _CALLER.set(who)
                answer = behaviour(request, context)
                if streaming and inspect.isasyncgen(answer):
                    return await _write_all(answer, context)
                return await answer
            except TacitError as error:
                _log_refusal(method, error)
                await abort_with(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("call failed", extra={"fields": {"method": method}})
                await abort_with(context, ProtocolError("E-INTERNAL", "the server has a bug"))

        return call


async def _write_all(
    answers: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    async for item in answers:
        await context.write(item)


def _log_refusal(method: str, error: TacitError) -> None:
    fields = {"method": method, "code": error.code, "message": error.message}
    try:
        fields["caller"] = _CALLER.get().name
    except LookupError:
        fields["caller"] = ""
    log.info("call refused", extra={"fields": fields})


def _behaviour(handler: Any) -> Any:  # noqa: ANN401 - gRPC's own object
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    return next(b for kind in kinds if (b := getattr(handler, kind)) is not None)


_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
