"""The aggregation daemon: opens what it owns, serves three doors, and stops without loss.

The doors: the main port (mutual TLS), the enrolment port (TLS and a token), and a Unix socket in
the state directory (the administrator). Everything runs in one event loop; each run's app runs in a
process of its own. SIGTERM or the first Ctrl-C drains: nothing new begins, uploads in progress are
finished and journalled, and the process ends with status 0. The second Ctrl-C stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import importlib.metadata
import logging
import secrets
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from tacit.core.configuration import load_config
from tacit.core.errors import UnavailableError
from tacit.core.identity import Authority, load_certificate
from tacit.core.keys import node_id_of
from tacit.core.logs import configure_logging
from tacit.core.state import StateDirectory, open_state
from tacit.privacy.secagg.terms import Member
from tacit.protos.channel import (
    enrolment_credentials,
    local_credentials,
    server_credentials,
    server_options,
)
from tacit.protos.control_pb2_grpc import add_ControlServicer_to_server
from tacit.protos.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from tacit.protos.frames import add_fleet_servicer
from tacit.protos.memory import keep_large_buffers
from tacit.server.authority import Membership, Terms
from tacit.server.certificate import ensure_server_certificate, read_server_certificate
from tacit.server.configuration import JournalMode, ServerConfig, split_address
from tacit.server.journal import JournalSurroundings
from tacit.server.ledger_heads import LedgerHeads
from tacit.server.run_worker import WORKER_COMMAND
from tacit.server.scheduler import Scheduler
from tacit.server.services.access import (
    AccessInterceptor,
    MemberDoor,
    identify_administrator,
    identify_nobody,
)
from tacit.server.services.control import ControlService, DaemonFacts, make_runs_folder
from tacit.server.services.enrolment import EnrolmentService
from tacit.server.services.fleet import FleetService
from tacit.server.sessions import Sessions
from tacit.server.store import STORE_FILE, Store, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger("tacit.server.daemon")

CONFIG_FILE = "server.toml"
AUTHORITY_FOLDER = "authority"

_STOP_GRACE_S = 2.0
_ENROLMENT_CALLS = 32  # at once; nobody has shown a certificate there


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the daemon listens, once it does."""

    main: int
    enrolment: int


class Daemon:
    """One running daemon; :meth:`start`, then :meth:`wait`, then :meth:`stop`.

    Attributes:
        ports: the two TCP ports.
        scheduler: the runs.
        sessions: the connected nodes.
    """

    ports: Ports
    scheduler: Scheduler
    sessions: Sessions

    def __init__(
        self,
        state: StateDirectory,
        config: ServerConfig,
        store: Store,
        *,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._state = state
        self._config = config
        self._store = store
        self._command = worker_command
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []
        self._health = health_aio.HealthServicer()
        self._names: dict[int, str] = {}

    async def start(self) -> None:
        """Bind the ports, take up the runs, and serve.

        Raises:
            UnavailableError: a port is taken (E-PORT-TAKEN), or a file is missing.
        """
        home = self._state.path
        authority = Authority.load(home / AUTHORITY_FOLDER)
        now = dt.datetime.now(dt.UTC)
        if ensure_server_certificate(home, authority, self._config.names, now=now):
            log.info(
                "server certificate made again", extra={"fields": {"names": self._config.names}}
            )
        certificate_pem, key_pem = read_server_certificate(home)
        door = _LateDoor()
        main = _server(AccessInterceptor(door.identify))
        enrolment = _server(AccessInterceptor(identify_nobody), calls=_ENROLMENT_CALLS)
        local = _server(AccessInterceptor(identify_administrator))
        self._servers = [main, enrolment, local]
        plain_credentials = enrolment_credentials(certificate_pem=certificate_pem, key_pem=key_pem)
        main_credentials = server_credentials(
            authority_pem=authority.pem, certificate_pem=certificate_pem, key_pem=key_pem
        )
        self.ports = Ports(
            main=_bind(main, self._config.listen, main_credentials),
            enrolment=_bind(enrolment, self._config.enrolment_listen, plain_credentials),
        )
        self._bind_socket(local)
        membership = Membership(
            self._store, authority, terms_of(self._config, self.ports), now=time.time
        )
        door.open(MemberDoor(membership))
        self._build(membership, certificate_pem)
        await self._serve()

    async def wait(self) -> None:
        """Return when the daemon is asked to stop."""
        await self._ending.wait()

    def ask_to_stop(self) -> None:
        """Ask for an orderly end; asking twice skips the waiting."""
        if self._ending.is_set():
            self._hurry.set()
        self._ending.set()

    async def stop(self) -> None:
        """Drain, finish what is being uploaded, end the workers, and close the doors."""
        self.scheduler.drain()
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        deadline = time.monotonic() + self._config.times.drain_s
        while self._fleet.uploads and time.monotonic() < deadline and not self._hurry.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), 0.05)
        await self.scheduler.stop()
        self.sessions.close()
        grace = 0.0 if self._hurry.is_set() else _STOP_GRACE_S
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        self._state.socket.unlink(missing_ok=True)
        log.info("stopped")

    def _build(self, membership: Membership, certificate_pem: bytes) -> None:
        version = importlib.metadata.version("tacit")
        self._names = membership.names()
        self.sessions = Sessions()
        runs_folder = make_runs_folder(self._state.path)
        heads = LedgerHeads(self._store, now=time.time)
        surroundings = JournalSurroundings(
            store=self._store,
            limits=self._config.limits,
            durable=self._config.journal is JournalMode.POWER,
            grace_s=self._config.times.grace_s,
            tell=self.sessions.send,
            member=lambda node_id: self._names.get(node_id, str(node_id)),
            directory=functools.partial(_directory, membership),
            keep_head=heads.keep,
            changed=self._changed,
            now=time.time,
            clock=time.monotonic,
        )
        self.scheduler = Scheduler(
            config=self._config,
            runs_folder=runs_folder,
            sessions=self.sessions,
            surroundings=surroundings,
            worker_command=self._command,
        )
        self.scheduler.load()
        facts = DaemonFacts(
            server_id=secrets.token_hex(8),
            software_version=version,
            started_at_s=time.time(),
            addresses=terms_of(self._config, self.ports).addresses,
            certificate_expires_at_s=load_certificate(
                certificate_pem
            ).not_valid_after_utc.timestamp(),
        )
        self._fleet = FleetService(
            config=self._config,
            server_id=facts.server_id,
            software_version=version,
            membership=membership,
            sessions=self.sessions,
            scheduler=self.scheduler,
            ledger_heads=heads,
        )
        control = ControlService(
            config=self._config,
            facts=facts,
            store=self._store,
            membership=membership,
            sessions=self.sessions,
            scheduler=self.scheduler,
            runs_folder=runs_folder,
            stop=self.ask_to_stop,
            now=time.time,
        )

        def enrolled() -> None:
            self._names = membership.names()

        self._register(control, EnrolmentService(membership, enrolled=enrolled))

    def _register(self, control: ControlService, enrolment: EnrolmentService) -> None:
        main, enrolment_server, local = self._servers
        add_fleet_servicer(self._fleet, main)
        for server in (main, local):
            add_ControlServicer_to_server(control, server)
            add_HealthServicer_to_server(self._health, server)
        for server in (main, enrolment_server):
            add_EnrolmentServicer_to_server(enrolment, server)

    async def _serve(self) -> None:
        for server in self._servers:
            await server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.scheduler.start()
        fields = {"main": self.ports.main, "enrolment": self.ports.enrolment}
        log.info("serving", extra={"fields": fields})

    def _changed(self, run_id: str) -> None:
        self.scheduler.notify(run_id)

    def _bind_socket(self, server: grpc.aio.Server) -> None:
        socket = self._state.socket
        socket.unlink(missing_ok=True)  # of a daemon that was killed: we hold the lock
        server.add_secure_port(f"unix:{socket}", local_credentials())
        socket.chmod(0o600)


