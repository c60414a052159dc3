"""Channels and credentials of the wire: the same options at every end.

Everything but enrolment is mutual TLS; enrolment is TLS against the authority that the token
carries. There is no plain-text port: only a Unix socket in a daemon's own state directory, where
whoever can open it is the administrator.

How errors cross the wire is in failures.py; its three functions are also here.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Any

import grpc

from tacit.protos.failures import abort_with, error_from_rpc, status_error

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_MESSAGE_BYTES",
    "WINDOW_BYTES",
    "abort_with",
    "channel_options",
    "client_channel",
    "control_channel",
    "enrolment_channel",
    "enrolment_credentials",
    "error_from_rpc",
    "local_channel",
    "local_credentials",
    "peer_certificate",
    "server_credentials",
    "server_options",
    "status_error",
]

MAX_MESSAGE_BYTES = 4 << 20
WINDOW_BYTES = 4 << 20  # sent ahead of the reader, per stream; 4 MiB fill 0.6 Gbit/s at 50 ms

Options = list[tuple[str, int]]

# A fixed window instead of one that is found by probing: a fifth less CPU (see frames.py).
_COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.keepalive_time_ms", 30_000),  # below the idle limit of common firewalls
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


def channel_options(address: str = "") -> Options:
    """Return the options of a channel to ``address``."""
    options: Options = [
        *_COMMON_OPTIONS,
        ("grpc.enable_retries", 0),  # what is sent again, and when, is decided by the node
    ]
    if _is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def server_options() -> Options:
    """Return the options of every port of the daemon."""
    return [
        *_COMMON_OPTIONS,
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server
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


def _is_loopback(address: str) -> bool:
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
