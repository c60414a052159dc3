"""The run worker as a real process on the other end of a pipe: every strategy, and sudden death."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import RunFolder, load_arrays, save_arrays, write_atomic
from tacit.core.specification import AppSpec, RunSpec, canonical_json
from tacit.protos import pipe_pb2
from tacit.protos.payload import map_payload
from tacit.protos.pipe import Pipe, PipeClosed
from tacit.server.checkpoint import load_checkpoint
from tacit.server.grid import Outgoing
from tacit.simulation.port import LocalPort
from tests.conformance import APPS, CASES, NODES, assert_conformant, initial_arrays, run_spec
from tests.simulator import app_nodes

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

RUN_ID = "r-0000beef"


class PipeDaemon:
    """The daemon's end of the pipe, over a local port: what the scheduler and journal do."""

    def __init__(self, folder: Path, run: RunSpec, app: str) -> None:
        self.folder = RunFolder(folder / "run").create()
        self.spool = folder / "spool"
        self.spool.mkdir()
        save_arrays(self.folder.initial, initial_arrays())
        write_atomic(self.folder.specification, canonical_json(run))
        self.events: list[tuple[str, dict[str, object]]] = []
        self.port = LocalPort(
            app_nodes(APPS[app], NODES), lambda kind, fields: self.events.append((kind, fields))
        )
        self.done: pipe_pb2.GridDone | None = None
        self.calls = 0

    def play(self, *, kill_at: int = 0) -> int:
        """Serve one worker process until it ends; kill it at its n-th call if asked to."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tacit.server.worker", "--pipe", str(theirs.fileno())]
        command += ["--run", RUN_ID, "--folder", str(self.folder.path)]
        command += ["--spool", str(self.spool), "--checkpoint", self.port.resume_from]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        pipe = Pipe(ours)
        self.calls = 0
        try:
            while True:
                request, _ = pipe.receive(pipe_pb2.GridRequest, max_bytes=1 << 24)
                self.calls += 1
                if self.calls == kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
                pipe.send(self._answer(request))
                if request.WhichOneof("request") == "done":
                    break
        except PipeClosed:
            pass
        finally:
            pipe.close()
        return process.wait(60)

    def _answer(self, request: pipe_pb2.GridRequest) -> pipe_pb2.GridReply:
        reply = pipe_pb2.GridReply(call_id=request.call_id)
        match request.WhichOneof("request"):
            case "nodes":
                reply.node_ids.extend(self.port.nodes(request.nodes.sequence))
            case "push":
                self._push(request.push.messages)
            case "pull":
                for item in self.port.pull(request.pull.message_ids, timeout_s=0.0, wait=True):
                    name = f"reply-{item.message_id}.bin"
                    (self.spool / name).write_bytes(item.payload)
                    reply.results.add(
                        message_id=item.message_id,
                        node_id=item.node_id,
                        reply=item.head,
                        payload_name=name,
                    )
            case "event":
                self.port.event(request.event.kind, json.loads(request.event.fields_json))
            case "checkpoint":
                point = request.checkpoint
                self.port.checkpoint(
                    round_number=point.round, next_sequence=point.next_sequence, name=point.name
                )
            case "done":
                self.done = request.done
        return reply

    def _push(self, messages: Sequence[pipe_pb2.GridMessage]) -> None:
        for name in {item.payload_name for item in messages}:
            self.port.store(name, [map_payload(self.spool / name)])
        self.port.push(
            [
                Outgoing(
                    head=item.instruction, node_id=item.node_id, payload_name=item.payload_name
                )
                for item in messages
            ]
        )


@pytest.mark.parametrize("case", [CASES[2], CASES[11], CASES[15]], ids=lambda case: case.label)
def test_a_worker_killed_again_and_again_still_conforms(case, tmp_path: Path) -> None:  # noqa: ANN001
    """SIGKILL at changing moments: the run ends with the weights of a direct call."""
    daemon = PipeDaemon(tmp_path, run_spec(case), case.app)
    assert daemon.play(kill_at=3) == -signal.SIGKILL  # after the first checkpoint: its key is known
    key = load_checkpoint(daemon.folder.path / "checkpoints" / daemon.port.resume_from).key
    for kill_at in (5, 9, 7):
        assert daemon.play(kill_at=kill_at) == -signal.SIGKILL
    assert daemon.play() == 0
    assert daemon.done is not None
    assert daemon.done.code == ""
    assert_conformant(case, load_arrays(daemon.folder.model), key)


def test_a_finished_run_keeps_no_seed(tmp_path: Path) -> None:
    """When the last round is done, the key that seeded the wrappers' noise is gone."""
    daemon = PipeDaemon(tmp_path, run_spec(CASES[12]), "client_app")
    assert daemon.play() == 0
    last = load_checkpoint(daemon.folder.path / "checkpoints" / daemon.port.resume_from)
    assert last.key == bytes(32)
    assert daemon.play() == 0  # started again by mistake, it changes nothing
    assert all(np.isfinite(array).all() for array in load_arrays(daemon.folder.model).values())


def test_a_run_that_fails_says_so_with_a_code(tmp_path: Path) -> None:
    """A ServerApp that is not installed ends the run, not the daemon."""
    run = run_spec(CASES[0])
    app = AppSpec(client="tests.conformance:client_app", server="no_such_module:app")
    daemon = PipeDaemon(tmp_path, replace(run, app=app), "client_app")
    assert daemon.play() == 0
    assert daemon.done is not None
    assert daemon.done.code == "E-APP-MISSING"


def test_a_worker_whose_daemon_is_gone_ends(tmp_path: Path) -> None:
    """A closed pipe ends the worker with the status that means: start me again."""
    daemon = PipeDaemon(tmp_path, run_spec(CASES[0]), "client_app")
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tacit.server.worker", "--pipe", str(theirs.fileno())]
    command += ["--run", RUN_ID, "--folder", str(daemon.folder.path)]
    with theirs:
        process = subprocess.Popen(
            [*command, "--spool", str(daemon.spool)],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
        )
    ours.close()
    assert process.wait(60) == 6
