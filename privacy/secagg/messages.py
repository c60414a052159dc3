"""Every message of a session, byte by byte: one encoding for each content, and strict parsing.

Trusts: nothing that it reads.
Promises: what is parsed here has the sizes and counts that its receiver expects, and no byte more;
anything else is a ProtocolError with a stable code, before anything is computed from it.

Each message starts with five bytes for protocol and version, one for its kind, and the digest that
it belongs to: S0 for keys, S1 for what follows. Numbers are unsigned, the highest byte first. A set
of members is a bit for each member in ascending order of id, the lowest bit first: two lists cannot
overlap where one is defined as the rest of the other.

=============  ==========  ========================================================================
kind           from        after the header
=============  ==========  ========================================================================
KEYS           member      channel key 32, mask key 32, signature 64
KEY_LIST       server      count 4, then id 8 and keys 128 for each, ascending
SHARES         member      commitment 32; count 4 of holders, a hash of 32 for each share of b,
                           then of the mask seed; count 4 of neighbours, 80 sealed bytes for each
DELIVERY       server      set of U2 among U1; count 4, 80 sealed bytes for each neighbour in it
MASKED         member      step 4, hash of the weights 32; the vector travels beside it
SURVIVORS      server      set of U3 among U1
SIGNATURE      member      signature 64
SIGNATURES     server      set of signers among U1, 64 bytes for each
UNMASK         member      count 4, shares of b; count 4, shares of mask seeds; 32 bytes each
=============  ==========  ========================================================================
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.privacy.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES, id_bytes
from tacit.privacy.secagg.shamir import SHARE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

DIGEST_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
_MAGIC = b"tsa\x001"


class Kind(enum.IntEnum):
    """What a message is."""

    TERMS = 1
    KEYS = 2
    KEY_LIST = 3
    SHARES = 4
    DELIVERY = 5
    MASKED = 6
    SURVIVORS = 7
    SIGNATURE = 8
    SIGNATURES = 9
    UNMASK = 10


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One member's public keys of a session.

    Attributes:
        node_id: of the member.
        channel_key: X25519, 32 bytes: shares are sealed with what two of them agree on.
        mask_key: X25519, 32 bytes: masks come from what two of them agree on.
        signature: of the member's enrolment key over both and S0; 64 bytes.
    """

    node_id: int
    channel_key: bytes
    mask_key: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a member deals out.

    Attributes:
        commitment: to its b.
        b_hashes: of each holder's share of b, in ascending order of the holders' ids.
        seed_hashes: of each holder's share of the mask seed, likewise.
        sealed: for each neighbour, in ascending order.
    """

    commitment: bytes
    b_hashes: tuple[bytes, ...]
    seed_hashes: tuple[bytes, ...]
    sealed: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a member is dealt.

    Attributes:
        senders: ids of U2, ascending.
        sealed: by each neighbour among them, in ascending order.
    """

    senders: tuple[int, ...]
    sealed: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """The shares that a member reveals.

    Attributes:
        b_shares: of the survivors that it holds shares of, in ascending order.
        seed_shares: of the dropped ones, likewise.
    """

    b_shares: tuple[bytes, ...] = field(repr=False)
    seed_shares: tuple[bytes, ...] = field(repr=False)


def malformed(why: str) -> ProtocolError:
    """Return the error for bytes that are not a message of this protocol."""
    return ProtocolError("E-SECAGG-MESSAGE", f"expected a secure-aggregation message: {why}")


def header(kind: Kind, digest: bytes) -> bytes:
    """Return how a message of this kind and session begins."""
    return _MAGIC + bytes([kind]) + digest


def count_bytes(count: int) -> bytes:
    """Return a count, or a step, as it stands in a message."""
    return count.to_bytes(4, "big")


