"""Roles, names and the two keys of a member, made at the member's own machine.

A member has an ECDSA P-256 key for TLS (gRPC refuses Ed25519 certificates) and an Ed25519 key for
enrolment, which outlives certificates: the node id is derived from it, and renewals are signed by
it. The certificate request carries both public keys and is signed by both private keys, so that
nobody enrols a key that they do not hold.

Private keys are stored in files of mode 0600 inside folders of mode 0700, and never leave them.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.files import make_private_folder, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

TLS_KEY_FILE = "tls-key.pem"
ENROLMENT_KEY_FILE = "enrolment-key.pem"

_MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_REQUEST_URI = "tacit:enrolment-key:"
_REQUEST_CONTEXT = b"tacit certificate request v1\0"  # separates this signature from every other
_MAX_NODE_ID = 2**63 - 1
_MAX_REQUEST_BYTES = 4096  # a P-256 request with one URI has about 300


class Role(enum.Enum):
    """What a member may do; it stands in the certificate from the first day."""

    CLIENT = "client"
    OPERATOR = "operator"
    AUDITOR = "auditor"


def check_member_name(name: str) -> str:
    """Return the name if it is one that a certificate may carry.

    Raises:
        ConfigError: for anything but 1 to 40 lower-case letters, digits and inner hyphens.
    """
    if not _MEMBER_NAME.fullmatch(name):
        raise ConfigError(
            "E-MEMBER-NAME",
            f"expected a member name of lower-case letters, digits and hyphens, got {name!r}",
            hint="Use up to 40 characters and start with a letter or digit, such as st-marys.",
        )
    return name


def sha256_of_key(enrolment_public_key: bytes) -> bytes:
    """Return the SHA-256 of a raw Ed25519 public key: what certificates carry."""
    if len(enrolment_public_key) != 32:
        raise ValueError("expected a raw Ed25519 public key of 32 bytes")
    return hashlib.sha256(enrolment_public_key).digest()


def node_id_of_hash(enrolment_key_sha256: bytes) -> int:
    """Return the node id that belongs to the hash of an enrolment key."""
    return (int.from_bytes(enrolment_key_sha256[:8], "big") & _MAX_NODE_ID) or 1


def node_id_of(enrolment_public_key: bytes) -> int:
    """Return the node id, in 1..2^63-1, that belongs to a raw Ed25519 public key."""
    return node_id_of_hash(sha256_of_key(enrolment_public_key))


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberKeys:
    """The two private keys of one member."""

    tls: ec.EllipticCurvePrivateKey = field(repr=False)
    enrolment: ed25519.Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> MemberKeys:
        """Make two fresh keys from the operating system's randomness."""
        return cls(
            tls=ec.generate_private_key(ec.SECP256R1()),
            enrolment=ed25519.Ed25519PrivateKey.generate(),
        )

    @property
    def enrolment_public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""
        return self.enrolment.public_key().public_bytes_raw()

    @property
    def node_id(self) -> int:
        """The node id that these keys will always have."""
        return node_id_of(self.enrolment_public_key)

    @property
    def tls_key_pem(self) -> bytes:
        """The TLS private key as PEM; hand it to TLS only."""
        return _private_pem(self.tls)

    def save(self, folder: Path) -> None:
        """Write both keys into a folder of mode 0700, each file with mode 0600."""
        make_private_folder(folder)
        write_atomic(folder / ENROLMENT_KEY_FILE, _private_pem(self.enrolment))
        write_atomic(folder / TLS_KEY_FILE, _private_pem(self.tls))

    @classmethod
    def load(cls, folder: Path) -> MemberKeys:
        """Read both keys.

        Raises:
            UnavailableError: a key file is missing or cannot be read.
            TrustError: a file does not hold the kind of key that it should.
        """
        tls = load_private_key(folder / TLS_KEY_FILE)
        enrolment = load_private_key(folder / ENROLMENT_KEY_FILE)
        if not isinstance(tls, ec.EllipticCurvePrivateKey) or not isinstance(
            enrolment, ed25519.Ed25519PrivateKey
        ):
            raise TrustError(
                "E-KEY-DAMAGED",
                f"expected a P-256 and an Ed25519 key in {folder}, got other kinds",
                hint="Restore the folder from a backup, or enrol again with a new token.",
            )
        return cls(tls=tls, enrolment=enrolment)


