"""`tacit ledger`: what a data owner's records were used for, and what that cost them.

Reads the ledger in the node's state directory, with the daemon running or stopped, and changes
nothing. ``verify`` and ``export`` end with exit code 5 when the ledger is damaged, cut or forked.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json as json_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.cli.ledger_plot import plot_ledger
from tacit.cli.output import Table, emit, plain, table_text, visible
from tacit.client.daemon import IDENTITY_FOLDER
from tacit.client.ledger_view import find_problem, noted_heads, verify_ledger_there
from tacit.core.errors import RefusedError, UnavailableError, UsageError
from tacit.core.files import write_atomic
from tacit.core.keys import MemberKeys
from tacit.core.state import default_home, open_state
from tacit.privacy.accounting import SampledGaussian
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_account import Account
from tacit.privacy.ledger_entries import (
    Abort,
    Entry,
    Expose,
    Reserve,
    Restore,
    Row,
    Settle,
    canonical,
)
from tacit.privacy.ledger_head import Head, signed_head_from, verify_head

app = typer.Typer(add_completion=False)

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="State directory (default: TACIT_CLIENT_HOME, else ~/.local/state/tacit/client).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def show(
    home: Home = None,
    data_set: Annotated[
        str | None, typer.Option("--data-set", help="Only this one's account and entries.")
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Show what each data set has cost, what its budget still holds, and every entry.

    `reserve` is a charge, made before anything left. `abort` closes one of which the server gave no
    receipt, with the reason: charged, and not used as far as this node knows. `restore` says that
    the state directory came back from a copy that held all that the server knew.
    """
    with _opened(home) as ledger:
        problem = ledger.verify().problem
        accounts = [a for a in ledger.accounts() if data_set in (None, a.terms.data_set)]
        entries = [e for e in ledger.entries() if data_set in (None, _data_set(e))]
    if data_set is not None and not accounts:
        raise RefusedError("E-LEDGER-CLOSED", f"expected a data set with an account: {data_set!r}")
    if json:
        value = {
            "accounts": [_account_json(account) for account in accounts],
            "entries": [_entry_json(entry) for entry in entries],
            "problem": None if problem is None else problem.message,
        }
        emit(value, json=True)
        return
    typer.echo(table_text(_accounts_table(accounts)))
    for account in accounts:
        if account.exposed:
            typer.echo(
                f"  {visible(account.terms.data_set)}: left without noise in "
                f"{visible(', '.join(account.exposed))}; no epsilon holds for that"
            )
    typer.echo("\nEntries")
    typer.echo(table_text(_entries_table(entries)))
    for entry in entries:
        if isinstance(entry.body, Abort):
            why = f"entry {entry.body.reserve} stays charged: {visible(entry.body.reason)}"
            typer.echo(f"  {entry.sequence}: {why}")
        elif isinstance(entry.body, Restore):
            typer.echo(f"  {entry.sequence}: {visible(entry.body.reason)}")
    if problem is not None:
        typer.echo(f"\nDAMAGED: {visible(problem.message)} [{problem.code}]")


@app.command()
def verify(
    home: Home = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="An export kept elsewhere: its head must be a part of this."
        ),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Walk the whole chain, and name the first entry that does not hold (exit code 5).

    It is also held against the furthest head that the node has noted in its own store, which shows
    a restored copy. `tacit client check` asks the server as well.
    """
    with _opened(home) as ledger:
        problem = find_problem(ledger, noted_heads(_folder(home)))
        if problem is not None:
            raise problem
        if against is not None:
            ledger.check_against(_kept_head(against, home))
        head = ledger.verify().head
    value = {"ok": True, "head": head, "against": against}
    emit(value, json=json)


@app.command()
def export(
    out: Annotated[
        Path,
        typer.Option("--out", help="File to write: entries as JSON lines, then the signed head."),
    ],
    home: Home = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw epsilon over time, as a PNG.")
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Write the ledger to a file that others can check, with the head that the node signs.

    Each line's hash is SHA-256 of "tacit ledger entry v1", a zero byte, its number (8 bytes), the
    hash of the line before (32 bytes; zeros at first), and the canonical JSON of its content.
    """
    with _opened(home) as ledger:
        head = ledger.head()
        entries = ledger.entries()[: head.head.count]
        rows = ledger.rows()[: head.head.count]
        budgets = {a.terms.data_set: a.budget for a in ledger.accounts()}
    lines = [_line(row) for row in rows]
    lines.append(canonical({"signed_head": plain(head)}))
    write_atomic(out, b"\n".join(lines) + b"\n")
    if plot is not None:
        plot_ledger(entries, budgets=budgets, path=plot)
    emit({"entries": len(entries), "head": head.head, "out": out, "plot": plot}, json=json)