class Reader:
    """Reads one message from front to back; each method raises ProtocolError on what is not so."""

    def __init__(self, message: bytes, kind: Kind, digest: bytes | None) -> None:
        """Check the header; without a digest, any is accepted."""
        self._message = message
        self._place = 0
        if self.take(len(_MAGIC)) != _MAGIC:
            raise malformed("protocol or version differ")
        found = self.take(1)[0]
        if found != kind:
            names = {other.value: other.name for other in Kind}
            name = names.get(found, "an unknown kind")
            raise ProtocolError("E-SECAGG-ORDER", f"expected {kind.name}, got {name}")
        self.digest = self.take(DIGEST_BYTES)
        if digest is not None and self.digest != digest:
            raise ProtocolError(
                "E-SECAGG-SESSION",
                f"expected {kind.name} of this session, got that of another one",
                hint="A message was replayed, or two parties have different views of the session.",
            )

    def take(self, count: int) -> bytes:
        part = self._message[self._place : self._place + count]
        if len(part) != count:
            raise malformed(f"it ends {count - len(part)} bytes early")
        self._place += count
        return bytes(part)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def items(self, size: int, *, expected: int) -> tuple[bytes, ...]:
        """Read a count that must be the expected one, and as many items of ``size`` bytes."""
        count = self.number(4)
        if count != expected:
            raise malformed(f"it has {count} items where {expected} are due")
        return self.several(size, count)

    def several(self, size: int, count: int) -> tuple[bytes, ...]:
        return tuple(self.take(size) for _ in range(count))

    def members(self, among: Sequence[int]) -> tuple[int, ...]:
        """Read a set of members, among those given in ascending order."""
        bits = int.from_bytes(self.take(_set_bytes(among)), "little")
        if bits >> len(among):
            raise malformed("a set names members that do not exist")
        return tuple(one for place, one in enumerate(among) if bits >> place & 1)

    def end(self) -> None:
        if self._place != len(self._message):
            raise malformed(f"it has {len(self._message) - self._place} bytes too many")


def _set_bytes(among: Sequence[int]) -> int:
    return (len(among) + 7) // 8


def encode_set(members: Collection[int], among: Sequence[int]) -> bytes:
    """Return a set of members as bits: the lowest bit of the first byte is the lowest id."""
    chosen = frozenset(members)
    bits = sum(1 << place for place, one in enumerate(among) if one in chosen)
    return bits.to_bytes(_set_bytes(among), "little")


def _encode_items(items: Sequence[bytes]) -> bytes:
    return count_bytes(len(items)) + b"".join(items)


def encode_keys(entry: KeyEntry, digest: bytes) -> bytes:
    """Return KEYS: who sends it is known from the connection, and stands in the signature."""
    return header(Kind.KEYS, digest) + _keys_of(entry)


def _keys_of(entry: KeyEntry) -> bytes:
    return entry.channel_key + entry.mask_key + entry.signature


def parse_keys(message: bytes, digest: bytes, *, node_id: int) -> KeyEntry:
    """Read KEYS of a member; the signature is not verified yet."""
    reader = Reader(message, Kind.KEYS, digest)
    entry = _read_keys(reader, node_id)
    reader.end()
    return entry


def _read_keys(reader: Reader, node_id: int) -> KeyEntry:
    return KeyEntry(
        node_id=node_id,
        channel_key=reader.take(KEY_BYTES),
        mask_key=reader.take(KEY_BYTES),
        signature=reader.take(SIGNATURE_BYTES),
    )


def encode_key_list(entries: Sequence[KeyEntry], digest: bytes) -> bytes:
    """Return KEY_LIST for entries in ascending order of id."""
    items = [id_bytes(entry.node_id) + _keys_of(entry) for entry in entries]
    return header(Kind.KEY_LIST, digest) + _encode_items(items)


def parse_key_list(message: bytes, digest: bytes, *, most: int) -> tuple[KeyEntry, ...]:
    """Read KEY_LIST of at most that many members; no signature is verified yet."""
    reader = Reader(message, Kind.KEY_LIST, digest)
    count = reader.number(4)
    if count > most:
        raise malformed(f"it has {count} members where at most {most} are due")
    entries = tuple(_read_keys(reader, reader.number(8)) for _ in range(count))
    reader.end()
    ids = [entry.node_id for entry in entries]
    if any(one >= other for one, other in itertools.pairwise(ids)):
        raise malformed("members are not in ascending order, once each")
    return entries


def encode_shares(shares: Shares, digest: bytes) -> bytes:
    """Return SHARES."""
    hashes = count_bytes(len(shares.b_hashes)) + b"".join(shares.b_hashes + shares.seed_hashes)
    return header(Kind.SHARES, digest) + shares.commitment + hashes + _encode_items(shares.sealed)


