"""A Flower app that tries to get its owner's rows past the node: one trick in each round.

Its owner tells it more than an owner should: where the rows are, and where the node keeps its keys,
its ledger and its outbox. An owner without a ``home`` in the app's configuration gets an honest
app. A theft that succeeds ends in an honest reply, so that the owner's log shows a release where a
failure belongs; one that fails ends in an exception. What ends
the process comes first: with the next one the log begins anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from tacit.core.errors import AppError
from tacit.protos import fleet_pb2, pipe_pb2
from tacit.protos.codec import encode_records
from tacit.protos.payload import unnamed_payload
from tacit.protos.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable

app = ClientApp()
alone = ClientApp()

Arrays = dict[str, np.ndarray[Any, Any]]
_kept: list[tuple[np.ndarray[Any, Any], bytes]] = []


@app.train()
def train(message: Message, context: Context) -> Message:
    """Be honest, or play the trick of this round."""
    number = int(message.content["config"]["server-round"])
    _kept.extend(
        (item.numpy(), item.numpy().tobytes()) for item in message.content["arrays"].values()
    )
    if "home" not in context.node_config:
        return honest(message, context)
    return list(TRICKS.values())[number - 1](message, context)


@alone.train()
def overwhelm(message: Message, context: Context) -> Message:
    """Add a million to every weight, in the memory in which the model was received."""
    del context
    arrays = {name: item.numpy() for name, item in message.content["arrays"].items()}
    for values in arrays.values():
        np.add(values, np.float32(1e6), out=values)
    return reply(message, arrays)


def reply(message: Message, arrays: Arrays, *others: tuple[str, Any], **metrics: Any) -> Message:
    """Answer with arrays, metrics, and records that nobody asked for."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(values) for name, values in arrays.items()}),
            "metrics": MetricRecord({"num-examples": 1, **metrics}),
            **dict(others),
        }
    )
    return Message(content, reply_to=message)


def moved(message: Message) -> Arrays:
    """Return what honest training could have made of the model."""
    return {
        name: item.numpy() + np.float32(0.001) for name, item in message.content["arrays"].items()
    }


def rows_of(context: Context) -> tuple[str, float]:
    """Read the owner's rows, as an app may: one text, one number."""
    text, number = Path(str(context.node_config["rows"])).read_text().split(",")
    return text, float(number)


def honest(message: Message, context: Context) -> Message:
    """Answer as an app should."""
    del context
    return reply(message, moved(message))


def rows_as_array(message: Message, context: Context) -> Message:
    """Send one array more."""
    values = np.full(8, rows_of(context)[1], np.float32)
    return reply(message, {**moved(message), "rows": values})


def rows_as_names(message: Message, context: Context) -> Message:
    """Name the arrays after a row."""
    text, number = rows_of(context)
    arrays = moved(message)
    return reply(message, {f"{name} {text} {number}": arrays[name] for name in arrays})


def rows_as_metric(message: Message, context: Context) -> Message:
    """Send one metric more."""
    return reply(message, moved(message), loss=rows_of(context)[1])


def rows_as_weight(message: Message, context: Context) -> Message:
    """Send a weight that no owner has."""
    return reply(message, moved(message), **{"num-examples": rows_of(context)[1]})


def rows_as_weights(message: Message, context: Context) -> Message:
    """Send a list where one number was declared."""
    return reply(message, moved(message), **{"num-examples": [1.0, rows_of(context)[1]]})


def extra_record(message: Message, context: Context) -> Message:
    """Send a record of settings beside the two that belong there."""
    return reply(message, moved(message), ("config", ConfigRecord({"text": rows_of(context)[0]})))


def extra_bulk(message: Message, context: Context) -> Message:
    """Send a record whose bytes stand in the payload."""
    data = rows_of(context)[0].encode() * 1000
    return reply(message, moved(message), ("config", ConfigRecord({"data": data})))


def extra_arrays(message: Message, context: Context) -> Message:
    """Send a second model."""
    arrays = {
        name: np.full_like(array, rows_of(context)[1]) for name, array in moved(message).items()
    }
    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    return reply(message, moved(message), ("more", record))


def huge_reply(message: Message, context: Context) -> Message:
    """Send more bytes than the owner allows."""
    values = np.full(1 << 20, rows_of(context)[1], np.float32)
    return reply(message, {**moved(message), "layer.bias": values})


