"""The daemon over real sockets: runs, restarts, workers that die, operators who stop and drain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tacit.core.errors import UnavailableError
from tacit.protos import control_pb2 as control
from tacit.protos import fleet_pb2 as fleet
from tacit.server.configuration import JournalMode, LimitsConfig, TimesConfig
from tests.server.federation import (
    Federation,
    code_of,
    federation,
    specification,
)

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    Events = list[tuple[str, dict[str, Any]]]

pytestmark = pytest.mark.slow


def kinds(events: Events) -> list[str]:
    return [kind for kind, _ in events]


def fields_of(events: Events, kind: str) -> list[dict[str, Any]]:
    return [fields for found, fields in events if found == kind]


async def run_to_end(fed: Federation, **spec: Any) -> Events:
    for node in fed.nodes.values():
        node.start()
    return await fed.events(await fed.submit(specification(**spec)))


def test_a_run_goes_from_submission_to_its_end(tmp_path: Path) -> None:
    """Two nodes approve, answer every round, and the run finishes with every reply counted."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            events = await run_to_end(fed)
            assert [f["metrics"] for f in fields_of(events, "round_finished")] == [
                {"total": 4000.0, "replies": 2},
                {"total": 6000.0, "replies": 2},
            ]
            assert kinds(events)[-1] == "run_finished"
            assert kinds(events).count("reply_received") == 4
            await asyncio.gather(*(node.ended.wait() for node in fed.nodes.values()))
            assert all(len(node.closed) == 2 for node in fed.nodes.values())

    asyncio.run(scenario())


def test_a_run_that_nobody_wrote_down_leaves_no_empty_file(tmp_path: Path) -> None:
    """Audits and twins come without a run.toml: none is pulled, rather than one of no bytes."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification(), source=b"")
            await fed.events(run_id)
            async with fed.control() as stub:
                files = (await stub.ListFiles(control.ListFilesRequest(run_id=run_id))).files
            paths = {file.path for file in files}
            assert "specification.json" in paths
            assert "run.toml" not in paths

    asyncio.run(scenario())


def test_a_finished_run_leaves_its_folder_and_nothing_of_one_owner(tmp_path: Path) -> None:
    """What may be pulled is listed; spool and checkpoints are not, and the spool is gone."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification())
            await fed.events(run_id)
            async with fed.control() as stub:
                files = (await stub.ListFiles(control.ListFilesRequest(run_id=run_id))).files
                request = control.PullFileRequest(run_id=run_id, path="initial.safetensors")
                data = b"".join([chunk.data async for chunk in stub.PullFile(request)])
                request.path = "checkpoints/000001"
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await anext(aiter(stub.PullFile(request)))
            assert {file.path for file in files} == {
                "events.jsonl",
                "initial.safetensors",
                "run.toml",
                "specification.json",
            }
            assert data == b"weights" * 1000
            assert code_of(refused.value) == "E-FILE-UNKNOWN"
            assert not (tmp_path / "s" / "runs" / run_id / "spool").exists()
            assert fed.daemon is not None
            assert fed.daemon.scheduler.space.used_bytes == 0

    asyncio.run(scenario())


