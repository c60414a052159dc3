from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import TrustError, UnavailableError, UsageError
from tacit.core.identity import Authority, MemberKeys, Role, certificate_request
from tacit.core.membership import (
    Membership,
    replace_certificate,
    save_membership,
    verify_certificate,
)
from tacit.core.profiles import load_profile, profile_folder, profile_names, save_profile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("tests")


@pytest.fixture(scope="module")
def keys() -> MemberKeys:
    return MemberKeys.generate()


def issued(authority: Authority, keys: MemberKeys) -> bytes:
    request = certificate_request(keys)
    return authority.issue_member(request, name="ana", role=Role.OPERATOR, days=1)


def store(folder: Path, authority: Authority, keys: MemberKeys) -> Membership:
    return save_membership(
        folder,
        keys=keys,
        certificate_der=issued(authority, keys),
        authority_der=authority.der,
        addresses=("a:1", "b:2"),
        enrolment_addresses=("a:3",),
    )


def test_a_membership_survives_the_disk(
    tmp_path: Path, authority: Authority, keys: MemberKeys
) -> None:
    """Everything that a member needs to connect is read back; the folder is private."""
    membership = store(tmp_path / "m", authority, keys)
    assert membership.exists
    assert membership.addresses == ("a:1", "b:2")
    assert membership.enrolment_addresses == ("a:3",)
    assert membership.identity.name == "ana"
    assert membership.authority_pem == authority.pem
    assert membership.key_pem == keys.tls_key_pem == membership.keys.tls_key_pem
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o700


def test_a_certificate_for_others_is_not_stored(
    tmp_path: Path, authority: Authority, keys: MemberKeys
) -> None:
    """A server that answers with another key, or another authority, is not believed."""
    with pytest.raises(TrustError, match="E-CERTIFICATE-KEYS"):
        verify_certificate(
            issued(authority, MemberKeys.generate()), keys=keys, authority_der=authority.der
        )
    half = MemberKeys(tls=keys.tls, enrolment=MemberKeys.generate().enrolment)
    with pytest.raises(TrustError, match="E-CERTIFICATE-KEYS"):
        verify_certificate(issued(authority, half), keys=keys, authority_der=authority.der)
    with pytest.raises(TrustError, match="E-CERTIFICATE-AUTHORITY"):
        store_foreign(tmp_path / "m", authority, keys)
    assert not (tmp_path / "m").exists()


def store_foreign(folder: Path, authority: Authority, keys: MemberKeys) -> None:
    """An authority of the same name but another key."""
    save_membership(
        folder,
        keys=keys,
        certificate_der=issued(Authority.create("tests"), keys),
        authority_der=authority.der,
        addresses=("a:1",),
    )


def test_a_renewed_certificate_must_fit(
    tmp_path: Path, authority: Authority, keys: MemberKeys
) -> None:
    """Renewal keeps the keys; a certificate for others leaves the old one in place."""
    membership = store(tmp_path, authority, keys)
    before = membership.certificate_pem
    with pytest.raises(TrustError, match="E-CERTIFICATE-KEYS"):
        replace_certificate(membership, issued(authority, MemberKeys.generate()))
    assert membership.certificate_pem == before
    replace_certificate(membership, issued(authority, keys))
    assert membership.certificate_pem != before


def test_nothing_enrolled_says_so(tmp_path: Path) -> None:
    """An empty folder is no membership, and the error says what to do."""
    membership = Membership(tmp_path)
    assert not membership.exists
    with pytest.raises(UnavailableError, match="E-NOT-ENROLLED") as caught:
        _ = membership.certificate_pem
    assert "tacit client join" in caught.value.hint
    (tmp_path / "server.json").write_text("{}")
    with pytest.raises(UnavailableError, match="E-NOT-ENROLLED"):
        _ = membership.addresses


def make_profile(home: Path, name: str, authority: Authority, keys: MemberKeys) -> None:
    save_profile(
        name,
        keys=keys,
        certificate_der=issued(authority, keys),
        authority_der=authority.der,
        addresses=(f"{name}:1",),
        home=home,
    )


def test_profiles_are_found_by_name(tmp_path: Path, authority: Authority, keys: MemberKeys) -> None:
    """The flag wins over TACIT_PROFILE, that over `default`; the only profile needs no name."""
    make_profile(tmp_path, "first", authority, keys)
    assert load_profile(home=tmp_path, environ={}).name == "first"
    make_profile(tmp_path, "second", authority, keys)
    with pytest.raises(UnavailableError, match="first, second"):
        load_profile(home=tmp_path, environ={})
    make_profile(tmp_path, "default", authority, keys)
    assert profile_names(home=tmp_path) == ["default", "first", "second"]
    assert load_profile(home=tmp_path, environ={}).addresses == ("default:1",)
    assert load_profile(home=tmp_path, environ={"TACIT_PROFILE": "first"}).name == "first"
    chosen = load_profile("second", home=tmp_path, environ={"TACIT_PROFILE": "first"})
    assert chosen.name == "second"
    assert chosen.membership.identity.role is Role.OPERATOR


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    """Without profiles the error says how to get one."""
    with pytest.raises(UnavailableError, match="there are none") as caught:
        load_profile(home=tmp_path, environ={})
    assert "tacit login" in caught.value.hint


def test_an_open_profile_is_refused(tmp_path: Path, authority: Authority, keys: MemberKeys) -> None:
    """Keys that others could have read are not used."""
    make_profile(tmp_path, "default", authority, keys)
    profile_folder("default", home=tmp_path).chmod(0o755)
    with pytest.raises(TrustError, match="E-STATE-MODE"):
        load_profile(home=tmp_path, environ={})


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "a" * 41])
def test_profile_names_are_no_paths(tmp_path: Path, name: str) -> None:
    """A profile's name cannot leave its folder."""
    with pytest.raises(UsageError, match="E-PROFILE-NAME"):
        profile_folder(name, home=tmp_path)
