"""A large cohort of secure aggregation in one process: both sides' state machines, no wire.

What a transport would carry is carried by hand and counted; the guard that a node keeps on its disk
is one in memory. Each party's work is measured by itself in CPU seconds, one after the other. The
sum must be that of the survivors' vectors, number by number.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.processes import BenchmarkError
from tacit.core.secagg_spec import least_threshold
from tacit.privacy.secagg.client import ClientSession, Trust
from tacit.privacy.secagg.graph import graph_parameters
from tacit.privacy.secagg.guard import MemoryGuard
from tacit.privacy.secagg.server import ServerSession
from tacit.privacy.secagg.terms import Floors, Member, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

T = TypeVar("T")

MODEL = hashlib.sha256(b"the weights that are not sent here").digest()


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """One session.

    Attributes:
        clients: how many members there are.
        dropped: how many of them are lost when vectors are due.
        parameters: numbers in a vector.
        client_cpu_s: CPU seconds of the median survivor.
        server_cpu_s: CPU seconds of the server.
        up, down: bytes of the median survivor for each number, without the model.
    """

    clients: int
    dropped: int
    parameters: int
    client_cpu_s: float
    server_cpu_s: float
    up: float
    down: float

    def plain(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return asdict(self)


class _Meter:
    """CPU seconds and bytes, by party."""

    def __init__(self) -> None:
        self.cpu_s: dict[int, float] = {}
        self.up: dict[int, int] = {}
        self.down: dict[int, int] = {}

    def timed(self, party: int, call: Callable[[], T]) -> T:
        began = time.process_time()
        result = call()
        self.cpu_s[party] = self.cpu_s.get(party, 0.0) + time.process_time() - began
        return result

    def carried(self, node_id: int, *, up: int = 0, down: int = 0) -> None:
        self.up[node_id] = self.up.get(node_id, 0) + up
        self.down[node_id] = self.down.get(node_id, 0) + down


SERVER_PARTY = 0


class _Cohort:
    """One session, step by step."""

    def __init__(self, *, clients: int, parameters: int) -> None:
        keys = {one: Ed25519PrivateKey.generate() for one in range(1, clients + 1)}
        public = {one: key.public_key().public_bytes_raw() for one, key in keys.items()}
        members = tuple(Member(node_id=one, enrolment_key=key) for one, key in public.items())
        self.meter = _Meter()
        self.terms = _terms(members, parameters)
        self.server = self.meter.timed(SERVER_PARTY, lambda: ServerSession(self.terms))
        self.clients = {
            one: self.meter.timed(
                one,
                lambda one=one: ClientSession(
                    self.terms,
                    trust=Trust(node_id=one, pinned=public, floors=Floors(cohort=3, colluders=1)),
                    signer=keys[one].sign,
                    guard=MemoryGuard(),
                ),
            )
            for one in keys
        }
        self.expected = np.zeros(parameters, dtype=np.uint32)

    def asked(
        self,
        call: Callable[[ClientSession, bytes], bytes],
        take: Callable[[int, bytes], None],
        told: Callable[[int], bytes],
    ) -> None:
        """Let every member that lives take one step, and the server take what it says."""
        for one, client in self.clients.items():
            body = told(one)
            message = self.meter.timed(one, lambda client=client, body=body: call(client, body))
            self.meter.carried(one, up=len(message), down=len(body))
            self.meter.timed(SERVER_PARTY, lambda one=one, message=message: take(one, message))

    def mask(self, deliveries: dict[int, bytes]) -> None:
        """Let every member that lives send its vector."""
        for one, client in self.clients.items():
            vector = _vector(one, self.terms.dimension)
            self.expected += vector
            body = deliveries[one]
            head = self.meter.timed(
                one, lambda client=client, body=body, vector=vector: client.mask(body, vector)
            )
            self.meter.carried(one, up=len(head) + vector.nbytes, down=len(body))
            self.meter.timed(
                SERVER_PARTY,
                lambda one=one, head=head, vector=vector: self.server.fold(one, head, vector),
            )


def measure_cohort(*, clients: int, parameters: int, dropped: int) -> CohortResult:
    """Play one session of a cohort that loses members when vectors are due.

    Raises:
        BenchmarkError: the sum is not that of the survivors' vectors.
    """
    cohort = _Cohort(clients=clients, parameters=parameters)
    server, meter = cohort.server, cohort.meter
    cohort.asked(lambda client, _: client.keys(), server.take_keys, lambda _: b"")
    keys = meter.timed(SERVER_PARTY, lambda: server.end_keys(model=MODEL))
    cohort.asked(
        lambda client, body: client.share(body, model=MODEL), server.take_shares, lambda _: keys
    )
    deliveries = meter.timed(SERVER_PARTY, server.end_shares)
    for one in range(1, dropped + 1):
        cohort.clients.pop(one).close()
    cohort.mask(deliveries)
    survivors = meter.timed(SERVER_PARTY, server.end_masked)
    cohort.asked(lambda client, body: client.sign(body), server.take_signature, lambda _: survivors)
    signatures = meter.timed(SERVER_PARTY, server.end_signatures)
    cohort.asked(lambda client, body: client.unmask(body), server.take_unmask, lambda _: signatures)
    total = meter.timed(SERVER_PARTY, server.end_unmask)
    if total.survivors != tuple(cohort.clients) or len(total.survivors) != clients - dropped:
        raise BenchmarkError(f"expected the {clients - dropped} survivors, got {total.survivors}")
    if not np.array_equal(total.values, cohort.expected):
        raise BenchmarkError("the sum is not that of the survivors' vectors")
    left = list(cohort.clients)
    return CohortResult(
        clients=clients,
        dropped=dropped,
        parameters=parameters,
        client_cpu_s=statistics.median(meter.cpu_s[one] for one in left),
        server_cpu_s=meter.cpu_s[SERVER_PARTY],
        up=statistics.median(meter.up[one] for one in left) / parameters,
        down=statistics.median(meter.down[one] for one in left) / parameters,
    )


def _terms(members: tuple[Member, ...], parameters: int) -> Terms:
    neighbours, _ = graph_parameters(len(members))
    threshold = least_threshold(len(members))
    return Terms(
        purpose=hashlib.sha256(b"benchmark").digest(),
        run="r-benchmark",
        round=1,
        attempt=1,
        members=members,
        dimension=parameters,
        threshold=threshold,
        neighbours=neighbours,
        colluders=1,
        scale=1024.0,
        clip=0.0,
        local_sigma=0.0,
        coordinate_bound=4.0,
        floor=threshold,
        steps=1,
    )


def _vector(node_id: int, dimension: int) -> npt.NDArray[np.uint32]:
    """Return a vector over the whole ring: each member's is another."""
    generator = np.random.default_rng(node_id)
    return generator.integers(0, 2**32, size=dimension, dtype=np.uint32)
