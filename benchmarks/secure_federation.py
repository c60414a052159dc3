"""Real daemons for the benchmark of secure aggregation: one server, n nodes, several runs.

One federation serves all runs that are compared, so that nodes, their ids and the machine's moment
are the same: the model of a secure run must then equal that of the plain one. Node 0 reaches its
server through a relay that counts bytes; with a delay, all do (benchmarks/relay.py). Owners believe
the server's word on who the members are: whom they have pinned changes no time.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from benchmarks import noop_app
from benchmarks.measure import Sampler
from benchmarks.processes import BenchmarkError, Crew, free_ports, wait_for_port
from benchmarks.relay import Relay
from benchmarks.results import SERVER, wait_for_rounds
from benchmarks.tacit_engine import RunWatch, environment, program, run_verb
from tacit.core.artifacts import RunFolder, save_arrays
from tacit.core.identity import parse_token
from tacit.core.profiles import load_profile
from tacit.core.specification import canonical_json
from tacit.protos.control_client import Submission, open_profile
from tacit.protos.enrolment_client import enrol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tacit.core.artifacts import Arrays
    from tacit.core.specification import RunSpec

START_TIMEOUT_S = 120.0
ROUND_LIMIT_S = 240.0

SERVER_TOML = """\
names = ["127.0.0.1"]
listen = "{listen}"
enrolment_listen = "{enrolment}"
"""

CLIENT_TOML = """\
{data}
[policy]
modes = ["none", "record-distributed"]
min_clients = 3
max_epsilon_per_run = 50
approve = "rule"

[policy.secure_aggregation]
require_pinned_members = false

[policy.apps."noop_app:client_app"]
"""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run that has ended.

    Attributes:
        rounds: of each round the moments (CLOCK_MONOTONIC) at which it started and ended.
        cpu_s: CPU seconds per timed round: of all processes, of the server's, of the median node's.
        up, down: bytes per timed round between node 0 and the server, all framing included.
        folder: what the run left.
    """

    rounds: tuple[tuple[float, float], ...]
    cpu_s: tuple[float, float, float]
    up: float
    down: float
    folder: RunFolder

    @property
    def seconds(self) -> list[float]:
        """How long each timed round took; the first is the warm-up, if there are more."""
        return [end - start for start, end in self.rounds[1:] or self.rounds]


class SecureFederation:
    """One server and its nodes; leaving the block ends every process."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        *,
        progress: Callable[[str], None],
        delayed: bool = False,
        data: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.relay: Relay
        self._folder, self._names, self._progress = folder, names, progress
        self._delayed, self._data = delayed, data
        self._crew = Crew(folder)
        self._stack = contextlib.ExitStack()
        apps = folder / "apps"
        apps.mkdir()
        shutil.copy(noop_app.__file__, apps / "noop_app.py")
        self._environ = environment(folder, apps)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        ports = free_ports(2)
        self.relay = self._stack.enter_context(Relay(ports[0]))
        self._stack.enter_context(self._crew)  # ends before the relay: no connection is left then
        listen, enrolment = (f"127.0.0.1:{port}" for port in ports)
        addresses = ["--listen", listen, "--enrolment-listen", enrolment]
        run_verb(["server", "init", "--name", "127.0.0.1", *addresses], self._environ)
        text = SERVER_TOML.format(listen=listen, enrolment=enrolment)
        (self._folder / "server" / "server.toml").write_text(text, encoding="utf-8")
        self._crew.start(SERVER, [program(), "server", "start"], environ=self._environ)
        for port in ports:
            wait_for_port(port, self._crew, timeout_s=START_TIMEOUT_S)
        for number, name in enumerate(self._names):
            self._start_node(name, relayed=self._delayed or number == 0)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all("connected" in self._crew.tail(name) for name in self._names):
            self._crew.check()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not all nodes are connected in {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        self._progress(f"{len(self._names)} nodes are up")

    def _start_node(self, name: str, *, relayed: bool) -> None:
        home = self._folder / name
        home.mkdir(mode=0o700)
        with open_profile(load_profile(home=self._folder / "operator", environ={})) as operator:
            token = operator.invite(name, "client")
        enrol(parse_token(token), home / "identity")
        if relayed:
            path = home / "identity" / "server.json"
            known = json.loads(path.read_bytes())
            known["addresses"] = [f"127.0.0.1:{self.relay.port}"]
            path.write_text(json.dumps(known), encoding="utf-8")
        text = CLIENT_TOML.format(data=self._data(name))
        (home / "client.toml").write_text(text, encoding="utf-8")
        command = [program(), "client", "start", "--home", str(home)]
        self._crew.start(name, command, environ=self._environ)

    def play(self, run: RunSpec, initial: Arrays) -> Played:
        """Submit a run and wait until it has ended.

        Raises:
            BenchmarkError: it did not end well.
        """
        path = self._folder / "initial.safetensors"
        save_arrays(path, initial)
        submission = Submission(canonical=canonical_json(run), source_toml=b"", initial=path)
        with open_profile(load_profile(home=self._folder / "operator", environ={})) as operator:
            run_id = str(operator.submit(submission))
        watch = RunWatch(run_id, self._crew, self._environ)
        count = run.participation.rounds
        with Sampler(self._crew.pids) as sampler:
            lines = wait_for_rounds(
                watch.rounds,
                count,
                self._crew,
                timeout_s=ROUND_LIMIT_S * (1 + count),
                progress=self._progress,
                failed=watch.failed,
            )
        watch.wait_for_end(timeout_s=ROUND_LIMIT_S)
        moments = tuple((line["started"], line["ended"]) for line in lines)
        timed = moments[1:] or moments
        span = (timed[0][0], timed[-1][1])
        used = {
            name: trace.cpu_between(*span) / len(timed) for name, trace in sampler.traces.items()
        }
        nodes = sorted(used[name] for name in self._names)
        return Played(
            rounds=moments,
            cpu_s=(used[SERVER] + sum(nodes), used[SERVER], nodes[len(nodes) // 2]),
            up=self.relay.up.between(*span) / len(timed),
            down=self.relay.down.between(*span) / len(timed),
            folder=RunFolder(self._folder / "server" / "runs" / run_id),
        )