def load_private_key(path: Path) -> object:
    """Read one unencrypted PEM private key.

    Raises:
        UnavailableError: the file is missing or cannot be read.
        TrustError: it is not a private key.
    """
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UnavailableError(
            "E-KEY-MISSING",
            f"expected a private key at {path}: {error.strerror}",
            hint="Enrol with a token first, or name the right folder with --home or --profile.",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(
            "E-KEY-DAMAGED",
            f"expected a private key in {path}, got something else",
            hint="Restore the file from a backup, or enrol again with a new token.",
        ) from error


def certificate_request(keys: MemberKeys) -> bytes:
    """Return a certificate request (DER) that carries both public keys, signed by the TLS key.

    It names nobody: the name and the role come from the invitation, never from the request.
    """
    public = base64.urlsafe_b64encode(keys.enrolment_public_key).decode("ascii").rstrip("=")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tacit member")]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_REQUEST_URI + public)]),
            critical=False,
        )
        .sign(keys.tls, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.DER)


def sign_request(keys: MemberKeys, request_der: bytes) -> bytes:
    """Return the enrolment key's signature over a certificate request (64 bytes)."""
    return keys.enrolment.sign(_REQUEST_CONTEXT + request_der)


@dataclass(frozen=True, kw_only=True)
class MemberRequest:
    """The two public keys of a certificate request whose signatures both hold."""

    tls_public_key: ec.EllipticCurvePublicKey
    enrolment_public_key: bytes

    @property
    def node_id(self) -> int:
        """The node id of the requesting member."""
        return node_id_of(self.enrolment_public_key)


def verify_request(request_der: bytes, signature: bytes) -> MemberRequest:
    """Check both signatures of a certificate request and return its keys.

    Raises:
        TrustError: the request is malformed, or one of the two keys did not sign it.
    """
    request = parse_request(request_der)
    key = ed25519.Ed25519PublicKey.from_public_bytes(request.enrolment_public_key)
    try:
        key.verify(signature, _REQUEST_CONTEXT + request_der)
    except InvalidSignature as error:
        raise _bad_request("the enrolment key did not sign it") from error
    return request


def parse_request(request_der: bytes) -> MemberRequest:
    """Return the keys of a request whose own (TLS key) signature holds.

    Raises:
        TrustError: the request is malformed or not signed by its TLS key.
    """
    if len(request_der) > _MAX_REQUEST_BYTES:
        raise _bad_request(f"it has more than {_MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(request_der)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        public_key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise _bad_request("it cannot be read") from error
    if (
        not isinstance(public_key, ec.EllipticCurvePublicKey)
        or public_key.curve.name != "secp256r1"
    ):
        raise _bad_request("its TLS key is not P-256")
    if not signed:
        raise _bad_request("the TLS key did not sign it")
    return MemberRequest(tls_public_key=public_key, enrolment_public_key=_enrolment_key_among(uris))


def _enrolment_key_among(uris: list[str]) -> bytes:
    values = [uri.removeprefix(_REQUEST_URI) for uri in uris if uri.startswith(_REQUEST_URI)]
    if len(values) != 1 or len(uris) != 1:
        raise _bad_request("it does not carry exactly one enrolment key")
    try:
        key = base64.b64decode(values[0] + "=", altchars=b"-_", validate=True)
    except ValueError as error:
        raise _bad_request("its enrolment key cannot be read") from error
    if len(key) != 32:
        raise _bad_request("its enrolment key has the wrong length")
    return key


def _bad_request(why: str) -> TrustError:
    return TrustError(
        "E-REQUEST-INVALID",
        f"expected a certificate request signed by both keys: {why}",
        hint="Run the same version of tacit at both sides and enrol again.",
    )


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
