"""One run's exchange in the database: its messages, receipts, node answers and checkpoint.

Nothing here decides; ``server/journal.py`` says what to write, in transactions of its own.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tacit.protos import fleet_pb2
from tacit.server import rounds
from tacit.server.rounds import Entry, Instruction, Outcome
from tacit.server.tables import checkpoints, messages, node_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.server.rounds import Effect
    from tacit.server.store import Store


@dataclass
class MessageRow:
    """What the exchange itself does not need to know of a message.

    Attributes:
        head: the instruction as the worker pushed it.
        payload_name: its payload in the spool; empty if it has none.
        reply: the reply's head, or the node's failure, once it is here.
        reply_name: the reply's payload in the spool.
    """

    head: fleet_pb2.InstructionHead
    payload_name: str
    reply: fleet_pb2.ReplyHead | None = None
    reply_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """Where a run resumes; ``name`` is empty before the first checkpoint."""

    round: int = 0
    next_sequence: int = 0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredExchange:
    """All that the database holds of one run's exchange."""

    entries: Sequence[Entry]
    rows: dict[str, MessageRow]
    answers: Sequence[tuple[int, tuple[int, ...]]]
    checkpointed: Checkpointed


class ExchangeStore:
    """Reads and writes for one run."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id

    def load(self) -> StoredExchange:
        """Read everything."""
        with self._store.reading() as connection:
            found = connection.execute(self._of(sa.select(messages), messages)).mappings().all()
            answers = connection.execute(self._of(sa.select(node_answers), node_answers)).all()
            last = connection.execute(self._of(sa.select(checkpoints), checkpoints)).first()
        point = Checkpointed()
        if last is not None:
            point = Checkpointed(round=last.round, next_sequence=last.next_sequence, name=last.name)
        return StoredExchange(
            entries=[_entry(row) for row in found],
            rows={row["message_id"]: _row(row) for row in found},
            answers=[(row.sequence, tuple(json.loads(row.node_ids))) for row in answers],
            checkpointed=point,
        )

    def write(
        self, connection: sa.Connection, effect: Effect, row: MessageRow | None, *, at_s: float
    ) -> None:
        """Store what one effect says; ``row`` is its message's, where there is one."""
        match effect:
            case rounds.Opened(entry) if row is not None:
                connection.execute(self._where(entry, sa.delete(messages)))
                values = {"run_id": self._run_id, **_columns(entry, row)}
                connection.execute(sa.insert(messages).values(**values))
            case rounds.Failed(entry):
                reply = None if row is None or row.reply is None else row.reply
                values = {
                    "outcome": entry.outcome.value,
                    "code": entry.code,
                    "reply": None if reply is None else reply.SerializeToString(),
                    "answered_at_s": at_s,
                }
                connection.execute(self._where(entry, sa.update(messages)).values(**values))
            case rounds.Forgotten(entry):
                connection.execute(self._where(entry, sa.delete(messages)))
            case rounds.NodesAnswered(_, sequence, node_ids, stored) if not stored:
                values = {"sequence": sequence, "node_ids": json.dumps(node_ids)}
                connection.execute(sa.insert(node_answers).values(run_id=self._run_id, **values))
            case _:
                pass

    def write_reply(
        self, connection: sa.Connection, entry: Entry, row: MessageRow, *, at_s: float
    ) -> None:
        """Store a reply, which is also its receipt."""
        values = {
            "outcome": Outcome.REPLIED.value,
            "reply": row.reply.SerializeToString() if row.reply else None,
            "reply_name": row.reply_name,
            "answered_at_s": at_s,
        }
        connection.execute(self._where(entry, sa.update(messages)).values(**values))

    def write_checkpoint(
        self, connection: sa.Connection, point: Checkpointed, *, at_s: float
    ) -> None:
        """Store where the run resumes, and drop the node answers before it."""
        connection.execute(self._of(sa.delete(checkpoints), checkpoints))
        connection.execute(self._of(sa.delete(node_answers), node_answers))
        values = {"run_id": self._run_id, "at_s": at_s, **dataclasses.asdict(point)}
        connection.execute(sa.insert(checkpoints).values(**values))

    def void_replies(self, message_ids: Sequence[str]) -> None:
        """Open messages again whose reply the disk does not hold any more."""
        statement = self._of(sa.update(messages), messages).where(
            messages.c.message_id.in_(message_ids)
        )
        values = {"outcome": Outcome.OPEN.value, "code": "", "reply": None, "reply_name": ""}
        with self._store.transaction() as connection:
            connection.execute(statement.values(**values))

    def _of(self, statement: Any, table: sa.Table) -> Any:  # noqa: ANN401 - any statement
        return statement.where(table.c.run_id == self._run_id)

    def _where(self, entry: Entry, statement: Any) -> Any:  # noqa: ANN401 - update or delete
        message_id = entry.instruction.message_id
        return self._of(statement, messages).where(messages.c.message_id == message_id)


def _columns(entry: Entry, row: MessageRow) -> dict[str, Any]:
    return {
        "message_id": entry.instruction.message_id,
        "sequence": entry.sequence,
        "node_id": entry.instruction.node_id,
        "attempt": entry.attempt,
        "content_sha256": entry.instruction.content_sha256,
        "ttl_s": entry.instruction.ttl_s,
        "head": row.head.SerializeToString(),
        "payload_name": row.payload_name,
        "outcome": entry.outcome.value,
    }


def _entry(row: sa.RowMapping) -> Entry:
    instruction = Instruction(
        message_id=row["message_id"],
        node_id=row["node_id"],
        content_sha256=row["content_sha256"],
        ttl_s=row["ttl_s"],
    )
    entry = Entry(instruction=instruction, attempt=row["attempt"])
    return dataclasses.replace(entry, outcome=Outcome(row["outcome"]), code=row["code"])


def _row(row: sa.RowMapping) -> MessageRow:
    reply = None if row["reply"] is None else fleet_pb2.ReplyHead.FromString(row["reply"])
    return MessageRow(
        head=fleet_pb2.InstructionHead.FromString(row["head"]),
        payload_name=row["payload_name"],
        reply=reply,
        reply_name=row["reply_name"],
    )
