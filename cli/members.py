"""`tacit client members`: who the other owners are, by keys that they told each other themselves.

`show` and `pin NAME WORDS` ask the server, with the node's own certificate, whether its daemon runs
or not; all else is between this machine and members.toml.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tacit.cli.output import Table, emit, visible
from tacit.client.daemon import IDENTITY_FOLDER
from tacit.client.members import (
    MemberView,
    PinnedMembers,
    Standing,
    ask_members,
    compare_members,
    load_pinned,
    pin_by_words,
    save_pinned,
)
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.fingerprint import fingerprint_of
from tacit.core.members import format_members, load_members
from tacit.core.membership import Membership
from tacit.core.state import StateDirectory, default_home, open_state

HELP = "See the other owners, and pin the keys that secure aggregation trusts."

app = typer.Typer(add_completion=False)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="State directory (default: TACIT_CLIENT_HOME, else XDG)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def show(home: Home = None, *, json: Json = False) -> None:
    """List the members that the server tells of and those that are pinned, with their fingerprints.

    What the server tells is no proof: compare the six words with each owner, on a channel that you
    trust, before you pin. Exit code 5 if the server tells another key than one that is pinned, or
    than this node's own.
    """
    _, membership, pinned = _opened(home)
    told, problem = None, ""
    try:
        told = asyncio.run(ask_members(membership))
    except UnavailableError as error:
        problem = f"{error.message} [{error.code}]"
    members = compare_members(pinned, told)
    value = {"members": members, "server_asked": told is not None, "server_problem": problem}
    rows = [(each.name, _words(each), each.standing) for each in members]
    emit(value, json=json, table=Table(columns=("name", "fingerprint", "standing"), rows=rows))
    if problem and not json:
        typer.echo(f"\nThe server was not heard, so only pinned members are listed: {problem}")
    changed = [each.name for each in members if each.standing is Standing.CHANGED]
    if told is not None and changed:
        pinned.pin({name: told[name] for name in changed})  # refused, with what to do


@app.command()
def pin(
    name: Annotated[str | None, typer.Argument(help="The member, as `show` lists it.")] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(help="The six words, as the member's owner told them to you."),
    ] = None,
    home: Home = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Instead: a file from `tacit client members export` of another owner."
        ),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Trust a member: by six words from its owner, not from `show`, or by a file from its owner.

    The words are compared with the key that the server tells; a file is believed as it is, so take
    it from the owner's hand or compare words afterwards. A pinned name keeps its key until `unpin`.

    Example: tacit client members pin st-marys upscale viselike edging chess monogram stopped
    """
    _verify_form(name, words or [], file)
    state, membership, pinned = _opened(home)
    if file is not None:
        after = pinned.pin(load_members(file))
    else:
        told = asyncio.run(ask_members(membership))
        after = pin_by_words(pinned, told, name=str(name), words=" ".join(words or []))
    save_pinned(state.path, after)
    added = {each: key for each, key in after.keys.items() if each not in pinned.keys}
    emit({"pinned": _fingerprints(added), "members": len(after.keys)}, json=json)


@app.command()
def unpin(
    name: Annotated[str, typer.Argument(help="The member, as `show` lists it.")],
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Trust a member no longer: runs that name it are denied while policy asks for pinned ones."""
    state, _, pinned = _opened(home)
    after = pinned.unpin(name)
    save_pinned(state.path, after)
    emit({"unpinned": name, "members": len(after.keys)}, json=json)


@app.command()
def export(
    home: Home = None,
    *,
    all_pinned: Annotated[
        bool, typer.Option("--all", help="Also the members that are pinned here.")
    ] = False,
    json: Json = False,
) -> None:
    """Print this node's entry for the members.toml of other owners; it holds no secret.

    Example: tacit client members export > st-marys.toml
    """
    _, _, pinned = _opened(home)
    keys = dict(pinned.keys) if all_pinned else {pinned.own_name: pinned.keys[pinned.own_name]}
    if json:
        entries = {
            name: {"key": base64.b64encode(key).decode("ascii"), "fingerprint": fingerprint_of(key)}
            for name, key in sorted(keys.items())
        }
        emit({"members": entries}, json=True)
    else:
        typer.echo(format_members(keys), nl=False)


def _opened(home: Path | None) -> tuple[StateDirectory, Membership, PinnedMembers]:
    state = open_state(home if home is not None else default_home("client"), create=False)
    membership = Membership(state.path / IDENTITY_FOLDER)
    return state, membership, load_pinned(state.path, membership)


def _verify_form(name: str | None, words: list[str], file: Path | None) -> None:
    by_words = name is not None and bool(words)
    if by_words == (file is not None) or (file is not None and name is not None):
        raise UsageError(
            "E-MEMBER-PIN",
            "expected a name and six words, or --file FILE",
            hint="tacit client members pin --help",
        )


def _fingerprints(keys: Mapping[str, bytes]) -> dict[str, str]:
    return {name: fingerprint_of(key) for name, key in sorted(keys.items())}


def _words(view: MemberView) -> str:
    if view.standing is not Standing.CHANGED:
        return view.fingerprint
    return visible(f"{view.fingerprint} (pinned); {view.told_fingerprint} (told)")
