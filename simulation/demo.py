"""``tacit demo``: a whole federation on this machine, on real data, as real processes.

One server daemon and four data owners' daemons, each with its own state directory, keys and policy,
talk over mutual TLS on loopback; an operator with a profile of its own submits the run, watches it
and pulls its folder. Nothing is stubbed: these are the commands of the README, started together.

The four have pinned one another, and their policy allows no update that is not summed unseen, with
noise inside that they share. Here the demo writes each ``members.toml``; in a real federation the
owners compare six words, since whoever hands out all the keys could have made some up.

Under differential privacy no exact metric leaves an owner. The table at the end is made by the demo
itself, which holds everybody's records; it says so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tacit.client.configuration import DataSet
from tacit.core.artifacts import RunFolder, save_arrays
from tacit.core.configuration import from_plain, load_config
from tacit.core.errors import AppError, TacitError, UsageError
from tacit.core.events import Event, EventKind
from tacit.core.files import make_private_folder, write_atomic
from tacit.core.identity import parse_token
from tacit.core.members import MEMBERS_FILE, save_members
from tacit.core.profiles import Profile
from tacit.core.specification import RunSpec, canonical_json
from tacit.core.state import open_state
from tacit.protos.control_client import ControlClient, Submission, open_local, open_profile
from tacit.protos.enrolment_client import enrol
from tacit.server.initialise import initialise
from tacit.simulation.children import Children, interruptible
from tacit.simulation.owners import Owner, heart_folder

if TYPE_CHECKING:
    from tacit.core.state import StateDirectory

# Public numbers of patients, from the data's own documentation: what client.toml declares.
HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
START_TIMEOUT_S = 60.0
SOCKET_ROOM_BYTES = 80  # a Unix socket's path holds 107, and the folders below take the rest

_CLIENT_TOML = """\
# {name}: approves by rule what keeps to these bounds, and nothing else.
[data_sets.heart]
path = "{path}"
records = {records}              # public

[policy]
modes = ["record-distributed"]   # differential privacy, by noise that all four share
max_epsilon_per_run = 1.01
min_clients = 4
approve = "rule"

[policy.secure_aggregation]
required = true                  # no update leaves by itself, only inside a sum
"""

Say = Callable[[str], None]
Watch = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """What the demo leaves.

    Attributes:
        folder: the run folder, as the operator pulled it.
        specification: the run, with the size of its model counted.
        owners: the four hospitals.
        seconds: from the first process to the pulled model.
    """

    folder: RunFolder
    specification: RunSpec
    owners: tuple[Owner, ...]
    seconds: float


def demo_owners() -> tuple[Owner, ...]:
    """Return the four hospitals."""
    return tuple(
        Owner(name=name, data_set=DataSet(path=heart_folder() / f"{name}.csv", records=records))
        for name, records in HOSPITALS.items()
    )


def demo_specification() -> RunSpec:
    """Return the demo's run, as ``simulation/data/heart/run-distributed.toml`` writes it."""
    return load_config(_run_file(), RunSpec).value


def _run_file() -> Path:
    return heart_folder() / "run-distributed.toml"


def run_demo(out: Path, *, say: Say, watch: Watch) -> DemoRun:
    """Play the whole federation; every process that it starts has ended when this returns.

    Args:
        out: a folder that is made for it.
        say: told in one sentence what happens next.
        watch: told every event of the run.

    Raises:
        UsageError: the folder exists and is not empty.
        UnavailableError: a process ended early or took too long.
        AppError: the run failed.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError("E-DEMO-FOLDER", f"expected a new or empty folder, got {out}")
    make_private_folder(out)
    began = time.monotonic()
    with interruptible() as interruption, _homes(out) as homes:
        environment = {"TACIT_OPERATOR_HOME": str(homes / "operator")}
        with Children(environment, interruption) as children:
            folder = _federate(children, homes, out, say, watch)
    return DemoRun(
        folder=folder,
        specification=from_plain(json.loads(folder.specification.read_bytes()), RunSpec),
        owners=demo_owners(),
        seconds=time.monotonic() - began,
    )


def _federate(children: Children, homes: Path, out: Path, say: Say, watch: Watch) -> RunFolder:
    logs = out / "logs"
    make_private_folder(logs)
    say("Server: makes its certificate authority and starts")
    state = _start_server(children, homes, logs)
    with open_local(state.socket) as administrator:
        profile = _log_in(administrator, homes)
        say("Four hospitals: join with one-time tokens, each with keys of its own")
        _enrol_owners(administrator, homes)
    say("Four hospitals: pin one another, and start")
    for owner in demo_owners():
        arguments = ["client", "start", "--home", str(homes / owner.name)]
        children.start(owner.name, arguments, logs / f"{owner.name}.log")
    with open_profile(profile) as operator:
        say("Operator: submits the run; each hospital's own policy decides")
        run_id = _submit(operator, homes)
        _follow(children, operator, run_id, say, watch)
        say("Operator: pulls the run folder")
        folder = out / "run"
        operator.pull_run(run_id, folder)
    return RunFolder(folder)


def _start_server(children: Children, homes: Path, logs: Path) -> StateDirectory:
    home = homes / "server"
    initialise(
        home,
        names=("localhost", "127.0.0.1"),
        listen="127.0.0.1:0",  # the system picks free ports; tokens carry them
        enrolment_listen="127.0.0.1:0",
        operator_home=homes / "administrator",
    )
    children.start("the server", ["server", "start", "--home", str(home)], logs / "server.log")
    state = open_state(home, create=False)
    children.wait_until("the server to answer", lambda: answers(state), timeout_s=START_TIMEOUT_S)
    return state


def answers(state: StateDirectory) -> bool:
    """Return whether a server's daemon is up."""
    if not state.socket.exists():
        return False
    with open_local(state.socket) as client, contextlib.suppress(TacitError):
        client.status(timeout_s=1.0)
        return True
    return False


