"""The furthest head of each node's ledger: what makes a rolled back ledger show.

The owner's node charges its own ledger; the server cannot read it and need not trust it. But it
remembers how far each ledger had come, and takes no claim of one that is behind, forked or new.
A head is signed by the node's enrolment key, so that the server cannot make one up either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from tacit.core.errors import TrustError
from tacit.core.keys import node_id_of
from tacit.core.ledger_head import LedgerHead
from tacit.protos import fleet_pb2
from tacit.server.tables import ledger_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.server.store import Store


class LedgerHeads:
    """The furthest head by node."""

    def __init__(self, store: Store, *, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    def furthest(self, node_id: int) -> LedgerHead | None:
        """Return the furthest head that was seen of a node's ledger."""
        with self._store.reading() as connection:
            query = sa.select(ledger_heads).where(ledger_heads.c.node_id == node_id)
            row = connection.execute(query).mappings().first()
        return None if row is None else _head_of(row)

    def keep(self, node_id: int, head: LedgerHead) -> None:
        """Remember a head if it is further than the one before.

        Raises:
            TrustError: it is not signed by the node's own key (``E-LEDGER-HEAD``), or the ledger
                was rolled back, forked or replaced (``E-LEDGER-ROLLBACK``, ``-FORK``, ``-OTHER``).
        """
        head.verify()
        if node_id_of(head.public_key) != node_id:
            raise TrustError("E-LEDGER-HEAD", "expected a head that this node has signed")
        with self._store.transaction() as connection:
            query = sa.select(ledger_heads).where(ledger_heads.c.node_id == node_id)
            row = connection.execute(query).mappings().first()
            values = {
                "ledger_id": head.ledger_id,
                "entries": head.entries,
                "sha256": head.sha256,
                "public_key": head.public_key,
                "signature": head.signature,
                "at_s": self._now(),
            }
            if row is None:
                connection.execute(sa.insert(ledger_heads).values(node_id=node_id, **values))
                return
            furthest = _head_of(row)
            head.verify_follows(furthest)
            if head.entries > furthest.entries:
                statement = sa.update(ledger_heads).where(ledger_heads.c.node_id == node_id)
                connection.execute(statement.values(**values))


def head_of_message(message: fleet_pb2.LedgerHead) -> LedgerHead:
    """Read a head as it travels; nothing of it is verified."""
    return LedgerHead(
        ledger_id=message.ledger_id,
        entries=message.entries,
        sha256=message.sha256,
        public_key=message.public_key,
        signature=message.signature,
    )


def message_of_head(head: LedgerHead) -> fleet_pb2.LedgerHead:
    """Return a head as it travels."""
    return fleet_pb2.LedgerHead(
        ledger_id=head.ledger_id,
        entries=head.entries,
        sha256=head.sha256,
        public_key=head.public_key,
        signature=head.signature,
    )


def _head_of(row: sa.RowMapping) -> LedgerHead:
    names = ("ledger_id", "entries", "sha256", "public_key", "signature")
    return LedgerHead(**{name: row[name] for name in names})
