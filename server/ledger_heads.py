"""The furthest head of each node's ledger: what makes a rolled back ledger show.

The owner's node charges its own ledger; the server cannot read it and need not trust it. But it
remembers how far each ledger had come, and takes no claim of one that is behind, forked or new.
A head is signed by the node's enrolment key, so that the server cannot make one up either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from tacit.core.errors import ProtocolError, TrustError
from tacit.core.keys import node_id_of
from tacit.privacy.ledger_head import Head, SignedHead, verify_head, verify_successor
from tacit.protos import fleet_pb2
from tacit.server.tables import ledger_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.server.store import Store

_HASH_BYTES = 32


class LedgerHeads:
    """The furthest head by node, as it travels."""

    def __init__(self, store: Store, *, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    def furthest(self, node_id: int) -> fleet_pb2.LedgerHead | None:
        """Return the furthest head that was seen of a node's ledger."""
        with self._store.reading() as connection:
            query = sa.select(ledger_heads).where(ledger_heads.c.node_id == node_id)
            row = connection.execute(query).mappings().first()
        return None if row is None else _message_of(row)

    def keep(self, node_id: int, message: fleet_pb2.LedgerHead) -> None:
        """Remember a head if it is further than the one before.

        Raises:
            ProtocolError: it is malformed (``E-LEDGER-HEAD``).
            TrustError: it is not signed by the node's own key (``E-LEDGER-SIGNATURE``), or the
                ledger was rolled back or forked (``E-LEDGER-ROLLBACK``, ``E-LEDGER-FORK``).
        """
        head = _verified(node_id, message)
        with self._store.transaction() as connection:
            query = sa.select(ledger_heads).where(ledger_heads.c.node_id == node_id)
            row = connection.execute(query).mappings().first()
            values = {
                "ledger_id": message.ledger_id,
                "entries": message.entries,
                "sha256": message.sha256,
                "public_key": message.public_key,
                "signature": message.signature,
                "at_s": self._now(),
            }
            if row is None:
                connection.execute(sa.insert(ledger_heads).values(node_id=node_id, **values))
                return
            furthest = _head_of(_message_of(row))
            verify_successor(head, known=furthest)
            if head.count > furthest.count:
                statement = sa.update(ledger_heads).where(ledger_heads.c.node_id == node_id)
                connection.execute(statement.values(**values))


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
    names = ("ledger_id", "entries", "sha256", "public_key", "signature")
    return fleet_pb2.LedgerHead(**{name: row[name] for name in names})