def _log_in(administrator: ControlClient, homes: Path) -> Profile:
    token = parse_token(administrator.invite("demo-operator", "operator"))
    folder = homes / "operator" / "profiles" / "demo"
    make_private_folder(homes / "operator")
    make_private_folder(folder.parent)
    membership = enrol(token, folder)
    return Profile(name="demo", addresses=membership.addresses, folder=folder)


def _enrol_owners(administrator: ControlClient, homes: Path) -> None:
    """Give each hospital a home: its policy, its keys, and the other three as pinned members."""
    keys = {}
    for owner in demo_owners():
        home = homes / owner.name
        make_private_folder(home)
        text = _CLIENT_TOML.format(
            name=owner.name, path=owner.data_set.path.as_posix(), records=owner.data_set.records
        )
        write_atomic(home / "client.toml", text.encode())
        token = parse_token(administrator.invite(owner.name, "client"))
        keys[owner.name] = enrol(token, home / "identity").keys.enrolment_public_key
    for name in keys:
        others = {other: key for other, key in keys.items() if other != name}
        save_members(homes / name / MEMBERS_FILE, others)


def _submit(operator: ControlClient, homes: Path) -> str:
    from tacit.learning.models import initial_arrays  # noqa: PLC0415 - torch, while others start
    from tacit.learning.resolved import resolved  # noqa: PLC0415 - as above

    specification = resolved(demo_specification(), None)
    initial = homes / "initial.safetensors"
    save_arrays(initial, initial_arrays(specification))
    submission = Submission(
        canonical=canonical_json(specification),
        source_toml=_run_file().read_bytes(),
        initial=initial,
    )
    return operator.submit(submission)


def _follow(
    children: Children, operator: ControlClient, run_id: str, say: Say, watch: Watch
) -> None:
    last: Event | None = None
    for event in operator.watch(run_id):
        children.verify_alive()
        watch(event)
        last = event
        if event.kind is EventKind.RUN_STARTED:
            say("Hospitals: their confined workers load torch, then begin; later rounds are quick")
        if event.kind is EventKind.NODE_DECIDED and event.fields.get("verdict") == "denied":
            raise AppError(  # nobody will change their mind here
                str(event.fields.get("code") or "E-RUN-FAILED"),
                f"{event.fields.get('member')} denied the run: nobody trains",
                hint="see the log of that owner in the folder logs",
            )
    if last is None or last.kind is not EventKind.RUN_FINISHED:
        fields = {} if last is None else last.fields
        code = str(fields.get("code") or "E-RUN-FAILED")
        reason = f"the run did not finish: {fields.get('reason') or 'no reason given'}"
        raise AppError(code, reason, hint=str(fields.get("hint") or ""))


@contextlib.contextmanager
def _homes(out: Path) -> Iterator[Path]:
    """Yield a folder for the state directories, removed afterwards: the keys are worth nothing."""
    homes = (out / "homes").resolve()
    if len(str(homes).encode()) > SOCKET_ROOM_BYTES:
        homes = Path(tempfile.mkdtemp(prefix="tacit-"))
    else:
        make_private_folder(homes)
    try:
        yield homes
    finally:
        shutil.rmtree(homes, ignore_errors=True)
