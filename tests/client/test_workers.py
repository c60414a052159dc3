"""Real worker processes: what an app can do there, and what it cannot."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tacit.client.configuration import Policy
from tacit.client.isolation import probe
from tacit.client.payload import open_view
from tacit.client.runner import AppAnswer, AppSetup
from tacit.client.workers import Workers
from tacit.core.errors import AppError, ProtocolError
from tacit.protos import fleet_pb2, pipe_pb2
from tacit.protos.manifest import items_of, values_of
from tests.client.fakes import RUN, instruction, make_spec
from tests.end_to_end.federation import eventually, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

APP = """
import os, pathlib, socket, signal, subprocess, sys, time
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def attempt(action):
    try:
        action()
    except (OSError, PermissionError) as error:
        return 0
    return 1

@app.train()
def train(message, context):
    key = context.state["tacit"]["noise-key"]
    count = context.state.get("count", ConfigRecord({"calls": 0}))["calls"] + 1
    context.state["count"] = ConfigRecord({"calls": count, "big": b"x" * 5000})
    metrics = {"calls": count, "key": key[0], "last": context.node_config["last"]}
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    secret = context.node_config["secret"]
    parent = os.getppid()
    found = {
        "reads-secret": attempt(lambda: open(secret).read()),
        "lists-home": attempt(lambda: os.listdir(os.path.dirname(secret))),
        "writes-outside": attempt(lambda: open(secret + ".new", "w")),
        "internet": attempt(lambda: socket.socket(socket.AF_INET)),
        "unix-socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
        "kills-daemon": attempt(lambda: os.kill(parent, 0)),
        "reads-daemon": attempt(lambda: open(f"/proc/{parent}/environ").read()),
        "writes-scratch": attempt(lambda: open("mine", "w").write("x")),
        "reads-allowed": attempt(lambda: open(context.node_config["allowed"]).read()),
        "secret-in-environment": int("TACIT_SECRET" in os.environ),
        "telemetry-off": int(os.environ["FLWR_TELEMETRY_ENABLED"] == "0"),
        "leaked": sum("private" in os.readlink(f"/proc/self/fd/{n}") for n in range(3, 4096)
                      if os.path.lexists(f"/proc/self/fd/{n}")),
        "sockets": sum("socket:" in os.readlink(f"/proc/self/fd/{n}") for n in range(4096)
                       if os.path.lexists(f"/proc/self/fd/{n}")),
        "torch": int("torch" in sys.modules),
        "starts-process": attempt(lambda: subprocess.run(["/bin/true"], check=True)),
    }
    return Message(content=RecordDict({"metrics": MetricRecord(found)}), reply_to=message)

@app.query("raise")
def fail(message, context):
    print("the app says", "x" * 100)
    raise ValueError("the age is 63")

@app.query("hang")
def hang(message, context):
    time.sleep(600)

@app.query("die")
def die(message, context):
    os._exit(3)

@app.query("twice")
def twice(message, context):
    from tacit.protos import pipe_pb2, fleet_pb2
    from tacit.protos.pipe import Pipe
    with socket.socket(fileno=os.dup(int(sys.argv[1]))) as connection:
        head = fleet_pb2.ReplyHead()
        head.failure.reason = "E-FIRST"
        answer = pipe_pb2.WorkerReply(result=pipe_pb2.WorkerResult(reply=head))
        Pipe(connection).send(answer)
    return Message(content=RecordDict(), reply_to=message)

@app.query("child")
def child(message, context):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for leave in (os.setsid, os.setpgrp):
            try:
                leave()
            except OSError:
                continue
            print("the child has left", flush=True)
        while True:
            signal.pause()
    return Message(content=RecordDict(), reply_to=message)

@app.query("import")
def load(message, context):
    import numpy, torch
    torch.nn.Linear(3, 2)(torch.ones(4, 3)).sum().backward()
    return Message(content=RecordDict(), reply_to=message)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with the app, and one with what the worker must not see."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "probing_app.py").write_text(APP)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").write_text("secret")
    (tmp_path / "allowed").write_text("allowed")
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("TACIT_SECRET", "secret")
    return tmp_path


@pytest.fixture
def workers(place: Path) -> Iterator[Workers]:
    running = Workers(place / "logs", policy=Policy(allow_unisolated_apps=True))
    yield running
    running.close()