@contextlib.contextmanager
def _opened(home: Path | None) -> Iterator[Ledger]:
    folder = _folder(home)
    verify_ledger_there(folder, noted_heads(folder))

    def signer(statement: bytes) -> bytes:
        return MemberKeys.load(folder / IDENTITY_FOLDER).enrolment.sign(statement)

    with Ledger.open(
        folder / LEDGER_NAME, signer=signer, clock=time.time, read_only=True
    ) as ledger:
        yield ledger


def _folder(home: Path | None) -> Path:
    chosen = home if home is not None else default_home("client")
    return open_state(chosen, create=False).path


def _kept_head(path: Path, home: Path | None) -> Head:
    """Return the head at the end of an export, if this node signed it."""
    try:
        last = path.read_bytes().splitlines()[-1]
        signed = signed_head_from(json_module.loads(last)["signed_head"])
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE", f"expected to read {path}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            "E-LEDGER-HEAD",
            f"expected a ledger's export in {path}, with a signed head on its last line",
            hint="Make one with `tacit ledger export --out FILE`, and keep it elsewhere.",
        ) from error
    keys = MemberKeys.load(_folder(home) / IDENTITY_FOLDER)
    return verify_head(signed, keys.enrolment_public_key)


def _data_set(entry: Entry) -> str | None:
    body = entry.body
    return body.charge.data_set if isinstance(body, Reserve) else getattr(body, "data_set", None)


def _account_json(account: Account) -> dict[str, Any]:
    value: dict[str, Any] = plain(account.terms)
    return value | {
        "epsilon_by_side": dict(account.epsilon_by_side),
        "epsilon": account.epsilon,
        "held": account.held,
        "left": account.left,
        "exposed": list(account.exposed),
        "charges": len(account.charges),
        "aborted": _aborted(account),
    }


def _aborted(account: Account) -> int:
    """Return how many charges paid for an attempt that came to nothing, as far as is known."""
    return sum(isinstance(held.closed and held.closed.body, Abort) for held in account.charges)


def _line(row: Row) -> bytes:
    content = row.content if isinstance(row.content, bytes) else b"null"
    tree = {
        "sequence": row.sequence,
        "hash": plain(row.hash),
        "content": json_module.loads(content),
    }
    return canonical(tree)


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "body": plain(entry.body),
        "hash": entry.hash.hex(),
    }


def _accounts_table(accounts: list[Account]) -> Table:
    rows = [
        (
            account.terms.data_set,
            account.terms.unit.value,
            f"{account.delta:g}",
            ", ".join(f"{side} {value:.4g}" for side, value in account.epsilon_by_side.items()),
            account.epsilon,
            account.budget,
            account.held,
            account.left,
            len(account.charges),
            _aborted(account),
        )
        for account in accounts
    ]
    columns = ("data set", "unit", "delta", "by side", "epsilon", "budget", "held", "left")
    return Table(
        columns=(*columns, "charges", "aborted"), rows=rows, empty="No data set has an account yet."
    )


def _entries_table(entries: list[Entry]) -> Table:
    return Table(
        columns=("entry", "at (UTC)", "kind", "data set", "run", "round", "attempt", "side",
                 "mechanism", "alone", "total"),
        rows=[_entry_row(entry) for entry in entries],
    )  # fmt: skip


def _entry_row(entry: Entry) -> tuple[object, ...]:
    at = dt.datetime.fromtimestamp(entry.at_s, dt.UTC).strftime("%F %T")
    first: tuple[object, ...] = (entry.sequence, at, entry.kind, _data_set(entry) or "-")
    body = entry.body
    match body:
        case Reserve():
            item = body.charge
            first = (*first, item.run, item.round, item.attempt, item.side.value)
            return (*first, _said(item.mechanism), body.cost.alone, body.cost.total)
        case Settle():
            first = (*first, body.run, None, body.attempt, "-", _said(body.mechanism))
            return (*first, body.cost.alone, body.cost.total)
        case Expose():
            return (*first, body.run, None, body.attempt, "-", "none", None, None)
        case _:
            run = getattr(body, "run", "-")
            return (*first, run, None, getattr(body, "attempt", None), "-", "-", None, None)


def _said(mechanism: object) -> str:
    if isinstance(mechanism, SampledGaussian):
        sampled = "" if mechanism.sample_rate == 1.0 else f", q {mechanism.sample_rate:g}"
        steps = "1 step" if mechanism.steps == 1 else f"{mechanism.steps} steps"
        return f"z {mechanism.noise_multiplier:.4g}{sampled}, {steps}"
    return ", ".join(f"{name} {value:.4g}" for name, value in plain(mechanism).items())
