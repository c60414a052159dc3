"""A whole federation as real processes on free ports of loopback, driven by the `tacit` command.

Every daemon is `tacit server start` or `tacit client start`, with a state directory, keys and a log
of its own. They are ended by process id on every path, killed ones included; whatever names the
federation's folder on its command line is one of ours, and nothing of it may be left behind.

Apps of somebody's own come from ``apps/``, copied into a folder that stands on PYTHONPATH, as an
installed package would.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tacit.client.store import Decision, open_store
from tacit.core.artifacts import RunFolder, load_arrays
from tacit.core.identity import parse_token
from tacit.core.membership import Membership
from tacit.core.profiles import load_profile
from tacit.core.specification import RunSpec, canonical_json
from tacit.protos.control_client import Submission, open_profile
from tacit.protos.enrolment_client import enrol
from tacit.server.initialise import initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from tacit.client.store import OutboxEntry

T = TypeVar("T")

APPS = Path(__file__).with_name("apps")
TACIT = Path(sys.executable).with_name("tacit")
PATIENCE_S = 120.0  # two cores, shared with whatever else this machine does
TICK_S = 0.02
PORTS = range(20_000, 32_000)  # below those that the system gives to outgoing connections

CLIENT_TOML = """\
[policy]
modes = ["none", "record-local", "client-local"]
min_clients = 1
max_epsilon_per_run = 50
approve = "rule"
{policy}
"""


def eventually(
    what: str, attempt: Callable[[], T], *, timeout_s: float = PATIENCE_S, tick_s: float = TICK_S
) -> T:
    """Return the first true value of ``attempt``; fail when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := attempt()):
        assert time.monotonic() < deadline, f"expected {what} within {timeout_s:g} s"
        time.sleep(tick_s)
    return value


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on and that no outgoing connection will take."""
    found: list[int] = []
    start = int.from_bytes(os.urandom(2)) % len(PORTS)
    for step in range(len(PORTS)):
        port = PORTS[(start + step) % len(PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port of this machine is free")


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended.

    Attributes:
        code: its exit code.
        out, err: what it printed.
    """

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed under --json."""
        return json.loads(self.out)

    def refuses(self, exit_code: int, stable_code: str) -> str:
        """Check that it ended in this error, with a hint and without a traceback; return it."""
        assert (self.code, f"[{stable_code}]" in self.err) == (exit_code, True), self
        assert "hint: " in self.err
        assert "Traceback" not in self.err
        return self.err


@dataclass
class Daemon:
    """A process of ours that stays.

    Attributes:
        name: what it is.
        process: its handle.
        log: what it prints.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def says(self, words: str, *, times: int = 1) -> None:
        """Wait for words in its log."""
        eventually(
            f"{words!r} from {self.name}:\n{self.text}", lambda: self._has(words, times=times)
        )

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def ends(self, *, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def _has(self, words: str, *, times: int) -> bool:
        text = self.text
        if text.count(words) >= times:
            return True
        assert self.process.poll() is None, f"{self.name} ended:\n{text}"
        return False


@dataclass
class Federation:
    """One server, its operator, and the owners that join."""

    root: Path
    ports: tuple[int, int]
    environment: dict[str, str]
    daemons: dict[str, Daemon] = field(default_factory=dict)
    _starts: int = 0

    @property
    def home(self) -> Path:
        """The server's state directory."""
        return self.root / "server"

    @property
    def address(self) -> str:
        """Where members reach the server."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def gates(self) -> Path:
        """The folder with files that hold the apps of ``apps/`` while they exist."""
        return self.root / "gates"

    def tacit(
        self,
        *arguments: str | Path,
        timeout_s: float = PATIENCE_S,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command to its end."""
        return tacit(
            *arguments,
            environment={**self.environment, **(environment or {})},
            folder=self.root,
            timeout_s=timeout_s,
        )

    def start(self, name: str, *arguments: str | Path, limits: str = "") -> Daemon:
        """Start a command that stays; ``limits`` is shell, such as ``ulimit -f 100``."""
        self._starts += 1
        log = self.root / f"{name}.{self._starts}.log"
        command = [str(TACIT), *map(str, arguments)]
        if limits:
            command = ["bash", "-c", f'{limits}; exec "$0" "$@"', *command]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        daemon = self.daemons[name] = Daemon(name, process, log)
        return daemon

    def start_server(self, *, limits: str = "") -> Daemon:
        """Start the server's daemon and wait until it serves."""
        server = self.start("server", "server", "start", "--home", self.home, limits=limits)
        server.says("serving")
        return server

    def token(self, name: str, role: str = "client") -> str:
        """Return a fresh invitation."""
        with self.operator() as operator:
            return operator.invite(name, role)

    def join(self, name: str, *, policy: str = "", data: str = "") -> Path:
        """Make an owner who is enrolled and whose daemon does not run; return their home."""
        home = self.root / name
        home.mkdir(mode=0o700)
        enrol(parse_token(self.token(name)), home / "identity")
        text = data + CLIENT_TOML.format(policy=policy or self.app_policy("quick_app:app"))
        (home / "client.toml").write_text(text)
        return home

    def app_policy(self, *names: str) -> str:
        """Return the part of client.toml that allows apps and lets them see the gates."""
        return "".join(
            f'[policy.apps."{name}"]\nreadable = ["{self.gates}"]\n'
            f'node_config = {{ gates = "{self.gates}" }}\n'
            for name in names
        )

    def start_client(self, name: str, *, limits: str = "") -> Daemon:
        """Start an owner's daemon and wait until it is connected."""
        arguments = ("client", "start", "--home", self.root / name)
        client = self.start(name, *arguments, limits=limits)
        client.says("connected")
        return client

    def add_clients(self, *names: str, policy: str = "", data: str = "") -> None:
        """Enrol and start several owners; they start side by side."""
        for name in names:
            self.join(name, policy=policy, data=data)
            self.start(name, "client", "start", "--home", self.root / name)
        for name in names:
            self.daemons[name].says("connected")

    @contextlib.contextmanager
    def operator(self) -> Iterator[Any]:
        """Open the operator's connection over mutual TLS."""
        with open_profile(load_profile(home=self.root / "operator", environ={})) as client:
            yield client

    def submit(self, specification: RunSpec, initial: Path) -> str:
        """Submit a run; return its id."""
        canonical = canonical_json(specification)
        submission = Submission(canonical=canonical, source_toml=b"", initial=initial)
        with self.operator() as operator:
            return str(operator.submit(submission))

    def events(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Return kind and fields of every event of a run, once it has ended."""
        with self.operator() as operator:
            return [(event.kind.value, dict(event.fields)) for event in operator.watch(run_id)]

    def wait_for_event(self, run_id: str, kind: str, **fields: object) -> dict[str, Any]:
        """Return the first event of this kind with these fields."""
        deadline = time.monotonic() + PATIENCE_S
        seen: list[str] = []
        with self.operator() as operator:
            for event in operator.watch(run_id):
                assert time.monotonic() < deadline, f"expected {kind}, got {seen}"
                seen.append(f"{event.kind.value} {event.fields}")
                if event.kind.value == kind and fields.items() <= event.fields.items():
                    return dict(event.fields)
        raise AssertionError(f"expected {kind} {fields}, got {seen}")

    def finish(self, run_id: str) -> dict[str, np.ndarray[Any, Any]]:
        """Wait until a run has finished; return its model."""
        self.wait_for_event(run_id, "run_finished")
        return load_arrays(self.pull(run_id).model)

    def pull(self, run_id: str) -> RunFolder:
        """Fetch a run's folder."""
        folder = self.root / "pulled" / run_id
        with self.operator() as operator:
            operator.pull_run(run_id, folder)
        return RunFolder(folder)

    def node_id(self, name: str) -> int:
        """Return an owner's node id."""
        return Membership(self.root / name / "identity").identity.node_id

    def hold(self, round_number: int, *names: str) -> list[Path]:
        """Let these owners' apps wait in a round, until the returned files are gone."""
        gates = [self.gates / f"hold-{round_number}-{self.node_id(name)}" for name in names]
        for gate in gates:
            gate.touch()
        return gates

    def wait_until_held(self, name: str, round_number: int, run_id: str) -> None:
        """Wait until an owner's app has got a round's message and is held by its gate."""
        log = self.root / name / "logs" / f"{run_id}.log"
        words = f"held in round {round_number}\n"
        eventually(f"{name} held in {log}", lambda: log.exists() and words in log.read_text())

    def outbox(self, name: str) -> list[OutboxEntry]:
        """Return the replies that an owner keeps."""
        store = open_store(self.root / name / "client.sqlite", read_only=True)
        try:
            return store.list_replies()
        finally:
            store.close()

    def decisions(self, name: str, run_id: str) -> list[Decision]:
        """Return an owner's decision log of one run, the latest first."""
        store = open_store(self.root / name / "client.sqlite", read_only=True)
        try:
            return store.list_decisions(limit=1000, run_id=run_id)
        finally:
            store.close()

    def steps(self, name: str, run_id: str) -> set[str]:
        """Return the steps of secure aggregation that an owner has answered in a run."""
        prefix = "query.secagg-"
        kinds = {line.message_type for line in self.decisions(name, run_id)}
        return {kind.removeprefix(prefix) for kind in kinds if kind.startswith(prefix)}

    def processes(self, words: str = "") -> dict[int, str]:
        """Return the processes of this federation, by id, whose command line has these words."""
        return processes(str(self.root), words)

    def close(self) -> None:
        """End every process, and check that none is left."""
        for daemon in reversed(self.daemons.values()):
            if daemon.process.poll() is None:
                daemon.send(signal.SIGCONT)
                daemon.send(signal.SIGTERM)
        for daemon in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.wait(30)
            daemon.kill()
        try:
            eventually("no process to be left", lambda: not self.processes(), timeout_s=20)
        finally:
            for left in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)


def tacit(
    *arguments: str | Path,
    environment: Mapping[str, str],
    folder: Path,
    timeout_s: float = PATIENCE_S,
) -> Done:
    """Run the `tacit` command to its end."""
    done = subprocess.run(
        [str(TACIT), *map(str, arguments)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


def processes(*words: str) -> dict[int, str]:
    """Return the processes other than this one, by id, whose command line has all these words."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line and all(word in line for word in words):
                found[int(entry.name)] = line
    return found


def environment_of(root: Path) -> dict[str, str]:
    """Return the environment of every command: the apps installed, homes below the root."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TACIT_")}
    return kept | {
        "PYTHONPATH": str(root / "apps"),
        "XDG_STATE_HOME": str(root / "state"),
        "TACIT_OPERATOR_HOME": str(root / "operator"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextlib.contextmanager
def federation(
    root: Path, *clients: str, policy: str = "", settings: str = "", start: bool = True
) -> Iterator[Federation]:
    """Give a federation with its server and these owners running.

    Args:
        root: an empty folder; short, since Unix sockets stand below it.
        clients: names of owners.
        policy: more lines for the policy of each; default: the apps of ``quick_app`` are allowed.
        settings: more lines for server.toml.
        start: whether anything is started at all.
    """
    ports = free_ports(2)
    made = Federation(root, (ports[0], ports[1]), environment_of(root))
    shutil.copytree(APPS, root / "apps", ignore=shutil.ignore_patterns("__pycache__"))
    made.gates.mkdir()
    initialise(
        made.home,
        names=("127.0.0.1", "localhost"),
        listen=f"127.0.0.1:{ports[0]}",
        enrolment_listen=f"127.0.0.1:{ports[1]}",
        operator_home=root / "operator",
    )
    with (made.home / "server.toml").open("a") as file:
        file.write(settings)
    try:
        if start:
            made.start_server()
            made.add_clients(*clients, policy=policy)
        yield made
    finally:
        made.close()