def setup_of(place: Path, **changes: object) -> AppSetup:
    begin = pipe_pb2.WorkerBegin(
        run_id=RUN,
        flower_run_id=1,
        node_id=7,
        app=str(changes.get("app", "probing_app:app")),
        scratch_path=str(place / "scratch"),
        node_config=items_of(
            {
                "secret": str(place / "private" / "secret"),
                "allowed": str(place / "allowed"),
                "last": 9,
            }
        ),
    )
    return AppSetup(
        begin=begin,
        state_file=None,
        readable=(place / "allowed", place / "packages"),
        timeout_s=float(str(changes.get("timeout_s", 60.0))),
    )


def call_app(
    workers: Workers, setup: AppSetup, message_type: str = "train", key: int = 5
) -> AppAnswer:
    head, payload = instruction(make_spec(), message_type=message_type)
    return workers.call(
        setup, pipe_pb2.WorkerCall(instruction=head, noise_key=bytes([key]) * 32), payload
    )


def metrics_of(reply: fleet_pb2.ReplyHead) -> dict[str, object]:
    return dict(values_of(reply.manifest.records[-1].items))


def test_app_gets_records_and_key_and_keeps_its_state(place: Path, workers: Workers) -> None:
    """One process answers every message; its state comes back without the noise key."""
    setup = setup_of(place)
    workers.begin(setup)
    first = call_app(workers, setup)
    second = call_app(workers, setup, key=6)
    assert metrics_of(second.reply) == {"calls": 2, "key": 6, "last": 9}
    assert first.payload is not None
    assert open_view(first.payload).nbytes == first.reply.manifest.payload_bytes
    assert second.state is not None
    assert [record.key for record in second.state.records] == ["count"]
    assert second.state_payload is not None
    assert second.state_payload.size == 5000
    first.close()
    second.close()


def test_state_survives_a_new_process(place: Path, workers: Workers) -> None:
    """A worker that is started again goes on from the state that was stored."""
    answer = call_app(workers, setup_of(place))
    workers.end(RUN)
    assert answer.state is not None
    assert answer.state_payload is not None
    stored = place / "state"
    stored.write_bytes(b"".join(bytes(piece) for piece in answer.state_payload.pieces()))
    answer.close()
    fresh = setup_of(place)
    fresh.begin.state.CopyFrom(answer.state)
    again = AppSetup(begin=fresh.begin, state_file=stored, readable=fresh.readable, timeout_s=60.0)
    second = call_app(workers, again)
    assert metrics_of(second.reply)["calls"] == 2
    second.close()


