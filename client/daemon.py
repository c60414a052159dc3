"""The data owner's daemon: one process, one state directory, one link to the server.

It holds the node's keys, its store and its policy; it never runs an app, never parses an owner's
file and never imports torch or flwr. SIGTERM or Ctrl-C ends it cleanly: workers are killed, stored
replies stay stored, and what was under way is done again from the same noise key.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
import random
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.client.configuration import (
    CHANGED,
    CONFIG_NAME,
    ClientConfig,
    file_digest,
    load_client_config,
)
from tacit.client.dispatch import Dispatcher
from tacit.client.isolation import Isolation, probe
from tacit.client.ledger_view import naming_known, verify_ledger_there
from tacit.client.link import Link
from tacit.client.local import serve_local
from tacit.client.members import load_pinned
from tacit.client.node import Node
from tacit.client.preparation import Preparation
from tacit.client.renewal import keep_certificate
from tacit.client.restored import confirm, read_mark
from tacit.client.runs import Surroundings
from tacit.client.secure_guard import open_guard
from tacit.client.status import REVOKED, Connection, as_json, read_status
from tacit.client.store import STORE_NAME, Decision, Store, open_store
from tacit.client.workers import Workers
from tacit.core.errors import RefusedError, TrustError
from tacit.core.files import write_atomic
from tacit.core.keys import node_id_of
from tacit.core.membership import Membership
from tacit.core.specification import PrivacyMode, RunSpec
from tacit.core.state import open_state
from tacit.privacy.distributed.plan import epsilon_of_answers, plan_of_run
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.secagg.terms import Member
from tacit.protos import fleet_pb2
from tacit.protos.memory import keep_large_buffers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tacit.core.identity import MemberIdentity
    from tacit.core.state import StateDirectory

logger = logging.getLogger("tacit.client.daemon")

PROTOCOL_VERSION = 1
IDENTITY_FOLDER = "identity"
SPLIT_KEY_NAME = "split-key"
_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """The parts of a daemon that do not need an event loop."""

    node: Node
    store: Store
    workers: Workers
    preparation: Preparation
    ledger: Ledger
    membership: Membership
    identity: MemberIdentity
    config: ClientConfig
    config_path: Path
    config_sha256: str
    isolation: Isolation

    @property
    def config_changed(self) -> bool:
        """Whether client.toml is no longer the file that this daemon goes by."""
        return file_digest(self.config_path) != self.config_sha256


def run_client(home: Path) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        TacitError: it cannot start, or the server has revoked this node.
    """
    keep_large_buffers()
    state = open_state(home, create=False)
    with state.lock(), assembled(state) as parts:
        asyncio.run(_serve(state, parts))


def _pinned(folder: Path, membership: Membership) -> dict[str, Member]:
    """Return the members whom the owner has pinned; a node id belongs to a key."""
    keys = load_pinned(folder, membership).keys
    return {name: Member(node_id=node_id_of(key), enrolment_key=key) for name, key in keys.items()}


@contextlib.contextmanager
def assembled(state: StateDirectory) -> Iterator[Assembled]:
    """Open everything that a node needs, and close it again."""
    membership = Membership(state.path / IDENTITY_FOLDER)
    identity = membership.identity
    config_path = state.path / CONFIG_NAME
    config_sha256 = file_digest(config_path)  # first: what changes meanwhile counts as changed
    config = load_client_config(config_path).value
    isolation = probe()
    store = open_store(state.path / STORE_NAME)
    keys = membership.keys
    heads = store.list_heads()
    verify_ledger_there(state.path, heads)
    with naming_known(heads):
        ledger = Ledger.open(state.path / LEDGER_NAME, signer=keys.enrolment.sign, clock=time.time)
    guard = open_guard(state.path, known_runs=[run.run_id for run in store.list_runs()])
    workers = Workers(state.path / "logs", policy=config.policy)
    preparation = Preparation()
    around = Surroundings(
        folder=state.path,
        runner=workers,
        prepare=preparation.prepare,
        epsilon_of=epsilon_of,
        isolated=isolation.available,
        clock=time.time,
        fresh_key=lambda: os.urandom(32),
        split_key=_split_key(state.path / SPLIT_KEY_NAME),
        ledger=ledger,
        public_key=keys.enrolment_public_key,
        sign=keys.enrolment.sign,
        pinned=functools.partial(_pinned, state.path, membership),
        guard=guard,
    )
    try:
        with naming_known(heads):
            node = Node(node_id=identity.node_id, config=config, store=store, around=around)
        yield Assembled(
            node=node,
            store=store,
            workers=workers,
            preparation=preparation,
            ledger=ledger,
            membership=membership,
            identity=identity,
            config=config,
            config_path=config_path,
            config_sha256=config_sha256,
            isolation=isolation,
        )
    finally:
        preparation.close()
        workers.close()
        store.close()
        ledger.close()
        guard.close()


def epsilon_of(specification: RunSpec, records: int, releases: int) -> float | None:
    """Return what a run costs each of so many records after so many updates; None without noise.

    Raises:
        TacitError: the run has no account here.
    """
    if specification.privacy.mode is PrivacyMode.NONE:
        return None
    return epsilon_of_answers(plan_of_run(specification, records=records), releases)


