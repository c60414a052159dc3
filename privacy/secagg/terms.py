"""The terms of one attempt: what all members agree on before anything is drawn (S0).

Trusts: SHA-256, and the enrolment keys that a node has pinned itself.
Promises: one encoding for each content, whose hash is S0; terms that would weaken a member's
protection cannot be made, whoever proposes them: too low a threshold, too sparse a graph, more
colluders than the threshold withstands.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import ConfigError, ProtocolError, RefusedError, TrustError
from tacit.privacy.secagg.graph import default_threshold, graph_parameters
from tacit.privacy.secagg.keys import CONTEXT, KEY_BYTES, id_bytes
from tacit.privacy.secagg.messages import DIGEST_BYTES, Kind, Reader, header

if TYPE_CHECKING:
    from collections.abc import Mapping

RING_BITS = 32
SMALLEST_COHORT = 3  # a sum of two tells each of them the other's vector
_MOST_MEMBERS = 1000  # beyond, a server that loses members of its choice could cut the graph
_MOST_NODE_ID = 2**63 - 1
_NUMBERS = struct.Struct(">QIIIIIIIIIdddd")  # in the order of Terms._numbers


@dataclass(frozen=True, kw_only=True)
class Member:
    """One pinned member.

    Attributes:
        node_id: from 1 to 2^63 - 1.
        enrolment_key: raw Ed25519 public key, 32 bytes.
    """

    node_id: int
    enrolment_key: bytes


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all members of one attempt agree on; any change is another S0.

    Attributes:
        purpose: hash of what the sum is for: a run's step, or a query; 32 bytes.
        run: id of the run, and of the sum where a round has several (such as ``r-1/metrics``): a
            node begins each run, round and attempt once, whatever the purpose.
        round: number of the round.
        attempt: number of the attempt; an aborted one is never begun again.
        members: ascending by node id.
        dimension: numbers in each vector (d), metrics and weights included.
        threshold: shares that give a secret back (t).
        neighbours: of each member (k); 0 for all others.
        colluders: members who may pool what they know, or add no noise (a).
        scale: integer units per unit of the vector.
        clip: L2 clip of one record or update.
        local_sigma: deviation of each member's noise share, in integer units; 0 for none.
        coordinate_bound: on one member's coordinates (R).
        floor: fewest survivors whose sum may be unmasked.
        steps: masked sums in this session (K).
    """

    purpose: bytes
    run: str
    round: int
    attempt: int
    members: tuple[Member, ...]
    dimension: int
    threshold: int
    neighbours: int
    colluders: int
    scale: float
    clip: float
    local_sigma: float
    coordinate_bound: float
    floor: int
    steps: int

    def __post_init__(self) -> None:
        problems = [*self._shape_problems(), *self._number_problems()]
        problems = problems or self._strength_problems()
        if problems:
            raise ConfigError(
                "E-SECAGG-TERMS",
                f"expected terms of secure aggregation that protect their members: {problems[0]}",
                problems=tuple(problems),
            )

    def _shape_problems(self) -> list[str]:
        ids = [member.node_id for member in self.members]
        keys = {member.enrolment_key for member in self.members}
        rules = (
            (len(self.purpose) == DIGEST_BYTES, "the purpose is a hash of 32 bytes"),
            (1 <= len(self.run.encode()) <= 255, "the run id has 1 to 255 bytes"),
            (1 <= len(ids) <= _MOST_MEMBERS, f"there are 1 to {_MOST_MEMBERS} members"),
            (ids == sorted(set(ids)), "members ascend by node id, once each"),
            (all(1 <= one <= _MOST_NODE_ID for one in ids), "a node id is in 1..2^63-1"),
            (len(keys) == len(ids), "no two members have the same key"),
            (all(len(key) == KEY_BYTES for key in keys), "an enrolment key has 32 bytes"),
        )
        return [text for kept, text in rules if not kept]

    def _number_problems(self) -> list[str]:
        real = (self.scale, self.clip, self.local_sigma, self.coordinate_bound)
        rules = (
            (0 <= self.round < 2**64, "a round is in 0..2^64-1"),
            (0 <= self.attempt < 2**32, "an attempt is in 0..2^32-1"),
            (1 <= self.dimension < 2**31, "a vector has 1 to 2^31-1 numbers"),
            (1 <= self.steps < 2**31, "a session has 1 to 2^31-1 steps"),
            (self.colluders >= 0, "colluders are counted from 0"),
            (1 <= self.floor <= len(self.members), "the floor is between 1 and the members"),
            (all(math.isfinite(one) and one >= 0 for one in real), "bounds are finite, from 0"),
        )
        return [text for kept, text in rules if not kept]

    def _strength_problems(self) -> list[str]:
        count = len(self.members)
        if self.neighbours:
            graph = graph_parameters(count)
            exposed = self.colluders > count // 5  # what the sparse graph is computed for
            agreed = (self.neighbours, self.threshold) == graph
            needed = f"(k, t) = {graph}"
        else:
            # A colluder can give shares of both secrets, anybody else of one only.
            exposed = 2 * self.threshold <= count + self.colluders
            agreed = self.quorum <= self.threshold <= count
            needed = f"a threshold of {self.quorum} to {count}"
        rules = (
            (agreed, f"{count} members need {needed}"),
            (not exposed, f"{self.colluders} colluders could collect both secrets of a member"),
            (self.least <= count, f"{self.least} survivors are needed, and {count} are members"),
        )
        return [text for kept, text in rules if not kept]

    @property
    def quorum(self) -> int:
        """Signatures on one and the same view that unmasking needs, in any graph."""
        return default_threshold(len(self.members))

    @property
    def least(self) -> int:
        """Fewest members in every step, and so in the sum.

        In a sparse graph nine tenths at least: it is computed for a tenth dropped, and a server
        that could lose more of its choice could cut the graph (``graph.py``).
        """
        count = len(self.members)
        present = count - count // 10 if self.neighbours else 0
        return max(self.threshold, self.quorum, self.floor, self.colluders + 2, present)

    @property
    def digest(self) -> bytes:
        """S0, 32 bytes."""
        return hashlib.sha256(CONTEXT + b"terms|" + self._body()).digest()

    def encode(self) -> bytes:
        """Return the terms as a message; the digest in its header is S0."""
        return header(Kind.TERMS, self.digest) + self._body()

    def _body(self) -> bytes:
        run = self.run.encode()
        members = [id_bytes(member.node_id) + member.enrolment_key for member in self.members]
        return b"".join(
            [self.purpose, bytes([len(run)]), run, _NUMBERS.pack(*self._numbers()), *members]
        )

    def _numbers(self) -> tuple[int | float, ...]:
        """Return what is packed after the run id; the ring and the members' count are included."""
        whole = (self.round, self.attempt, len(self.members), self.dimension, RING_BITS)
        graph = (self.threshold, self.neighbours)
        rest = (self.colluders, self.floor, self.steps)
        real = (self.scale, self.clip, self.local_sigma, self.coordinate_bound)
        return (*whole, *graph, *rest, *real)


