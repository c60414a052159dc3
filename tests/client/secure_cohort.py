"""One real node among members and a server that a test plays by hand: four owners, one sum.

The node is number 7; members 1, 2 and 3 are their state machines alone. The server is whatever a
test makes of it: it may leave out, repeat, re-order and doctor every message.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.client.payload import BufferPayload
from tacit.core.errors import UnavailableError
from tacit.core.specification import (
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    RunSpec,
    SecureAggregationSpec,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.ledger_entries import Reserve
from tacit.privacy.secagg.server import ServerSession
from tacit.privacy.secagg.terms import Member, Terms
from tacit.privacy.secure_sum import forms_of, secure_plan, terms_of
from tacit.protos import fleet_pb2
from tacit.protos.secure import (
    CONSISTENCY,
    KEYS,
    MASKED,
    RECORD,
    SHARES,
    UNMASK,
    VECTOR,
    model_digest,
    read_secure,
    secure_manifest,
)
from tests.client.fakes import (
    KEY,
    MODEL,
    RUN,
    Reply,
    instruction,
    make_config,
    make_node,
    make_spec,
    manifest_of,
    open_mode,
)
from tests.privacy.secagg.parties import make_client, public_of

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.client.store import OutboxEntry
    from tacit.privacy.secagg.client import ClientSession
    from tacit.protos import pipe_pb2
    from tests.client.fakes import FakeRunner

NODE = 7
PEERS = (1, 2, 3)
NAMES = ("owner-1", "owner-2", "owner-3", "owner-7")
STRANGER = Member(node_id=9, enrolment_key=public_of(9))
PINNED = {
    name: Member(
        node_id=number,
        enrolment_key=KEY.public_key().public_bytes_raw() if number == NODE else public_of(number),
    )
    for name, number in zip(NAMES, (*PEERS, NODE), strict=True)
}
DIMENSION = sum(array.size for array in MODEL.values())
MODES = (PrivacyMode.NONE, PrivacyMode.RECORD_DISTRIBUTED, PrivacyMode.CLIENT_DISTRIBUTED)
Change = dict[str, Any]


def privacy_of(mode: PrivacyMode) -> PrivacySpec:
    """A statement of each mode that sums can have."""
    if mode is PrivacyMode.NONE:
        return open_mode()
    normaliser = 1000.0 if mode is PrivacyMode.RECORD_DISTRIBUTED else 0.0
    return PrivacySpec(mode=mode, clip=1.0, epsilon=1.0, delta=1e-3, normaliser=normaliser)


def secure_spec(mode: PrivacyMode = PrivacyMode.NONE, *, steps: int = 1, **changes: Any) -> RunSpec:
    """A run whose updates are summed unseen among the four."""
    noised = mode is not PrivacyMode.NONE
    table = SecureAggregationSpec(
        members=NAMES, steps_per_round=steps, dimension=DIMENSION if noised else 0, max_weight=100
    )
    return make_spec(
        privacy=privacy_of(mode),
        secure_aggregation=table,
        participation=ParticipationSpec(rounds=2, min_clients=3),
        **changes,
    )


def trained(call: pipe_pb2.WorkerCall) -> Reply:
    """Answer as a built-in app does that noises its shares itself: numbers that follow its key."""
    digest = hashlib.shake_256(call.noise_key + call.instruction.manifest.payload_sha256)
    share = np.frombuffer(digest.digest(4 * DIMENSION), dtype="<u4")
    manifest, payload = manifest_of({VECTOR: share})
    manifest.records[0].key = RECORD
    return manifest, payload


MOVED = {name: array + np.float32(0.25) for name, array in MODEL.items()}


def moved(_call: pipe_pb2.WorkerCall) -> Reply:
    """Answer with a model that has moved by 0.25 everywhere, and its metrics in mode none."""
    return manifest_of(MOVED, {"num-examples": 10, "loss": 0.5})


def moved_alone(_call: pipe_pb2.WorkerCall) -> Reply:
    """Answer with that model, and the weight that every owner has under a bound."""
    return manifest_of(MOVED, {"num-examples": 1})


APPS = {
    PrivacyMode.NONE: moved,
    PrivacyMode.RECORD_DISTRIBUTED: trained,
    PrivacyMode.CLIENT_DISTRIBUTED: moved_alone,
}


def doctored(terms: Terms, **changes: Any) -> Terms:
    """Terms as an adversary writes them, also such as nobody could make."""
    changed = copy.copy(terms)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


@dataclass
class Cohort:
    """The node, the members, and what the server knows of the run.

    Attributes:
        mode: of the run.
        steps: sums in a round.
    """

    folder: Path
    mode: PrivacyMode = PrivacyMode.NONE
    steps: int = 1
    policy: Change = field(default_factory=dict)
    changes: Change = field(default_factory=dict)
    node: Node = field(init=False)
    runner: FakeRunner = field(init=False)
    spec: RunSpec = field(init=False)
    _number: int = 0

    def __post_init__(self) -> None:
        self.spec = secure_spec(self.mode, steps=self.steps, **self.changes)
        config = make_config(self.folder, **({"modes": MODES} | self.policy))
        self.node, self.runner = make_node(
            self.folder, config, APPS[self.mode], pinned=lambda: dict(PINNED)
        )
        self.offer()

    def offer(self, run: str = RUN, spec: RunSpec | None = None) -> None:
        canonical = canonical_json(spec or self.spec)
        verdict = self.node.offer(run, canonical, specification_sha256(canonical))
        assert verdict.verdict.value == "approved", verdict.reason

    def terms(self, *, number: int = 1, attempt: int = 1, **changes: Any) -> Terms:
        """The terms that follow from the run, but for what a test changes."""
        plain: Change = {
            "specification_sha256": specification_sha256(canonical_json(self.spec)),
            "run": RUN,
            "round_number": number,
            "attempt": attempt,
            "steps": self.steps,
        }
        plan = secure_plan(self.spec, forms_of(MODEL))
        terms = terms_of(plan, tuple(PINNED.values()), **plain)
        fields = {name: getattr(terms, name) for name in Terms.__dataclass_fields__}
        return Terms(**(fields | changes))

    def head(
        self, kind: str, *, content: Any = None, secure: Change | None = None, **changes: Any
    ) -> tuple[fleet_pb2.InstructionHead, BufferPayload]:
        """An instruction of the run: a body for a step, or a model to train."""
        self._number += 1
        if isinstance(content, bytes):
            head, _ = instruction(self.spec, self._number, message_type=kind)
            head.manifest.CopyFrom(secure_manifest(content))
            head.manifest.payload_sha256 = hashlib.sha256(content).digest()
            payload = BufferPayload((memoryview(content),))
        else:
            head, payload = instruction(
                self.spec, self._number, message_type=kind, model=content or MODEL
            )
        head.group_id = "1"
        for name, value in (secure or {}).items():
            setattr(head.secure, name, value)
        for name, value in changes.items():
            setattr(head, name, value)
        return head, payload

    def tell(self, kind: str, **how: Any) -> fleet_pb2.ReplyHead:
        """Send one instruction and return the head of the node's answer."""
        return self.reply(self.node.answer(*self.head(kind, **how)))

    @staticmethod
    def reply(entry: OutboxEntry) -> fleet_pb2.ReplyHead:
        return fleet_pb2.ReplyHead.FromString(entry.head)

    def outcome(self, kind: str, **how: Any) -> str:
        """Send one instruction; return the code of the refusal, or nothing if something left."""
        try:
            return self.tell(kind, **how).failure.reason
        except UnavailableError as error:  # told at the next try
            return error.code

    def code(self, kind: str, **how: Any) -> str:
        """Send one instruction and return the code of the refusal."""
        code = self.outcome(kind, **how)
        assert code, "expected a refusal, and something left"
        return code

    def took(self, kind: str, **how: Any) -> tuple[bytes, np.ndarray | None]:
        """Send one instruction and return body and vector of the node's answer."""
        return self.read(self.node.answer(*self.head(kind, **how)))

    def read(self, entry: OutboxEntry) -> tuple[bytes, np.ndarray | None]:
        """Return body and vector of an answer that is no refusal."""
        reply = self.reply(entry)
        assert reply.WhichOneof("outcome") == "manifest", reply.failure.reason
        return read_secure(reply.manifest, self.node.open_reply(entry))

    def charges(self) -> int:
        """How many reserves the ledger of the node holds."""
        ledger = self.node.charges._ledger
        return sum(isinstance(entry.body, Reserve) for entry in ledger.entries())

    def session(self, **how: Any) -> Sitting:
        return Sitting(self, self.terms(**how))


