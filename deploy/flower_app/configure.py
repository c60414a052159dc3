"""Turn run.toml into a run config for ``flwr run``, and data into prepared files for a simulation.

    python configure.py run.toml --out DIR
    python configure.py run.toml --out DIR --data FOLDER_OR_FILE [--clients N]

The first form is for a SuperLink: it writes ``DIR/run-config.toml`` alone; every data owner makes
their own prepared file. The second is for a simulation: it also reads the data, deals them out as
``tacit simulate`` does, and writes ``DIR/prepared/0.safetensors`` and so on, one for each node.

Both print the command that comes next. ``CONNECTION`` in it is a name in Flower's own configuration
(``~/.flwr/config.toml``); ``local``, which simulates on this machine, is there from the start.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tacit.core.configuration import load_config
from tacit.core.errors import TacitError
from tacit.core.specification import RunSpec, canonical_json
from tacit.learning.prepared import save_prepared
from tacit.simulation.owners import owner_sets, owners_in


def main(arguments: list[str]) -> int:
    """Write the files; say what to type next."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_toml", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the files")
    parser.add_argument(
        "--data", type=Path, help="simulation: a folder of owners' files, or a file"
    )
    parser.add_argument("--clients", type=int, help="simulation: deal one file out to so many")
    given = parser.parse_args(arguments)
    try:
        specification = load_config(given.run_toml, RunSpec).value
        out = given.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        prepared = out / "prepared"
        nodes = 0
        if given.data is not None:
            nodes = prepare(specification, given.data, prepared, clients=given.clients)
        config = write_run_config(specification, out, prepared=prepared if nodes else None)
    except TacitError as error:
        problems = getattr(error, "problems", ())
        hint = [f"hint: {error.hint}"] if error.hint else []
        print("\n".join([f"error: {error}", *problems, *hint]), file=sys.stderr)  # noqa: T201
        return error.exit_code
    app = Path(__file__).resolve().parent
    where = f"local --federation-config 'num-supernodes={nodes}'" if nodes else "CONNECTION"
    print(f"flwr run {app} {where} --stream --run-config {config}")  # noqa: T201
    return 0


def prepare(specification: RunSpec, data: Path, folder: Path, *, clients: int | None) -> int:
    """Write one prepared data set per simulated node; return how many there are.

    Raises:
        TacitError: the data are missing or break the contract.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    owners = owners_in(data, specification, clients=clients, scratch=folder / "shares")
    for index, owner in enumerate(owners):
        save_prepared(folder / f"{index}.safetensors", owner_sets(specification, owner))
    return len(owners)


def write_run_config(specification: RunSpec, out: Path, *, prepared: Path | None) -> Path:
    """Write ``run-config.toml``; a JSON string is a TOML string."""
    values = {
        "tacit-specification": canonical_json(specification).decode(),
        "tacit-out": str(out / "runs"),
    }
    if prepared is not None:
        values["tacit-prepared"] = str(prepared)
    path = out / "run-config.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