def test_a_restart_in_the_middle_of_a_round_counts_every_reply_once(tmp_path: Path) -> None:
    """One reply was stored before the daemon stopped: it is not asked for again, nor lost."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            first, second = fed.nodes.values()
            second.silent = True
            first.start()
            second.start()
            run_id = await fed.submit(specification(rounds=2))
            await fed.events(run_id, until="reply_received")
            await asyncio.gather(first.stop(), second.stop())
            await fed.stop()
            await fed.start()
            second.silent = False
            first.start()
            second.start()
            events = await fed.events(run_id)
            assert kinds(events)[-1] == "run_finished"
            assert "replayed" in kinds(events)
            assert [f["metrics"]["total"] for f in fields_of(events, "round_finished")] == [
                4000.0,
                6000.0,
            ]
            assert not any(receipt.repeated for receipt in first.receipts)
            assert len(set(first.received)) == 2

    asyncio.run(scenario())


def test_a_worker_that_dies_starts_again_and_asks_for_the_same(tmp_path: Path) -> None:
    """The worker is killed after its push: nodes hear of no further message, the run finishes."""

    async def scenario() -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        options = ("--die-in-round", "2", "--deaths", "2", "--marks", str(marks))
        async with federation(tmp_path, *options, nodes=2) as fed:
            events = await run_to_end(fed)
            assert kinds(events)[-1] == "run_finished"
            assert kinds(events).count("replayed") == 2
            assert [f["metrics"]["replies"] for f in fields_of(events, "round_finished")] == [2, 2]
            assert all(len(set(node.received)) == 2 for node in fed.nodes.values())

    asyncio.run(scenario())


def test_a_worker_that_dies_again_and_again_fails_the_run(tmp_path: Path) -> None:
    """After three restarts without progress the run has failed, with a stable code."""

    async def scenario() -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        options = ("--die-in-round", "1", "--deaths", "9", "--marks", str(marks))
        async with federation(tmp_path, *options, nodes=2) as fed:
            events = await run_to_end(fed)
            assert events[-1][0] == "run_failed"
            assert events[-1][1]["code"] == "E-RUN-WORKER-DIED"
            assert len(list(marks.iterdir())) == 4

    asyncio.run(scenario())


def test_a_round_closes_early_when_the_missing_node_is_known_to_be_gone(tmp_path: Path) -> None:
    """Two of three answered, the third went away: the round does not wait for its deadline."""

    async def scenario() -> None:
        times = TimesConfig(grace_s=0.3)
        async with federation(tmp_path, "--cohort", "3", nodes=3, times=times) as fed:
            third = fed.nodes["node-2"]
            third.silent = True
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification(rounds=2, min_clients=2))
            await asyncio.wait_for(third.ready.wait(), 20)
            await third.stop()
            events = await fed.events(run_id, until="round_finished")
            finished = fields_of(events, "round_finished")[0]
            assert finished["codes"] == ["E-NODE-GONE"]
            assert finished["metrics"]["replies"] == 2

    asyncio.run(scenario())


def test_a_round_without_its_quorum_waits_for_the_node_to_come_back(tmp_path: Path) -> None:
    """All three are needed: the round outlasts the grace time, and the answer counts."""

    async def scenario() -> None:
        times = TimesConfig(grace_s=0.05)
        async with federation(tmp_path, nodes=3, times=times) as fed:
            third = fed.nodes["node-2"]
            third.silent = True
            for node in fed.nodes.values():
                node.start()
            run_id = await fed.submit(specification(rounds=1, min_clients=3))
            await asyncio.wait_for(third.ready.wait(), 20)
            await third.stop()
            await fed.events(run_id, until="node_left")
            third.silent = False
            third.start()
            events = await fed.events(run_id)
            assert fields_of(events, "round_finished")[0]["metrics"]["replies"] == 3

    asyncio.run(scenario())


def test_a_run_waits_for_owners_and_says_so(tmp_path: Path) -> None:
    """While an owner has not approved, the run is waiting; it starts when the owner does."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            first, second = fed.nodes.values()
            second.verdict = fleet.Decision.PENDING
            first.start()
            second.start()
            run_id = await fed.submit(specification())
            await fed.events(run_id, until="node_decided")
            shown = await fed.show(run_id)
            assert shown.status == "waiting"
            assert " of 2 needed clients are ready: " in shown.reason
            await second.stop()
            second.verdict = fleet.Decision.APPROVED
            second.start()
            assert kinds(await fed.events(run_id))[-1] == "run_finished"

    asyncio.run(scenario())