def not_a_number(message: Message, context: Context) -> Message:
    """Hide bits in numbers that are none."""
    arrays = moved(message)
    hidden = 0x7FC00000 | (int(rows_of(context)[1]) & 0x3FFFFF)
    arrays["layer.bias"][0] = struct.unpack("<f", struct.pack("<I", hidden))[0]
    return reply(message, arrays)


def wider(message: Message, context: Context) -> Message:
    """Send twice the bits."""
    del context
    arrays = moved(message)
    return reply(message, {**arrays, "layer.bias": arrays["layer.bias"].astype(np.float64)})


def longer(message: Message, context: Context) -> Message:
    """Append a number to an array."""
    arrays = moved(message)
    bias = np.append(arrays["layer.bias"], np.float32(rows_of(context)[1]))
    return reply(message, {**arrays, "layer.bias": bias})


def tell_in_an_exception(message: Message, context: Context) -> NoReturn:
    """Raise a row."""
    raise RuntimeError(f"the row is {rows_of(context)}: {message.metadata.message_id}")


def tell_in_an_error(message: Message, context: Context) -> Message:
    """Answer with an error that has a row for its reason."""
    return Message(error=Error(code=2, reason=f"{rows_of(context)}"), reply_to=message)


def tell_in_a_code(message: Message, context: Context) -> Message:
    """Answer with an error whose reason looks like one of Tacit's codes."""
    reason = f"E-{rows_of(context)[0].upper()}"
    return Message(error=Error(code=int(rows_of(context)[1]), reason=reason), reply_to=message)


def tell_in_our_error(message: Message, context: Context) -> NoReturn:
    """Raise an error of Tacit's own, with a row for its code."""
    del message
    raise AppError(f"E-{rows_of(context)[0].upper()}", "a row")


def tell_in_state(message: Message, context: Context) -> Message:
    """Put rows into the app's state, which stays at the owner."""
    text, number = rows_of(context)
    context.state["rows"] = ConfigRecord({"text": text, "number": number, "data": b"x" * 5000})
    return reply(message, moved(message))


def keep_memory(message: Message, context: Context) -> Message:
    """Look whether what earlier rounds lent has changed since."""
    if any(values.tobytes() != noted for values, noted in _kept):
        raise RuntimeError("another instruction stands in this one's memory")
    return honest(message, context)


def stolen(what: str, **attempts: Callable[[], object]) -> None:
    """Try thefts; print which succeeded.

    Raises:
        PermissionError: none did.
    """
    succeeded = []
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError):
            attempt()
            succeeded.append(name)
    print(f"{what}: {len(attempts)} tried, stolen {succeeded}", flush=True)  # noqa: T201 - its log
    if not succeeded:
        raise PermissionError(f"{what}: nothing to be had")


def home_of(context: Context) -> Path:
    """Return the node's state directory."""
    return Path(str(context.node_config["home"]))


def names_in(folder: Path) -> list[Path]:
    """List a folder."""
    return list(folder.iterdir())


def steal_keys(message: Message, context: Context) -> Message:
    """Read the node's keys, directly and by another name; make them readable for others."""
    identity, key = home_of(context) / "identity", home_of(context) / "split-key"
    tls = identity / "tls-key.pem"
    Path("key").symlink_to(tls)
    stolen(
        "keys",
        folder=lambda: names_in(identity),
        tls=tls.read_bytes,
        enrolment=(identity / "enrolment-key.pem").read_bytes,
        split=key.read_bytes,
        symbolic=Path("key").read_bytes,
        hard=lambda: Path("hard").hardlink_to(tls),
        moved=lambda: tls.rename("mine"),
        copied=lambda: shutil.copyfile(tls, "copy"),
        mode=lambda: tls.chmod(0o644),
        folder_mode=lambda: home_of(context).chmod(0o755),
        touched=lambda: os.utime(tls, (1, 1)),
    )
    return honest(message, context)


def steal_ledger(message: Message, context: Context) -> Message:
    """Read, shorten or remove the ledger and the node's memory."""
    ledger, store = home_of(context) / "ledger.sqlite", home_of(context) / "client.sqlite"
    forged = Path("forged")
    forged.touch()
    stolen(
        "ledger",
        ledger=ledger.read_bytes,
        store=store.read_bytes,
        log=store.with_name("client.sqlite-wal").read_bytes,
        truncated=lambda: os.truncate(ledger, 0),
        removed=ledger.unlink,
        replaced=lambda: forged.replace(ledger),
        locked=lambda: ledger.chmod(0),
    )
    return honest(message, context)