def parse_shares(message: bytes, digest: bytes, *, holders: int) -> Shares:
    """Read SHARES of a member with that many holders, itself included."""
    reader = Reader(message, Kind.SHARES, digest)
    shares = Shares(
        commitment=reader.take(DIGEST_BYTES),
        b_hashes=reader.items(DIGEST_BYTES, expected=holders),
        seed_hashes=reader.several(DIGEST_BYTES, holders),
        sealed=reader.items(SEALED_BYTES, expected=holders - 1),
    )
    reader.end()
    return shares


def encode_delivery(delivery: Delivery, digest: bytes, *, among: Sequence[int]) -> bytes:
    """Return DELIVERY, with U2 as a set among U1."""
    senders = encode_set(delivery.senders, among)
    return header(Kind.DELIVERY, digest) + senders + _encode_items(delivery.sealed)


def parse_delivery(
    message: bytes,
    digest: bytes,
    *,
    among: Sequence[int],
    due: Callable[[tuple[int, ...]], int],
) -> Delivery:
    """Read DELIVERY.

    Args:
        message: its bytes.
        digest: S1.
        among: U1 in ascending order.
        due: how many ciphertexts go with a given U2.
    """
    reader = Reader(message, Kind.DELIVERY, digest)
    senders = reader.members(among)
    sealed = reader.items(SEALED_BYTES, expected=due(senders))
    reader.end()
    return Delivery(senders=senders, sealed=sealed)


def encode_masked(step: int, model: bytes, digest: bytes) -> bytes:
    """Return MASKED: the head of a masked vector, which travels beside it."""
    return header(Kind.MASKED, digest) + count_bytes(step) + model


def parse_masked(message: bytes, digest: bytes) -> tuple[int, bytes]:
    """Read MASKED: step, and hash of the weights that the vector was computed from."""
    reader = Reader(message, Kind.MASKED, digest)
    step, model = reader.number(4), reader.take(DIGEST_BYTES)
    reader.end()
    return step, model


def encode_survivors(survivors: Collection[int], digest: bytes, *, among: Sequence[int]) -> bytes:
    """Return SURVIVORS, with U3 as a set among U1."""
    return header(Kind.SURVIVORS, digest) + encode_set(survivors, among)


def parse_survivors(message: bytes, digest: bytes, *, among: Sequence[int]) -> tuple[int, ...]:
    """Read SURVIVORS: U3 in ascending order."""
    reader = Reader(message, Kind.SURVIVORS, digest)
    survivors = reader.members(among)
    reader.end()
    return survivors


def encode_signature(signature: bytes, digest: bytes) -> bytes:
    """Return SIGNATURE."""
    return header(Kind.SIGNATURE, digest) + signature


def parse_signature(message: bytes, digest: bytes) -> bytes:
    """Read SIGNATURE, not verified yet."""
    reader = Reader(message, Kind.SIGNATURE, digest)
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return signature


def encode_signatures(
    signatures: dict[int, bytes], digest: bytes, *, among: Sequence[int]
) -> bytes:
    """Return SIGNATURES by signer."""
    items = b"".join(signatures[one] for one in sorted(signatures))
    return header(Kind.SIGNATURES, digest) + encode_set(signatures, among) + items


def parse_signatures(message: bytes, digest: bytes, *, among: Sequence[int]) -> dict[int, bytes]:
    """Read SIGNATURES by signer, not verified yet."""
    reader = Reader(message, Kind.SIGNATURES, digest)
    signers = reader.members(among)
    signatures = reader.several(SIGNATURE_BYTES, len(signers))
    reader.end()
    return dict(zip(signers, signatures, strict=True))


def encode_unmask(unmask: Unmask, digest: bytes) -> bytes:
    """Return UNMASK."""
    items = _encode_items(unmask.b_shares) + _encode_items(unmask.seed_shares)
    return header(Kind.UNMASK, digest) + items


def parse_unmask(message: bytes, digest: bytes, *, survivors: int, dropped: int) -> Unmask:
    """Read UNMASK of a member that holds shares of that many survivors and dropped ones."""
    reader = Reader(message, Kind.UNMASK, digest)
    unmask = Unmask(
        b_shares=reader.items(SHARE_BYTES, expected=survivors),
        seed_shares=reader.items(SHARE_BYTES, expected=dropped),
    )
    reader.end()
    return unmask