def parse_terms(message: bytes) -> Terms:
    """Read terms that somebody proposes.

    Raises:
        ProtocolError: the bytes are not terms in their one encoding (``E-SECAGG-MESSAGE``).
        ConfigError: they would not protect their members (``E-SECAGG-TERMS``).
    """
    reader = Reader(message, Kind.TERMS, None)
    purpose = reader.take(DIGEST_BYTES)
    run = reader.take(reader.number(1))
    numbers = _NUMBERS.unpack(reader.take(_NUMBERS.size))
    round_number, attempt, count, dimension, ring, threshold, neighbours, *rest = numbers
    colluders, floor, steps, scale, clip, local_sigma, coordinate_bound = rest
    if ring != RING_BITS or count > _MOST_MEMBERS:
        raise ProtocolError("E-SECAGG-MESSAGE", "expected terms in the ring of 2^32")
    members = tuple(
        Member(node_id=reader.number(8), enrolment_key=reader.take(KEY_BYTES)) for _ in range(count)
    )
    reader.end()
    try:
        terms = Terms(
            purpose=purpose,
            run=run.decode(),
            round=round_number,
            attempt=attempt,
            members=members,
            dimension=dimension,
            threshold=threshold,
            neighbours=neighbours,
            colluders=colluders,
            scale=scale,
            clip=clip,
            local_sigma=local_sigma,
            coordinate_bound=coordinate_bound,
            floor=floor,
            steps=steps,
        )
    except UnicodeDecodeError as error:
        raise ProtocolError("E-SECAGG-MESSAGE", "expected a run id in UTF-8") from error
    if reader.digest != terms.digest:
        raise ProtocolError("E-SECAGG-MESSAGE", "expected terms under their own digest")
    return terms


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What an owner demands of any terms.

    Attributes:
        cohort: fewest survivors that a sum may be of.
        colluders: fewest colluders that terms must withstand.
        allow_small: whether fewer than three members are accepted at all.
    """

    cohort: int = SMALLEST_COHORT
    colluders: int = 0
    allow_small: bool = False


def verify_terms(terms: Terms, *, pinned: Mapping[int, bytes], floors: Floors) -> None:
    """Check proposed terms against what this node pinned and its owner demands.

    Args:
        terms: as proposed.
        pinned: enrolment keys (raw Ed25519) by node id, as this node pinned them itself.
        floors: the owner's.

    Raises:
        TrustError: a member that is not pinned, or has another key (``E-SECAGG-UNPINNED``).
        RefusedError: ``E-SECAGG-SMALL`` or ``E-SECAGG-FLOOR``.
    """
    for member in terms.members:
        if pinned.get(member.node_id) != member.enrolment_key:
            raise TrustError(
                "E-SECAGG-UNPINNED",
                f"expected pinned members only, got node {member.node_id} with a key that this "
                "node has not pinned",
                hint="Compare fingerprints with that member's owner before you pin it.",
            )
    count = len(terms.members)
    if count < SMALLEST_COHORT and not floors.allow_small:
        raise RefusedError(
            "E-SECAGG-SMALL", f"expected at least {SMALLEST_COHORT} members, got {count}"
        )
    if terms.least < floors.cohort or terms.colluders < floors.colluders:
        raise RefusedError(
            "E-SECAGG-FLOOR",
            f"expected sums of at least {floors.cohort} members that withstand "
            f"{floors.colluders} colluders, got {terms.least} and {terms.colluders}",
        )
