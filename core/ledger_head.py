"""Where an owner's privacy ledger ends, signed by the owner's node.

A ledger only ever grows, and each entry holds the hash of the one before it. So one number and one
hash stand for the whole history, and whoever keeps the furthest head that they saw can tell a
ledger that was shortened, restored from an old copy, or continued by two nodes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.core.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTEXT = b"tacit ledger head v1\0"  # separates this signature from every other
HASH_BYTES = 32
LEDGER_ID_BYTES = 16
_MAX_ENTRIES = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """The end of a ledger.

    Attributes:
        ledger_id: 16 random bytes, drawn when the ledger was made.
        entries: how many entries there are.
        sha256: of the last entry, which covers all before it.
        public_key: the node's raw Ed25519 enrolment key.
        signature: of all of the above, by that key.
    """

    ledger_id: bytes
    entries: int
    sha256: bytes
    public_key: bytes
    signature: bytes

    def verify(self) -> None:
        """Check the signature.

        Raises:
            TrustError: it does not hold, or the head is malformed (``E-LEDGER-HEAD``).
        """
        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(self.public_key)
            key.verify(self.signature, _signed_bytes(self.ledger_id, self.entries, self.sha256))
        except (InvalidSignature, ValueError) as error:
            raise TrustError(
                "E-LEDGER-HEAD", "expected a ledger's head signed by its node, got another"
            ) from error

    def verify_follows(self, furthest: LedgerHead) -> None:
        """Check that this head may come after the furthest one seen of the same ledger.

        A head with more entries is taken at its word here: only the ledger itself can show that
        it holds the furthest head's entry.

        Raises:
            TrustError: the ledger has become shorter (``E-LEDGER-ROLLBACK``), or has another
                entry in the same place (``E-LEDGER-FORK``), or is another one (``E-LEDGER-OTHER``).
        """
        if self.ledger_id != furthest.ledger_id:
            raise TrustError(
                "E-LEDGER-OTHER",
                f"expected the ledger {furthest.ledger_id.hex()}, got {self.ledger_id.hex()}",
                hint="A node keeps one ledger for life: put the old one back.",
            )
        if self.entries < furthest.entries:
            raise TrustError(
                "E-LEDGER-ROLLBACK",
                f"expected at least {furthest.entries} entries, got {self.entries}",
                hint="The ledger was restored from an old copy: put the newest one back.",
            )
        if self.entries == furthest.entries and self.sha256 != furthest.sha256:
            raise TrustError(
                "E-LEDGER-FORK",
                f"expected the entry {self.entries} that was seen before, got another",
                hint="Two nodes work on copies of one state directory: stop one of them.",
            )


def sign_head(
    ledger_id: bytes,
    entries: int,
    sha256: bytes,
    *,
    public_key: bytes,
    sign: Callable[[bytes], bytes],
) -> LedgerHead:
    """Sign the end of a ledger.

    Args:
        ledger_id: 16 bytes.
        entries: how many entries it has, 0 or more.
        sha256: of the last one.
        public_key: of the signing key, raw Ed25519.
        sign: signs bytes with that key.
    """
    signature = sign(_signed_bytes(ledger_id, entries, sha256))
    return LedgerHead(
        ledger_id=ledger_id,
        entries=entries,
        sha256=sha256,
        public_key=public_key,
        signature=signature,
    )


def _signed_bytes(ledger_id: bytes, entries: int, sha256: bytes) -> bytes:
    if len(ledger_id) != LEDGER_ID_BYTES or len(sha256) != HASH_BYTES:
        raise ValueError("expected a ledger id of 16 bytes and a hash of 32")
    if not 0 <= entries <= _MAX_ENTRIES:
        raise ValueError(f"expected 0 to {_MAX_ENTRIES} entries, got {entries}")
    return _CONTEXT + ledger_id + entries.to_bytes(8, "big") + sha256
