"""`tacit simulate`: try a run.toml in one process, on data that are at hand."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit.cli.checks import check_run, show_notes
from tacit.cli.output import emit, foreign_output_aside
from tacit.cli.progress import RoundProgress
from tacit.cli.sums import summary_of_sums, words_of_sums
from tacit.core.errors import UnavailableError
from tacit.core.events import EventKind
from tacit.core.logs import configure_logging
from tacit.core.specification import PrivacyMode

if TYPE_CHECKING:
    from tacit.cli.checks import Checked
    from tacit.core.events import Event
    from tacit.core.specification import RunSpec
    from tacit.simulation.comparison import Comparison
    from tacit.simulation.federation import Simulated
    from tacit.simulation.owners import Owner

FileArgument = Annotated[Path, typer.Argument(help="The run.toml to try.")]
ClientsOption = Annotated[
    int | None,
    typer.Option(
        "--clients",
        help="How many owners one file is dealt out to; a folder has one file for each.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="One file per owner in a folder (default: beside run.toml), or one file to deal out.",
    ),
]
OwnerOption = Annotated[
    Path | None,
    typer.Option(
        "--owner",
        help="An owner's client.toml, which every owner of the trial then holds: its [policy], "
        "and what it declares of the run's data set. Without --data, its own records are dealt "
        "out.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder (default: runs/NAME-XXXXXXXX).")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="How many owners train at once, in processes.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def command(
    file: FileArgument,
    *,
    clients: ClientsOption = None,
    data: DataOption = None,
    owner: OwnerOption = None,
    out: OutOption = None,
    workers: WorkersOption = 1,
    json: JsonOption = False,
) -> None:
    """Try a run.toml in one process, before anybody else is asked.

    Example: tacit simulate run.toml --data data.csv --clients 4

    The owners' nodes, the server's loop and the strategy are the real ones; there is no network
    and no isolation. Ends with a table of the federated model, each owner alone, all data pooled
    and a trivial guess, since here all data are in one place. A run without [training], as with an
    app of one's own, has no built-in training to compare with, and ends without the table.

    Without --owner the owners allow all that the run asks for, and their data are as they are. With
    it they refuse, clean, group by subject and charge as that client.toml says; where it asks a
    person, this command says yes. A subject's records are dealt to one owner, and the declared
    `records` is shared out with them.
    """
    configure_logging("simulate", level="WARNING")
    with foreign_output_aside():
        checked = check_run(file, records=0)
    if not json:
        show_notes(checked.notes)
    specification = checked.specification
    folder = out or Path("runs") / f"{_word(specification.name)}-{secrets.token_hex(4)}"
    rounds = specification.participation.rounds
    with foreign_output_aside(), RoundProgress(rounds, quiet=json) as progress:
        trial = Trial(
            file=file, checked=checked, folder=folder, data=data, owner=owner, clients=clients
        )
        done, comparison = _tried(trial, workers=workers, progress=progress)
    _report(checked, done, comparison, json=json)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is to be tried, and on which data.

    Attributes:
        file, checked: the run.toml, and what it resolves to.
        folder: the run folder; new or empty.
        data, owner, clients: the options of these names.
    """

    file: Path
    checked: Checked
    folder: Path
    data: Path | None
    owner: Path | None
    clients: int | None


def _tried(
    trial: Trial, *, workers: int, progress: RoundProgress
) -> tuple[Simulated, Comparison | None]:
    """Run the trial; a failure before the first round leaves nothing behind."""
    # torch, opacus and flwr: four seconds that no other verb pays
    from tacit.server.app import quiet_flower  # noqa: PLC0415
    from tacit.simulation.federation import simulate  # noqa: PLC0415
    from tacit.simulation.new_folder import NewFolder  # noqa: PLC0415
    from tacit.simulation.owners import owner_sets  # noqa: PLC0415

    quiet_flower()
    specification = trial.checked.specification
    with NewFolder(trial.folder) as new_folder:

        def watch(event: Event) -> None:
            if event.kind is EventKind.RUN_STARTED:
                new_folder.keep()
            progress.show(event)

        owners = _owners(trial)
        initial = trial.file.parent / specification.initial if specification.initial else None
        split_key = os.urandom(32)
        done = simulate(
            specification,
            owners,
            trial.folder,
            source_toml=trial.checked.source,
            initial=initial,
            workers=workers,
            watch=watch,
            split_key=split_key,
        )
    training = specification.training
    if training is None or training.validation_fraction == 0 or specification.discards_model:
        return done, None
    from tacit.simulation.comparison import compare  # noqa: PLC0415

    sets = {owner.name: owner_sets(specification, owner, split_key=split_key) for owner in owners}
    return done, compare(specification, sets, done.folder)


