"""`tacit client backup` and `restore`: a node in one file, and back with all that it spent."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Annotated

import typer

from tacit.cli.output import emit
from tacit.client.backup import Manifest, make_backup, restore_backup
from tacit.core.state import default_home, home_option, open_state

KEYS = "It holds this node's private keys: whoever reads it can act as this node. Keep it private."

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it; it must not exist.")],
    home: Annotated[
        Path | None,
        typer.Option("--home", help="State directory (default: TACIT_CLIENT_HOME, else XDG)."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Write all that this node needs to live on into one file, also while it runs.

    In it: private keys, certificate, client.toml, pinned members, ledger, decision log, approvals,
    the key for row hashes, splits, apps' state. Not in it: your records, noise keys, and replies
    that wait for the server; a reply that was charged and not delivered stays charged. Make one
    after each run: a copy from before a release cannot be used once that release has left.
    """
    state = open_state(home if home is not None else default_home("client"), create=False)
    manifest = make_backup(state, file, at_s=time.time())
    emit(_said(manifest) | {"file": file, "bytes": file.stat().st_size}, json=json)
    if not json:
        typer.echo(KEYS)


def restore(
    file: Annotated[Path, typer.Argument(help="From `tacit client backup FILE`.")],
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Where to: absent or empty (default as everywhere)."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Make a state directory of a backup; nothing leaves it before the server has confirmed it.

    Hashes and the whole chain of the ledger are checked here. At the first connection the server
    says how far it has seen this node's ledger: if the copy holds all of that, the ledger gets a
    `restore` entry and the node works on; if entries are missing, the node stays out and names the
    first one (E-LEDGER-ROLLBACK). The old node must never run again beside this one.
    """
    where = home if home is not None else default_home("client")
    manifest = restore_backup(file, where.expanduser(), at_s=time.time())
    emit(_said(manifest) | {"home": where}, json=json)
    if not json:
        at = home_option("client", home)
        typer.echo(
            "Verified: every file, and the ledger's chain.\n"
            "Not verified yet: that no release came after the copy. The server is asked at the "
            "start; what it has never heard of, such as a reply cut off on its way, nobody can "
            "tell.\n"
            f"Next: see that the paths in client.toml hold here, then tacit client check{at}, "
            f"then tacit client start{at}"
        )


def _said(manifest: Manifest) -> dict[str, object]:
    return {
        "member": manifest.member,
        "node_id": manifest.node_id,
        "made_at": dt.datetime.fromtimestamp(manifest.made_at_s, dt.UTC),
        "ledger_entries": manifest.entries,
        "files": len(manifest.files),
        "private_keys": True,
    }
