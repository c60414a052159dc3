"""A run worker without Flower: pushes one payload a round to all nodes and waits for the replies.

It speaks the real pipe protocol, so the daemon cannot tell it from the real one. Options say when
it dies; ``--marks`` is a folder in which it notes that it has died, so that it dies only so often.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np

from tacit.core.errors import UnavailableError
from tacit.protos.fleet_pb2 import InstructionHead
from tacit.protos.pipe import Pipe, PipeClosed
from tacit.protos.records_pb2 import ArrayEntry, Manifest, Record
from tacit.server.grid import Outgoing
from tacit.server.pipe_port import PipePort


def main() -> int:
    options = _parse()
    port = PipePort(Pipe(socket.socket(fileno=options.pipe)), options.spool)
    folder = options.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    done = int((folder / options.checkpoint).read_text()) if options.checkpoint else 0
    sequence = done * 100
    try:
        for number in range(done + 1, options.rounds + 1):
            sequence = _round(options, port, number, sequence)
        port.done()
    except UnavailableError as error:
        port.done(failure=error.message, code=error.code)
    except PipeClosed:
        return 6
    return 0


def _round(options: argparse.Namespace, port: PipePort, number: int, sequence: int) -> int:
    port.event("round_started", {"round": number})
    while len(nodes := port.nodes(sequence := sequence + 1)) < options.cohort:
        pass  # as Flower's strategies do
    array = np.full(options.numbers, number, dtype="<f4")
    sequence += 1
    name = f"out-{sequence:06d}.bin"
    port.store(name, [memoryview(array).cast("B")])
    entry = ArrayEntry(name="w", dtype="float32", shape=[array.size], bytes=array.nbytes)
    entry.stype = "numpy.ndarray"
    manifest = Manifest(
        records=[Record(key="arrays", kind=Record.ARRAYS, arrays=[entry])],
        payload_bytes=array.nbytes,
        payload_sha256=hashlib.sha256(array.tobytes()).digest(),
    )
    pushed = []
    for node_id in nodes:
        head = InstructionHead(
            run_id=options.run,
            message_id=f"{options.run}.{sequence:06d}",
            group_id=str(number),
            message_type="train",
            ttl_s=options.ttl_s,
            manifest=manifest,
        )
        pushed.append(Outgoing(head=head, node_id=node_id, payload_name=name))
        sequence += 1
    port.push(pushed)
    _die(options, number)
    ids = [item.head.message_id for item in pushed]
    results = port.pull(ids, timeout_s=0.0, wait=True)
    good = [r for r in results if r.head.WhichOneof("outcome") == "manifest"]
    total = sum(float(np.frombuffer(r.payload, dtype="<f4").sum()) for r in good)
    metrics = {"total": total, "replies": len(good)}
    codes = sorted(r.head.failure.reason for r in results if r not in good)
    port.event("round_finished", {"round": number, "metrics": metrics, "codes": codes})
    name = f"{number:06d}"
    (options.folder / "checkpoints" / name).write_text(str(number))
    port.checkpoint(round_number=number, next_sequence=number * 100, name=name)
    return number * 100


def _die(options: argparse.Namespace, number: int) -> None:
    if number != options.die_in_round:
        return
    marks = sorted(options.marks.iterdir())
    if len(marks) < options.deaths:
        (options.marks / f"death-{len(marks)}").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cohort", type=int, default=1)
    parser.add_argument("--numbers", type=int, default=1000)
    parser.add_argument("--ttl-s", type=float, default=60.0)
    parser.add_argument("--die-in-round", type=int, default=0)
    parser.add_argument("--deaths", type=int, default=1)
    parser.add_argument("--marks", type=Path)
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--log-form", default="text")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
