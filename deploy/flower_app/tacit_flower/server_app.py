"""The ServerApp: the loop of ``tacit.server.app`` on Flower's Grid, from the same run.toml.

It leaves the same run folder as Tacit's daemon does, in ``tacit-out`` on the machine where Flower
runs the ServerApp: ``initial.safetensors``, ``rounds/``, ``model.safetensors``, ``manifest.json``
and ``events.jsonl``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import ServerApp

from tacit.core.artifacts import RunFolder, save_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import UsageError
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tacit.learning.models import initial_arrays
from tacit.server.app import RunTask, run_task
from tacit_flower.port import FlowerPort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context
    from flwr.serverapp import Grid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the specification that stands in the run config.

    Raises:
        TacitError: the configuration is wrong, or the run failed.
    """
    specification = specification_of(context.run_config)
    run_id = f"r-{context.run_id & 0xFFFFFFFF:08x}"
    folder = RunFolder(_out(context.run_config) / run_id).create()
    save_arrays(folder.initial, initial_arrays(specification))
    task = RunTask(
        run_id=run_id,
        specification=specification,
        specification_sha256=specification_sha256(canonical_json(specification)),
        folder=folder,
    )
    tell = _teller(folder.events)
    try:
        run_task(task, FlowerPort(grid, tell))
    except Exception as error:
        tell("run_failed", {"code": getattr(error, "code", "E-INTERNAL"), "reason": str(error)})
        raise


def specification_of(run_config: Mapping[str, object]) -> RunSpec:
    """Return the run specification that the run config carries.

    Raises:
        UsageError: there is none, or it brings an app of its own.
        ConfigError: it breaks a rule.
    """
    text = str(run_config.get("tacit-specification", ""))
    if not text:
        raise UsageError(
            "E-FLOWER-CONFIG",
            "expected tacit-specification in the run config, got none",
            hint="python configure.py run.toml --out run-config.toml; "
            "then flwr run . --run-config run-config.toml",
        )
    specification = from_plain(json.loads(text), RunSpec)
    if specification.app is not None:
        raise UsageError(
            "E-FLOWER-CONFIG",
            "expected a run with [data], [model] and [training], got one with [app]",
            hint="an app of your own is a Flower app: give it to `flwr run` itself",
        )
    return specification


def _out(run_config: Mapping[str, object]) -> Path:
    text = str(run_config.get("tacit-out", ""))
    if not text or not Path(text).is_absolute():
        raise UsageError("E-FLOWER-CONFIG", f"expected an absolute path in tacit-out, got {text!r}")
    return Path(text)


def _teller(path: Path) -> Callable[[str, Mapping[str, object]], None]:
    def tell(kind: str, fields: Mapping[str, object]) -> None:
        line = json.dumps({"at_s": time.time(), "kind": kind, **fields}, default=str)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return tell