def test_an_operator_stops_a_run_and_nodes_forget_it(tmp_path: Path) -> None:
    """A stopped run ends its worker, closes its messages and tells the nodes."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for node in fed.nodes.values():
                node.silent = True
                node.start()
            run_id = await fed.submit(specification())
            await fed.events(run_id, until="round_started")
            await asyncio.gather(*(node.ready.wait() for node in fed.nodes.values()))
            async with fed.control() as stub:
                await stub.StopRun(control.StopRunRequest(run_id=run_id, reason="enough"))
            await asyncio.gather(*(node.ended.wait() for node in fed.nodes.values()))
            assert all(node.closed == node.received for node in fed.nodes.values())
            shown = await fed.show(run_id)
            assert (shown.status, shown.reason) == ("stopped", "enough")
            ends = [(n.end.status, n.end.reason) for n in fed.nodes.values() if n.end is not None]
            assert ends == [("stopped", "enough")] * 2

    asyncio.run(scenario())


def test_a_draining_daemon_begins_nothing_new(tmp_path: Path) -> None:
    """It refuses runs, holds back the next round, and goes on after a restart."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2) as fed:
            for node in fed.nodes.values():
                node.silent = True
                node.start()
            run_id = await fed.submit(specification())
            await asyncio.gather(*(node.ready.wait() for node in fed.nodes.values()))
            async with fed.control() as stub:
                reply = await stub.Drain(control.DrainRequest())
                assert reply.running_runs == 1
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await fed.submit(specification())
                assert code_of(refused.value) == "E-SERVER-DRAINING"
            for node in fed.nodes.values():
                await node.stop()
                node.silent = False
                node.start()
            events = await fed.events(run_id, until="checkpoint")
            assert kinds(events).count("round_finished") == 1
            await fed.stop()
            await fed.start()
            for node in fed.nodes.values():
                await node.stop()
                node.start()
            events = await fed.events(run_id)
            assert kinds(events)[-1] == "run_finished"
            assert [f["round"] for f in fields_of(events, "round_finished")] == [1, 2]

    asyncio.run(scenario())


def test_runs_beyond_the_limit_wait_in_the_queue(tmp_path: Path) -> None:
    """With one place, the second run is queued while the first runs, then runs as well."""

    async def scenario() -> None:
        limits = LimitsConfig(max_concurrent_runs=1)
        async with federation(tmp_path, nodes=2, limits=limits) as fed:
            for node in fed.nodes.values():
                node.start()
            first, second = [await fed.submit(specification(rounds=1)) for _ in range(2)]
            events = await fed.events(second)
            waiting = [f["reason"] for f in fields_of(events, "run_waiting")]
            assert kinds(events)[-1] == "run_finished"
            assert "1 runs are running" in waiting
            assert (await fed.show(first)).status == "finished"

    asyncio.run(scenario())


def test_health_is_served_to_members(tmp_path: Path) -> None:
    """The standard health service answers over mutual TLS."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=1) as fed, fed.nodes["node-0"].channel() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(scenario())


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    """A second daemon on the same address fails with E-PORT-TAKEN and leaves the first alone."""

    async def scenario() -> None:
        async with federation(tmp_path / "a") as fed:
            other = Federation(tmp_path / "b")
            other.init()
            other.changes = {"listen": fed.address}
            with pytest.raises(UnavailableError) as taken:
                await other.start()
            assert taken.value.code == "E-PORT-TAKEN"
            async with fed.control() as stub:
                assert (await stub.Status(control.StatusRequest())).server_id

    asyncio.run(scenario())


def test_power_mode_runs_the_same(tmp_path: Path) -> None:
    """With journal = power the same run ends the same."""

    async def scenario() -> None:
        async with federation(tmp_path, nodes=2, journal=JournalMode.POWER) as fed:
            events = await run_to_end(fed)
            assert [f["metrics"]["total"] for f in fields_of(events, "round_finished")] == [
                4000.0,
                6000.0,
            ]

    asyncio.run(scenario())
