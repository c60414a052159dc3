from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.identity import (
    MemberKeys,
    certificate_request,
    check_member_name,
    node_id_of,
    sign_request,
    verify_request,
)

if TYPE_CHECKING:
    from pathlib import Path


@given(st.binary(min_size=32, max_size=32))
def test_node_ids_fit_the_wire(public_key: bytes) -> None:
    """Any enrolment key has one node id, in 1..2^63-1."""
    assert 1 <= node_id_of(public_key) < 2**63
    assert node_id_of(public_key) == node_id_of(public_key)


def test_node_id_of_a_known_key() -> None:
    """The rule is fixed: first 8 bytes of SHA-256 of the raw key, without the top bit."""
    assert node_id_of(bytes(32)) == 0x66687AADF862BD77
    with pytest.raises(ValueError, match="32 bytes"):
        node_id_of(b"short")


def test_keys_survive_the_disk_and_nobody_else_reads_them(tmp_path: Path) -> None:
    """Saved keys load as they were, from files of mode 0600 in a folder of mode 0700."""
    keys = MemberKeys.generate()
    keys.save(tmp_path / "new" / "member")
    folder = tmp_path / "new" / "member"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    loaded = MemberKeys.load(folder)
    assert loaded.enrolment_public_key == keys.enrolment_public_key
    assert loaded.tls_key_pem == keys.tls_key_pem


def test_keys_are_not_shown() -> None:
    """Printing a member's keys prints no key."""
    assert repr(MemberKeys.generate()) == "MemberKeys()"


def test_missing_and_swapped_keys_are_refused(tmp_path: Path) -> None:
    """A missing key names its file; a key of another kind is not used."""
    with pytest.raises(UnavailableError, match="E-KEY-MISSING"):
        MemberKeys.load(tmp_path)
    MemberKeys.generate().save(tmp_path)
    tls, enrolment = tmp_path / "tls-key.pem", tmp_path / "enrolment-key.pem"
    original = tls.read_bytes()
    tls.write_bytes(enrolment.read_bytes())
    with pytest.raises(TrustError, match="E-KEY-DAMAGED"):
        MemberKeys.load(tmp_path)
    tls.write_bytes(original[:40])
    with pytest.raises(TrustError, match="E-KEY-DAMAGED"):
        MemberKeys.load(tmp_path)


def test_a_request_shows_both_public_keys() -> None:
    """A request that both keys signed gives both public keys back."""
    keys = MemberKeys.generate()
    der = certificate_request(keys)
    request = verify_request(der, sign_request(keys, der))
    assert request.enrolment_public_key == keys.enrolment_public_key
    assert request.tls_public_key == keys.tls.public_key()
    assert request.node_id == keys.node_id


def test_nobody_enrols_a_key_that_they_do_not_hold() -> None:
    """The enrolment key must sign the very request, and nothing else counts as that signature."""
    keys, other = MemberKeys.generate(), MemberKeys.generate()
    der = certificate_request(keys)
    stolen = certificate_request(MemberKeys(tls=other.tls, enrolment=keys.enrolment))
    for signature in (sign_request(other, der), sign_request(keys, stolen), b"", bytes(64)):
        with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
            verify_request(der, signature)
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        verify_request(der, keys.enrolment.sign(der))  # without the context


def test_a_changed_request_is_refused() -> None:
    """The TLS key's signature covers the whole request."""
    keys = MemberKeys.generate()
    der = bytearray(certificate_request(keys))
    place = bytes(der).index(b"tacit member")
    der[place] ^= 1
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        verify_request(bytes(der), sign_request(keys, bytes(der)))


def request_with(uris: list[str], key: ec.EllipticCurvePrivateKey) -> bytes:
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["tacit:enrolment-key:"],
        ["tacit:enrolment-key:AAAA"],
        ["tacit:enrolment-key:***"],
        ["tacit:role:operator"],
        ["tacit:enrolment-key:" + "A" * 43, "tacit:role:operator"],
        ["tacit:enrolment-key:" + "A" * 43, "tacit:enrolment-key:" + "B" * 43],
    ],
)
def test_a_request_carries_one_enrolment_key_and_nothing_else(uris: list[str]) -> None:
    """A request cannot ask for a role, nor leave its key in doubt."""
    der = request_with(uris, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        verify_request(der, bytes(64))


def test_another_curve_is_refused() -> None:
    """Only P-256 goes into certificates: that is what TLS here is tested with."""
    public = "tacit:enrolment-key:" + "A" * 43
    der = request_with([public], ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(TrustError, match="P-256"):
        verify_request(der, bytes(64))


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Whatever arrives as a request is refused with our own error."""
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        verify_request(data, ed25519.Ed25519PrivateKey.generate().sign(data))
    with pytest.raises(TrustError, match="more than"):
        verify_request(bytes(5000), b"")


@pytest.mark.parametrize("name", ["a", "st-marys-2", "0", "a" * 40])
def test_member_names(name: str) -> None:
    """Lower-case letters, digits and hyphens make a name."""
    assert check_member_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a" * 41, "a_b", "a.b", "a/b", "ä", "a\n", " a"])
def test_other_names_are_refused(name: str) -> None:
    """What could be mistaken for a path, a host or another name is refused."""
    with pytest.raises(ConfigError, match="E-MEMBER-NAME"):
        check_member_name(name)
