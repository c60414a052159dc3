"""`tacit demo`: a whole federation on this machine, on real data."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from tacit.cli.output import emit
from tacit.cli.progress import RoundProgress
from tacit.core.logs import configure_logging

OutOption = Annotated[
    Path | None, typer.Option("--out", help="A new folder (default: tacit-demo-XXXX).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def command(*, out: OutOption = None, json: JsonOption = False) -> None:
    """See a whole federation train on real data, on this machine, in under a minute.

    One server and four hospitals, as real processes over mutual TLS, train a model of heart disease
    with differential privacy. Their updates are summed unseen, with noise inside that they share.
    Nothing leaves this machine, and nothing keeps running.
    """
    # everything below loads torch and grpc, which no other verb should pay for
    from tacit.simulation.demo import demo_specification, run_demo  # noqa: PLC0415

    began = time.monotonic()
    configure_logging("demo", level="ERROR")
    folder = out or Path(f"tacit-demo-{secrets.token_hex(2)}")
    rounds = demo_specification().participation.rounds
    with RoundProgress(rounds, quiet=json) as progress:
        done = run_demo(folder, say=progress.say, watch=progress.show)
        progress.say("Demo: scores the model, and trains the alternatives for comparison")
    from tacit.cli.simulate import plotted, show_comparison  # noqa: PLC0415
    from tacit.cli.sums import summary_of_sums, words_of_sums  # noqa: PLC0415
    from tacit.simulation.comparison import compare, save_comparison  # noqa: PLC0415
    from tacit.simulation.owners import owner_sets  # noqa: PLC0415

    sets = {owner.name: owner_sets(done.specification, owner) for owner in done.owners}
    comparison = compare(done.specification, sets, done.folder)
    table = folder / "comparison.json"
    save_comparison(table, done.specification, comparison)
    sums = summary_of_sums(done.specification, done.folder)
    result = {
        "run_folder": done.folder.path.resolve(),
        "plot": plotted(folder / "comparison.png", done.specification, comparison),
        "table": table.resolve(),
        "seconds": round(time.monotonic() - began, 1),
    }
    if json:
        emit({**result, **sums, "comparison": comparison}, json=True)
        return
    show_comparison(done.specification, comparison)
    typer.echo("\n".join(words_of_sums(done.specification, sums)))
    emit(result, json=False)
    typer.echo("Data: UCI heart disease (Janosi, Steinbrunn, Pfisterer, Detrano, 1988).")