class _LateDoor:
    """Stands in until the ports, and with them the members' terms, are known."""

    def __init__(self) -> None:
        self._door: MemberDoor | None = None

    def open(self, door: MemberDoor) -> None:
        self._door = door

    def identify(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
        if self._door is None:
            raise UnavailableError("E-SERVER-STARTING", "the server is starting")
        return self._door.identify(method, context)


def terms_of(config: ServerConfig, ports: Ports | None = None) -> Terms:
    """Return the terms of membership; without ``ports``, from the configuration alone."""
    main = split_address(config.listen)
    enrolment = split_address(config.enrolment_listen)
    if main is None or enrolment is None:
        raise ValueError("expected a configuration whose problems were reported")
    main_port = ports.main if ports else main[1]
    enrolment_port = ports.enrolment if ports else enrolment[1]
    return Terms(
        addresses=tuple(join_address(name, main_port) for name in config.names),
        enrolment_addresses=tuple(join_address(name, enrolment_port) for name in config.names),
        certificate_days=config.times.certificate_days,
        max_clients=config.limits.max_clients,
    )


def join_address(name: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    bare = name.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def store_location(state: StateDirectory, config: ServerConfig) -> Path | str:
    """Return where the database is: a URL, or the file in the state directory."""
    return config.database or state.path / STORE_FILE


def read_config(state: StateDirectory) -> ServerConfig:
    """Read server.toml of a state directory, with TACIT_SERVER_* on top."""
    path = state.path / CONFIG_FILE
    return load_config(path, ServerConfig, prefix="TACIT_SERVER_").value


def run_daemon(home: Path, *, worker_command: Sequence[str] = WORKER_COMMAND) -> None:
    """Run the daemon of a state directory until it is asked to stop.

    Raises:
        UnavailableError: the directory is in use, a port is taken, a file is missing.
        ConfigError: server.toml is wrong.
    """
    state = open_state(home, create=False)
    config = read_config(state)
    configure_logging(
        "server", level=config.log_level, form="json" if config.log_form == "json" else "text"
    )
    keep_large_buffers()
    with state.lock(), open_store(store_location(state, config)) as store:
        asyncio.run(_run(state, config, store, worker_command))


async def _run(
    state: StateDirectory, config: ServerConfig, store: Store, worker_command: Sequence[str]
) -> None:
    daemon = Daemon(state, config, store, worker_command=worker_command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.ask_to_stop)
    await daemon.start()
    try:
        await daemon.wait()
    finally:
        await daemon.stop()


def _server(interceptor: AccessInterceptor, *, calls: int | None = None) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[interceptor], options=server_options(), maximum_concurrent_rpcs=calls
    )


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _port_taken(address) from error
    if not port:
        raise _port_taken(address)
    return port


def _port_taken(address: str) -> UnavailableError:
    return UnavailableError(
        "E-PORT-TAKEN",
        f"expected {address} to be free to listen on",
        hint="Stop what listens there, or change `listen` or `enrolment_listen` in server.toml.",
    )


def _directory(membership: Membership) -> dict[str, Member]:
    """Return the enrolled clients by name, as members of a secure sum."""
    return {
        one.name: Member(node_id=node_id_of(one.enrolment_key), enrolment_key=one.enrolment_key)
        for one in membership.directory()
    }
