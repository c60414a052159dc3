"""A node that came back from a copy: nothing leaves until its ledger is known to be whole.

A copy is sound in itself, and so is the node's own memory in it. Only the server knows how far the
ledger had really come. So the state directory carries a mark until the server has said so, at the
first Join; before that the node does not watch, and gets no instruction to answer. The rules:

1. The copy holds all that the server has seen: the ledger gets a ``restore`` entry, the mark goes,
   and the node works on.
2. Entries are missing: the node stays out, and the first one that is missing is named.
3. The server knows no head: a copy without a charge goes on; one with a charge stays out, since a
   server that gave this node work has seen a head of its ledger.

What this does not find: entries that the server never heard of, such as the charge of a reply that
was cut off on its way. Their noise is not drawn on again: no noise key is in a backup.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, TrustError
from tacit.core.files import sync_path, write_atomic
from tacit.core.plain import plain
from tacit.privacy.ledger_entries import Expose, Reserve, Restore

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.privacy.ledger import Ledger
    from tacit.privacy.ledger_head import Head

MARK_NAME = "restored.json"
WAITS = "nothing leaves until the server has said how far it has seen this ledger"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a restored state directory says of itself until the server has confirmed its ledger.

    Attributes:
        made_at_s, restored_at_s: when backup and restore were made, in seconds since 1970.
        entries: that the ledger had in the backup.
    """

    made_at_s: float
    restored_at_s: float
    entries: int

    @property
    def copied(self) -> str:
        """Say which copy it is."""
        made = dt.datetime.fromtimestamp(self.made_at_s, dt.UTC)
        return f"a copy of {made:%F %T} UTC"


def write_mark(folder: Path, mark: Mark) -> None:
    """Mark a state directory as restored."""
    write_atomic(folder / MARK_NAME, json.dumps(plain(mark)).encode())


def read_mark(folder: Path) -> Mark | None:
    """Return the mark of a state directory; None if it was not restored, or is confirmed.

    Raises:
        TrustError: it cannot be read (``E-RESTORED-MARK``).
    """
    try:
        return from_plain(json.loads((folder / MARK_NAME).read_bytes()), Mark, source=MARK_NAME)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise TrustError(
            "E-RESTORED-MARK",
            f"expected what `tacit client restore` wrote in {folder / MARK_NAME}",
            hint="Restore the backup again, into another folder.",
        ) from error


def confirm(folder: Path, mark: Mark, ledger: Ledger, known: Head | None) -> Head:
    """Let a restored node work on, if its ledger holds all that the server has seen of it.

    Args:
        folder: the state directory.
        mark: its mark.
        ledger: the node's.
        known: the furthest head that the server has seen, signature verified; None if none.

    Returns:
        The ledger's head with the ``restore`` entry.

    Raises:
        TrustError: entries are missing (``E-LEDGER-ROLLBACK``), it is another history
            (``E-LEDGER-FORK``), or nobody can tell (``E-LEDGER-UNCONFIRMED``).
    """
    entries = ledger.entries()
    if known is None and any(isinstance(entry.body, Reserve | Expose) for entry in entries):
        raise TrustError(
            "E-LEDGER-UNCONFIRMED",
            f"expected the server to say how far the ledger of {mark.copied} had come, it knows of "
            f"none, though {len(entries)} entries are here",
            hint="Ask the operator whether the server's memory was lost, and to put it back: until "
            "then nobody knows what left after the copy, and nothing leaves.",
        )
    own = ledger.head().head
    reason = f"{mark.copied}; the server had seen no entry, and no charge is here"
    if known is not None:
        reason = f"{mark.copied}; it holds all {known.count} entries that the server had seen"
    later = entries[mark.entries :]
    if not any(isinstance(entry.body, Restore) for entry in later):  # not after a kill just here
        try:
            ledger.restore(known or own, reason=reason)
        except TrustError as error:
            raise explained(error, mark) from error
    (folder / MARK_NAME).unlink()
    sync_path(folder)
    return ledger.head().head


def explained(error: TrustError, mark: Mark) -> TrustError:
    """Say of a ledger that lacks entries what the owner of a restored node can do."""
    if error.code != "E-LEDGER-ROLLBACK":
        return error
    return TrustError(
        error.code,
        f"{mark.copied} is too old: {error.message}",
        hint="Restore a newer backup, or put back the newest directory that is left of the old "
        "disk. Without one nobody knows what these records have cost: this node releases nothing "
        "more.",
    )
