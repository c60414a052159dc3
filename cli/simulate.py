"""`tacit simulate`: try a run.toml in one process, on data that are at hand."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit.cli.output import emit
from tacit.cli.progress import RoundProgress
from tacit.core.configuration import load_config
from tacit.core.logs import configure_logging
from tacit.core.specification import PrivacyMode, RunSpec

if TYPE_CHECKING:
    from tacit.simulation.comparison import Comparison
    from tacit.simulation.federation import Simulated

FileArgument = Annotated[Path, typer.Argument(help="The run.toml to try.")]
ClientsOption = Annotated[
    int | None, typer.Option("--clients", help="How many owners; a folder of files tells itself.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="One file per owner in a folder (default: beside run.toml), or one file to deal out.",
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
    out: OutOption = None,
    workers: WorkersOption = 1,
    json: JsonOption = False,
) -> None:
    """Try a run.toml in one process, before anybody else is asked.

    The owners' nodes, the server's loop and the strategy are the real ones; there is no network
    and no isolation. Ends with a table of the federated model, each owner alone, all data pooled
    and a trivial guess, since here all data are in one place.
    """
    # torch, opacus and flwr: four seconds that no other verb pays
    from tacit.server.app import quiet_flower  # noqa: PLC0415
    from tacit.simulation.federation import simulate  # noqa: PLC0415
    from tacit.simulation.owners import bare_owners, owner_sets, owners_in  # noqa: PLC0415

    configure_logging("simulate", level="WARNING")
    quiet_flower()
    specification = load_config(file, RunSpec).value
    folder = out or Path("runs") / f"{_word(specification.name)}-{secrets.token_hex(4)}"
    seed = specification.training.seed if specification.training is not None else 0
    if specification.data is None:
        owners = bare_owners(clients)
    else:
        scratch = folder / "shares"
        owners = owners_in(data or file.parent, clients=clients, scratch=scratch, seed=seed)
    initial = file.parent / specification.initial if specification.initial else None
    with RoundProgress(specification.participation.rounds, quiet=json) as progress:
        done = simulate(
            specification,
            owners,
            folder,
            source_toml=file.read_text(),
            initial=initial,
            workers=workers,
            watch=progress.show,
        )
    comparison = None
    training = specification.training
    if training is not None and training.validation_fraction > 0:
        from tacit.simulation.comparison import compare  # noqa: PLC0415

        sets = {owner.name: owner_sets(specification, owner) for owner in owners}
        comparison = compare(specification, sets, done.folder)
    _report(specification, done, comparison, json=json)


def _report(
    specification: RunSpec, done: Simulated, comparison: Comparison | None, *, json: bool
) -> None:
    result: dict[str, Any] = {
        "folder": done.folder.path.resolve(),
        "rounds": specification.participation.rounds,
        "seconds": round(done.seconds, 3),
        "payload_bytes": {"to_owners": done.bytes_sent, "from_owners": done.bytes_received},
    }
    if comparison is not None:
        from tacit.simulation.comparison import save_comparison, save_plot  # noqa: PLC0415

        save_comparison(done.folder.path / "comparison.json", specification, comparison)
        save_plot(done.folder.path / "comparison.png", specification, comparison)
        result["comparison"] = comparison
    if json:
        emit(result, json=True)
        return
    if comparison is not None:
        show_comparison(specification, comparison)
    print(f"Run folder: {result['folder']}")  # noqa: T201 - the verb's result


def show_comparison(specification: RunSpec, comparison: Comparison) -> None:
    """Print the table and what it must not be taken for."""
    from rich.console import Console  # noqa: PLC0415

    from tacit.simulation.comparison import comparison_table  # noqa: PLC0415

    width = None if sys.stdout.isatty() else 118
    console = Console(width=width, highlight=False)
    console.print(comparison_table(comparison))
    if specification.privacy.mode is not PrivacyMode.NONE:
        console.print(
            "The table itself is exact: whoever holds all the data made it, and it carries no "
            "noise.\nIn a real run nobody could; each owner compares at home.",
        )


def _word(name: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return kept[:40] or "run"
