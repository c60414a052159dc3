"""The `tacit` command: one literal table of nouns, each loaded when it is used.

``tacit --help`` must answer in a fifth of a second, so this module imports neither grpc nor any
noun (nor, by way of them, flwr or torch). It is also the edge of the process: every error that
leaves a verb ends here as a message and an exit code (``cli/output.py``).
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click
import typer
from typer.core import TyperCommand, TyperGroup

from tacit.cli.output import render_failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Noun:
    """One word after `tacit`.

    Attributes:
        name: the word, and the module ``tacit.cli.<name>``.
        form: ``verbs``: the module's ``app`` holds verbs; ``command``: its function ``command``.
        teaches: what it is for, in one sentence.
    """

    name: str
    form: Literal["verbs", "command"]
    teaches: str


NOUNS = (
    Noun("demo", "command", "See a whole federation train on real data, on this machine."),
    Noun("login", "command", "Turn an operator's or auditor's token into a profile."),
    Noun("server", "verbs", "Start the daemon that federations meet at, and invite members."),
    Noun("run", "verbs", "Submit a training run, watch it, and pull the model."),
    Noun("client", "verbs", "Join as a data owner, and decide what your data may be used for."),
    Noun("privacy", "verbs", "Plan the noise of a run, and see what a training really costs."),
    Noun("ledger", "verbs", "See what your data was used for, and what that cost."),
    Noun("audit", "verbs", "Attack a model as an adversary would, and read what came of it."),
    Noun("simulate", "command", "Try a run.toml in one process, before anybody else is asked."),
    Noun("config", "verbs", "Check a TOML file, and show where each value comes from."),
)

_HELP = """Train a model together without sharing the data.

Three people use this command: the operator starts a server and submits runs; the data owner
joins with a client and decides; the auditor logs in and looks. Begin with `tacit demo`.
"""


class _Formatter(click.HelpFormatter):
    """Undoes the escapes for rich that typer puts around notes such as [required]."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        plain = [(term, text.replace("\\[", "[")) for term, text in rows]
        super().write_dl(plain, col_max, col_spacing)


class _Context(click.Context):
    """Writes help with the plain formatter."""

    formatter_class = _Formatter


class _Root(TyperGroup):
    """The group of all nouns; it knows their names and sentences without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [noun.name for noun in NOUNS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        noun = next((noun for noun in NOUNS if noun.name == cmd_name), None)
        return None if noun is None else _load(noun)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(noun.name, noun.teaches) for noun in NOUNS])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = [noun.name for noun in NOUNS]
        if args and args[0] not in known and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], known, n=1)
            nearest = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(known)}."
            ctx.fail(f"No such command '{args[0]}'. {nearest}")
        return super().resolve_command(ctx, args)


def _load(noun: Noun) -> click.Command:
    module = importlib.import_module(f"tacit.cli.{noun.name}")
    if noun.form == "verbs":
        command: click.Command = typer.main.get_group(module.app)
    else:
        single = typer.Typer(add_completion=False)
        single.command(noun.name)(module.command)
        command = typer.main.get_command(single)
    command.name = noun.name
    command.help = command.help or noun.teaches
    _make_plain(command)
    return command


def _make_plain(command: click.Command) -> None:
    """Give every level the plain help text, which needs no rich, and help instead of silence."""
    command.context_class = _Context
    if isinstance(command, (TyperGroup, TyperCommand)):
        command.rich_markup_mode = None
    if isinstance(command, TyperGroup):
        command.no_args_is_help = True
        command.suggest_commands = False  # click names the nearest itself
        for inner in command.commands.values():
            inner.short_help = inner.short_help or (inner.help or "").partition("\n")[0]
            _make_plain(inner)


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415 - 30 ms, and only here

        click.echo(f"tacit {version('tacit')}")
        ctx.exit()


def root_command() -> click.Group:
    """Return the whole command line as a click group."""
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version and exit.",
    )
    return _Root(
        name="tacit",
        help=_HELP,
        params=[version],
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; messages go to standard error."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # inherited by every process started from here
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what a person must know, our errors say
    try:
        code = root_command().main(list(arguments), prog_name="tacit", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge of the process
        json = "--json" in arguments  # also where the arguments could not be read
        return render_failure(error, debug=os.environ.get("TACIT_DEBUG") == "1", json=json)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the `tacit` command."""
    sys.exit(run(sys.argv[1:]))
