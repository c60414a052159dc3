"""The process of one run at the server: the strategy or a foreign ServerApp, nothing else.

The daemon (``server/scheduler.py``) starts it as::

    python -m tacit.server.worker --pipe FD --run RUN_ID --folder RUN_FOLDER --spool SPOOL_FOLDER
                                  [--checkpoint NAME] [--durable]

``--pipe`` is the inherited end of a stream socketpair (pipe.proto, ``GridRequest``); ``--spool`` is
the folder of payload files, for both directions (a name never holds a slash); ``--checkpoint``
names the file in ``RUN_FOLDER/checkpoints`` of the last ``GridCheckpoint`` that the daemon
recorded; ``--durable`` says that what a round leaves must survive a power cut. The run folder holds
``specification.json`` (canonical JSON), ``initial.safetensors`` and, if the daemon writes it,
``members.json`` (node id to member name) for the manifest.

The worker writes only into those two folders, holds no key and no network address, and trusts the
daemon. It ends with ``GridDone`` and exit status 0, also when the app failed: then ``GridDone``
carries a stable code. Any other end (a closed pipe, a signal) means "start me again from the last
checkpoint". ``RUN_FOLDER/checkpoints`` holds a secret seed: no verb may serve that folder.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import socket
import sys
from pathlib import Path

from tacit.core.artifacts import RunFolder
from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, TacitError
from tacit.core.logs import configure_logging
from tacit.core.specification import RunSpec, specification_sha256
from tacit.protos.flower import SERVER_NODE_ID, flower_run_id, set_task_identity
from tacit.protos.pipe import Pipe, PipeClosed
from tacit.server.app import quiet_flower, run_task
from tacit.server.pipe_port import PipePort
from tacit.server.strategy_run import RunTask

log = logging.getLogger("tacit.server.worker")

EXIT_PIPE_CLOSED = 6


def main(arguments: list[str] | None = None) -> int:
    """Run one run to its end; return the exit status."""
    options = _parse(arguments)
    configure_logging("run-worker", level="INFO", form=options.log_form)
    quiet_flower()
    gc.freeze()  # what is loaded by now stays: flwr collects garbage inside some aggregations
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides when a run stops
    port = PipePort(Pipe(socket.socket(fileno=options.pipe)), options.spool)
    try:
        error = _work(options, port)
        if error is None:
            port.done()
        else:
            port.done(failure=error.message, code=error.code, hint=error.hint)
    except PipeClosed:
        log.warning("the daemon is gone; it starts the run again when it is back")
        return EXIT_PIPE_CLOSED
    return 0


def _work(options: argparse.Namespace, port: PipePort) -> TacitError | None:
    """Run the task; return why it failed."""
    try:
        folder = RunFolder(options.folder)
        canonical = folder.specification.read_bytes()
        set_task_identity(run_id=flower_run_id(options.run), node_id=SERVER_NODE_ID)
        task = RunTask(
            run_id=options.run,
            specification=from_plain(json.loads(canonical), RunSpec),
            specification_sha256=specification_sha256(canonical),
            folder=folder,
            checkpoint=options.checkpoint,
            durable=options.durable,
        )
        run_task(task, port)
    except PipeClosed:
        raise
    except TacitError as error:
        log.error("run failed", extra={"fields": {"code": error.code}}, exc_info=error)  # noqa: TRY400
        return error
    except Exception as error:
        log.exception("the app raised")
        return AppError("E-SERVER-APP-FAILED", f"{type(error).__name__}: {error}")
    return None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tacit.server.worker")
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--log-form", choices=("json", "text"), default="text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
