"""Terms: one encoding, one digest, and none that would weaken a member."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError, ProtocolError, RefusedError, TacitError, TrustError
from tacit.privacy.secagg.terms import Floors, Member, parse_terms, verify_terms
from tests.privacy.secagg.parties import make_terms, public_of

CHANGES: dict[str, Any] = {
    "purpose": bytes(32),
    "run": "another",
    "round": 2,
    "attempt": 2,
    "members": make_terms(5).members[1:],
    "dimension": 6,
    "threshold": 4,
    "colluders": 1,
    "scale": 1024.5,
    "clip": 2.0,
    "local_sigma": 5.0,
    "coordinate_bound": 3.0,
    "floor": 2,
    "steps": 2,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_term_is_in_the_digest(name: str) -> None:
    """Two parties who differ in anything have another S0."""
    terms = make_terms(4)
    assert terms.digest != dataclasses.replace(terms, **{name: CHANGES[name]}).digest


def test_every_field_is_tested_above() -> None:
    """A new term cannot be left out of the digest; the graph alone follows from the members."""
    names = {field.name for field in dataclasses.fields(make_terms(4))}
    assert names == {*CHANGES, "neighbours"}
    sparse = make_terms(300)
    full = dataclasses.replace(sparse, neighbours=0, threshold=sparse.quorum)
    assert sparse.digest != full.digest


@given(
    count=st.integers(3, 12),
    run=st.text(min_size=1, max_size=60),
    numbers=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
    real=st.floats(0, 1e300),
)
def test_terms_are_read_as_they_were_written(
    count: int, run: str, numbers: tuple[int, int], real: float
) -> None:
    """Parsing gives the same terms, and encoding these the same bytes."""
    terms = make_terms(count, run=run, round=numbers[0], attempt=numbers[1], scale=real)
    assert terms == parse_terms(terms.encode())
    assert terms.encode() == parse_terms(terms.encode()).encode()


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_is_found(place: int, bit: int) -> None:
    """No bit of proposed terms can change on the way."""
    message = bytearray(make_terms(4).encode())
    message[place % len(message)] ^= 1 << bit
    with pytest.raises(TacitError):
        parse_terms(bytes(message))


@pytest.mark.parametrize("cut", [-1, -40, 1])
def test_terms_have_one_length(cut: int) -> None:
    """Bytes that are missing or left over are refused."""
    message = make_terms(4).encode()
    with pytest.raises(ProtocolError, match="E-SECAGG-MESSAGE"):
        parse_terms(message + b"\0" if cut > 0 else message[:cut])


@pytest.mark.parametrize(
    "changes",
    [
        {"purpose": b"short"},
        {"run": ""},
        {"run": "x" * 256},
        {"members": ()},
        {
            "members": tuple(
                Member(node_id=one, enrolment_key=one.to_bytes(32)) for one in range(1, 1002)
            )
        },
        {"members": make_terms(4).members[::-1]},
        {"members": (*make_terms(4).members, make_terms(4).members[-1])},
        {"members": (*make_terms(3).members, Member(node_id=9, enrolment_key=public_of(1)))},
        {"members": (*make_terms(3).members, Member(node_id=9, enrolment_key=b"short"))},
        {"members": (Member(node_id=0, enrolment_key=public_of(9)), *make_terms(3).members)},
        {"dimension": 0},
        {"dimension": 2**31},
        {"steps": 0},
        {"colluders": -1},
        {"floor": 0},
        {"floor": 5},
        {"scale": math.nan},
        {"clip": -1.0},
        {"local_sigma": math.inf},
        {"coordinate_bound": -math.inf},
        {"round": -1},
        {"attempt": 2**32},
        {"threshold": 2},
        {"threshold": 5},
        {"colluders": 2},
        {"colluders": 3, "threshold": 4},
        {"neighbours": 2},
    ],
)
def test_terms_that_do_not_protect_are_refused(changes: dict[str, Any]) -> None:
    """Too low a threshold, too many colluders, a graph of one's own choice, or not terms at all."""
    with pytest.raises(ConfigError) as caught:
        make_terms(4, **changes)
    assert caught.value.code == "E-SECAGG-TERMS"
    assert caught.value.problems


@pytest.mark.parametrize(
    "changes", [{"threshold": 80}, {"neighbours": 100, "threshold": 75}, {"colluders": 61}]
)
def test_a_sparse_graph_has_the_computed_parameters(changes: dict[str, Any]) -> None:
    """Fewer neighbours, a lower threshold or more colluders than were computed are refused."""
    with pytest.raises(ConfigError, match="E-SECAGG-TERMS"):
        make_terms(300, **changes)


@pytest.mark.parametrize(
    ("count", "colluders", "least"), [(3, 1, 3), (4, 1, 3), (7, 2, 5), (10, 3, 7), (3, 0, 3)]
)
def test_the_least_number_of_members(count: int, colluders: int, least: int) -> None:
    """Threshold, floor and two honest members beside the colluders, whichever is most."""
    assert make_terms(count, colluders=colluders).least == least
    assert make_terms(count, colluders=colluders, floor=count).least == count


def test_a_sparse_graph_needs_nine_tenths_of_all() -> None:
    """Shares need 88 neighbours, a view 201 signatures; but the sum, whoever is lost, 270."""
    terms = make_terms(300)
    assert (terms.threshold, terms.quorum, terms.least) == (88, 201, 270)


def test_a_full_graph_of_any_size_needs_a_quorum() -> None:
    """Where everybody is a neighbour, two thirds are enough."""
    assert make_terms(300, neighbours=0, threshold=201).least == 201


def accept(count: int, floors: Floors, **changes: Any) -> None:
    terms = make_terms(count, **changes)
    pinned = {one: public_of(one) for one in range(1, 20)}
    verify_terms(terms, pinned=pinned, floors=floors)


def test_terms_above_the_floors_are_accepted() -> None:
    """A cohort of four with one colluder is what four hospitals run."""
    accept(4, Floors(cohort=3, colluders=1), colluders=1)


def test_fewer_than_three_members_need_the_owner_s_word() -> None:
    """A sum of two tells each the other's vector: refused, unless allowed on purpose."""
    with pytest.raises(RefusedError, match="E-SECAGG-SMALL"):
        accept(2, Floors(cohort=2))
    accept(2, Floors(cohort=2, allow_small=True))


@pytest.mark.parametrize("floors", [Floors(cohort=5), Floors(colluders=1)])
def test_terms_below_the_floors_are_refused(floors: Floors) -> None:
    """Four members of whom three may remain, and no colluders, are below either floor."""
    with pytest.raises(RefusedError, match="E-SECAGG-FLOOR"):
        accept(4, floors)


@pytest.mark.parametrize("pinned", [{}, {4: public_of(5)}])
def test_a_member_that_is_not_pinned_is_refused(pinned: dict[int, bytes]) -> None:
    """A Sybil that the server minted, and a pinned node under another key, are no members."""
    known = {one: public_of(one) for one in (1, 2, 3)} | pinned
    with pytest.raises(TrustError, match="E-SECAGG-UNPINNED"):
        verify_terms(make_terms(4), pinned=known, floors=Floors())
