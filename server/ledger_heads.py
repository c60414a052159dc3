"""Every head that came with a claim, by node: what makes a rolled back or copied ledger show.

The owner's node charges its own ledger; the server cannot read it and need not trust it. But it
remembers how far each ledger had come. A head is signed by the node's enrolment key, so that the
server cannot make one up either. The rules:

1. A node that joins shows where its ledger ends: never before the furthest head that was seen, nor
   another one as long. A longer one is for the node to check, which is told the furthest head; what
   it has joined with is kept only once it watches, which it does after that check.
2. The head of a claim may be behind the furthest: replies of two runs overtake one another, and one
   that was stored before a crash is sent after it. But it never contradicts a head that was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tacit.core.errors import ProtocolError, TrustError
from tacit.core.keys import node_id_of
from tacit.privacy.ledger_head import Head, SignedHead, forked, verify_head, verify_successor
from tacit.protos import fleet_pb2
from tacit.server.tables import ledger_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.server.store import Store

_HASH_BYTES = 32
_FIELDS = ("ledger_id", "entries", "sha256", "public_key", "signature")


class LedgerHeads:
    """The heads that were seen, as they travel."""

    def __init__(self, store: Store, *, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    def furthest(self, node_id: int) -> fleet_pb2.LedgerHead | None:
        """Return the furthest head that was seen of a node's ledger."""
        with self._store.reading() as connection:
            return _furthest(connection, node_id)

    def verify(self, node_id: int, message: fleet_pb2.LedgerHead) -> None:
        """Check where the ledger of a node that joins ends; nothing is kept.

        Raises:
            ProtocolError: it is malformed (``E-LEDGER-HEAD``).
            TrustError: it is not signed by the node's own key (``E-LEDGER-SIGNATURE``), or the
                ledger was rolled back or forked (``E-LEDGER-ROLLBACK``, ``E-LEDGER-FORK``).
        """
        head, known = _verified(node_id, message), self.furthest(node_id)
        if known is not None:
            verify_successor(head, known=_head_of(known))

    def keep(self, node_id: int, message: fleet_pb2.LedgerHead) -> None:
        """Remember a head that does not contradict those that were seen.

        Raises:
            ProtocolError: it is malformed (``E-LEDGER-HEAD``).
            TrustError: it is not signed by the node's own key (``E-LEDGER-SIGNATURE``), or is of
                another history than was seen (``E-LEDGER-FORK``).
        """
        head = _verified(node_id, message)
        with self._store.transaction() as connection:
            furthest = _furthest(connection, node_id)
            if furthest is not None and _head_of(furthest).ledger != head.ledger:
                raise forked(_head_of(furthest), "this is another ledger")
            query = _of(node_id).where(ledger_heads.c.entries == head.count)
            row = connection.execute(query).mappings().first()
            if row is None:
                names = (*_FIELDS, "node_id", "at_s")
                values = (*(getattr(message, name) for name in _FIELDS), node_id, self._now())
                connection.execute(
                    sa.insert(ledger_heads).values(dict(zip(names, values, strict=True)))
                )
            else:
                verify_successor(head, known=_head_of(_message_of(row)))


def _of(node_id: int) -> sa.Select[Any]:
    return sa.select(ledger_heads).where(ledger_heads.c.node_id == node_id)


def _furthest(connection: sa.Connection, node_id: int) -> fleet_pb2.LedgerHead | None:
    query = _of(node_id).order_by(ledger_heads.c.entries.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else _message_of(row)


def _verified(node_id: int, message: fleet_pb2.LedgerHead) -> Head:
    if not len(message.ledger_id) == len(message.sha256) == len(message.public_key) == _HASH_BYTES:
        raise ProtocolError("E-LEDGER-HEAD", "expected an id, a hash and a key of 32 bytes each")
    if node_id_of(message.public_key) != node_id:
        raise TrustError("E-LEDGER-SIGNATURE", "expected a head that this node has signed")
    signed = SignedHead(head=_head_of(message), signature=message.signature.hex())
    return verify_head(signed, message.public_key)


def _head_of(message: fleet_pb2.LedgerHead) -> Head:
    return Head(ledger=message.ledger_id.hex(), count=message.entries, hash=message.sha256.hex())


def _message_of(row: sa.RowMapping) -> fleet_pb2.LedgerHead:
    return fleet_pb2.LedgerHead(**{name: row[name] for name in _FIELDS})
