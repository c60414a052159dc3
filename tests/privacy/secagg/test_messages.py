"""Messages are parsed strictly: every byte has a meaning, and nothing else is accepted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError, TacitError
from tacit.privacy.secagg import messages
from tacit.privacy.secagg.messages import Kind
from tests.privacy.secagg.parties import Cohort, Lost, make_terms

AMONG = (1, 2, 3, 4)
Parse = Callable[[bytes, bytes], object]


def _in_set(senders: tuple[int, ...]) -> int:
    return len(set(senders) - {1})


PARSERS: dict[str, Parse] = {
    "KEYS": lambda data, digest: messages.parse_keys(data, digest, node_id=1),
    "KEY_LIST": lambda data, digest: messages.parse_key_list(data, digest, most=4),
    "SHARES": lambda data, digest: messages.parse_shares(data, digest, holders=4),
    "DELIVERY": lambda data, digest: messages.parse_delivery(
        data, digest, among=AMONG, due=_in_set
    ),
    "MASKED": messages.parse_masked,
    "SURVIVORS": lambda data, digest: messages.parse_survivors(data, digest, among=AMONG),
    "SIGNATURE": messages.parse_signature,
    "SIGNATURES": lambda data, digest: messages.parse_signatures(data, digest, among=AMONG),
    "UNMASK": lambda data, digest: messages.parse_unmask(data, digest, survivors=3, dropped=1),
}


@pytest.fixture(scope="module")
def examples() -> dict[str, tuple[bytes, bytes]]:
    """One message of each kind out of a session that lost a member, and its digest."""
    cohort = Cohort(make_terms(4))
    cohort.first(Lost(masked=[2]))
    found: dict[str, tuple[bytes, bytes]] = {}
    for what, message in cohort.log:
        kind = what.split()[0]
        if kind in PARSERS:
            found.setdefault(kind, (message, message[6:38]))
    return found


@pytest.mark.parametrize("kind", PARSERS)
def test_what_was_written_is_read(kind: str, examples: dict[str, tuple[bytes, bytes]]) -> None:
    """Each message of a session is accepted by its parser."""
    message, digest = examples[kind]
    assert PARSERS[kind](message, digest) is not None


@pytest.mark.parametrize("kind", PARSERS)
def test_no_byte_may_be_missing_or_left_over(
    kind: str, examples: dict[str, tuple[bytes, bytes]]
) -> None:
    """Every shorter message, and one byte more, is refused as malformed."""
    message, digest = examples[kind]
    lengths = {*range(0, len(message), 7), len(message) - 1}
    for changed in [message + b"\0", *(message[:length] for length in lengths)]:
        with pytest.raises(ProtocolError) as caught:
            PARSERS[kind](changed, digest)
        assert caught.value.code == "E-SECAGG-MESSAGE"


@pytest.mark.parametrize("kind", PARSERS)
def test_another_session_kind_or_version_is_refused(
    kind: str, examples: dict[str, tuple[bytes, bytes]]
) -> None:
    """A replayed message, a message out of order, and another protocol, each with its code."""
    message, digest = examples[kind]
    other_kind = Kind.SURVIVORS if kind == "KEYS" else Kind.KEYS
    for changed, code in (
        (message[:6] + bytes(32) + message[38:], "E-SECAGG-SESSION"),
        (message[:5] + bytes([other_kind]) + message[6:], "E-SECAGG-ORDER"),
        (message[:5] + b"\xff" + message[6:], "E-SECAGG-ORDER"),
        (b"tsa\x002" + message[5:], "E-SECAGG-MESSAGE"),
    ):
        with pytest.raises(ProtocolError) as caught:
            PARSERS[kind](changed, digest)
        assert caught.value.code == code


@given(kind=st.sampled_from(sorted(PARSERS)), body=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused_by_name(kind: str, body: bytes) -> None:
    """Whatever follows a right header, nothing but our own errors leaves a parser."""
    digest = bytes(32)
    message = messages.header(Kind[kind], digest) + body
    codes = set()
    try:
        PARSERS[kind](message, digest)
    except TacitError as error:
        codes.add(error.code)
    assert codes <= {"E-SECAGG-MESSAGE"}


@given(st.sets(st.sampled_from(range(1, 20))))
def test_sets_are_read_as_they_were_written(members: set[int]) -> None:
    """A set of members survives the wire, in ascending order."""
    among = tuple(range(1, 20))
    message = messages.encode_survivors(members, bytes(32), among=among)
    assert tuple(sorted(members)) == messages.parse_survivors(message, bytes(32), among=among)


def test_a_set_names_members_only() -> None:
    """A bit beyond the last member is refused: each set has one encoding."""
    message = messages.header(Kind.SURVIVORS, bytes(32)) + b"\x10"
    with pytest.raises(ProtocolError, match="do not exist"):
        messages.parse_survivors(message, bytes(32), among=AMONG)


def test_counts_are_bounded_before_anything_is_read(
    examples: dict[str, tuple[bytes, bytes]],
) -> None:
    """A list that claims four thousand million members is refused at its count."""
    _, digest = examples["KEY_LIST"]
    message = messages.header(Kind.KEY_LIST, digest) + b"\xff" * 4
    with pytest.raises(ProtocolError, match="at most 4"):
        messages.parse_key_list(message, digest, most=4)


def test_a_key_list_ascends() -> None:
    """The same members in another order, or one of them twice, are no key list."""
    cohort = Cohort(make_terms(4))
    digest = cohort.terms.digest
    entries = messages.parse_key_list(cohort.keys(), digest, most=4)
    for changed in (entries[::-1], (*entries[:3], entries[2])):
        message = messages.encode_key_list(changed, digest)
        with pytest.raises(ProtocolError, match="ascending"):
            messages.parse_key_list(message, digest, most=4)
