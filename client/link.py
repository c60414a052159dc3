"""The connection to the server: joined and watched for ever, with back-off, whatever happens.

Addresses are tried in order. A break is logged once per reason, in one line. What the server wants
arrives as tasks on the Watch stream, which also shows that it lives: silence for three heartbeats
is a break. Only one thing ends the link for good: the server says that this node is revoked. While
the server and this node's ledger contradict one another the node stays out, and so nothing leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from tacit.client.backoff import delays
from tacit.client.delivery import CALL_TIMEOUT_S
from tacit.core.errors import TacitError, TrustError, UnavailableError
from tacit.protos import fleet_pb2
from tacit.protos.channel import client_channel
from tacit.protos.failures import error_from_rpc
from tacit.protos.frames import open_fleet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tacit.core.membership import Membership
    from tacit.protos.fleet_pb2_grpc import FleetAsyncStub

logger = logging.getLogger("tacit.client.link")

_JOIN_TIMEOUT_S = 15.0
_SILENT_HEARTBEATS = 3
_CLOCK_TOLERANCE_S = 120.0
_LEDGER_REFUSED = frozenset(("E-LEDGER-FORK", "E-LEDGER-ROLLBACK"))
_STABLE_S = 30.0  # a link that held so long was a good one: the next break starts from 1 s again


@dataclass(frozen=True, kw_only=True)
class Connected:
    """A server that answers.

    Attributes:
        fleet: its calls.
        address: where it is.
        joined: what it said when this node joined.
        refused: gets the error that ends this connection from inside.
    """

    fleet: FleetAsyncStub
    address: str
    joined: fleet_pb2.JoinReply
    refused: asyncio.Future[TacitError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def heed(self, error: TacitError) -> None:
        """End the connection if the server says of a reply that the ledger is not what it knew."""
        if error.code in _LEDGER_REFUSED and not self.refused.done():
            self.refused.set_result(error)


class TaskHandler(Protocol):
    """What a link tells its owner."""

    def connected(self, connected: Connected) -> None: ...

    def disconnected(self, address: str, error: TacitError) -> None: ...

    def handle(self, task: fleet_pb2.Task) -> None: ...


class Link:
    """Keeps one node connected."""

    def __init__(
        self,
        membership: Membership,
        handler: TaskHandler,
        *,
        request: Callable[[], fleet_pb2.JoinRequest],
        verify: Callable[[fleet_pb2.JoinReply], None],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._handler = handler
        self._request = request
        self._verify = verify
        self._rng = rng
        self._last_logged = ""

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            TrustError: the server has revoked this node.
        """
        waits = delays(self._rng)
        loop = asyncio.get_running_loop()
        while True:
            for address in self._membership.addresses:
                started = loop.time()
                error = await self._connect(address)
                self._handler.disconnected(address, error)
                if error.code == "E-MEMBER-REVOKED":
                    raise error
                self._log(address, error)
                if loop.time() - started > _STABLE_S:
                    waits = delays(self._rng)
            await asyncio.sleep(next(waits))

    async def _connect(self, address: str) -> TacitError:
        """Join one address and serve its tasks until the link breaks; return why it did."""
        try:
            channel = client_channel(
                address,
                authority_pem=self._membership.authority_pem,
                certificate_pem=self._membership.certificate_pem,
                key_pem=self._membership.key_pem,
            )
            async with channel:
                fleet = open_fleet(channel)
                joined = await self._join(fleet)
                self._verify(joined)
                connected = Connected(fleet=fleet, address=address, joined=joined)
                self._greet(connected)
                await self._watch(connected)
        except grpc.RpcError as error:
            return error_from_rpc(error)
        except TacitError as error:
            return error
        except TimeoutError:
            return UnavailableError("E-SERVER-SILENT", "the server has fallen silent")
        return UnavailableError("E-SERVER-CLOSED", "the server ended the connection")

    async def _join(self, fleet: FleetAsyncStub) -> fleet_pb2.JoinReply:
        """Join; where the ledger is refused, ask what the server knows, to name the entry.

        Raises:
            TrustError: the ledger was rolled back or copied.
            AioRpcError: the call failed otherwise.
        """
        request = self._request()
        try:
            return await fleet.Join(request, timeout=_JOIN_TIMEOUT_S)
        except grpc.RpcError as error:
            refusal = error_from_rpc(error)
            if refusal.code not in _LEDGER_REFUSED:
                raise
            request.ClearField("ledger")
            self._verify(await fleet.Join(request, timeout=_JOIN_TIMEOUT_S))
            raise refusal from error

    def _greet(self, connected: Connected) -> None:
        fields: dict[str, object] = {"address": connected.address}
        fields["server_version"] = connected.joined.software_version
        logger.info("connected", extra={"fields": fields})
        self._last_logged = ""
        skew_s = connected.joined.unix_time_s - self._request().unix_time_s
        if abs(skew_s) > _CLOCK_TOLERANCE_S:
            logger.warning("clocks differ", extra={"fields": {"seconds": round(skew_s)}})
        self._handler.connected(connected)

    async def _watch(self, connected: Connected) -> None:
        request = fleet_pb2.WatchRequest(server_id=connected.joined.server_id)
        silence_s = _SILENT_HEARTBEATS * max(connected.joined.heartbeat_s, 1.0)
        call = connected.fleet.Watch(request)
        try:
            while True:
                task = await _next(call, connected.refused, silence_s)
                if not isinstance(task, fleet_pb2.Task):  # gRPC's end of the stream
                    return
                if task.WhichOneof("task") == "revoked":
                    raise TrustError(
                        "E-MEMBER-REVOKED",
                        "the server has revoked this node",
                        hint="Ask the operator for a new token; then `tacit client leave`, and "
                        "`tacit client join TOKEN`.",
                    )
                self._handler.handle(task)
        finally:
            call.cancel()

    def _log(self, address: str, error: TacitError) -> None:
        """Write one line per reason, not one per attempt."""
        line = f"{address} {error.code}"
        if line == self._last_logged:
            return
        self._last_logged = line
        fields = {"address": address, "code": error.code, "reason": error.message}
        if error.hint:
            fields["hint"] = error.hint
        logger.warning("not connected; trying again for ever", extra={"fields": fields})


