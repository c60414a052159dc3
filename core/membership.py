"""What a member keeps after enrolment: keys, certificate, the authority, and where the server is.

One folder, mode 0700, for a client's node and for an operator's profile alike::

    tls-key.pem enrolment-key.pem certificate.pem authority.pem server.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from tacit.core.certificates import (
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    MemberIdentity,
    der_of,
    identity_of,
    load_certificate,
    pem_of,
)
from tacit.core.errors import TrustError, UnavailableError
from tacit.core.files import make_private_folder, write_atomic
from tacit.core.keys import TLS_KEY_FILE, MemberKeys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SERVER_FILE = "server.json"


@dataclass(frozen=True)
class Membership:
    """A folder with one member's credentials; every property reads the disk anew.

    Attributes:
        folder: where they stand.
    """

    folder: Path

    @property
    def exists(self) -> bool:
        """Whether enrolment was completed here."""
        return (self.folder / CERTIFICATE_FILE).is_file()

    @property
    def keys(self) -> MemberKeys:
        """Both private keys."""
        return MemberKeys.load(self.folder)

    @property
    def key_pem(self) -> bytes:
        """The TLS private key."""
        return self._read(TLS_KEY_FILE)

    @property
    def certificate_pem(self) -> bytes:
        """This member's certificate."""
        return self._read(CERTIFICATE_FILE)

    @property
    def authority_pem(self) -> bytes:
        """The certificate of the federation's authority."""
        return self._read(AUTHORITY_FILE)

    @property
    def identity(self) -> MemberIdentity:
        """What this member's certificate says."""
        return identity_of(self.certificate_pem)

    @property
    def addresses(self) -> tuple[str, ...]:
        """``host:port`` of the server, in the order in which to try them."""
        return self._addresses("addresses")

    @property
    def enrolment_addresses(self) -> tuple[str, ...]:
        """``host:port`` of the enrolment service."""
        return self._addresses("enrolment_addresses")

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UnavailableError(
                "E-NOT-ENROLLED",
                f"expected {name} in {self.folder}: {error.strerror}",
                hint="Enrol first: `tacit client join TOKEN` for a data owner, "
                "`tacit login TOKEN` for an operator or auditor.",
            ) from error

    def _addresses(self, key: str) -> tuple[str, ...]:
        try:
            return tuple(str(address) for address in json.loads(self._read(_SERVER_FILE))[key])
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                "E-NOT-ENROLLED",
                f"expected the server's addresses in {self.folder / _SERVER_FILE}",
                hint="Restore the file from a backup, or enrol again with a new token.",
            ) from error


def save_membership(
    folder: Path,
    *,
    keys: MemberKeys,
    certificate_der: bytes,
    authority_der: bytes,
    addresses: Sequence[str],
    enrolment_addresses: Sequence[str] = (),
) -> Membership:
    """Store what enrolment gave; the certificate comes last and makes it complete.

    Raises:
        TrustError: the certificate is not for these keys, or not signed by this authority.
    """
    verify_certificate(certificate_der, keys=keys, authority_der=authority_der)
    make_private_folder(folder)
    server = {"addresses": list(addresses), "enrolment_addresses": list(enrolment_addresses)}
    keys.save(folder)
    write_atomic(folder / AUTHORITY_FILE, pem_of(authority_der), mode=0o644)
    write_atomic(folder / _SERVER_FILE, json.dumps(server, indent=2).encode("utf-8"))
    write_atomic(folder / CERTIFICATE_FILE, pem_of(certificate_der), mode=0o644)
    return Membership(folder)


def replace_certificate(membership: Membership, certificate_der: bytes) -> None:
    """Store a renewed certificate for the keys that are there.

    Raises:
        TrustError: it is not for these keys, or not signed by the authority of this folder.
    """
    authority_der = der_of(membership.authority_pem)
    verify_certificate(certificate_der, keys=membership.keys, authority_der=authority_der)
    path = membership.folder / CERTIFICATE_FILE
    write_atomic(path, pem_of(certificate_der), mode=0o644)


def verify_certificate(certificate_der: bytes, *, keys: MemberKeys, authority_der: bytes) -> None:
    """Check that a certificate is for these keys and signed by this authority.

    Raises:
        TrustError: E-CERTIFICATE-AUTHORITY or E-CERTIFICATE-KEYS.
    """
    certificate = load_certificate(certificate_der)
    try:
        certificate.verify_directly_issued_by(load_certificate(authority_der))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise TrustError(
            "E-CERTIFICATE-AUTHORITY",
            "expected a certificate signed by the authority in the token, got another",
            hint="Ask the operator for a new token, on a channel that you trust.",
        ) from error
    same_key = certificate.public_key() == keys.tls.public_key()
    if not same_key or identity_of(certificate_der).node_id != keys.node_id:
        raise TrustError(
            "E-CERTIFICATE-KEYS",
            "expected a certificate for this member's own keys, got one for others",
            hint="Ask the operator for a new token; the server may be misbehaving.",
        )
