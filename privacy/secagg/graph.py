"""Who masks with whom: everybody with everybody up to 200 members, a sparse graph above.

Trusts: the session's digest, which no single party chooses alone, as the seed of the graph.
Promises: every party derives the same graph. Members stand in a random order on a ring, and each
has the k nearest of them, half on either side, as neighbours (a Harary graph in random order: Bell
et al. 2020).

How many neighbours, for a fifth of the members corrupt and a tenth dropped:

- Except with probability 2^-80 in all, no member has so many corrupt neighbours that both of its
  secrets could be collected, which takes 2 t shares, of which each corrupt neighbour gives two. The
  last member to publish a key can try many until it likes the graph, hence not 2^-40.
- Except with 2^-30, each member keeps t neighbours where a tenth drops out by chance.
- A server loses members by choice. To split the honest ones into two sums it must clear two gaps of
  k/2 places on the ring of honest members; but each member insists on t live holders of its own
  shares, so that at most k + 1 - t around it may be lost, and on nine tenths of all members. The
  rest of both gaps must be corrupt by chance: impossible up to 500 members, below 2^-64 to 1000.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.privacy.secagg.keys import derive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FULL_GRAPH_MEMBERS = 200  # up to here everybody is everybody's neighbour
_SECURITY_BITS = 80
_CORRECTNESS_BITS = 30


def default_threshold(members: int) -> int:
    """Return floor(2n/3) + 1: so many shares, or signatures, that two such sets share a member who
    is honest, as long as fewer than a third are corrupt.

    Raises:
        ValueError: there are no members.
    """  # noqa: D205 - one sentence that does not fit a line
    if members < 1:
        raise ValueError(f"expected at least one member, got {members}")
    return 2 * members // 3 + 1


@functools.cache
def graph_parameters(members: int) -> tuple[int, int]:
    """Return (k, t): neighbours of each member, 0 for all of them, and the threshold of shares.

    Raises:
        ValueError: there are no members.
    """
    if members <= FULL_GRAPH_MEMBERS:
        return 0, default_threshold(members)
    corrupt, dropped, others = members // 5, members // 10, members - 1
    for neighbours in range(4, members, 2):
        for threshold in range(neighbours // 2 + 1, neighbours + 1):
            exposed = _tail(others, corrupt, neighbours, 2 * threshold - neighbours)
            if members * exposed > 2.0**-_SECURITY_BITS:
                continue
            lost = _tail(others, dropped, neighbours, neighbours - threshold + 1)
            if members * lost <= 2.0**-_CORRECTNESS_BITS:
                return neighbours, threshold
            break  # a higher threshold loses more members
    return 0, default_threshold(members)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Return the chance that ``drawn`` of a population hold at least ``least`` marked ones."""
    total = _log_choose(population, drawn)
    return math.fsum(
        math.exp(
            _log_choose(marked, count) + _log_choose(population - marked, drawn - count) - total
        )
        for count in range(max(least, 0, drawn - population + marked), min(marked, drawn) + 1)
    )


def _log_choose(count: int, drawn: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(drawn + 1) - math.lgamma(count - drawn + 1)


def ring_neighbours(
    members: Sequence[int], *, neighbours: int, seed: bytes
) -> dict[int, tuple[int, ...]]:
    """Return each member's neighbours in ascending order.

    Args:
        members: node ids in ascending order.
        neighbours: k; 0, or as many as there are others, for all of them.
        seed: of the order on the ring: the session's digest, 32 bytes.
    """
    if neighbours == 0 or neighbours >= len(members) - 1:
        return {one: tuple(other for other in members if other != one) for one in members}
    ring = _shuffled(members, seed)
    reach = [offset for offset in range(-(neighbours // 2), neighbours // 2 + 1) if offset]
    return {
        one: tuple(sorted(ring[(place + offset) % len(ring)] for offset in reach))
        for place, one in enumerate(ring)
    }


def _shuffled(members: Sequence[int], seed: bytes) -> list[int]:
    """Return the members in a random order (Fisher and Yates), unbiased."""
    words = _words(derive(seed, info=b"graph"))
    ring = list(members)
    for last in range(len(ring) - 1, 0, -1):
        limit = (1 << 64) - (1 << 64) % (last + 1)
        place = next(word for word in words if word < limit) % (last + 1)
        ring[last], ring[place] = ring[place], ring[last]
    return ring


def _words(key: bytes) -> Iterator[int]:
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    while True:
        yield int.from_bytes(stream.update(bytes(8)), "little")
