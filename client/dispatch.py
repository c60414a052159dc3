"""What the daemon does with tasks: offers are judged, messages answered, ends taken note of.

Each message is one asyncio task that lives until its reply is received or no longer wanted. It
outlives connections: when the link breaks it waits for the next one and goes on where it was. When
the link comes back, every stored reply without a receipt is offered again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, TypeVar

import grpc

from tacit.client.approvals import Judgement, Verdict
from tacit.client.backoff import delays
from tacit.client.delivery import CALL_TIMEOUT_S, Delivery, Download
from tacit.client.identifiers import verify_message_id, verify_run_id
from tacit.core.errors import ProtocolError, RefusedError, TacitError, UnavailableError
from tacit.protos import fleet_pb2
from tacit.protos.failures import error_from_rpc
from tacit.protos.frames import CHUNK_BYTES, MAX_CHUNK_BYTES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

    from tacit.client.link import Connected
    from tacit.client.node import Node
    from tacit.client.store import OutboxEntry

logger = logging.getLogger("tacit.client.dispatch")

T = TypeVar("T")

_VERDICTS = {
    Verdict.APPROVED: fleet_pb2.Decision.APPROVED,
    Verdict.PENDING: fleet_pb2.Decision.PENDING,
    Verdict.DENIED: fleet_pb2.Decision.DENIED,
}
_UNUSED = "no receipt came before the server closed the message: time was up, or it asked anew"
_MAX_TASKS = 10_000  # a server that sends more at once is not served further until some are done


class Dispatcher:
    """Turns the server's tasks into calls of the node.

    Attributes:
        link: the present connection; None while there is none.
        last_address, last_error: of the last connection that broke.
        twin: set for good once the server has said that another node has this one's keys.
    """

    def __init__(self, node: Node, executor: Executor, *, rng: random.Random) -> None:
        self._node = node
        self._executor = executor
        self._rng = rng
        self._delivery = Delivery(node, executor, chunk_bytes=self._chunk_bytes)
        self._messages: dict[str, asyncio.Task[None]] = {}
        self._offers: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.link: Connected | None = None
        self.last_address = ""
        self.last_error: TacitError | None = None
        self.twin: TacitError | None = None

    def connected(self, connected: Connected) -> None:
        """Go on with everything that waited for a connection."""
        self.link, self.last_address, self.last_error = connected, connected.address, None
        self._announce()
        self._spawn(self._resend())

    def disconnected(self, address: str, error: TacitError) -> None:
        """Let everything wait for the next connection."""
        self.link, self.last_address, self.last_error = None, address, error
        if error.code == "E-NODE-TWICE":
            self.twin = error

    def handle(self, task: fleet_pb2.Task) -> None:
        """Start what a task asks for; malformed tasks are logged and dropped."""
        try:
            match task.WhichOneof("task"):
                case "offer":
                    verify_run_id(task.offer.run_id)
                    self._start_offer(task.offer)
                case "ready":
                    verify_message_id(task.ready.run_id, task.ready.message_id)
                    self._start_message(task.ready.run_id, task.ready.message_id)
                case "closed":
                    verify_message_id(task.closed.run_id, task.closed.message_id)
                    self._closing.add(closing := self._spawn(self._close(task.closed)))
                    closing.add_done_callback(self._closing.discard)
                case "ended":
                    verify_run_id(task.ended.run_id)
                    self._spawn(self._end(task.ended))
                case "draining":
                    logger.info("the server is about to stop")
                case _:
                    pass  # a sign of life, or a task of a later version
        except ProtocolError as error:
            logger.warning("task dropped", extra={"fields": {"code": error.code}})

    async def approve(self, run_id: str, *, repeat: bool = False) -> Judgement:
        """Let a person approve a run, and tell the server.

        Raises:
            TacitError: the node says why not.
        """
        approve = functools.partial(self._node.approve, repeat=repeat)
        judgement = await self._in_thread(approve, run_id)
        await self._decide(run_id, judgement)
        return judgement

    async def deny(self, run_id: str, reason: str) -> Judgement:
        """Let a person deny a run, and tell the server.

        Raises:
            TacitError: the node says why not.
        """
        judgement = await self._in_thread(self._node.deny, run_id, reason)
        await self._decide(run_id, judgement)
        return judgement

    async def close(self) -> None:
        """Stop every task; stored replies stay stored."""
        tasks = [*self._messages.values(), *self._offers.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._delivery.files.close()

    def _start_offer(self, offer: fleet_pb2.RunOffer) -> None:
        earlier = self._offers.get(offer.run_id)
        task = asyncio.create_task(self._judge(offer, earlier))
        self._offers[offer.run_id] = task
        task.add_done_callback(_log_bug)

    async def _judge(self, offer: fleet_pb2.RunOffer, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            judgement = await self._in_thread(
                self._node.offer, offer.run_id, offer.specification, offer.specification_sha256
            )
        except TacitError as error:
            logger.warning("offer dropped", extra={"fields": {"code": error.code}})
            return
        await self._decide(offer.run_id, judgement)

    async def _decide(self, run_id: str, judgement: Judgement) -> None:
        """Tell the server, if it is there; it offers the run again when it comes back."""
        run = await self._in_thread(self._node.store.load_run, run_id)
        if self.link is None or run is None or run.ended:
            return
        decision = fleet_pb2.Decision(
            run_id=run_id,
            specification_sha256=run.specification_sha256,
            verdict=_VERDICTS[judgement.verdict],
            code=judgement.code,
            canary_commitment=await self._in_thread(self._node.canary_commitment, run_id),
        )
        try:
            await self.link.fleet.Decide(decision, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            failure = error_from_rpc(error)
            fields = {"run": run_id, "code": failure.code}
            logger.info("decision not delivered", extra={"fields": fields})
            if isinstance(failure, RefusedError):
                await self._in_thread(self._node.note_left_out, run_id, failure)

    def _start_message(self, run_id: str, message_id: str) -> None:
        running = self._messages.get(message_id)
        if running is not None and not running.done():
            return
        if len(self._messages) >= _MAX_TASKS:
            raise ProtocolError("E-TASKS-LIMIT", "the server asks for too much at once")
        task = asyncio.create_task(self._answer(run_id, message_id))
        self._messages[message_id] = task
        task.add_done_callback(functools.partial(self._forget, message_id))

    def _forget(self, message_id: str, task: asyncio.Task[None]) -> None:
        if self._messages.get(message_id) is task:
            del self._messages[message_id]
        _log_bug(task)

    async def _answer(self, run_id: str, message_id: str) -> None:
        """Answer one message, over as many connections as it takes."""
        offer = self._offers.get(run_id)
        if offer is not None:
            await asyncio.wait([offer])
        download = Download(run_id, self._delivery.files)
        try:
            entry = await self._persistently(
                lambda link: self._delivery.fetch_and_answer(
                    link.fleet, run_id, message_id, download
                ),
                message_id,
            )
            if entry is not None:
                await self._send(entry, resumed=False)
        finally:
            download.drop()

    async def _send(self, entry: OutboxEntry, *, resumed: bool) -> None:
        """Send one stored reply until the server has it, or wants it no longer."""
        tries = iter([resumed])

        async def submit(link: Connected) -> None:
            await self._delivery.submit(link.fleet, entry, resumed=next(tries, True))

        await self._persistently(submit, entry.message_id)

    async def _persistently(
        self, action: Callable[[Connected], Coroutine[None, None, T]], message_id: str
    ) -> T | None:
        """Do something with a connection, again and again; None when it is no longer wanted."""
        waits = delays(self._rng)
        while True:
            link = await self._connection()
            try:
                return await action(link)
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
            except TacitError as error:
                failure = error
            link.heed(failure)
            fields = {"message": message_id, "code": failure.code, "reason": failure.message}
            if failure.code in ("E-MESSAGE-CLOSED", "E-RUN-ENDED", "E-RUN-UNKNOWN"):
                why = f"no receipt came before the server said {failure.code}"
                await self._in_thread(self._node.close_message, message_id, why)
                return None
            if not isinstance(failure, UnavailableError):
                logger.warning("message given up", extra={"fields": fields})
                return None
            logger.info("message delayed", extra={"fields": fields})
            await self._pause(next(waits), link)

    async def _pause(self, seconds: float, link: Connected) -> None:
        """Wait, but not longer than until there is another connection."""
        self._changed.clear()
        if self.link is not link and self.link is not None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _connection(self) -> Connected:
        while self.link is None:
            self._changed.clear()
            await self._changed.wait()
        return self.link

    def _announce(self) -> None:
        self._changed.set()

    async def _resend(self) -> None:
        for entry in await self._in_thread(self._node.store.list_replies):
            if entry.received_at_s is None and entry.message_id not in self._messages:
                task = asyncio.create_task(self._send(entry, resumed=True))
                self._messages[entry.message_id] = task
                task.add_done_callback(functools.partial(self._forget, entry.message_id))

    async def _close(self, closed: fleet_pb2.MessageClosed) -> None:
        message_id = closed.message_id
        task = self._messages.get(message_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        unused = "" if closed.committed else _UNUSED
        await self._in_thread(self._node.close_message, message_id, unused)

    async def _end(self, ended: fleet_pb2.RunEnded) -> None:
        run_id, status = ended.run_id, ended.status[:40]
        reason = ended.reason[:500]
        tasks = [task for name, task in self._messages.items() if name.startswith(f"{run_id}.")]
        for task in tasks:
            task.cancel()
        # What was committed is closed first: the run's end would count it as not used.
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        self._offers.pop(run_id, None)
        self._delivery.files.end(run_id)
        if await self._in_thread(self._node.end_run, run_id, status, reason):
            fields = {"run": run_id, "status": status, "reason": reason}
            logger.info("run ended", extra={"fields": fields})

    def _chunk_bytes(self) -> int:
        wanted = self.link.joined.chunk_bytes if self.link is not None else CHUNK_BYTES
        return min(max(wanted, 1 << 12), MAX_CHUNK_BYTES)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        task.add_done_callback(_log_bug)
        return task

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, functools.partial(function, *arguments)
        )


def _log_bug(task: asyncio.Task[None]) -> None:
    """A task may only end well or be cancelled; anything else is a bug, and is said once."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a task failed", exc_info=task.exception())
