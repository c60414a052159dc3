"""`tacit ledger`: what a data owner's records were used for, and what that cost them.

Reads the ledger in the node's state directory, with the daemon running or stopped, and changes
nothing. A ledger that is damaged, cut, put back or forked ends each verb with exit code 5: ``show``
says so above what can be read, ``verify`` names the entry, ``export`` writes nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from tacit.cli.ledger_plot import plot_ledger
from tacit.cli.output import Table, emit, plain, table_text, visible
from tacit.client.daemon import IDENTITY_FOLDER
from tacit.client.ledger_terms import on_declared_terms, read_declared
from tacit.client.ledger_view import find_problem, noted_heads, open_to_read, twins_in
from tacit.core.errors import TrustError, UnavailableError, UsageError
from tacit.core.files import write_atomic
from tacit.core.keys import MemberKeys
from tacit.core.state import default_home, open_state
from tacit.privacy.accounting import SampledGaussian
from tacit.privacy.ledger import Ledger
from tacit.privacy.ledger_account import Account
from tacit.privacy.ledger_entries import (
    Abort,
    Entry,
    Expose,
    Reserve,
    Restore,
    Settle,
)
from tacit.privacy.ledger_export import Export, export_bytes, parse_export
from tacit.privacy.ledger_head import Head

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
    the state directory came back from a copy that held all that the server knew. The budget is that
    of client.toml now; where it is in force from the next charge only, a line says so. A ledger
    that does not hold is shown as far as it can be read, and ends in exit code 5.
    """
    declared, twins = read_declared(_folder(home)), twins_in(_folder(home))
    with _opened(home) as ledger:
        problem = find_problem(ledger, noted_heads(_folder(home)))
        known = ledger.data_sets()
        accounts = [
            _Shown(*on_declared_terms(account, declared))
            for account in ledger.accounts()
            if data_set in (None, account.terms.data_set)
        ]
        entries = [e for e in ledger.entries() if data_set in (None, _data_set(e))]
    if data_set is not None and not accounts and problem is None:
        raise UsageError(
            "E-LEDGER-DATA-SET",
            f"expected the name of a data set with an account ({', '.join(known) or 'none yet'}), "
            f"got {data_set!r}",
            hint="A data set gets its account with its first private release.",
        )
    if json:
        value = {
            "accounts": [_account_json(each.account) | {"note": each.note} for each in accounts],
            "entries": [_entry_json(entry) for entry in entries],
            "twins": {run: of for run, of in twins.items() if run in map(_run_of, entries)},
            "problem": None if problem is None else problem.message,
            "code": None if problem is None else problem.code,
        }
        emit(value, json=True)
    else:
        _show(accounts, entries, problem, twins=twins)
    if problem is not None:
        raise typer.Exit(problem.exit_code)


class _Shown(NamedTuple):
    """An account on the terms that client.toml has now, and what to say of these."""

    account: Account
    note: str


def _show(
    accounts: list[_Shown],
    entries: list[Entry],
    problem: TrustError | None,
    *,
    twins: Mapping[str, str],
) -> None:
    if problem is not None:
        typer.echo(
            f"WRONG: {visible(problem.message)} [{problem.code}]\n{problem.hint}\n"
            "What follows is what can be read here; more may have been spent.\n"
        )
    typer.echo(table_text(_accounts_table([each.account for each in accounts])))
    for account, note in accounts:
        if note:
            typer.echo(f"  {visible(account.terms.data_set)}: {visible(note)}")
        if account.exposed:
            typer.echo(
                f"  {visible(account.terms.data_set)}: left without noise in "
                f"{visible(', '.join(account.exposed))}; no epsilon holds for that"
            )
    typer.echo("\nEntries")
    typer.echo(table_text(_entries_table(entries)))
    for line in _notes(entries, twins):
        typer.echo(f"  {line}")
    if problem is not None:
        typer.echo(f"\nWRONG: {visible(problem.message)} [{problem.code}]")


def _notes(entries: list[Entry], twins: Mapping[str, str]) -> Iterator[str]:
    """Yield what the table of entries has no column for."""
    for run in dict.fromkeys(map(_run_of, entries)):
        if run in twins:
            yield f"{run} is a twin of {twins[run]}: with canaries in it, its model is discarded"
    for entry in entries:
        if isinstance(entry.body, Abort):
            why = f"entry {entry.body.reserve} stays charged: {visible(entry.body.reason)}"
            yield f"{entry.sequence}: {why}"
        elif isinstance(entry.body, Restore):
            yield f"{entry.sequence}: {visible(entry.body.reason)}"


