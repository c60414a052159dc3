"""Keys of one session: derivation, agreement, sealed messages and signatures.

Trusts: X25519 (RFC 7748), HKDF-SHA-256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439), Ed25519
(RFC 8032), all as the `cryptography` package has them.
Promises: a key serves one end: its derivation names it, and the session, and for a message sender
and receiver in this order. A sealed key is used for one message, so that its nonce may be zero.
An agreement whose result is zero is refused: a peer that sends a point of small order knows it.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.core.errors import ProtocolError, TrustError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
SECRET_BYTES = 31  # of a seed: below Shamir's prime whatever its bits are
CONTEXT = b"tacit secagg 1|"  # before every derivation, statement and hash of this protocol
_ONE_NONCE = bytes(12)


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """Return ``length`` bytes derived from a secret (HKDF-SHA-256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def derive(secret: bytes, *, info: bytes) -> bytes:
    """Return the 32-byte key that a secret gives for one end of this protocol."""
    return hkdf(secret, salt=b"", info=CONTEXT + info)


def id_bytes(node_id: int) -> bytes:
    """Return a node id as it stands in every hash and message: 8 bytes, the highest first."""
    return node_id.to_bytes(8, "big")


def mask_key_of(seed: bytes, terms_digest: bytes) -> X25519PrivateKey:
    """Return the mask key that belongs to a seed under one S0."""
    return X25519PrivateKey.from_private_bytes(derive(seed, info=terms_digest + b"|mask-key"))


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the secret that two X25519 keys share (32 bytes).

    Raises:
        ProtocolError: the peer's key gives zero (``E-SECAGG-KEY-WEAK``).
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the library refuses a result of zero (RFC 7748, section 6.1)
        raise ProtocolError(
            "E-SECAGG-KEY-WEAK", "expected a public key of full order, got a weak one"
        ) from error


def channel_key(shared: bytes, *, session: bytes, sender: int, receiver: int) -> bytes:
    """Return the key of the one message from ``sender`` to ``receiver`` in a session."""
    return derive(shared, info=_address(session, sender, receiver))


def _address(session: bytes, sender: int, receiver: int) -> bytes:
    return b"channel|" + session + id_bytes(sender) + id_bytes(receiver)


def seal(key: bytes, message: bytes, *, session: bytes, sender: int, receiver: int) -> bytes:
    """Return a message encrypted and authenticated under a key that is used for no other one."""
    return ChaCha20Poly1305(key).encrypt(_ONE_NONCE, message, _address(session, sender, receiver))


def open_sealed(key: bytes, sealed: bytes, *, session: bytes, sender: int, receiver: int) -> bytes:
    """Return the message that a sender sealed for a receiver.

    Raises:
        ProtocolError: ``E-SECAGG-CIPHERTEXT``: changed, or not for this pair and session.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(
            _ONE_NONCE, sealed, _address(session, sender, receiver)
        )
    except InvalidTag as error:
        raise ProtocolError(
            "E-SECAGG-CIPHERTEXT",
            f"expected shares that node {sender} sealed for this node, got another ciphertext",
            hint="It was changed on its way, or two nodes have different views of the session; "
            "the attempt ends here.",
        ) from error


def verify_signature(
    public_key: bytes, *, statement: bytes, signature: bytes, code: str, what: str
) -> None:
    """Check an Ed25519 signature by an enrolment key (raw, 32 bytes).

    Raises:
        TrustError: with the given code: it is of another key or another statement.
    """
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise TrustError(code, f"expected {what}, got another signature") from error
