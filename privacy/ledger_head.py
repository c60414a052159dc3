"""The head of a ledger: its length and last hash, signed, which travels with every claim.

Trusts: Ed25519, and whoever keeps a head. It opens no file.
Promises: who holds a head can tell a shorter ledger (``E-LEDGER-ROLLBACK``) and another history
(``E-LEDGER-FORK``) from the one that they knew. A ledger's id is the hash of a random value in its
first entry, so a new file is another ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, ProtocolError, TrustError
from tacit.core.plain import plain
from tacit.privacy.ledger_entries import RESTORE_HINT, canonical

_ID_CONTEXT = b"tacit ledger id v1\0"
_HEAD_CONTEXT = b"tacit ledger head v1\0"  # separates this signature from every other

Signer = Callable[[bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class Head:
    """How long a ledger was, and its last hash: whoever keeps one can tell if it was cut.

    Attributes:
        ledger: hex id of the ledger.
        count: entries.
        hash: hex hash of the last one.
    """

    ledger: str
    count: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """A head and the node's Ed25519 signature over it (hex)."""

    head: Head
    signature: str


def ledger_id(random: str) -> str:
    """Return the id of the ledger that begins with this random value (hex)."""
    return hashlib.sha256(_ID_CONTEXT + random.encode()).hexdigest()


def sign_head(head: Head, signer: Signer) -> SignedHead:
    """Sign a head with the node's enrolment key."""
    return SignedHead(head=head, signature=signer(_statement(head)).hex())


def _statement(head: Head) -> bytes:
    return _HEAD_CONTEXT + canonical(plain(head))


def verify_head(signed: SignedHead, public_key: bytes) -> Head:
    """Return the head if the enrolment key (raw Ed25519, 32 bytes) signed it.

    Raises:
        TrustError: ``E-LEDGER-SIGNATURE``.
    """
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(bytes.fromhex(signed.signature), _statement(signed.head))
    except (InvalidSignature, ValueError) as error:
        raise TrustError(
            "E-LEDGER-SIGNATURE",
            "expected a ledger head signed by the node's enrolment key, got another signature",
            hint="The head was changed, or another node made it.",
        ) from error
    return signed.head


def verify_successor(new: Head, *, known: Head) -> None:
    """Check what heads alone can tell: the same ledger, not shorter, not another one as long.

    A longer fork passes here; it is found by the ledger itself (``Ledger.check_against``), to which
    the known head must be sent.

    Raises:
        TrustError: ``E-LEDGER-ROLLBACK`` or ``E-LEDGER-FORK``.
    """
    if new.ledger != known.ledger:
        raise forked(known, "this is another ledger")
    if new.count < known.count:
        raise rolled_back(known, new.count)
    if new.count == known.count and new.hash != known.hash:
        raise forked(known, f"entry {known.count} is another one")


def rolled_back(known: Head, count: int) -> TrustError:
    """Return the error for a ledger that has lost entries."""
    return TrustError(
        "E-LEDGER-ROLLBACK",
        f"expected at least {known.count} entries, got {count}: entry {count + 1} and later ones "
        "are gone",
        hint="An old copy was put back, or the file was cut. Put back the newest copy: what left "
        f"under the lost entries stays spent. {RESTORE_HINT}",
    )


def forked(known: Head, why: str) -> TrustError:
    """Return the error for a ledger with another history than was seen before."""
    return TrustError(
        "E-LEDGER-FORK",
        f"expected the ledger whose entry {known.count} has hash {known.hash[:16]}...: {why}",
        hint="Two nodes work on copies of one state directory, or the file was replaced: stop "
        "one for good, and keep the ledger that the server knows.",
    )


def signed_head_from(tree: object) -> SignedHead:
    """Read a signed head from what JSON has; nothing about it is verified yet.

    Raises:
        ProtocolError: it is not one (``E-LEDGER-HEAD``).
    """
    if not isinstance(tree, Mapping):
        raise ProtocolError("E-LEDGER-HEAD", "expected a signed ledger head")
    try:
        return from_plain(dict[str, Any](tree), SignedHead, source="ledger head")
    except ConfigError as error:
        raise ProtocolError(
            "E-LEDGER-HEAD", f"expected a signed ledger head: {'; '.join(error.problems)}"
        ) from error
