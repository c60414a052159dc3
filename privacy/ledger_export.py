"""A ledger in a file for others: every entry, then the head that the node signed, with its key.

Trusts: SHA-256 and Ed25519; nothing in the file. It opens no file.
Promises: what :func:`parse_export` returns is an unbroken chain from the first entry to the signed
head, and nothing else: an entry that was edited, dropped, added or moved refuses, naming it. Whose
node signed it is for the reader to compare: by node id, or by the SHA-256 of its key. That the node
has no later entries, or another ledger beside, no export can say.

Each line but the last holds an entry: its number, its hash and its content. The hash is SHA-256 of
"tacit ledger entry v1", a zero byte, the number (8 bytes), the hash of the line before (32 bytes;
zeros at first), and the canonical JSON of the content.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ProtocolError, TrustError, UsageError
from tacit.core.keys import node_id_of, sha256_of_key
from tacit.core.plain import plain
from tacit.privacy.ledger_account import Book
from tacit.privacy.ledger_entries import FIRST_PREVIOUS, Entry, Row, canonical, parse_row
from tacit.privacy.ledger_head import Head, SignedHead, signed_head_from, verify_head

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that holds in itself.

    Attributes:
        entries: all of them.
        head: of the last; signed by ``public_key``.
        public_key: raw Ed25519, 32 bytes: the enrolment key of the node that it claims to be of.
    """

    entries: tuple[Entry, ...]
    head: Head
    public_key: bytes

    @property
    def node_id(self) -> int:
        """The node's number, which follows from its key."""
        return node_id_of(self.public_key)

    @property
    def key_sha256(self) -> str:
        """The fingerprint of the node's key, hex."""
        return sha256_of_key(self.public_key).hex()


def export_bytes(rows: Sequence[Row], signed: SignedHead, public_key: bytes) -> bytes:
    """Return a sound ledger as JSON lines.

    Args:
        rows: of the ledger, up to the head.
        signed: the head.
        public_key: that verifies it; raw Ed25519.
    """
    lines = [_line(row) for row in rows]
    lines.append(canonical({"signed_head": plain(signed), "public_key": public_key.hex()}))
    return b"\n".join(lines) + b"\n"


def parse_export(data: bytes, *, source: str) -> Export:
    """Read an export, and check all that it says of itself.

    Raises:
        UsageError: it is no export, or its last line is missing (``E-LEDGER-EXPORT``).
        TrustError: an entry does not hold (``E-LEDGER-CORRUPT``), or the head is not signed by the
            key beside it (``E-LEDGER-SIGNATURE``).
    """
    *lines, last = data.splitlines() or [b""]
    signed, public_key = _last(last, source)
    head = verify_head(signed, public_key)
    book, entries = Book(), list[Entry]()
    try:
        for line in lines:
            previous = entries[-1].hash if entries else FIRST_PREVIOUS
            entry = parse_row(_row(line, previous), after=len(entries), previous=previous)
            book.apply(entry)
            entries.append(entry)
    except TrustError as error:
        raise _changed(source, error.message) from error
    if len(entries) != head.count:
        raise _changed(source, f"expected {head.count} entries, as signed, got {len(entries)}")
    if not entries or (book.ledger, entries[-1].hash.hex()) != (head.ledger, head.hash):
        raise _changed(source, "its entries do not lead to the head that was signed")
    return Export(entries=tuple(entries), head=head, public_key=public_key)


def _line(row: Row) -> bytes:
    if not (isinstance(row.content, bytes) and isinstance(row.hash, bytes)):
        raise TypeError("expected rows of a ledger that holds")
    content = json.loads(row.content)
    return canonical({"sequence": row.sequence, "hash": row.hash.hex(), "content": content})


def _row(line: bytes, previous: bytes) -> Row:
    """Return a line as a stored row; what is no entry is a row that nothing can follow."""
    try:
        tree: Any = json.loads(line)
        content, digest = canonical(tree["content"]), bytes.fromhex(tree["hash"])
        return Row(tree["sequence"], previous, content, digest)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Row("something else", previous, b"", b"")


def _last(line: bytes, source: str) -> tuple[SignedHead, bytes]:
    try:
        tree: Any = json.loads(line)
        signed, key = signed_head_from(tree["signed_head"]), bytes.fromhex(tree["public_key"])
        if len(key) == _KEY_BYTES:
            return signed, key
    except (ValueError, KeyError, TypeError, RecursionError, ProtocolError):
        pass
    raise UsageError(
        "E-LEDGER-EXPORT",
        f"expected the export of a ledger in {source}, with a signed head and its key on the last "
        "line",
        hint="Make one with `tacit ledger export --out FILE`; one that was cut lacks that line.",
    )


def _changed(source: str, why: str) -> TrustError:
    return TrustError(
        "E-LEDGER-CORRUPT",
        f"{source}: {why}",
        hint="This file is not what the node wrote: ask its owner for another export.",
    )