def _owners(trial: Trial) -> list[Owner]:
    from tacit.simulation.owners import bare_owners, owners_in  # noqa: PLC0415 - see _tried
    from tacit.simulation.rules import load_rules  # noqa: PLC0415 - see _tried

    specification = trial.checked.specification
    rules = None if trial.owner is None else load_rules(trial.owner, specification)
    if specification.data is None:
        return bare_owners(specification, clients=trial.clients, rules=rules)
    own = trial.file.parent if rules is None or rules.data_set is None else rules.data_set.path
    return owners_in(
        trial.data or own,
        specification,
        clients=trial.clients,
        scratch=trial.folder / "shares",
        rules=rules,
    )


def _report(
    checked: Checked, done: Simulated, comparison: Comparison | None, *, json: bool
) -> None:
    specification = checked.specification
    result: dict[str, Any] = {
        "folder": done.folder.path.resolve(),
        "rounds": specification.participation.rounds,
        "notes": checked.notes,
        "seconds": round(done.seconds, 3),
        "payload_bytes": {"to_owners": done.bytes_sent, "from_owners": done.bytes_received},
    }
    sums = {}
    if not specification.discards_model:
        sums = summary_of_sums(specification, done.folder)
        result |= sums
    if comparison is not None:
        from tacit.simulation.comparison import save_comparison  # noqa: PLC0415

        save_comparison(done.folder.path / "comparison.json", specification, comparison)
        plotted(done.folder.path / "comparison.png", specification, comparison)
        result["comparison"] = comparison
    if json:
        emit(result, json=True)
        return
    if comparison is not None:
        show_comparison(specification, comparison)
    else:
        typer.echo(f"No table: {_why_no_table(specification)}", err=True)
    for line in words_of_sums(specification, sums):
        typer.echo(line)
    print(f"Run folder: {result['folder']}")  # noqa: T201 - the verb's result


def _why_no_table(specification: RunSpec) -> str:
    if specification.discards_model:
        return "the run is a twin, whose model is discarded: canaries.json has what canaries said"
    if specification.training is None:
        own = "trains with an app of its own" if specification.app else "declares no [training]"
        return f"the run {own}: there is no built-in training to compare it with"
    return "training.validation_fraction = 0 holds out no records to compare models on"


def plotted(path: Path, specification: RunSpec, comparison: Comparison) -> Path | None:
    """Draw the comparison; without matplotlib, which is an extra, say so and go on."""
    from tacit.simulation.plot import save_plot  # noqa: PLC0415 - see _tried

    try:
        save_plot(path, specification, comparison)
    except UnavailableError as error:
        typer.echo(f"No plot: {error.message}; {error.hint}", err=True)
        return None
    return path.resolve()


def show_comparison(specification: RunSpec, comparison: Comparison) -> None:
    """Print the table and what it must not be taken for."""
    from rich.console import Console  # noqa: PLC0415

    from tacit.simulation.comparison import comparison_table  # noqa: PLC0415

    width = None if sys.stdout.isatty() else 118
    console = Console(width=width, highlight=False)
    table = comparison_table(comparison)
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    if natural > console.width:  # rows that wrap are hard to compare
        table = comparison_table(comparison, by_owner=False)
    console.print(table)
    if specification.privacy.mode is not PrivacyMode.NONE:
        console.print(
            "The table itself is exact: whoever holds all the data made it, with no noise.\n"
            "In a real run nobody could; each owner compares at home.",
        )


def _word(name: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return kept[:40] or "run"
