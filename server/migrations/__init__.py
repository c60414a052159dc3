"""The history of the database's schema, as Alembic revisions that the daemon applies itself.

A database whose revision is unknown here was written by a later version: it is refused, not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tacit.core.errors import UnavailableError
from tacit.server.tables import METADATA

if TYPE_CHECKING:
    from alembic.runtime.migration import RevisionStep
    from sqlalchemy import Connection

HEAD = "0003"


def migrate(connection: Connection) -> None:
    """Bring the schema to this version, inside the connection's transaction.

    Raises:
        UnavailableError: the database is of a later version.
    """
    if MigrationContext.configure(connection).get_current_revision() == HEAD:
        return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def upgrade(revision: object, _context: MigrationContext) -> list[RevisionStep]:
        return list(script._upgrade_revs("head", revision))  # type: ignore[arg-type]  # noqa: SLF001

    try:
        with EnvironmentContext(config, script, fn=upgrade) as environment:
            environment.configure(connection=connection, target_metadata=METADATA)
            environment.run_migrations()
    except CommandError as error:
        raise UnavailableError(
            "E-STORE-VERSION",
            f"expected a database of schema {HEAD} or before: {error}",
            hint="Run the version of tacit that wrote it, or a later one.",
        ) from error
