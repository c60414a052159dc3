"""`tacit client status` for people: connection, ledger, runs, and what left or did not."""

from __future__ import annotations

import datetime as dt
from typing import Any

import typer

from tacit.cli.output import Table, table_text, visible
from tacit.client.configuration import CHANGED
from tacit.client.status import REVOKED

_ENDED_SHOWN = 10


def show_status(value: dict[str, Any]) -> None:
    """Print what `tacit client status --json` holds, for people."""
    connection = value["connection"]
    line = f"{value['member']} (node {value['node_id']}): {connection['state']}"
    if connection["address"]:
        line += f", {connection['address']}"
    typer.echo(line)
    typer.echo(f"  fingerprint: {value['fingerprint']}")
    if connection["problem"]:
        typer.echo(f"  {connection['problem']}")
    if connection.get("hint"):
        typer.echo(f"  {connection['hint']}")
    if value.get("config_changed"):
        typer.echo(f"  {CHANGED}")
    if connection["state"] not in ("stopped", REVOKED):
        typer.echo(f"  workers: {', '.join(connection['isolation']) or 'not confined'}")
    _show_ledger(value["ledger"])
    _show_runs(value["runs"])
    _show_repeats(value.get("repeats", []))
    typer.echo("\nWhat left, and what did not (latest first)")
    typer.echo(table_text(_decisions_table(value["decisions"])))
    kept = sum(entry["received_at_s"] is None for entry in value["outbox"])
    if kept:
        typer.echo(f"\n{kept} replies wait for the server")


def _show_runs(runs: list[dict[str, Any]]) -> None:
    """Show the runs that go on, and of those that have ended the latest."""
    ended = [run["run_id"] for run in runs if run["ended"]]
    shown = [run for run in runs if run["run_id"] not in ended[_ENDED_SHOWN:]]
    typer.echo("\nRuns")
    typer.echo(table_text(_runs_table(shown)))
    if len(shown) < len(runs):
        typer.echo(f"  and {len(runs) - len(shown)} that ended before: --json lists the latest 50")
    for run in shown:
        if run["reason"]:
            typer.echo(f"  {run['run_id']}: {run['reason']}")
        if run["ended_reason"]:  # words of another machine
            typer.echo(f"  {run['run_id']}: {run['ended']}: {visible(run['ended_reason'])}")


def _show_repeats(repeats: list[dict[str, Any]]) -> None:
    if not repeats:
        return
    rows = [
        (
            each["run_id"],
            each["name"],
            each["specification_sha256"][:16],
            dt.datetime.fromtimestamp(each["approved_at_s"], dt.UTC).strftime("%F %T"),
        )
        for each in repeats
    ]
    typer.echo("\nApproved also for later runs (tacit client deny RUN withdraws it)")
    columns = ("run", "name", "specification", "since (UTC)")
    typer.echo(table_text(Table(columns=columns, rows=rows)))


def _show_ledger(ledger: dict[str, Any]) -> None:
    head = f", head {ledger['head'][:16]}" if ledger["head"] else ""
    typer.echo(f"\nLedger: {ledger['entries']} entries{head}")
    if ledger["problem"]:
        typer.echo(f"  WRONG: {visible(ledger['problem'])}")
        typer.echo(f"  {ledger['hint']}")
        typer.echo("  What follows is what can be read here; more may have been spent.")
    if ledger["restored"]:
        typer.echo(f"  {ledger['restored']}")
    typer.echo(table_text(_data_sets_table(ledger["data_sets"])))
    for each in ledger["data_sets"]:
        if each["note"]:
            typer.echo(f"  {visible(each['data_set'])}: {visible(each['note'])}")


def _data_sets_table(data_sets: list[dict[str, Any]]) -> Table:
    rows = [
        (
            each["data_set"],
            each["unit"],
            "none holds" if each["epsilon"] is None else f"{each['epsilon']:.4g}",
            f"{each['delta']:g}",
            f"{each['budget']:g}",
            f"{each['left']:.4g}",
            each["entries"],
        )
        for each in data_sets
    ]
    columns = ("data set", "unit", "epsilon", "delta", "budget", "left", "entries")
    return Table(columns=columns, rows=rows, empty="No data set has an account yet.")


def _runs_table(runs: list[dict[str, Any]]) -> Table:
    rows = [
        (
            run["run_id"],
            run["name"],
            run["mode"],
            run.get("unit") or "-",
            "-" if run["epsilon"] is None else f"{run['epsilon']:.3g}",
            run["verdict"],
            run["decided_by"],
            run["code"] or "-",
            run["released"],
            run["refused"],
            run["failed"],
            run["ended"] or "-",
        )
        for run in runs
    ]
    columns = ("run", "name", "mode", "unit", "epsilon", "verdict", "by", "code")
    return Table(
        columns=(*columns, "left", "refused", "failed", "ended"),
        rows=rows,
        empty="No run has been offered yet.",
    )


def _decisions_table(decisions: list[dict[str, Any]]) -> Table:
    rows = [
        (
            dt.datetime.fromtimestamp(line["at_s"], dt.UTC).strftime("%F %T"),
            line["message_id"] or line["run_id"],
            line["message_type"] or "-",
            line["outcome"],
            line["payload_bytes"] or "-",
            line["code"] or "-",
            line["reason"] or "-",
        )
        for line in decisions[:20]
    ]
    return Table(
        columns=("at (UTC)", "what", "type", "outcome", "bytes", "code", "reason"),
        rows=rows,
        empty="Nothing has left this node.",
    )
