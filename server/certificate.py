"""The server's own TLS key and certificate: made at first, and again before it ends.

Members trust the authority, not this certificate, so it can be replaced at any start of the daemon:
when its time is nearly over, or when ``names`` in server.toml has changed.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tacit.core.errors import UnavailableError
from tacit.core.files import make_private_folder, write_atomic
from tacit.core.identity import (
    CERTIFICATE_FILE,
    TLS_KEY_FILE,
    Authority,
    load_certificate,
    pem_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TLS_FOLDER = "tls"

_DAYS = 825  # the most that TLS libraries accept of a leaf certificate
_RENEW_BEFORE = dt.timedelta(days=90)  # daemons run for long, and renew at a start only


def make_server_certificate(home: Path, authority: Authority, names: Sequence[str]) -> None:
    """Make a key and a certificate for these names, in place of earlier ones.

    Raises:
        ConfigError: a name is neither a host name nor an IP address.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue_server(key.public_key(), names, _DAYS)
    folder = home / TLS_FOLDER
    make_private_folder(folder)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / CERTIFICATE_FILE).unlink(missing_ok=True)  # never beside a key that is not its own
    write_atomic(folder / TLS_KEY_FILE, key_pem)
    write_atomic(folder / CERTIFICATE_FILE, pem_of(certificate), mode=0o644)


def ensure_server_certificate(
    home: Path, authority: Authority, names: Sequence[str], *, now: dt.datetime
) -> bool:
    """Make the certificate again where that is due; return whether it was.

    Raises:
        ConfigError: a name is neither a host name nor an IP address.
    """
    path = home / TLS_FOLDER / CERTIFICATE_FILE
    if path.is_file() and (home / TLS_FOLDER / TLS_KEY_FILE).is_file():
        certificate = load_certificate(path.read_bytes())
        wanted = authority.issue_server(authority.key.public_key(), names, 1)
        if (
            certificate.not_valid_after_utc - now > _RENEW_BEFORE
            and _names_of(certificate) == _names_of(load_certificate(wanted))
            and certificate.issuer == authority.certificate.subject
        ):
            return False
    make_server_certificate(home, authority, names)
    return True


def read_server_certificate(home: Path) -> tuple[bytes, bytes]:
    """Return certificate and private key, both PEM.

    Raises:
        UnavailableError: one of them cannot be read.
    """
    folder = home / TLS_FOLDER
    try:
        return (folder / CERTIFICATE_FILE).read_bytes(), (folder / TLS_KEY_FILE).read_bytes()
    except OSError as error:
        raise UnavailableError(
            "E-SERVER-NOT-INITIALISED",
            f"expected a certificate and a key in {folder}: {error.strerror}",
            hint="Run `tacit server init` first, or name the state directory with --home.",
        ) from error


def _names_of(certificate: x509.Certificate) -> set[x509.GeneralName]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value)
