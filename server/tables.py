"""The tables of the daemon's database, in SQLAlchemy Core.

Times are seconds since 1970 (UTC). Digests and heads are bytes as they travel. Secrets of
invitations are stored as SHA-256 only. ``server/migrations`` makes these tables; a test compares.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()

members = Table(
    "members",
    METADATA,
    Column("member_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(40), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("node_id", BigInteger, nullable=False, index=True),  # 0 for operators and auditors
    Column("enrolment_key_sha256", String(64), nullable=False),
    Column("enrolment_key", LargeBinary, nullable=True),  # enrolled before 0003: until it renews
    Column("enrolled_at_s", Float, nullable=False),
    Column("last_seen_at_s", Float, nullable=False, default=0.0),
    Column("software_version", String(40), nullable=False, default=""),
    Column("revoked_at_s", Float, nullable=True),
    Column("revoked_reason", Text, nullable=False, default=""),
)

certificates = Table(
    "certificates",
    METADATA,
    Column("serial", String(40), primary_key=True),
    Column("member_id", ForeignKey("members.member_id"), nullable=False, index=True),
    Column("der", LargeBinary, nullable=False),
    Column("issued_at_s", Float, nullable=False),
    Column("not_after_s", Float, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
)

invitations = Table(
    "invitations",
    METADATA,
    Column("invitation_id", String(32), primary_key=True),
    Column("name", String(40), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False),
    Column("withdrawn", Boolean, nullable=False, default=False),
    Column("member_id", ForeignKey("members.member_id"), nullable=True),  # who spent it
)

runs = Table(
    "runs",
    METADATA,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(16), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("round", Integer, nullable=False, default=0),
    Column("rounds", Integer, nullable=False),
    Column("submitted_at_s", Float, nullable=False),
    Column("started_at_s", Float, nullable=False, default=0.0),
    Column("ended_at_s", Float, nullable=False, default=0.0),
    Column("submitted_by", String(40), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("specification", LargeBinary, nullable=False),
    Column("specification_sha256", LargeBinary, nullable=False),
)

decisions = Table(
    "decisions",
    METADATA,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False),
    Column("verdict", String(16), nullable=False),
    Column("code", String(64), nullable=False),
    Column("at_s", Float, nullable=False),
)

# A message and, once it is answered, its receipt: one row, so that both change in one write.
messages = Table(
    "messages",
    METADATA,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("message_id", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("node_id", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("content_sha256", LargeBinary, nullable=False),
    Column("ttl_s", Float, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("payload_name", String(128), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("code", String(64), nullable=False, default=""),
    Column("reply", LargeBinary, nullable=True),
    Column("reply_name", String(128), nullable=False, default=""),
    Column("answered_at_s", Float, nullable=False, default=0.0),
)

node_answers = Table(
    "node_answers",
    METADATA,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("node_ids", Text, nullable=False),  # a JSON list
)

checkpoints = Table(
    "checkpoints",
    METADATA,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("next_sequence", BigInteger, nullable=False),
    Column("name", String(128), nullable=False),
    Column("at_s", Float, nullable=False),
)

# The heads of each node's privacy ledger that were seen; see server/ledger_heads.py.
ledger_heads = Table(
    "ledger_heads",
    METADATA,
    Column("node_id", BigInteger, primary_key=True, autoincrement=False),
    Column("entries", BigInteger, primary_key=True, autoincrement=False),
    Column("ledger_id", LargeBinary, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("at_s", Float, nullable=False),
)

events = Table(
    "events",
    METADATA,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("fields", LargeBinary, nullable=False),  # JSON
)

Index("messages_by_sequence", messages.c.run_id, messages.c.sequence)