@app.command()
def verify(
    home: Home = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="An export kept elsewhere: it must hold, and be a part of this."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Verify this export by itself; for an auditor, needs no node."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Walk the whole chain, and name the first entry that does not hold (exit code 5).

    It is also held against the furthest head that the node has noted in its own store, which shows
    a restored copy. `tacit client check` asks the server as well. With --file, the entries of an
    export and the signature of its head are checked: compare the node's number or key with what the
    owner's `tacit client status` or the operator's `tacit server members --json` says.
    """
    if file is not None:
        if home is not None or against is not None:
            raise UsageError("E-OPTIONS", "expected --file alone, or --home and --against")
        emit(_verified(file), json=json)
        return
    with _opened(home) as ledger:
        problem = find_problem(ledger, noted_heads(_folder(home)))
        if problem is not None:
            raise problem
        if against is not None:
            ledger.check_against(_kept_head(against, _folder(home)))
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
    force: Annotated[bool, typer.Option("--force", help="Write over files that exist.")] = False,
    json: Json = False,
) -> None:
    """Write the ledger to a file that others can check, with the head that the node signs.

    `tacit ledger verify --file` checks it, on any machine. A ledger that does not hold is not
    exported. Each line's hash is SHA-256 of "tacit ledger entry v1", a zero byte, its number (8
    bytes), the hash of the line before (32 bytes; zeros at first), and the canonical JSON of its
    content.
    """
    for path in (out, plot):
        if path is not None and path.exists() and not force:
            raise UsageError(
                "E-EXPORT-EXISTS",
                f"expected no file at {path}: it may be what finds a cut of the ledger",
                hint="Choose another name, such as one with the date; --force writes over it.",
            )
    folder = _folder(home)
    with _opened(home) as ledger:
        problem = find_problem(ledger, noted_heads(folder))
        if problem is not None:
            raise problem
        head = ledger.head()
        entries = ledger.entries()[: head.head.count]
        rows = ledger.rows()[: head.head.count]
        budgets = {a.terms.data_set: a.budget for a in ledger.accounts()}
    public_key = MemberKeys.load(folder / IDENTITY_FOLDER).enrolment_public_key
    write_atomic(out, export_bytes(rows, head, public_key))
    if plot is not None:
        plot_ledger(entries, budgets=budgets, path=plot)
    emit({"entries": len(entries), "head": head.head, "out": out, "plot": plot}, json=json)


def _opened(home: Path | None) -> Ledger:
    folder = _folder(home)

    def signer(statement: bytes) -> bytes:
        return MemberKeys.load(folder / IDENTITY_FOLDER).enrolment.sign(statement)

    return open_to_read(folder, signer=signer)


def _folder(home: Path | None) -> Path:
    chosen = home if home is not None else default_home("client")
    return open_state(chosen, create=False).path


def _export(path: Path) -> Export:
    """Read an export and check it by itself."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE", f"expected to read {path}: {error.strerror}"
        ) from error
    return parse_export(data, source=str(path))


def _verified(path: Path) -> dict[str, Any]:
    """Return what an export says of itself, which holds."""
    found = _export(path)
    return {
        "ok": True,
        "head": found.head,
        "node_id": found.node_id,
        "key_sha256": found.key_sha256,
        "until": dt.datetime.fromtimestamp(found.entries[-1].at_s, dt.UTC),
    }


def _kept_head(path: Path, folder: Path) -> Head:
    """Return the head of an export that holds and is of this node."""
    found = _export(path)
    keys = MemberKeys.load(folder / IDENTITY_FOLDER)
    if found.public_key != keys.enrolment_public_key:
        raise TrustError(
            "E-LEDGER-SIGNATURE",
            f"expected an export that this node (number {keys.node_id}) has signed, got one of "
            f"node {found.node_id}",
            hint="Name an export of this node, or the --home of the other one.",
        )
    return found.head


def _data_set(entry: Entry) -> str | None:
    body = entry.body
    return body.charge.data_set if isinstance(body, Reserve) else getattr(body, "data_set", None)


def _run_of(entry: Entry) -> str:
    body = entry.body
    return body.charge.run if isinstance(body, Reserve) else getattr(body, "run", "")


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
