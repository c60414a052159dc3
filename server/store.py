"""The daemon's database: opened, migrated, and written in whole transactions.

SQLite inside the state directory by default, with a write-ahead log and ``synchronous = FULL``, so
that what is committed survives the death of the process and the loss of power; PostgreSQL by URL.
One process writes: the daemon, or a verb that holds the state directory's lock.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tacit.core.errors import UnavailableError
from tacit.server.migrations import HEAD, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE_FILE = "store.sqlite3"


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """An open database."""

    engine: sa.Engine

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Write everything in the block, or nothing.

        Raises:
            UnavailableError: the database cannot be written; E-DISK-FULL where that is why.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise _store_error(error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Read one consistent state.

        Raises:
            UnavailableError: the database cannot be read.
        """
        try:
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise _store_error(error) from error


@contextlib.contextmanager
def open_store(where: Path | str, *, read_only: bool = False) -> Iterator[Store]:
    """Open the database, making or upgrading its tables first unless ``read_only``.

    Args:
        where: path of an SQLite file, or an SQLAlchemy URL.
        read_only: nothing is written; the schema must be this version's.

    Raises:
        UnavailableError: it cannot be opened, or is of another version of the schema.
    """
    url = f"sqlite:///{where}" if isinstance(where, Path) else where
    if isinstance(where, Path) and read_only and not where.exists():
        raise UnavailableError(
            "E-STORE-MISSING",
            f"expected the server's database at {where}",
            hint="Run `tacit server init` first, or name the state directory with --home.",
        )
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, read_only=read_only)
    try:
        with _as_store_error(), engine.begin() as connection:
            if read_only:
                _verify_version(connection)
            else:
                migrate(connection)
        if isinstance(where, Path) and not read_only:
            where.chmod(0o600)
        yield Store(engine=engine)
    finally:
        engine.dispose()


def _prepare_sqlite(engine: sa.Engine, *, read_only: bool) -> None:
    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        connection.isolation_level = None  # transactions begin where SQLAlchemy says so
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA busy_timeout = 5000")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def _verify_version(connection: sa.Connection) -> None:
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if found != HEAD:
        raise UnavailableError(
            "E-STORE-VERSION",
            f"expected a database of schema {HEAD}, got {found}",
            hint="Start the daemon of this version once: it upgrades the database.",
        )


@contextlib.contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _store_error(error) from error


def _store_error(error: DBAPIError) -> UnavailableError:
    text = str(error.orig)
    if "disk is full" in text or "No space left" in text:
        return UnavailableError(
            "E-DISK-FULL",
            "expected room for the server's database, got a full disk",
            hint="Free space on that disk; what was stored before is unharmed.",
        )
    return UnavailableError(
        "E-STORE",
        f"expected the server's database to answer, got: {text}",
        hint="Check the disk and the permissions of the state directory.",
    )
