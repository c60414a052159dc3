from __future__ import annotations

import datetime as dt
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tacit.core.errors import ConfigError, TrustError, UnavailableError
from tacit.core.identity import (
    Authority,
    MemberKeys,
    Role,
    certificate_request,
    der_of,
    identity_of,
    load_certificate,
    pem_of,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("tests", now=NOW)


@pytest.fixture(scope="module")
def keys() -> MemberKeys:
    return MemberKeys.generate()


def member_certificate(authority: Authority, keys: MemberKeys, role: Role = Role.CLIENT) -> bytes:
    request = certificate_request(keys)
    return authority.issue_member(request, name="st-marys", role=role, days=90, now=NOW)


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_says_who_it_belongs_to(
    authority: Authority, keys: MemberKeys, role: Role
) -> None:
    """Name, role, node id and validity are read back, from DER and from PEM."""
    der = member_certificate(authority, keys, role)
    identity = identity_of(der)
    assert identity == identity_of(pem_of(der))
    assert (identity.name, identity.role, identity.node_id) == ("st-marys", role, keys.node_id)
    assert identity.not_before <= NOW
    assert identity.not_after == NOW + dt.timedelta(days=90)
    assert int(identity.serial, 16) == load_certificate(der).serial_number
    assert der_of(pem_of(der)) == der


def test_a_members_certificate_cannot_pass_for_a_servers(
    authority: Authority, keys: MemberKeys
) -> None:
    """Each certificate serves one purpose, and neither can sign further certificates."""
    server = authority.issue_server(keys.tls.public_key(), ["localhost"], 90, now=NOW)
    purposes = {}
    for name, der in (("member", member_certificate(authority, keys)), ("server", server)):
        extensions = load_certificate(der).extensions
        purposes[name] = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert purposes["member"] == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert purposes["server"] == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(TrustError, match="E-CERTIFICATE-IDENTITY"):
        identity_of(server)


@pytest.mark.parametrize("host", ["localhost", "fl.example.org", "10.0.0.7", "::1"])
def test_the_chain_holds_for_every_name(authority: Authority, keys: MemberKeys, host: str) -> None:
    """An independent verifier accepts the server's certificate for each of its names."""
    names = ["localhost", "fl.example.org", "10.0.0.7", "[::1]"]
    der = authority.issue_server(keys.tls.public_key(), names, 90, now=NOW)
    chain = verify(authority, der, host, at=NOW)
    assert len(chain) == 2


def verify(authority: Authority, der: bytes, host: str, *, at: dt.datetime) -> list[object]:
    alternative = load_certificate(der).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    names = {str(name.value): name for name in alternative.value}
    subject = names[host]
    assert isinstance(subject, (x509.DNSName, x509.IPAddress))
    verifier = PolicyBuilder().store(Store([authority.certificate])).time(at)
    return list(verifier.build_server_verifier(subject).verify(load_certificate(der), []))


def test_another_authority_or_time_is_refused(authority: Authority, keys: MemberKeys) -> None:
    """The same verifier refuses a foreign authority, and a certificate that has ended."""
    der = authority.issue_server(keys.tls.public_key(), ["localhost"], 90, now=NOW)
    foreign = Authority.create("foreign", now=NOW)
    with pytest.raises(VerificationError):
        verify(foreign, der, "localhost", at=NOW)
    with pytest.raises(VerificationError):
        verify(authority, der, "localhost", at=NOW + dt.timedelta(days=91))


def test_name_and_role_come_from_the_invitation(authority: Authority, keys: MemberKeys) -> None:
    """What is asked for wrongly is refused before anything is signed."""
    request = certificate_request(keys)
    with pytest.raises(ConfigError, match="E-MEMBER-NAME"):
        authority.issue_member(request, name="A B", role=Role.CLIENT, days=90)
    with pytest.raises(ConfigError, match="E-CERTIFICATE-DAYS"):
        authority.issue_member(request, name="a", role=Role.CLIENT, days=0)
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        authority.issue_member(request[:-1], name="a", role=Role.CLIENT, days=1)


@pytest.mark.parametrize("hosts", [[], [""], ["host:7443"], ["a/b"], ["a b"]])
def test_bad_host_names_are_refused(
    authority: Authority, keys: MemberKeys, hosts: list[str]
) -> None:
    """A server's names are hosts or addresses, without ports."""
    with pytest.raises(ConfigError, match="E-SERVER-NAME"):
        authority.issue_server(keys.tls.public_key(), hosts, 90)


def test_the_authority_survives_the_disk(tmp_path: Path, authority: Authority) -> None:
    """Saved and loaded, it signs certificates of the same chain; its key file is private."""
    authority.save(tmp_path / "authority")
    loaded = Authority.load(tmp_path / "authority")
    assert loaded.der == authority.der
    assert "key" not in repr(loaded).replace("Key", "")
    mode = (tmp_path / "authority" / "authority-key.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_an_authority_of_two_halves_is_refused(tmp_path: Path, authority: Authority) -> None:
    """Key and certificate must belong together, and both must be there."""
    with pytest.raises(UnavailableError, match="E-KEY-MISSING"):
        Authority.load(tmp_path)
    authority.save(tmp_path)
    (tmp_path / "authority.pem").write_bytes(Authority.create("other").pem)
    with pytest.raises(TrustError, match="E-KEY-DAMAGED"):
        Authority.load(tmp_path)
    (tmp_path / "authority.pem").unlink()
    with pytest.raises(UnavailableError, match="E-AUTHORITY-MISSING"):
        Authority.load(tmp_path)


def test_the_authority_fits_a_token(authority: Authority) -> None:
    """Its certificate is small enough to travel inside every token."""
    assert len(authority.der) < 400


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    """Anything else is refused with our own error."""
    with pytest.raises(TrustError, match="E-CERTIFICATE-DAMAGED"):
        identity_of(data)


@pytest.mark.parametrize(
    "uris",
    [
        ["tacit:role:client", "tacit:name:a"],
        ["tacit:role:client", "tacit:role:operator", "tacit:name:a", "tacit:enrolment:" + "0" * 64],
        ["tacit:role:root", "tacit:name:a", "tacit:enrolment:" + "0" * 64],
        ["tacit:role:client", "tacit:name:A", "tacit:enrolment:" + "0" * 64],
        ["tacit:role:client", "tacit:name:a", "tacit:enrolment:" + "0" * 62],
        ["tacit:role:client", "tacit:name:a", "tacit:enrolment:" + "A" * 64],
    ],
)
def test_an_identity_is_never_in_doubt(uris: list[str]) -> None:
    """Exactly one role, one name and one key hash, each in its one spelling."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TrustError, match="E-CERTIFICATE-IDENTITY"):
        identity_of(self_signed(key, uris))


def self_signed(key: ec.EllipticCurvePrivateKey, uris: list[str]) -> bytes:
    authority = Authority.create("x", now=NOW)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    return authority._sign(
        x509.Name([]),
        key.public_key(),
        names,
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        days=1,
        now=NOW,
    )