def write_outbox(message: Message, context: Context) -> Message:
    """Put a reply of its own where the node keeps its replies."""
    outbox = home_of(context) / "outbox"
    stolen(
        "outbox",
        listed=lambda: names_in(outbox),
        written=lambda: (outbox / "mine").write_bytes(b"rows"),
        folder=(outbox / "mine").mkdir,
        linked=lambda: (outbox / "mine").symlink_to("/etc"),
        configured=lambda: (home_of(context) / "client.toml").open("a"),
    )
    return honest(message, context)


def open_socket(message: Message, context: Context) -> Message:
    """Talk to anybody."""
    host, port = str(context.node_config["server"]).split(":")
    stolen(
        "socket",
        internet=lambda: socket.create_connection((host, int(port)), 1),
        datagram=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        v6=lambda: socket.socket(socket.AF_INET6),
        unix=lambda: socket.socket(socket.AF_UNIX),
        raw=lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        netlink=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        pair=lambda: socket.socketpair()[0].connect(str(home_of(context) / "control.sock")),
    )
    return honest(message, context)


def read_daemon(message: Message, context: Context) -> Message:
    """Look at the daemon, and disturb it."""
    daemon = Path("/proc") / str(os.getppid())
    stolen(
        "daemon",
        environment=(daemon / "environ").read_bytes,
        command=(daemon / "cmdline").read_bytes,
        memory=(daemon / "mem").open,
        maps=(daemon / "maps").read_bytes,
        files=lambda: names_in(daemon / "fd"),
        root=lambda: names_in(daemon / "root"),
        folder=lambda: names_in(daemon / "cwd"),
        all=lambda: names_in(Path("/proc")),
        asked=lambda: os.kill(os.getppid(), 0),
        ended=lambda: os.kill(os.getppid(), signal.SIGTERM),
        everybody=lambda: os.kill(-1, 0),
    )
    return honest(message, context)


def answer_twice(message: Message, context: Context) -> Message:
    """Speak the node's own protocol: answer before Tacit does."""
    answer = honest(message, context)
    encoded = encode_records(answer.content)
    head = fleet_pb2.ReplyHead(message_id=message.metadata.message_id)
    head.manifest.CopyFrom(encoded.manifest)
    result = pipe_pb2.WorkerResult(reply=head)
    with socket.socket(fileno=os.dup(int(sys.argv[1]))) as connection:
        files = [unnamed_payload(encoded.segments)]
        Pipe(connection).send(pipe_pb2.WorkerReply(result=result), files)
    return answer


def die(message: Message, context: Context) -> NoReturn:
    """End the process with a status of its own choice."""
    del message
    os._exit(int(rows_of(context)[1]) & 0x7F)


def sleep(message: Message, context: Context) -> Message:
    """Answer long after the owner's limit."""
    time.sleep(3600)
    return honest(message, context)


def leave_a_child(message: Message, context: Context) -> Message:
    """Start a process that means to stay."""
    if os.fork() == 0:
        for leave in (os.setsid, os.setpgrp):
            with contextlib.suppress(OSError):
                leave()
                print("a child has left", flush=True)  # noqa: T201 - read in the worker's log
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("a child stays", flush=True)  # noqa: T201 - read in the worker's log
        while True:
            signal.pause()
    return honest(message, context)


TRICKS: dict[str, Callable[[Message, Context], Message]] = {
    "honest": honest,
    "two answers": answer_twice,
    "the second answer": honest,  # never called: the node has found the second answer
    "death": die,
    "sleep": sleep,
    "an honest reply of the next process": honest,
    "rows as an array": rows_as_array,
    "rows as names": rows_as_names,
    "rows as a metric": rows_as_metric,
    "rows as the weight": rows_as_weight,
    "rows as a list of weights": rows_as_weights,
    "an extra record": extra_record,
    "an extra record in bulk": extra_bulk,
    "an extra model": extra_arrays,
    "a huge reply": huge_reply,
    "bits of a NaN": not_a_number,
    "a wider type": wider,
    "a longer array": longer,
    "an exception": tell_in_an_exception,
    "an error's text": tell_in_an_error,
    "an error's code": tell_in_a_code,
    "an error of Tacit's": tell_in_our_error,
    "state": tell_in_state,
    "kept memory": keep_memory,
    "keys": steal_keys,
    "ledger": steal_ledger,
    "outbox": write_outbox,
    "socket": open_socket,
    "daemon": read_daemon,
    "a child": leave_a_child,
}
