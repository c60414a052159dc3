"""A whole cohort in one process: what a transport would carry, carried by hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.privacy.secagg.client import ClientSession, Trust
from tacit.privacy.secagg.graph import graph_parameters
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.server import ServerSession, Sum
from tacit.privacy.secagg.terms import Floors, Member, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Vector = npt.NDArray[np.uint32]
MODEL = hashlib.sha256(b"weights of step 1").digest()
TRUSTING = Floors(cohort=1, allow_small=True)
NOBODY: frozenset[int] = frozenset()


def stream(name: str) -> Callable[[int], bytes]:
    """Return a generator for tests: the same name gives the same bytes."""
    calls = 0

    def random_bytes(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{name}|{calls}".encode()).digest(count)

    return random_bytes


def model_of(step: int) -> bytes:
    """Return the hash of the weights of a step."""
    return hashlib.sha256(f"weights of step {step}".encode()).digest()


def key_of(node_id: int) -> ed25519.Ed25519PrivateKey:
    """Return a node's enrolment key."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(
        hashlib.sha256(f"enrolment key {node_id}".encode()).digest()
    )


def public_of(node_id: int) -> bytes:
    """Return a node's enrolment key, the public half."""
    return key_of(node_id).public_key().public_bytes_raw()


def make_terms(count: int, **changes: object) -> Terms:
    """Return terms for nodes 1 to ``count``; keywords replace fields."""
    neighbours, threshold = graph_parameters(count)
    plain: dict[str, object] = {
        "purpose": hashlib.sha256(b"step").digest(),
        "run": "r-7f3a9c20",
        "round": 1,
        "attempt": 1,
        "members": tuple(
            Member(node_id=one, enrolment_key=public_of(one)) for one in range(1, count + 1)
        ),
        "dimension": 5,
        "threshold": threshold,
        "neighbours": neighbours,
        "colluders": 0,
        "scale": 1024.0,
        "clip": 1.0,
        "local_sigma": 4.0,
        "coordinate_bound": 1.0,
        "floor": 1,
        "steps": 1,
    }
    return Terms(**(plain | changes))  # type: ignore[arg-type]


def make_vector(node_id: int, *, dimension: int, step: int = 1) -> Vector:
    """Return a vector over the whole ring that belongs to a node and step."""
    return np.random.default_rng([node_id, step]).integers(
        0, 2**32, size=dimension, dtype=np.uint32
    )


def expected_sum(members: Collection[int], *, dimension: int, step: int = 1) -> Vector:
    """Return the plain sum of the vectors of some members, modulo 2^32."""
    total = np.zeros(dimension, dtype=np.uint32)
    for one in members:
        total += make_vector(one, dimension=dimension, step=step)
    return total


def make_client(
    terms: Terms,
    node_id: int,
    *,
    guard: MemoryGuard | None = None,
    floors: Floors = TRUSTING,
    pinned: Mapping[int, bytes] | None = None,
    name: str = "",
) -> ClientSession:
    """Return one member, whose randomness follows from its id and ``name``."""
    known = {member.node_id: member.enrolment_key for member in terms.members}
    return ClientSession(
        terms,
        trust=Trust(node_id=node_id, pinned=known if pinned is None else pinned, floors=floors),
        signer=key_of(node_id).sign,
        guard=guard or MemoryGuard(),
        random_bytes=stream(f"node {node_id} {name}"),
    )


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Who answers no more from a step on."""

    keys: Collection[int] = NOBODY
    shares: Collection[int] = NOBODY
    masked: Collection[int] = NOBODY
    signature: Collection[int] = NOBODY
    unmask: Collection[int] = NOBODY


@dataclass
class Cohort:
    """A server and its members, one step at a time; each call does one step for all who live.

    Attributes:
        terms: of the session.
        clients: by node id; remove one to lose it.
        server: the aggregator.
        log: every message, in order: who sent it to whom, and its bytes.
    """

    terms: Terms
    clients: dict[int, ClientSession] = field(init=False)
    server: ServerSession = field(init=False)
    log: list[tuple[str, bytes]] = field(default_factory=list)
    vectors: dict[int, Vector] = field(default_factory=dict)
    outbox: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clients = {
            member.node_id: make_client(self.terms, member.node_id) for member in self.terms.members
        }
        self.server = ServerSession(self.terms)

    def lose(self, members: Collection[int]) -> None:
        for one in members:
            self.clients.pop(one, None)

    def _note(self, what: str, message: bytes) -> bytes:
        self.log.append((what, message))
        return message

    def keys(self) -> bytes:
        for one, client in self.clients.items():
            self.server.take_keys(one, self._note(f"KEYS of {one}", client.keys()))
        return self._note("KEY_LIST", self.server.end_keys(model=MODEL))

    def shares(self, key_list: bytes) -> dict[int, bytes]:
        for one, client in self.clients.items():
            message = client.share(key_list, model=MODEL)
            self.server.take_shares(one, self._note(f"SHARES of {one}", message))
        deliveries = self.server.end_shares()
        for one, message in deliveries.items():
            self._note(f"DELIVERY to {one}", message)
        return deliveries

    def masked(self, deliveries: Mapping[int, bytes]) -> bytes:
        for one, client in self.clients.items():
            vector = make_vector(one, dimension=self.terms.dimension)
            head = self._note(f"MASKED of {one}", client.mask(deliveries[one], vector))
            self.vectors[one] = vector
            self.server.fold(one, head, self._note(f"vector of {one}", vector.tobytes()))
        return self._note("SURVIVORS", self.server.end_masked())

    def signatures(self, survivors: bytes) -> bytes:
        for one, client in self.clients.items():
            message = self._note(f"SIGNATURE of {one}", client.sign(survivors))
            self.server.take_signature(one, message)
        return self._note("SIGNATURES", self.server.end_signatures())

    def unmask(self, signatures: bytes) -> Sum:
        for one, client in self.clients.items():
            message = self._note(f"UNMASK of {one}", client.unmask(signatures))
            self.server.take_unmask(one, message)
        return self.server.end_unmask()

    def first(self, lost: Lost | None = None) -> Sum:
        """Do all of step 1, losing members on the way."""
        lost = lost or Lost()
        self.lose(lost.keys)
        key_list = self.keys()
        self.lose(lost.shares)
        deliveries = self.shares(key_list)
        self.lose(lost.masked)
        survivors = self.masked(deliveries)
        self.lose(lost.signature)
        signatures = self.signatures(survivors)
        self.lose(lost.unmask)
        return self.unmask(signatures)

    def again(self, step: int) -> Sum:
        """Do a later step with those who live."""
        assert self.server.start_step(model=model_of(step)) == step
        for one, client in self.clients.items():
            vector = make_vector(one, dimension=self.terms.dimension, step=step)
            head = client.mask_again(vector, step=step, model=model_of(step))
            self._note(f"MASKED of {one} in step {step}", head)
            message = self._note(f"vector of {one} in step {step}", vector.tobytes())
            self.server.fold(one, head, message)
        return self.server.end_step()