async def _next(call: Any, refused: asyncio.Future[TacitError], silence_s: float) -> object:  # noqa: ANN401 - gRPC's call
    """Return what a Watch stream gives next.

    Raises:
        TacitError: the connection is to end.
        TimeoutError: nothing came.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait(
            {reading, refused}, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED
        )
        if refused.done():
            raise refused.result()
        if not reading.done():
            raise TimeoutError
        return reading.result()
    finally:
        reading.cancel()


async def leave(membership: Membership) -> str:
    """Tell the server that this member leaves the federation for good; return its address.

    Raises:
        TacitError: no address answers, or the server refuses.
    """
    failure: TacitError = UnavailableError("E-SERVER-UNREACHABLE", "no address is known")
    for address in membership.addresses:
        channel = client_channel(
            address,
            authority_pem=membership.authority_pem,
            certificate_pem=membership.certificate_pem,
            key_pem=membership.key_pem,
        )
        async with channel:
            try:
                await open_fleet(channel).Leave(fleet_pb2.LeaveRequest(), timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
                continue
        return address
    raise failure


async def probe_server(
    membership: Membership, address: str, request: fleet_pb2.JoinRequest
) -> fleet_pb2.JoinReply:
    """Join one address, to see whether it can be done.

    Raises:
        TacitError: it cannot, and why.
    """
    with contextlib.suppress(asyncio.CancelledError):
        channel = client_channel(
            address,
            authority_pem=membership.authority_pem,
            certificate_pem=membership.certificate_pem,
            key_pem=membership.key_pem,
        )
        async with channel:
            try:
                return await open_fleet(channel).Join(request, timeout=_JOIN_TIMEOUT_S)
            except grpc.RpcError as error:
                raise error_from_rpc(error) from error
    raise UnavailableError("E-CALL-CANCELLED", "the call was broken off")
