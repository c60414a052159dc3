"""A federation in one process: the real nodes and the real server loop, with no wire between them.

Each owner is a :class:`tacit.client.node.Node` with its own folder, policy, envelope and outbox;
the server's side is the loop that a run's worker runs. What is left out is transport, processes and
isolation. So a specification that runs here runs in a real federation, if its owners approve.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.client.approvals import Verdict, app_of
from tacit.client.configuration import Approval, AppRule, AuditPolicy, ClientConfig, Policy
from tacit.client.daemon import epsilon_of
from tacit.client.node import Node
from tacit.client.payload import BufferPayload
from tacit.client.prepare import prepare_data
from tacit.client.runs import Surroundings
from tacit.client.store import open_store
from tacit.core.artifacts import RunFolder, load_arrays, save_arrays, write_atomic
from tacit.core.errors import AppError, RefusedError, TacitError, UsageError
from tacit.core.events import Event, EventKind, event_line
from tacit.core.files import make_private_folder
from tacit.core.specification import (
    PrivacyMode,
    RunSpec,
    canonical_json,
    specification_sha256,
)
from tacit.learning.models import initial_arrays
from tacit.learning.resolved import resolved
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.terms import Member
from tacit.protos.fleet_pb2 import ReplyHead
from tacit.protos.flower import SERVER_NODE_ID, flower_run_id, set_task_identity
from tacit.server.app import run_task
from tacit.server.manifest import write_commitments, write_members
from tacit.server.strategy_run import RunTask
from tacit.simulation.port import LocalPort
from tacit.simulation.runner import InProcessRunner, PooledRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.client.runner import AppRunner
    from tacit.protos.fleet_pb2 import InstructionHead
    from tacit.simulation.owners import Owner

MAX_EPSILON = 1e6  # a trial on data that its user holds anyway: the owners' policies come later

_HINTS = {"E-POLICY-SUBJECT": "Give a client.toml that names the column: --owner FILE."}

Watch = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulation leaves.

    Attributes:
        folder: the run folder, as a real run leaves it, plus ``owners/<name>`` for each node.
        seconds: wall-clock time of the rounds.
        bytes_sent, bytes_received: payload bytes that would have crossed the wire.
    """

    folder: RunFolder
    seconds: float
    bytes_sent: int
    bytes_received: int


@dataclass
class _Journal:
    """Writes ``events.jsonl`` and tells whoever watches."""

    path: Path
    names: Mapping[int, str]
    watch: Watch
    sequence: int = field(default=0)

    def __call__(self, kind: str, fields: Mapping[str, object]) -> None:
        self.sequence += 1
        named = dict(fields)
        member = str(named.get("member", ""))
        if member.isdecimal():
            named["member"] = self.names.get(int(member), member)
        cohort = named.get("cohort")
        if isinstance(cohort, list):
            named["cohort"] = [self.names.get(node, str(node)) for node in cohort]
        event = Event(sequence=self.sequence, at_s=time.time(), kind=EventKind(kind), fields=named)
        with self.path.open("ab") as file:
            file.write(event_line(event))
        self.watch(event)