def test_confined_app_sees_its_data_and_nothing_else(place: Path, workers: Workers) -> None:
    """Files, sockets, signals, environment and descriptors of the daemon are out of reach."""
    isolation = probe()
    if not isolation.available:
        pytest.skip(f"this machine cannot confine a worker: {'; '.join(isolation.missing)}")
    descriptor = os.open(place / "private" / "secret", os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # noqa: FBT003
    try:
        answer = call_app(workers, setup_of(place), "evaluate")
    finally:
        os.close(descriptor)
    found = metrics_of(answer.reply)
    answer.close()
    assert found == {
        "reads-secret": 0,
        "lists-home": 0,
        "writes-outside": 0,
        "internet": 0,
        "unix-socket": 0,
        "kills-daemon": 0,
        "reads-daemon": 0,
        "writes-scratch": 1,
        "reads-allowed": 1,
        "secret-in-environment": 0,
        "telemetry-off": 1,
        "leaked": 0,
        "sockets": 1,
        "torch": 0,
        "starts-process": 0,
    }


def test_exception_becomes_a_code_and_stays_in_the_log(place: Path, workers: Workers) -> None:
    """What an app raises is told by code only; the owner finds the rest in the worker's log."""
    answer = call_app(workers, setup_of(place), "query.raise")
    assert answer.reply.failure.reason == "E-APP-RAISED"
    assert "63" not in str(answer.reply)
    second = call_app(workers, setup_of(place))  # the same process goes on
    assert metrics_of(second.reply)["calls"] == 1
    second.close()
    workers.end(RUN)
    assert "the app says" in (place / "logs" / f"{RUN}.log").read_text()


def test_hanging_app_is_killed_and_the_next_call_gets_a_fresh_one(
    place: Path, workers: Workers
) -> None:
    """The owner's wall clock ends a call; the run goes on with a new process."""
    workers.begin(setup_of(place))
    call_app(workers, setup_of(place)).close()
    with pytest.raises(AppError) as caught:
        call_app(workers, setup_of(place, timeout_s=0.5), "query.hang")
    assert caught.value.code == "E-APP-HUNG"
    answer = call_app(workers, setup_of(place))
    assert metrics_of(answer.reply)["calls"] == 1
    answer.close()


def test_dying_app_is_told_as_such(place: Path, workers: Workers) -> None:
    """A process that ends in a call is an error with its own code."""
    with pytest.raises(AppError) as caught:
        call_app(workers, setup_of(place), "query.die")
    assert caught.value.code == "E-APP-DIED"


def test_a_second_answer_is_not_taken_for_the_next_one(place: Path, workers: Workers) -> None:
    """One instruction, one answer: what was said beyond it ends the process, and is not read."""
    call_app(workers, setup_of(place)).close()
    assert call_app(workers, setup_of(place), "query.twice").reply.failure.reason == "E-FIRST"
    # The app's own answer is on its way; the next call may come before it has arrived.
    (worker,) = workers._workers.values()
    eventually("the second answer", worker._pipe.has_more)
    with pytest.raises(ProtocolError) as caught:
        call_app(workers, setup_of(place))
    assert caught.value.code == "E-WORKER-REPLY"
    answer = call_app(workers, setup_of(place))
    assert metrics_of(answer.reply)["calls"] == 1  # a fresh process
    answer.close()


def test_a_child_ends_with_its_worker(place: Path, workers: Workers) -> None:
    """Whatever an app starts is in its worker's group and cannot leave it."""
    if not probe().available:
        pytest.skip("this machine cannot confine a worker")
    call_app(workers, setup_of(place), "query.child").close()
    assert len(processes(str(place / "scratch"))) == 2
    workers.end(RUN)
    eventually("the child to end", lambda: not processes(str(place / "scratch")))
    assert "has left" not in (place / "logs" / f"{RUN}.log").read_text()


KILLED = """
import sys, time
from pathlib import Path
from tacit.client.configuration import Policy
from tacit.client.workers import Workers
from tests.client.test_workers import call_app, setup_of
place = Path(sys.argv[1])
workers = Workers(place / "logs", policy=Policy(allow_unisolated_apps=True))
call_app(workers, setup_of(place), "query.child").close()
print("called", flush=True)
time.sleep(600)
"""


def test_a_child_ends_with_a_daemon_that_is_killed(place: Path) -> None:
    """A worker whose daemon is gone ends, and takes along what its app has started."""
    if not probe().available:
        pytest.skip("this machine cannot confine a worker")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"called\n"
        assert len(processes(str(place / "scratch"))) == 2
        daemon.kill()
    eventually("the child to end", lambda: not processes(str(place / "scratch")))


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode)[::2])
def test_a_compiled_file_beside_a_source_is_not_run(
    place: Path, workers: Workers, mode: py_compile.PycInvalidationMode
) -> None:
    """What runs is what the fingerprint covers, whatever a file of ``__pycache__`` claims."""
    source = place / "packages" / "probing_app.py"
    other = APP.replace('"last": context.node_config["last"]', '"last": 666'.ljust(35))
    assert len(other) == len(APP)
    source.write_text(other)
    os.utime(source, (1_000_000, 1_000_000))
    compiled = py_compile.compile(str(source), invalidation_mode=mode, doraise=True)
    assert compiled is not None
    source.write_text(APP)
    os.utime(source, (1_000_000, 1_000_000))
    answer = call_app(workers, setup_of(place))
    assert metrics_of(answer.reply)["last"] == 9
    answer.close()


def test_missing_app_is_told_as_such(place: Path, workers: Workers) -> None:
    """An app that cannot be imported is an error at the first call."""
    with pytest.raises(AppError) as caught:
        call_app(workers, setup_of(place, app="probing_app:nothing"))
    assert caught.value.code == "E-APP-IMPORT"


def test_torch_loads_and_trains_inside(place: Path, workers: Workers) -> None:
    """Confinement leaves torch everything that it needs."""
    answer = call_app(workers, setup_of(place), "query.import")
    workers.end(RUN)
    log = (place / "logs" / f"{RUN}.log").read_text()
    assert answer.reply.WhichOneof("outcome") == "manifest", log
    answer.close()


def test_worker_module_needs_no_flwr_in_the_daemon() -> None:
    """What the daemon imports of the workers loads neither torch nor flwr."""
    code = "import sys, tacit.client.workers, tacit.client.node, tacit.client.preparation;"
    code += "print([n for n in ('torch', 'opacus', 'flwr', 'pandas') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"
