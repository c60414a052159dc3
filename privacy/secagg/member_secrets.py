"""What a member must keep to itself during a session, in one place, so that it can be wiped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


class Secrets:
    """The secrets of one session; they are in no repr, and in no message but their own.

    Wiping zeroes what this class made and drops the rest: Python cannot promise that no copy of
    immutable bytes, or of a key inside a library, stays in memory until it is reused.

    Attributes:
        seed: of the mask key; until it is dealt out.
        channel: X25519 key of the sealed messages; until they are sealed.
        mask: X25519 key of the pair masks; until they are agreed on.
        b: of the own mask.
        inbox: keys that open the neighbours' messages.
        b_shares: of the neighbours' b, and of the own, by owner.
        seed_shares: of the neighbours' mask seeds, by owner.
        pairs: what the mask keys agreed on, by neighbour.
    """

    def __init__(self) -> None:
        self.seed = bytearray()
        self.b = bytearray()
        self.channel: X25519PrivateKey | None = None
        self.mask: X25519PrivateKey | None = None
        self.inbox: dict[int, bytes] = {}
        self.b_shares: dict[int, bytes] = {}
        self.seed_shares: dict[int, bytes] = {}
        self.pairs: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return "Secrets(...)"

    def channel_key(self) -> X25519PrivateKey:
        """Return the key of the sealed messages."""
        return _held(self.channel)

    def mask_key(self) -> X25519PrivateKey:
        """Return the key of the pair masks."""
        return _held(self.mask)

    def forget_dealt(self) -> None:
        """Drop what was needed to deal shares."""
        _zero(self.seed)
        self.channel = None

    def forget_opened(self) -> None:
        """Drop what was needed to open shares and to agree on masks."""
        self.inbox.clear()
        self.mask = None

    def keep_pairs(self, partners: Collection[int]) -> None:
        """Drop all shares, and what was agreed on with anybody but these partners."""
        self.b_shares.clear()
        self.seed_shares.clear()
        for other in set(self.pairs) - set(partners):
            del self.pairs[other]

    def wipe(self) -> None:
        """Zero and drop everything."""
        _zero(self.seed)
        _zero(self.b)
        self.channel = self.mask = None
        for kept in (self.inbox, self.b_shares, self.seed_shares, self.pairs):
            kept.clear()


def _zero(secret: bytearray) -> None:
    secret[:] = bytes(len(secret))


def _held(key: X25519PrivateKey | None) -> X25519PrivateKey:
    if key is None:
        raise RuntimeError("expected a key that was not wiped yet")
    return key
