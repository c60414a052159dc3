"""The database: migrated to what the code declares, durable, refused when it is too new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tacit.core.errors import UnavailableError
from tacit.server.store import open_store
from tacit.server.tables import METADATA, members

if TYPE_CHECKING:
    from pathlib import Path


def test_migrations_make_the_declared_tables(tmp_path: Path) -> None:
    """Alembic finds nothing to change after the last revision."""
    with open_store(tmp_path / "s.sqlite3") as store, store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_sqlite_is_durable_and_strict(tmp_path: Path) -> None:
    """Write-ahead log, synchronous = FULL (2), foreign keys on, mode 0600."""
    with open_store(tmp_path / "s.sqlite3") as store, store.reading() as connection:
        found = [
            connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]
    assert (tmp_path / "s.sqlite3").stat().st_mode & 0o777 == 0o600


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    """An error in the block leaves no row behind."""
    with open_store(tmp_path / "s.sqlite3") as store:
        row = {"name": "a", "role": "client", "node_id": 1, "enrolment_key_sha256": ""}
        broken = sa.insert(members).values(**row, enrolled_at_s=None)
        with pytest.raises(UnavailableError), store.transaction() as connection:  # noqa: PT012
            connection.execute(sa.insert(members).values(**row, enrolled_at_s=0.0))
            connection.execute(broken)
        with store.reading() as connection:
            assert connection.execute(sa.select(members)).all() == []


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """It is neither read nor changed."""
    path = tmp_path / "s.sqlite3"
    with open_store(path) as store, store.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for read_only in (False, True):
        opening = open_store(path, read_only=read_only)
        with pytest.raises(UnavailableError, match="E-STORE-VERSION"), opening:
            pass


def test_reading_never_writes(tmp_path: Path) -> None:
    """A read-only store refuses writes, and a missing file is a clear error."""
    opening = open_store(tmp_path / "s.sqlite3", read_only=True)
    with pytest.raises(UnavailableError, match="E-STORE-MISSING"), opening:
        pass
    with open_store(tmp_path / "s.sqlite3"):
        pass
    delete = sa.delete(members)
    with (
        open_store(tmp_path / "s.sqlite3", read_only=True) as store,
        pytest.raises(UnavailableError),
        store.transaction() as connection,
    ):
        connection.execute(delete)