def join_request(parts: Assembled) -> fleet_pb2.JoinRequest:
    """Return what this node tells a server when it joins: names and versions, nothing of data."""
    return fleet_pb2.JoinRequest(
        software_version=importlib.metadata.version("tacit"),
        protocol_version=PROTOCOL_VERSION,
        unix_time_s=time.time(),
        isolated=parts.isolation.available,
        data_sets=sorted(parts.config.data_sets),
        ledger=parts.node.charges.head(),
    )


def verify_ledger(parts: Assembled, joined: fleet_pb2.JoinReply) -> None:
    """Check that the furthest head that the server has seen is a part of this node's ledger.

    A node that was restored from a backup goes on from here, or not at all.

    Raises:
        TacitError: the ledger was rolled back or copied.
    """
    charges, folder = parts.node.charges, parts.config_path.parent
    mark = read_mark(folder)
    told = joined.HasField("ledger")
    if mark is not None:
        known = charges.seen(joined.ledger) if told else None
        head = confirm(folder, mark, parts.ledger, known)
        parts.store.keep_head(head)
        logger.warning("restored", extra={"fields": {"from": mark.copied, "entries": head.count}})
    elif told:
        charges.verify_seen(joined.ledger)


async def _serve(state: StateDirectory, parts: Assembled) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="node") as executor:
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - for waiting times only
        dispatcher = Dispatcher(parts.node, executor, rng=rng)
        link = Link(
            parts.membership,
            dispatcher,
            request=lambda: join_request(parts),
            verify=lambda joined: verify_ledger(parts, joined),
            rng=rng,
        )
        verbs = Verbs(parts, dispatcher)
        local = await serve_local(state.socket, verbs.table)
        _announce(parts)
        linked = asyncio.create_task(link.run())
        stopped = asyncio.create_task(stop.wait())
        renewing = asyncio.create_task(keep_certificate(parts.membership))
        try:
            await asyncio.wait([linked, stopped], return_when=asyncio.FIRST_COMPLETED)
            if linked.done():
                _end_of(linked, parts)
        finally:
            logger.info("stopping")
            local.close()
            for task in (linked, stopped, renewing):
                task.cancel()
            await asyncio.gather(linked, stopped, renewing, return_exceptions=True)
            parts.preparation.close()
            await asyncio.to_thread(parts.workers.close)
            await dispatcher.close()
            state.socket.unlink(missing_ok=True)


def _end_of(linked: asyncio.Task[None], parts: Assembled) -> None:
    """Raise why the link ended; a revocation is remembered for `tacit client status`."""
    try:
        linked.result()
    except TrustError as error:
        if error.code == "E-MEMBER-REVOKED":
            revocation = Decision(
                at_s=time.time(),
                run_id="",
                outcome=REVOKED,
                code=error.code,
                reason=f"certificate {parts.membership.identity.serial}",
            )
            parts.store.log_decision(revocation, keep=parts.config.keep_decisions)
        raise


class Verbs:
    """What a person may ask the running daemon; see local.py."""

    def __init__(self, parts: Assembled, dispatcher: Dispatcher) -> None:
        self._parts = parts
        self._dispatcher = dispatcher
        self.table = {"status": self.status, "approve": self.approve, "deny": self.deny}

    async def status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the node's status."""
        del request
        parts = self._parts
        status = await asyncio.to_thread(
            read_status,
            parts.store,
            member=parts.identity.name,
            node_id=parts.node.node_id,
            connection=self._connection(),
        )
        answer: dict[str, Any] = as_json(status)
        return answer

    async def approve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Approve a run by hand; a refusal says if the policy in force is not the file's."""
        try:
            repeat = request.get("repeat") is True
            judgement = await self._dispatcher.approve(str(request["run_id"]), repeat=repeat)
        except RefusedError as error:
            if not await asyncio.to_thread(lambda: self._parts.config_changed):
                raise
            hint = f"{CHANGED}. {error.hint}".removesuffix(". ")
            raise RefusedError(error.code, error.message, hint=hint) from error
        answer: dict[str, Any] = as_json(judgement)
        return answer

    async def deny(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Deny a run by hand."""
        run_id, reason = str(request["run_id"]), str(request.get("reason", ""))
        answer: dict[str, Any] = as_json(await self._dispatcher.deny(run_id, reason))
        return answer

    def _connection(self) -> Connection:
        dispatcher = self._dispatcher
        error = dispatcher.last_error or dispatcher.twin
        return Connection(
            state="connected" if dispatcher.link is not None else "connecting",
            address=dispatcher.last_address,
            problem=f"{error.message} [{error.code}]" if error is not None else "",
            hint=error.hint if error is not None else "",
            isolation=self._parts.isolation.what,
            config_sha256=self._parts.config_sha256,
        )


def _announce(parts: Assembled) -> None:
    fields = {"member": parts.identity.name, "node": parts.node.node_id}
    logger.info("started", extra={"fields": fields})
    if not parts.isolation.available:
        missing = "; ".join(parts.isolation.missing)
        logger.warning("workers are not confined here", extra={"fields": {"missing": missing}})


def _split_key(path: Path) -> bytes:
    """Return the owner's key for row hashes, made at the first start."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = os.urandom(32)
        write_atomic(path, key)
    return key