class _NodeAnswers:
    """A node as the local port sees it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def answer(self, head: InstructionHead, payload: memoryview) -> tuple[ReplyHead, memoryview]:
        entry = self._node.answer(head, BufferPayload((payload,)))
        reply = ReplyHead.FromString(entry.head)
        copy = memoryview(bytes(self._node.open_reply(entry)))
        self._node.mark_received(head.message_id)
        self._node.close_message(head.message_id)
        return reply, copy


class Trial:
    """Simulated owners whose nodes stay, so that one run can follow another.

    Attributes:
        nodes: by node id.
        names: of the owners, by node id.
    """

    def __init__(
        self,
        nodes: Mapping[int, Node],
        names: Mapping[int, str],
        workers: int,
        *,
        members: Mapping[str, Member],
    ) -> None:
        self.nodes = nodes
        self.names = names
        self._workers = workers
        self._members = members

    def play(
        self,
        specification: RunSpec,
        folder: RunFolder,
        *,
        run_id: str,
        watch: Watch = lambda _: None,
    ) -> Simulated:
        """Play a run that lies in its folder with its initial weights.

        Raises:
            RefusedError: an owner's node does not approve the run; the message says why.
            TacitError: the run failed.
        """
        write_members(folder, self.names, self._members)
        tell = _Journal(path=folder.events, names=self.names, watch=watch)
        canonical = canonical_json(specification)
        set_task_identity(run_id=flower_run_id(run_id), node_id=SERVER_NODE_ID)
        tell("run_queued", {"name": specification.name, "submitted_by": "simulation"})
        for node_id, node in self.nodes.items():
            _offer(node, self.names[node_id], run_id, canonical, tell)
        if specification.canaries is not None:
            write_commitments(folder, self._committed(run_id, tell))
        began = time.monotonic()
        rounds = specification.participation.rounds
        tell("run_started", {"rounds": rounds, "cohort": list(self.nodes)})
        answers = {node_id: _NodeAnswers(node) for node_id, node in self.nodes.items()}
        port = LocalPort(answers, tell, answers_at_once=self._workers)
        task = RunTask(
            run_id=run_id,
            specification=specification,
            specification_sha256=specification_sha256(canonical),
            folder=folder,
        )
        try:
            _play(task, port, tell)
        except AppError as error:
            raise _explained(error, self.nodes, self.names) from error
        seconds = time.monotonic() - began
        tell("run_finished", {"rounds": rounds, "seconds": round(seconds, 3)})
        for node in self.nodes.values():
            node.end_run(run_id, "finished")
        return Simulated(
            folder=folder,
            seconds=seconds,
            bytes_sent=port.bytes_sent,
            bytes_received=port.bytes_received,
        )

    def _committed(self, run_id: str, tell: _Journal) -> dict[int, str]:
        """Return what each owner commits to for their canaries; told before the run starts."""
        commitments = {}
        for node_id, node in self.nodes.items():
            told = node.canary_commitment(run_id).hex()
            fields = {"member": self.names[node_id], "node_id": node_id, "commitment": told}
            tell("canaries_committed", fields)
            commitments[node_id] = told
        return commitments


@contextmanager
def open_trial(
    specification: RunSpec,
    owners: Sequence[Owner],
    out: Path,
    *,
    workers: int = 1,
    split_key: bytes = b"",
) -> Iterator[Trial]:
    """Give the owners nodes of their own, in ``out/owners``, until the block ends.

    Args:
        specification: of the first run: what owners without a policy allow.
        owners: who takes part.
        out: where their folders go.
        workers: how many owners work at once.
        split_key: the owners' key for hashes; empty makes one.
    """
    names = {owner.node_id: owner.name for owner in owners}
    with ExitStack() as stack:
        runner, key = _runner(stack, workers), split_key or os.urandom(32)
        keys = {owner.name: ed25519.Ed25519PrivateKey.generate() for owner in owners}
        members = {owner.name: _member(owner, keys[owner.name]) for owner in owners}
        nodes = {
            owner.node_id: _open_node(
                stack,
                specification,
                owner,
                out,
                runner=runner(),
                split_key=key,
                key=keys[owner.name],
                members=members,
            )
            for owner in owners
        }
        yield Trial(nodes, names, workers, members=members)


def simulate(
    specification: RunSpec,
    owners: Sequence[Owner],
    out: Path,
    *,
    source_toml: str = "",
    initial: Path | None = None,
    workers: int = 1,
    watch: Watch = lambda _: None,
    split_key: bytes = b"",
) -> Simulated:
    """Run a specification among simulated owners; return what it left in ``out``.

    Args:
        specification: the run.
        owners: who takes part.
        out: the run folder; it must not hold a run yet.
        source_toml: the specification as it was written, kept in the folder.
        initial: initial weights of a run with an app of its own, or of an audit.
        workers: how many owners train at once, each in a process; 1 trains in this one.
        watch: told every event.
        split_key: the owners' key for hashes of rows and columns, 32 bytes; empty makes one.

    Raises:
        RefusedError: an owner's node does not approve the run; the message says why.
        TacitError: the run failed.
    """
    _verify_cohort(specification, owners)
    specification = resolved(specification, initial)
    folder = make_folder(out, specification, source_toml, initial)
    with open_trial(specification, owners, out, workers=workers, split_key=split_key) as trial:
        return trial.play(specification, folder, run_id=fresh_run_id(), watch=watch)


def fresh_run_id() -> str:
    """Return an id that no run has."""
    return f"r-{secrets.token_hex(4)}"


def _play(task: RunTask, port: LocalPort, tell: _Journal) -> None:
    here = os.getcwd()  # noqa: PTH109 - put back below: a foreign ServerApp gets a folder of its own
    try:
        run_task(task, port)
    except TacitError as error:
        tell("run_failed", {"code": error.code, "reason": error.message, "hint": error.hint})
        raise
    finally:
        os.chdir(here)


def _explained(error: AppError, nodes: Mapping[int, Node], names: Mapping[int, str]) -> AppError:
    """Add what the owners' own logs say: here alone, one person may read them all."""
    last = {node_id: node.store.list_decisions(limit=1) for node_id, node in nodes.items()}
    reasons = [
        f"{names[node_id]}: {line.reason}."
        for node_id, lines in last.items()
        for line in lines
        if line.outcome in ("refused", "failed")
    ]
    return AppError(error.code, error.message, hint=" ".join(sorted(reasons)) or error.hint)


