"""The federation's own certificate authority, and what a certificate says about its holder.

The authority signs two kinds of certificate and nothing else: the server's, with its host names
and the purpose "server", and members', with role, name and the hash of the enrolment key as URIs
and the purpose "client". A member's certificate can therefore never pass for a server's.

What a certificate says is only believed after TLS has checked it against the authority:
:func:`identity_of` reads, it does not verify a chain.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.files import make_private_folder, write_atomic
from tacit.core.keys import (
    Role,
    check_member_name,
    load_private_key,
    node_id_of_hash,
    parse_request,
    sha256_of_key,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AUTHORITY_FILE = "authority.pem"
AUTHORITY_KEY_FILE = "authority-key.pem"
CERTIFICATE_FILE = "certificate.pem"

_AUTHORITY_DAYS = 3650
_MAX_DAYS = 825  # what TLS libraries put up with in a leaf certificate
_CLOCK_SKEW = dt.timedelta(hours=1)  # a member's clock may be that far behind the server's
_ROLE_URI = "tacit:role:"
_NAME_URI = "tacit:name:"
_ENROLMENT_URI = "tacit:enrolment:"


@dataclass(frozen=True, kw_only=True)
class MemberIdentity:
    """Who a member's certificate says that it belongs to.

    Attributes:
        name: the member's name.
        role: what the member may do.
        node_id: derived from the enrolment key; of use for clients.
        enrolment_key_sha256: 64 hexadecimal digits.
        serial: the certificate's serial number as hexadecimal digits (up to 160 bits).
        not_before: when the certificate begins to hold (UTC).
        not_after: when it ends (UTC).
    """

    name: str
    role: Role
    node_id: int
    enrolment_key_sha256: str
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime


def identity_of(certificate: bytes) -> MemberIdentity:
    """Read the identity from a member's certificate, in DER or PEM.

    Raises:
        TrustError: it is no certificate, or not one of a member.
    """
    parsed = load_certificate(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise _no_member("it carries no identity") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    key_hash = _only(uris, _ENROLMENT_URI)
    try:
        role = Role(_only(uris, _ROLE_URI))
        name = check_member_name(_only(uris, _NAME_URI))
        raw_hash = bytes.fromhex(key_hash)
    except (ValueError, ConfigError) as error:
        raise _no_member("its name, role or key hash cannot be read") from error
    if len(raw_hash) != 32 or key_hash != raw_hash.hex():
        raise _no_member("its key hash cannot be read")
    return MemberIdentity(
        name=name,
        role=role,
        node_id=node_id_of_hash(raw_hash),
        enrolment_key_sha256=key_hash,
        serial=serial_of(parsed),
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
    )


def load_certificate(certificate: bytes) -> x509.Certificate:
    """Parse a certificate in DER or PEM.

    Raises:
        TrustError: it is no certificate.
    """
    try:
        if certificate.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(certificate)
        return x509.load_der_x509_certificate(certificate)
    except ValueError as error:
        raise TrustError(
            "E-CERTIFICATE-DAMAGED",
            "expected an X.509 certificate in DER or PEM, got something else",
            hint="Restore the certificate from a backup, or enrol again with a new token.",
        ) from error


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number as lower-case hexadecimal digits."""
    return f"{certificate.serial_number:x}"


def pem_of(certificate_der: bytes) -> bytes:
    """Return the PEM form of a certificate."""
    return load_certificate(certificate_der).public_bytes(serialization.Encoding.PEM)


def der_of(certificate_pem: bytes) -> bytes:
    """Return the DER form of a certificate."""
    return load_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True, kw_only=True, eq=False)
