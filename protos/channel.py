"""Channels, credentials and errors of the wire: the same at every end.

Everything but enrolment is mutual TLS; enrolment is TLS against the authority that the token
carries. There is no plain-text port: only a Unix socket in a daemon's own state directory, where
whoever can open it is the administrator.

An error crosses the wire as a status code for its family, and its stable code in the trailing
metadata ``tacit-code``. Its text stays where it was made.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from tacit.core.errors import (
    AppError,
    AuditError,
    BudgetError,
    ConfigError,
    DataError,
    ProtocolError,
    RefusedError,
    TacitError,
    TrustError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

MAX_MESSAGE_BYTES = 4 << 20
CODE_KEY = "tacit-code"

Options = list[tuple[str, int | str]]


def channel_options(address: str = "") -> Options:
    """Return the options of a channel to ``address``."""
    options: Options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),  # below the idle limit of common firewalls
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),  # what is sent again, and when, is decided by the node
    ]
    if _is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def server_options() -> Options:
    """Return the options of every port of the daemon."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def client_channel(
    address: str, *, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes
) -> grpc.aio.Channel:
    """Return a member's channel to the daemon (mutual TLS)."""
    credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, certificate_pem)
    return grpc.aio.secure_channel(address, credentials, channel_options(address))


def control_channel(
    address: str, *, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes
) -> grpc.Channel:
    """Return an operator's or auditor's channel to the daemon (mutual TLS, blocking calls)."""
    credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, certificate_pem)
    return grpc.secure_channel(address, credentials, channel_options(address))


def local_channel(socket_path: Path) -> grpc.Channel:
    """Return a channel to the daemon of this machine, over its Unix socket (blocking calls)."""
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    return grpc.secure_channel(f"unix:{socket_path}", credentials, channel_options())


def enrolment_channel(address: str, authority_der: bytes) -> grpc.Channel:
    """Return a channel to the enrolment port (TLS, blocking calls); trusts that authority only."""
    authority_pem = ssl.DER_cert_to_PEM_cert(authority_der).encode("ascii")
    credentials = grpc.ssl_channel_credentials(authority_pem)
    return grpc.secure_channel(address, credentials, channel_options(address))


def server_credentials(
    *, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes
) -> grpc.ServerCredentials:
    """Return the credentials of the main port: who has no certificate of ours cannot connect."""
    return grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)], root_certificates=authority_pem, require_client_auth=True
    )


def enrolment_credentials(*, certificate_pem: bytes, key_pem: bytes) -> grpc.ServerCredentials:
    """Return the credentials of the enrolment port: the server shows its certificate only."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem)])


def local_credentials() -> grpc.ServerCredentials:
    """Return the credentials of the Unix socket."""
    return grpc.local_server_credentials(grpc.LocalConnectionType.UDS)


def peer_certificate(context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
    """Return the certificate (PEM) that TLS has checked; None over the Unix socket."""
    found = context.auth_context().get("x509_pem_cert")
    return bytes(next(iter(found))) if found else None


_STATUS: tuple[tuple[type[TacitError], grpc.StatusCode], ...] = (
    (BudgetError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (TrustError, grpc.StatusCode.UNAUTHENTICATED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (DataError, grpc.StatusCode.DATA_LOSS),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (ProtocolError, grpc.StatusCode.OUT_OF_RANGE),
    (AuditError, grpc.StatusCode.ABORTED),
    (AppError, grpc.StatusCode.INTERNAL),
)


def status_error(error: TacitError) -> grpc.StatusCode:
    """Return the status code of an error's family."""
    for family, status in _STATUS:
        if isinstance(error, family):
            return status
    return grpc.StatusCode.UNKNOWN


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: TacitError) -> NoReturn:
    """End a call with an error: the peer learns its family and stable code, nothing else.

    Raises:
        AbortError: always; gRPC catches it.
    """
    await context.abort(status_error(error), error.code, ((CODE_KEY, error.code),))
    raise AssertionError("abort always raises")


def error_from_rpc(failure: grpc.RpcError) -> TacitError:
    """Return the error of our tree that a failed call stands for."""
    call: Any = failure  # the type says less than every failed call has
    status, details = call.code(), call.details() or ""
    code = next((v for k, v in call.trailing_metadata() or () if k == CODE_KEY), "")
    if code:
        family = next((f for f, s in _STATUS if s is status), TacitError)
        return family(code, "the server refused the call")
    return _transport_error(details)


def _transport_error(details: str) -> TacitError:
    return UnavailableError("E-SERVER-UNREACHABLE", f"no answer from the server: {details}")


def _is_loopback(address: str) -> bool:
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
