"""The daemon as a process of its own: started, locked, killed, drained by signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tacit.protos import control_pb2 as control
from tacit.protos import fleet_pb2 as fleet
from tacit.protos.frames import encode_chunk, encode_head, open_fleet
from tests.server.federation import SCRIPTED, Federation, fetch, plus_one, specification

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.slow

START = """
import sys
from pathlib import Path
from tacit.cli.output import render_failure
from tacit.server.daemon import run_daemon
try:
    run_daemon(Path(sys.argv[1]), worker_command=[sys.executable, *sys.argv[2:]])
except Exception as error:
    sys.exit(render_failure(error))
"""


class Process(Federation):
    """A federation whose daemon is another process, on ports that stay the same."""

    process: subprocess.Popen[bytes] | None = None
    ports: tuple[int, int] = (0, 0)

    async def start(self) -> None:
        command = [sys.executable, "-c", START, str(self.root / "s"), str(SCRIPTED), *self.options]
        log = (self.root / "log").open("ab")
        self.process = await asyncio.to_thread(
            lambda: subprocess.Popen(command, stderr=log, stdout=log)
        )
        log.close()
        self.daemon = SimpleNamespace(ports=SimpleNamespace(main=self.ports[0]))  # type: ignore[assignment]
        async with self.control() as stub:
            await stub.Status(control.StatusRequest(), wait_for_ready=True, timeout=30)

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        process, self.process = self.process, None
        return await asyncio.to_thread(process.wait, 60)

    def log(self) -> str:
        return (self.root / "log").read_text()


def prepared(root: Path, *options: str) -> Process:
    """Make a federation on two ports that were free a moment ago."""
    made = Process(root, tuple(options))
    made.init()
    made.ports = tuple(_free_ports(2))  # type: ignore[assignment]
    path = root / "s" / "server.toml"
    text = path.read_text()
    for key, port in zip(("\nlisten", "\nenrolment_listen"), made.ports, strict=True):
        text = text.replace(f'{key} = "127.0.0.1:0"', f'{key} = "127.0.0.1:{port}"')
    path.write_text(text)
    return made


def _free_ports(count: int) -> list[int]:
    import socket  # noqa: PLC0415

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


def scene(root: Path, body: Any, *options: str) -> None:
    async def play() -> None:
        fed = prepared(root, *options)
        try:
            await fed.start()
            await body(fed)
        finally:
            for node in fed.nodes.values():
                await node.stop()
            if fed.process is not None:
                await fed.end(signal.SIGKILL)

    asyncio.run(play())


def test_a_killed_daemon_comes_back_and_the_run_ends(tmp_path: Path) -> None:
    """SIGKILL in the middle of a round: after the start the same round goes on."""

    async def body(fed: Process) -> None:
        first, second = await fed.enrol("first"), await fed.enrol("second", silent=True)
        first.start()
        second.start()
        run_id = await fed.submit(specification())
        await fed.events(run_id, until="reply_received")
        assert await fed.end(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.gather(first.stop(), second.stop())
        await fed.start()
        second.silent = False
        first.start()
        second.start()
        events = await fed.events(run_id)
        kinds = [kind for kind, _ in events]
        totals = [f["metrics"]["total"] for kind, f in events if kind == "round_finished"]
        assert kinds[-1] == "run_finished"
        assert totals == [4000.0, 6000.0]
        assert not any(receipt.repeated for receipt in first.receipts)
        assert len(set(first.received)) == 2

    scene(tmp_path, body)


def test_sigterm_finishes_the_upload_in_progress(tmp_path: Path) -> None:
    """The receipt still arrives, the process ends with 0, and the reply is there afterwards."""

    async def body(fed: Process) -> None:
        node = await fed.enrol("node", silent=True)
        node.start()
        run_id = await fed.submit(specification(min_clients=1))
        await asyncio.wait_for(node.ready.wait(), 20)
        async with node.channel() as channel:
            stub = open_fleet(channel)
            message_id = node.received[0]
            reply, data = plus_one(*await fetch(stub, run_id, message_id))
            status = fleet.SubmitStatusRequest(run_id=run_id, message_id=message_id)
            go_on = asyncio.Event()

            async def frames() -> AsyncIterator[bytes]:
                yield encode_head(reply)
                yield encode_chunk(0, memoryview(data)[:1000])
                await go_on.wait()
                yield encode_chunk(1000, memoryview(data)[1000:])

            upload = asyncio.ensure_future(stub.Submit(frames()))
            while (await stub.SubmitStatus(status)).offset < 1000:
                pass
            ending = asyncio.ensure_future(fed.end(signal.SIGTERM))
            async with asyncio.timeout(20):
                while not await _draining(fed):
                    pass
            go_on.set()
            receipt = await upload
            assert receipt.payload_bytes == len(data)
        assert await ending == 0
        await node.stop()
        await fed.start()
        async with node.channel() as channel:
            found = await open_fleet(channel).SubmitStatus(status)
            assert found.state != fleet.SubmitStatusReply.WANTED

    scene(tmp_path, body)


async def _draining(fed: Process) -> bool:
    async with fed.control() as stub:
        return (await stub.Status(control.StatusRequest())).draining


def test_two_interrupts_end_the_daemon_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C does not wait for an upload that goes on for ever."""

    async def body(fed: Process) -> None:
        node = await fed.enrol("node", silent=True)
        node.start()
        run_id = await fed.submit(specification(min_clients=1))
        await asyncio.wait_for(node.ready.wait(), 20)
        async with node.channel() as channel:
            stub = open_fleet(channel)
            reply, data = plus_one(*await fetch(stub, run_id, node.received[0]))

            async def frames() -> AsyncIterator[bytes]:
                yield encode_head(reply)
                yield encode_chunk(0, memoryview(data)[:1000])
                await asyncio.Event().wait()

            upload = asyncio.ensure_future(stub.Submit(frames()))
            status = fleet.SubmitStatusRequest(run_id=run_id, message_id=node.received[0])
            while (await stub.SubmitStatus(status)).offset < 1000:
                pass
            assert fed.process is not None
            fed.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                while not await _draining(fed):
                    pass
            assert await asyncio.wait_for(fed.end(signal.SIGINT), 15) == 0
            with pytest.raises(grpc.aio.AioRpcError):
                await upload

    scene(tmp_path, body)


def test_no_worker_outlives_its_daemon(tmp_path: Path) -> None:
    """After SIGKILL of the daemon the run's worker sees its pipe closed and ends."""

    async def body(fed: Process) -> None:
        node = await fed.enrol("node", silent=True)
        node.start()
        await fed.submit(specification(min_clients=1))
        await asyncio.wait_for(node.ready.wait(), 20)
        assert fed.process is not None
        children = _children(fed.process.pid)
        assert len(children) == 1
        await fed.end(signal.SIGKILL)
        async with asyncio.timeout(20):
            while any(_alive(pid) for pid in children):
                await asyncio.to_thread(os.sched_yield)

    scene(tmp_path, body)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """One state directory, one daemon: the error names the process that holds it."""

    async def body(fed: Process) -> None:
        assert fed.process is not None
        command = [sys.executable, "-c", START, str(tmp_path / "s"), str(SCRIPTED)]
        done = await asyncio.to_thread(
            lambda: subprocess.run(command, capture_output=True, text=True, check=False)
        )
        assert done.returncode == 6
        assert "E-STATE-LOCKED" in done.stderr
        assert str(fed.process.pid) in done.stderr

    scene(tmp_path, body)