class Authority:
    """The certificate authority of one federation: its certificate and private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str, *, now: dt.datetime | None = None) -> Authority:
        """Make a fresh authority; ``name`` is for people who look at certificates."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        usage = _key_usage(signs_certificates=True)
        certificate = (
            _builder(subject, subject, key.public_key(), days=_AUTHORITY_DAYS, now=now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate=certificate, key=key)

    @property
    def der(self) -> bytes:
        """The authority's certificate in DER: what tokens carry."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The authority's certificate in PEM: what TLS is given."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def save(self, folder: Path) -> None:
        """Write certificate and private key into a folder of mode 0700."""
        make_private_folder(folder)
        key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_atomic(folder / AUTHORITY_KEY_FILE, key_pem)
        write_atomic(folder / AUTHORITY_FILE, self.pem)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read what :meth:`save` wrote.

        Raises:
            UnavailableError: a file is missing.
            TrustError: key and certificate cannot be read or do not belong together.
        """
        key = load_private_key(folder / AUTHORITY_KEY_FILE)
        try:
            certificate = load_certificate((folder / AUTHORITY_FILE).read_bytes())
        except OSError as error:
            raise UnavailableError(
                "E-AUTHORITY-MISSING",
                f"expected the authority's certificate in {folder}: {error.strerror}",
                hint="Run `tacit server init` first, or name its folder with --home.",
            ) from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or certificate.public_key() != key.public_key()
        ):
            raise TrustError(
                "E-KEY-DAMAGED",
                f"expected the authority's key and certificate in {folder} to belong together",
                hint="Restore the folder from a backup.",
            )
        return cls(certificate=certificate, key=key)

    def issue_server(
        self,
        public_key: ec.EllipticCurvePublicKey,
        hosts: Sequence[str],
        days: int,
        *,
        now: dt.datetime | None = None,
    ) -> bytes:
        """Sign a server certificate (DER) for DNS names and IP addresses.

        Raises:
            ConfigError: no host, or one that is neither name nor address; days out of range.
        """
        if not hosts:
            raise ConfigError(
                "E-SERVER-NAME",
                "expected at least one host name or IP address",
                hint="Name every address that clients will use: --name HOST --name 10.0.0.7",
            )
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tacit server")])
        return self._sign(
            subject,
            public_key,
            names,
            purpose=ExtendedKeyUsageOID.SERVER_AUTH,
            days=days,
            now=now,
        )

    def issue_member(
        self,
        request_der: bytes,
        *,
        name: str,
        role: Role,
        days: int,
        now: dt.datetime | None = None,
    ) -> bytes:
        """Sign a member's certificate (DER) for the keys of a verified request.

        Name and role come from the caller's invitation, never from the request; check the
        request with :func:`tacit.core.keys.verify_request` first.

        Raises:
            ConfigError: the name is not a member name, or days are out of range.
            TrustError: the request is malformed.
        """
        request = parse_request(request_der)
        key_hash = sha256_of_key(request.enrolment_public_key).hex()
        uris = (
            _ROLE_URI + role.value,
            _NAME_URI + check_member_name(name),
            _ENROLMENT_URI + key_hash,
        )
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._sign(
            subject,
            request.tls_public_key,
            names,
            purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
            days=days,
            now=now,
        )

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName,
        *,
        purpose: x509.ObjectIdentifier,
        days: int,
        now: dt.datetime | None,
    ) -> bytes:
        if not 1 <= days <= _MAX_DAYS:
            raise ConfigError(
                "E-CERTIFICATE-DAYS", f"expected 1 to {_MAX_DAYS} days of validity, got {days}"
            )
        issuer = self.certificate.subject
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject, issuer, public_key, days=days, now=now)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    days: int,
    now: dt.datetime | None,
) -> x509.CertificateBuilder:
    start = (now or dt.datetime.now(dt.UTC)).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _CLOCK_SKEW)
        .not_valid_after(start + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        if not host or "/" in host or ":" in host or " " in host:
            raise ValueError(host)  # noqa: TRY301 - one way out for every bad name
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except ValueError as error:
        raise ConfigError(
            "E-SERVER-NAME",
            f"expected a host name or an IP address without a port, got {host!r}",
            hint="Ports stand in `listen` and `enrolment_listen` of server.toml.",
        ) from error


def _only(uris: list[str], prefix: str) -> str:
    values = [uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)]
    if len(values) != 1:
        raise _no_member(f"expected exactly one {prefix}... entry, got {len(values)}")
    return values[0]


def _no_member(why: str) -> TrustError:
    return TrustError(
        "E-CERTIFICATE-IDENTITY",
        f"expected the certificate of a member of this federation: {why}",
        hint="Enrol with a token that this federation's operator hands over.",
    )
