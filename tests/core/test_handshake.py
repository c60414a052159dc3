from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import pytest

from tacit.core.identity import (
    Authority,
    MemberKeys,
    Role,
    certificate_request,
    identity_of,
    pem_of,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("tests")


def side(
    folder: Path, authority: Authority, certificate: bytes, key: bytes, *, server: bool
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    path = folder / f"{server}.pem"
    path.write_bytes(pem_of(certificate) + key)
    context.load_cert_chain(path)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes:
    """Run a TLS handshake in memory; return the client's certificate as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=host)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for end in (here, there):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    seen = there.getpeercert(binary_form=True)
    assert seen is not None
    return seen


def server_context(folder: Path, authority: Authority) -> ssl.SSLContext:
    keys = MemberKeys.generate()
    names = ["fl.example.org", "10.0.0.7", "::1"]
    certificate = authority.issue_server(keys.tls.public_key(), names, 1)
    return side(folder, authority, certificate, keys.tls_key_pem, server=True)


def member_context(
    folder: Path, authority: Authority, trusted: Authority, *, days_ago: int = 0
) -> ssl.SSLContext:
    keys = MemberKeys.generate()
    now = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
    request = certificate_request(keys)
    certificate = authority.issue_member(request, name="ana", role=Role.CLIENT, days=1, now=now)
    return side(folder, trusted, certificate, keys.tls_key_pem, server=False)


@pytest.mark.parametrize("host", ["fl.example.org", "10.0.0.7", "::1"])
def test_both_sides_know_each_other(tmp_path: Path, authority: Authority, host: str) -> None:
    """Mutual TLS holds by name and by address, and the server sees who the member is."""
    client = member_context(tmp_path, authority, authority)
    seen = shake_hands(server_context(tmp_path, authority), client, host)
    assert identity_of(seen).name == "ana"


def test_a_server_by_another_name_is_refused(tmp_path: Path, authority: Authority) -> None:
    """A member does not talk to a server whose certificate lacks the address it dialled."""
    client = member_context(tmp_path, authority, authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(tmp_path, authority), client, "other.example.org")


def test_a_member_of_another_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    """A certificate of another authority does not get past the handshake."""
    client = member_context(tmp_path, Authority.create("tests"), authority)
    with pytest.raises(ssl.SSLError):
        shake_hands(server_context(tmp_path, authority), client, "10.0.0.7")


def test_an_expired_member_is_refused(tmp_path: Path, authority: Authority) -> None:
    """A certificate that has ended does not get past the handshake."""
    client = member_context(tmp_path, authority, authority, days_ago=2)
    with pytest.raises(ssl.SSLError):
        shake_hands(server_context(tmp_path, authority), client, "10.0.0.7")


def test_a_members_certificate_does_not_serve(tmp_path: Path, authority: Authority) -> None:
    """A member who puts up a server with its own certificate is refused by other members."""
    keys = MemberKeys.generate()
    request = certificate_request(keys)
    certificate = authority.issue_member(request, name="eve", role=Role.CLIENT, days=1)
    server = side(tmp_path, authority, certificate, keys.tls_key_pem, server=True)
    client = member_context(tmp_path, authority, authority)
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        shake_hands(server, client, "10.0.0.7")