@dataclass
class Sitting:
    """One session, played honestly as far as a test lets it."""

    cohort: Cohort
    terms: Terms
    peers: dict[int, ClientSession] = field(init=False)
    server: ServerSession = field(init=False)
    model: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.peers = {one: make_client(self.terms, one) for one in PEERS}
        self.server = ServerSession(self.terms)
        head, _ = self.cohort.head("train")
        self.model = model_digest(head)

    def secure(self, **changes: Any) -> Change:
        """What the head of each message says of the session."""
        plain: Change = {
            "session": self.terms.digest,
            "terms": self.terms.encode(),
            "step": 1,
            "model_sha256": self.model,
        }
        return plain | changes

    def train(self, **how: Any) -> fleet_pb2.ReplyHead:
        return self.cohort.tell("train", secure=self.secure(), **how)

    def keys(self) -> bytes:
        body, _ = self.cohort.took(KEYS, content=b"", secure=self.secure())
        self.server.take_keys(NODE, body)
        for one, peer in self.peers.items():
            self.server.take_keys(one, peer.keys())
        return self.server.end_keys(model=self.model)

    def shares(self, key_list: bytes) -> dict[int, bytes]:
        body, _ = self.cohort.took(SHARES, content=key_list, secure=self.secure())
        self.server.take_shares(NODE, body)
        for one, peer in self.peers.items():
            self.server.take_shares(one, peer.share(key_list, model=self.model))
        return self.server.end_shares()

    def masked(self, deliveries: dict[int, bytes], **how: Any) -> bytes:
        body, vector = self.cohort.took(
            MASKED, content=deliveries[NODE], secure=self.secure(), **how
        )
        assert vector is not None
        self.server.fold(NODE, body, np.array(vector))
        for one, peer in self.peers.items():
            zeros = np.zeros(self.terms.dimension, dtype=np.uint32)
            self.server.fold(one, peer.mask(deliveries[one], zeros), zeros)
        return self.server.end_masked()

    def signed(self, survivors: bytes) -> bytes:
        body, _ = self.cohort.took(CONSISTENCY, content=survivors, secure=self.secure())
        self.server.take_signature(NODE, body)
        for one, peer in self.peers.items():
            self.server.take_signature(one, peer.sign(survivors))
        return self.server.end_signatures()

    def opened(self, signatures: bytes) -> np.ndarray:
        """Return the sum: as the members send zeros, it is what the node put into it."""
        body, _ = self.cohort.took(UNMASK, content=signatures, secure=self.secure())
        self.server.take_unmask(NODE, body)
        for one, peer in self.peers.items():
            self.server.take_unmask(one, peer.unmask(signatures))
        return self.server.end_unmask().values

    def whole(self) -> np.ndarray:
        """Play step 1 to its end."""
        self.train()
        return self.opened(self.signed(self.masked(self.shares(self.keys()))))