def _verify_cohort(specification: RunSpec, owners: Sequence[Owner]) -> None:
    least = specification.participation.min_clients
    if len(owners) < least:
        raise UsageError(
            "E-USAGE",
            f"expected at least min_clients = {least} clients, got {len(owners)}",
            hint="Lower participation.min_clients in run.toml, or give more clients (--clients N "
            "with one file, or more files in the folder of --data).",
        )
    if len({owner.node_id for owner in owners}) != len(owners):
        raise UsageError("E-USAGE", "expected every owner to have a name of their own")
    secure = specification.secure_aggregation
    names = {owner.name for owner in owners}
    if secure is not None and names != set(secure.members):
        raise UsageError(
            "E-USAGE",
            f"expected the members whom the run names as owners: {', '.join(secure.members)}; got "
            f"{', '.join(sorted(names))}",
            hint="Give one file with --data and --clients N, for N members, or a folder in which "
            "each file is called as a member.",
        )


def make_folder(
    out: Path, specification: RunSpec, source_toml: str, initial: Path | None
) -> RunFolder:
    """Make the folder of a run, with its specification and its first weights.

    Raises:
        UsageError: it holds a run already (``E-RUN-FOLDER``).
    """
    if (out / "manifest.json").exists():
        raise UsageError(
            "E-RUN-FOLDER", f"{out} holds a run already", hint="name another folder with --out"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out).create()
    write_atomic(folder.specification, canonical_json(specification))
    if source_toml:
        write_atomic(folder.run_toml, source_toml.encode())
    if specification.app is None and specification.audit is None:
        save_arrays(folder.initial, initial_arrays(specification))
    elif initial is not None:
        save_arrays(folder.initial, load_arrays(initial))
    return folder


def _runner(stack: ExitStack, workers: int) -> Callable[[], AppRunner]:
    if workers == 1:
        return InProcessRunner
    pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
    return lambda: PooledRunner(pool)


def _open_node(
    stack: ExitStack,
    specification: RunSpec,
    owner: Owner,
    out: Path,
    *,
    runner: AppRunner,
    split_key: bytes,
    key: ed25519.Ed25519PrivateKey,
    members: Mapping[str, Member],
) -> Node:
    make_private_folder(out / "owners")
    folder = out / "owners" / owner.name
    make_private_folder(folder)
    store = open_store(folder / "client.sqlite")
    stack.callback(store.close)
    ledger = Ledger.open(folder / LEDGER_NAME, signer=key.sign, clock=time.time)
    stack.callback(ledger.close)
    around = Surroundings(
        folder=folder,
        runner=runner,
        prepare=prepare_data,
        epsilon_of=epsilon_of,
        isolated=False,
        clock=time.time,
        fresh_key=lambda: os.urandom(32),
        split_key=split_key,
        ledger=ledger,
        public_key=key.public_key().public_bytes_raw(),
        sign=key.sign,
        pinned=lambda: members,
        guard=MemoryGuard(),
    )
    data_set, policy = owner.data_set, owner.policy
    if policy is None:
        data_set, policy = replace(data_set, budget=MAX_EPSILON), _policy(specification)
    config = ClientConfig(data_sets={specification.data_set: data_set}, policy=policy)
    return Node(node_id=owner.node_id, config=config, store=store, around=around)


def _member(owner: Owner, key: ed25519.Ed25519PrivateKey) -> Member:
    return Member(node_id=owner.node_id, enrolment_key=key.public_key().public_bytes_raw())


def _policy(specification: RunSpec) -> Policy:
    """Return a policy that allows the trial, except what no owner should allow unasked."""
    model = specification.model
    factory = model.factory if model is not None else None
    return Policy(
        modes=tuple(PrivacyMode),
        max_epsilon_per_run=MAX_EPSILON,
        min_clients=1,
        approve=Approval.RULE,
        audit=AuditPolicy(
            allow=True,
            min_members=1,
            epsilon_for_results=MAX_EPSILON,
            allow_exact=True,
        ),
        apps={} if specification.app is None else {app_of(specification): AppRule()},
        allowed_factories=() if factory is None else (factory,),
        allow_unisolated_apps=True,
    )


def _offer(node: Node, name: str, run_id: str, canonical: bytes, tell: _Journal) -> None:
    judgement = node.offer(run_id, canonical, specification_sha256(canonical))
    if judgement.verdict is Verdict.PENDING:
        judgement = node.approve(run_id)  # the person to ask is whoever makes the trial
    tell(
        "node_decided",
        {
            "member": name,
            "node_id": node.node_id,
            "verdict": judgement.verdict.value,
            "code": judgement.code,
        },
    )
    if judgement.verdict is not Verdict.APPROVED:
        raise RefusedError(
            judgement.code,
            f"{name} does not approve the run: {judgement.reason}",
            hint=_HINTS.get(judgement.code, ""),
        )
