"""The sparse graph: how many neighbours, and that everybody draws the same one."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.secagg.graph import default_threshold, graph_parameters, ring_neighbours


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (200, (0, 134)),
        (300, (116, 88)),
        pytest.param(500, (154, 116), marks=pytest.mark.slow),
        pytest.param(1000, (198, 149), marks=pytest.mark.slow),
    ],
)
def test_parameters_of_the_sparse_graph(members: int, expected: tuple[int, int]) -> None:
    """The (k, t) that were computed elsewhere for 20 % corrupt, 10 % dropped, at 2^-80."""
    assert expected == graph_parameters(members)


@pytest.mark.parametrize(
    ("members", "dropouts"), [(3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (10, 3), (100, 33)]
)
def test_dropouts_that_a_full_graph_tolerates(members: int, dropouts: int) -> None:
    """The threshold is floor(2n/3) + 1."""
    assert dropouts == members - default_threshold(members)


@pytest.mark.parametrize("members", [201, 250, 300, 700, 1000])
def test_exposure_is_below_its_bound(members: int) -> None:
    """In exact arithmetic: 2^-80 among all, 2^-64 where a tenth never published a key."""
    neighbours, threshold = graph_parameters(members)
    assert neighbours
    corrupt = members // 5
    for present, bits in ((members, 80), (members - members // 10, 64)):
        exposed = present * exact_tail(present - 1, corrupt, neighbours, 2 * threshold - neighbours)
        assert exposed < Fraction(1, 2**bits)


@pytest.mark.parametrize("members", [201, 300, 500, 700, 1000])
def test_a_server_that_loses_members_of_its_choice_cannot_cut_the_graph(members: int) -> None:
    """In exact arithmetic: two gaps of k/2 places without live honest members, below 2^-64.

    Around each gap at most k + 1 - t members may be lost, and in all what is above nine tenths; the
    rest of both gaps is corrupt by chance. The union is over all pairs of places.
    """
    neighbours, threshold = graph_parameters(members)
    least = members - members // 10
    for present in range(least, members + 1, members // 100):
        around = 2 * (neighbours // 2 - (neighbours + 1 - threshold))
        corrupt = max(around, neighbours - (present - least))
        chance = exact_tail(present, members // 5, neighbours, corrupt)
        assert math.comb(present, 2) * chance < Fraction(1, 2**64)


def exact_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    ways = sum(
        math.comb(marked, count) * math.comb(population - marked, drawn - count)
        for count in range(least, min(marked, drawn) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


@given(count=st.integers(3, 60), half=st.integers(1, 12), seed=st.binary(min_size=32, max_size=32))
def test_neighbours_are_mutual_and_as_many_as_asked(count: int, half: int, seed: bytes) -> None:
    """Each has k neighbours, or all others; whoever has one is one; nobody neighbours itself."""
    members = [7 * one for one in range(1, count + 1)]
    graph = ring_neighbours(members, neighbours=2 * half, seed=seed)
    assert set(members) == set(graph)
    for one, others in graph.items():
        assert len(others) == len(set(others)) == min(2 * half, count - 1)
        assert list(others) == sorted(others)
        assert one not in others
        assert all(one in graph[other] for other in others)


def test_another_session_draws_another_graph() -> None:
    """The graph follows from the session's digest, and from nothing else."""
    members = range(1, 101)
    one = ring_neighbours(members, neighbours=10, seed=bytes(32))
    assert one == ring_neighbours(members, neighbours=10, seed=bytes(32))
    assert one != ring_neighbours(members, neighbours=10, seed=bytes(31) + b"\1")


def test_places_on_the_ring_are_uniform() -> None:
    """Over many sessions, two given members are neighbours as often as chance has it."""
    members, sessions = range(1, 12), 3000
    met = sum(
        2 in ring_neighbours(members, neighbours=4, seed=seed.to_bytes(32, "big"))[1]
        for seed in range(sessions)
    )
    deviation = math.sqrt(sessions * 0.4 * 0.6)
    assert abs(met - 0.4 * sessions) < 5 * deviation


def test_no_members_have_no_threshold() -> None:
    """A threshold of nobody would be met by nobody."""
    with pytest.raises(ValueError, match="at least one member"):
        default_threshold(0)
