"""Specifications, configurations and a fake AppRunner for the tests of the node."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.util import spec_from_file_location
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.client.configuration import Approval, ClientConfig, DataSet, Policy
from tacit.client.node import Node
from tacit.client.payload import BufferPayload, Payload, open_view
from tacit.client.preparation import PREPARED_NAME, PrepareJob
from tacit.client.runner import AppAnswer, AppSetup
from tacit.client.runs import Surroundings
from tacit.client.store import open_store
from tacit.core.specification import (
    ColumnKind,
    ColumnSpec,
    DataSpec,
    ModelKind,
    ModelSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    TrainingSpec,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.protos import fleet_pb2, pipe_pb2, records_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from pathlib import Path

RUN = "r-00000001"
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MODEL = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}


def make_spec(**changes: Any) -> RunSpec:
    """A small private run of two rounds."""
    values: dict[str, Any] = {
        "name": "heart",
        "data": DataSpec(
            classes=("0", "1"),
            columns={"age": ColumnSpec(type=ColumnKind.NUMBER, range=(0.0, 100.0))},
        ),
        "model": ModelSpec(kind=ModelKind.LOGISTIC),
        "training": TrainingSpec(learning_rate=0.5),
        "privacy": PrivacySpec(mode=PrivacyMode.RECORD_LOCAL, clip=1.0, epsilon=1.0, delta=1e-3),
        "participation": ParticipationSpec(rounds=2),
    }
    return RunSpec(**(values | changes))


def open_mode() -> PrivacySpec:
    return PrivacySpec(mode=PrivacyMode.NONE)


def make_config(folder: Path, *, max_canaries: int = 0, **policy: Any) -> ClientConfig:
    values: dict[str, Any] = {"approve": Approval.RULE}
    data_set = DataSet(path=folder / "data.csv", records=300, max_canaries=max_canaries)
    data = {"default": data_set}
    return ClientConfig(data_sets=data, policy=Policy(**(values | policy)))


def manifest_of(
    arrays: Mapping[str, np.ndarray[Any, Any]] | None, metrics: Mapping[str, float] | None = None
) -> tuple[records_pb2.Manifest, bytes]:
    """Encode records as a worker would."""
    manifest = records_pb2.Manifest()
    payload = b""
    if arrays is not None:
        record = manifest.records.add(key="arrays", kind=records_pb2.Record.ARRAYS)
        for name, array in arrays.items():
            record.arrays.add(
                name=name,
                dtype=array.dtype.name,
                shape=array.shape,
                bytes=array.nbytes,
                stype="numpy.ndarray",
            )
            payload += array.tobytes()
    if metrics is not None:
        record = manifest.records.add(key="metrics", kind=records_pb2.Record.METRICS)
        for name, value in metrics.items():
            kind = "integer" if isinstance(value, int) else "real"
            record.items.add(key=name, **{kind: value})
    manifest.payload_bytes = len(payload)
    manifest.payload_sha256 = hashlib.sha256(payload).digest()
    return manifest, payload


def instruction(
    spec: RunSpec,
    number: int = 1,
    *,
    message_type: str = "train",
    attempt: int = 0,
    model: Mapping[str, np.ndarray[Any, Any]] = MODEL,
) -> tuple[fleet_pb2.InstructionHead, BufferPayload]:
    manifest, payload = manifest_of(model)
    head = fleet_pb2.InstructionHead(
        run_id=RUN,
        message_id=f"{RUN}.{number:06d}",
        message_type=message_type,
        ttl_s=60.0,
        specification_sha256=specification_sha256(canonical_json(spec)),
        manifest=manifest,
        attempt=attempt,
    )
    return head, BufferPayload((memoryview(payload),))


Reply = tuple[records_pb2.Manifest, bytes] | str


@dataclass
class FakeRunner:
    """An AppRunner that answers with whatever a function makes of the call."""

    make: Callable[[pipe_pb2.WorkerCall], Reply]
    calls: list[pipe_pb2.WorkerCall] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def begin(self, setup: AppSetup) -> None:
        self.begun.append(setup.begin.run_id)

    def call(self, _setup: AppSetup, call: pipe_pb2.WorkerCall, payload: Payload) -> AppAnswer:
        assert open_view(payload).nbytes == call.instruction.manifest.payload_bytes
        self.calls.append(call)
        answer = self.make(call)
        reply = fleet_pb2.ReplyHead(message_id="forged", created_at_s=123456.0)
        if isinstance(answer, str):
            reply.failure.reason = answer
            return AppAnswer(reply=reply, payload=None)
        reply.manifest.CopyFrom(answer[0])
        return AppAnswer(reply=reply, payload=BufferPayload((memoryview(answer[1]),)))

    def end(self, run_id: str) -> None:
        self.ended.append(run_id)


def prepare_nothing(job: PrepareJob) -> None:
    (job.folder / PREPARED_NAME).write_bytes(b"")


def epsilon_of(spec: RunSpec, _records: int, releases: int) -> float | None:
    """One per two releases, whatever the run is: easy to follow in a test."""
    return None if spec.privacy.mode is PrivacyMode.NONE else releases / 2


def good_reply(_call: pipe_pb2.WorkerCall) -> Reply:
    return manifest_of(MODEL, {"num-examples": 1})


def make_node(
    folder: Path,
    config: ClientConfig,
    make: Callable[[pipe_pb2.WorkerCall], Reply] = good_reply,
    **around: Any,
) -> tuple[Node, FakeRunner]:
    runner = FakeRunner(make)
    keys = iter(bytes([n]) * 32 for n in range(1, 200))
    values: dict[str, Any] = {
        "folder": folder,
        "runner": runner,
        "prepare": prepare_nothing,
        "epsilon_of": epsilon_of,
        "isolated": True,
        "clock": lambda: 1000.0,
        "fresh_key": lambda: next(keys),
        "split_key": bytes(32),
        "ledger": open_ledger(folder),
        "public_key": KEY.public_key().public_bytes_raw(),
        "sign": KEY.sign,
        "pinned": dict,
        "guard": MemoryGuard(),
    }
    folder.chmod(0o700)
    node = Node(
        node_id=7,
        config=config,
        store=open_store(folder / "client.sqlite"),
        around=Surroundings(**(values | around)),
    )
    return node, runner


def open_ledger(folder: Path) -> Ledger:
    """The ledger of a node in this folder, signed by ``KEY``."""
    return Ledger.open(folder / LEDGER_NAME, signer=KEY.sign, clock=lambda: 1000.0)


def offer(node: Node, spec: RunSpec) -> Any:
    canonical = canonical_json(spec)
    return node.offer(RUN, canonical, specification_sha256(canonical))


class Editable:
    """Finds a package that is on no path, as the finder of an editable install does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != self._folder.name:
            return None
        return spec_from_file_location(
            name, self._folder / "__init__.py", submodule_search_locations=[str(self._folder)]
        )
