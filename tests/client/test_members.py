"""What the server tells of members against what is pinned."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tacit.client.members import (
    PinnedMembers,
    Standing,
    ask_members,
    compare_members,
    directory_of,
    load_pinned,
    pin_by_words,
    save_pinned,
)
from tacit.core.errors import ProtocolError, TacitError, TrustError, UnavailableError
from tacit.core.fingerprint import fingerprint_of
from tacit.core.identity import Authority, MemberKeys, Role, certificate_request, pem_of
from tacit.core.members import MEMBERS_FILE, save_members
from tacit.core.membership import Membership
from tacit.protos import fleet_pb2
from tests.client.fake_fleet import Domain, FakeFleet
from tests.client.fakes import make_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OWN, ADA, BO, EVE = (letter * 32 for letter in (b"o", b"a", b"b", b"e"))
PINNED = PinnedMembers(own_name="own", keys={"own": OWN, "ada": ADA})
TOLD = {"own": OWN, "ada": ADA, "bo": BO}


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(TacitError) as caught:
        call()
    assert caught.value.hint or caught.value.code == "E-MEMBER-OWN"
    return caught.value.code


def test_words_of_the_other_owner_pin_the_key_that_the_server_tells() -> None:
    """Right words pin; the value before is unchanged."""
    after = pin_by_words(PINNED, TOLD, name="bo", words=fingerprint_of(BO))
    assert after.others == {"ada": ADA, "bo": BO}
    assert PINNED.others == {"ada": ADA}


def test_words_of_another_key_pin_nothing() -> None:
    """The server tells its own key for bo; bo's owner reads out bo's words."""
    lies = TOLD | {"bo": EVE}
    words = fingerprint_of(BO)
    assert code_of(lambda: pin_by_words(PINNED, lies, name="bo", words=words)) == (
        "E-MEMBER-FINGERPRINT"
    )


def test_a_pinned_name_keeps_its_key_whatever_words_come_with_another() -> None:
    """Even its right words do not replace a pinned key: first it is unpinned."""
    lies = TOLD | {"ada": EVE}
    words = fingerprint_of(EVE)
    assert code_of(lambda: pin_by_words(PINNED, lies, name="ada", words=words)) == (
        "E-MEMBER-CHANGED"
    )
    again = pin_by_words(PINNED.unpin("ada"), lies, name="ada", words=words)
    assert again.others == {"ada": EVE}


def test_pinning_the_same_again_checks_the_words_all_the_same() -> None:
    """Nothing changes, and wrong words are still wrong."""
    assert pin_by_words(PINNED, TOLD, name="ada", words=fingerprint_of(ADA)) == PINNED
    wrong = fingerprint_of(EVE)
    assert code_of(lambda: pin_by_words(PINNED, TOLD, name="ada", words=wrong)) == (
        "E-MEMBER-FINGERPRINT"
    )


def test_who_is_not_there_cannot_be_pinned_or_unpinned() -> None:
    """A name that the server does not tell of, this node itself, and a name that is not pinned."""
    words = fingerprint_of(EVE)
    assert code_of(lambda: pin_by_words(PINNED, TOLD, name="eve", words=words)) == (
        "E-MEMBER-UNKNOWN"
    )
    assert code_of(lambda: pin_by_words(PINNED, TOLD, name="own", words=words)) == "E-MEMBER-OWN"
    assert code_of(lambda: PINNED.unpin("bo")) == "E-MEMBER-UNKNOWN"
    assert code_of(lambda: PINNED.unpin("own")) == "E-MEMBER-UNKNOWN"


def test_a_list_is_taken_whole_or_not_at_all() -> None:
    """One changed key, one key under a second name, or another key for this node: all refused."""
    assert PINNED.pin({"bo": BO, "ada": ADA, "own": OWN}).others == {"ada": ADA, "bo": BO}
    assert code_of(lambda: PINNED.pin({"bo": BO, "ada": EVE})) == "E-MEMBER-CHANGED"
    assert code_of(lambda: PINNED.pin({"bo": BO, "own": EVE})) == "E-MEMBER-CHANGED"
    assert code_of(lambda: PINNED.pin({"bo": BO, "eve": ADA})) == "E-MEMBER-TWICE"
    assert code_of(lambda: PINNED.pin({"eve": OWN})) == "E-MEMBER-TWICE"


def test_the_owner_sees_how_each_member_stands() -> None:
    """Pinned, not pinned, not told of, and loudly where the server tells another key."""
    pinned = PINNED.pin({"cy": b"c" * 32})
    views = compare_members(pinned, {"own": OWN, "ada": EVE, "bo": BO})
    assert {view.name: view.standing for view in views} == {
        "ada": Standing.CHANGED,
        "bo": Standing.UNPINNED,
        "cy": Standing.UNTOLD,
        "own": Standing.OWN,
    }
    assert (views[0].fingerprint, views[0].told_fingerprint) == (
        fingerprint_of(ADA),
        fingerprint_of(EVE),
    )
    lied = compare_members(pinned, {"own": EVE})
    assert {view.name: view.standing for view in lied}["own"] is Standing.CHANGED
    unheard = compare_members(PINNED, None)
    assert [view.standing for view in unheard] == [Standing.PINNED, Standing.OWN]


def test_the_file_holds_the_others_and_this_node_is_always_a_member(tmp_path: Path) -> None:
    """Without a file nobody else is pinned; what is saved is read; the own key is not in it."""
    membership = Domain.create().member(tmp_path / "identity", 1)
    own = membership.keys.enrolment_public_key
    assert load_pinned(tmp_path, membership) == PinnedMembers(own_name="a", keys={"a": own})
    save_pinned(tmp_path, load_pinned(tmp_path, membership).pin({"bo": BO}))
    assert load_pinned(tmp_path, membership).keys == {"a": own, "bo": BO}
    assert "members.a]" not in (tmp_path / MEMBERS_FILE).read_text()


def test_a_file_that_contradicts_this_node_is_refused(tmp_path: Path) -> None:
    """Another key under its name, or its key under another name."""
    membership = Domain.create().member(tmp_path / "identity", 1)
    save_members(tmp_path / MEMBERS_FILE, {"a": EVE})
    assert code_of(lambda: load_pinned(tmp_path, membership)) == "E-MEMBER-CHANGED"
    save_members(tmp_path / MEMBERS_FILE, {"bo": membership.keys.enrolment_public_key})
    assert code_of(lambda: load_pinned(tmp_path, membership)) == "E-MEMBER-TWICE"
    save_members(tmp_path / MEMBERS_FILE, {"a": membership.keys.enrolment_public_key})
    assert not load_pinned(tmp_path, membership).others


def test_who_is_not_enrolled_has_no_members(tmp_path: Path) -> None:
    """There is no own key, so nothing can be compared."""
    with pytest.raises(UnavailableError) as caught:
        load_pinned(tmp_path, Membership(tmp_path / "identity"))
    assert caught.value.code == "E-NOT-ENROLLED"


def entry(authority: Authority, name: str, *, role: Role = Role.CLIENT) -> fleet_pb2.MemberEntry:
    keys = MemberKeys.generate()
    der = authority.issue_member(certificate_request(keys), name=name, role=role, days=2)
    return fleet_pb2.MemberEntry(
        name=name, enrolment_key=keys.enrolment_public_key, certificate=der
    )


def changed(
    original: fleet_pb2.MemberEntry, *, name: str = "", key: bytes = b"", certificate: bytes = b""
) -> fleet_pb2.MemberEntry:
    return fleet_pb2.MemberEntry(
        name=name or original.name,
        enrolment_key=key or original.enrolment_key,
        certificate=certificate or original.certificate,
    )


def test_a_directory_that_holds_is_read() -> None:
    """Names and keys, each proved by a certificate."""
    authority = Authority.create("tests")
    entries = [entry(authority, name) for name in ("ada", "bo")]
    told = directory_of(entries, authority_pem=authority.pem)
    assert told == {each.name: each.enrolment_key for each in entries}


def test_a_directory_that_contradicts_itself_is_refused_whole() -> None:
    """Another key, name, role or authority, half a key, no certificate, a name or a key twice."""
    authority, other = Authority.create("tests"), Authority.create("tests")
    ada, bo = entry(authority, "ada"), entry(authority, "bo")
    server = authority.issue_server(MemberKeys.generate().tls.public_key(), ["a"], 2)
    wrong = {
        "key": [changed(ada, key=EVE)],
        "half": [changed(ada, key=EVE[:16])],
        "name": [changed(ada, name="bo")],
        "role": [entry(authority, "ada", role=Role.OPERATOR)],
        "authority": [entry(other, "ada")],
        "server": [changed(ada, certificate=server)],
        "nonsense": [changed(ada, certificate=b"x")],
    }
    for what, entries in wrong.items():
        with pytest.raises(TrustError) as caught:
            directory_of([bo, *entries], authority_pem=pem_of(authority.der))
        assert caught.value.code == "E-MEMBER-CERTIFICATE", what
    twice = [ada, entry(authority, "ada")]
    assert code_of(lambda: directory_of(twice, authority_pem=authority.pem)) == "E-MEMBER-TWICE"


@pytest.mark.slow
def test_the_server_is_asked_at_each_address_and_not_listened_to_for_ever(tmp_path: Path) -> None:
    """The second address answers where the first does not; an endless answer is cut off."""

    async def scenario() -> None:
        async with Domain.create() as domain:
            fleet = FakeFleet(make_spec())
            _, port = await domain.serve(fleet)
            membership = domain.member(tmp_path / "identity", port)
            server = tmp_path / "identity" / "server.json"
            addresses = ["127.0.0.1:1", f"127.0.0.1:{port}"]
            server.write_text(json.dumps({"addresses": addresses, "enrolment_addresses": []}))
            fleet.members = [entry(domain.authority, "bo")]
            assert await ask_members(membership) == {"bo": fleet.members[0].enrolment_key}
            fleet.members *= 10_001
            with pytest.raises(ProtocolError) as caught:
                await ask_members(membership)
            assert caught.value.code == "E-MEMBERS-LIMIT"

    asyncio.run(scenario())
