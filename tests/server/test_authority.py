"""Membership over a real database: tokens, names, keys, renewal and revocation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tacit.core.errors import RefusedError, TrustError, UsageError
from tacit.core.identity import (
    Authority,
    MemberKeys,
    Role,
    certificate_request,
    identity_of,
    sign_request,
)
from tacit.server.authority import Enrolled, Membership, Terms, list_members
from tacit.server.store import Store, open_store
from tacit.server.tables import members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.core.identity import Token

DAY_S = 86400.0
TERMS = Terms(addresses=("a:1",), enrolment_addresses=("a:2",), certificate_days=10, max_clients=2)


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    store: Store
    authority: Authority
    clock: Clock = field(default_factory=Clock)

    def membership(self) -> Membership:
        return Membership(self.store, self.authority, TERMS, now=self.clock)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_store(tmp_path / "store.sqlite3") as store:
        yield World(store, Authority.create("test"))


def spend(membership: Membership, token: Token, keys: MemberKeys) -> Enrolled:
    request = certificate_request(keys)
    return membership.enrol(
        token.invitation_id,
        token.secret,
        request_der=request,
        signature=sign_request(keys, request),
        software_version="1",
    )


def test_an_invited_member_is_what_the_invitation_says(world: World) -> None:
    """Name, role and node id come from invitation and keys, and the certificate is accepted."""
    membership, keys = world.membership(), MemberKeys.generate()
    enrolled = spend(membership, membership.invite("a", Role.CLIENT, ttl_s=60), keys)
    identity = identity_of(enrolled.certificate_der)
    assert (identity.name, identity.role, identity.node_id) == ("a", Role.CLIENT, keys.node_id)
    membership.verify(identity)
    world.membership().verify(identity)


def test_a_lost_answer_can_be_asked_for_again_by_the_same_keys_only(world: World) -> None:
    """The same certificate comes back; other keys are refused."""
    membership, keys = world.membership(), MemberKeys.generate()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    first = spend(membership, token, keys)
    assert spend(membership, token, keys) == first
    with pytest.raises(TrustError, match="E-TOKEN-USED"):
        spend(membership, token, MemberKeys.generate())


def test_a_newer_invitation_withdraws_the_older(world: World) -> None:
    """Only the newest token for a name works."""
    membership = world.membership()
    old = membership.invite("a", Role.CLIENT, ttl_s=60)
    new = membership.invite("a", Role.CLIENT, ttl_s=60)
    with pytest.raises(TrustError, match="E-TOKEN-WITHDRAWN"):
        spend(membership, old, MemberKeys.generate())
    spend(membership, new, MemberKeys.generate())


def test_a_token_ends(world: World) -> None:
    """At its end it is refused by the server's own clock."""
    membership = world.membership()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    world.clock.now += 60
    with pytest.raises(TrustError, match="E-TOKEN-EXPIRED"):
        spend(membership, token, MemberKeys.generate())


def test_an_unknown_invitation_looks_like_a_wrong_secret(world: World) -> None:
    """Nobody learns which invitations exist."""
    membership = world.membership()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    keys = MemberKeys.generate()
    request = certificate_request(keys)
    for invitation, secret in ((token.invitation_id, bytes(32)), ("nothing", token.secret)):
        with pytest.raises(TrustError, match="E-TOKEN-WRONG"):
            membership.enrol(
                invitation,
                secret,
                request_der=request,
                signature=sign_request(keys, request),
                software_version="",
            )


def test_a_request_that_another_key_signed_spends_nothing(world: World) -> None:
    """The token is as good as before."""
    membership, keys = world.membership(), MemberKeys.generate()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    request = certificate_request(keys)
    with pytest.raises(TrustError, match="E-REQUEST-INVALID"):
        membership.enrol(
            token.invitation_id,
            token.secret,
            request_der=request,
            signature=sign_request(MemberKeys.generate(), request),
            software_version="",
        )
    spend(membership, token, keys)


def test_revocation_ends_every_certificate_and_the_key(world: World) -> None:
    """The certificate is refused, the name is free again, the key never comes back."""
    membership, keys = world.membership(), MemberKeys.generate()
    enrolled = spend(membership, membership.invite("a", Role.CLIENT, ttl_s=60), keys)
    assert membership.revoke("a", "why") == (1, [keys.node_id])
    with pytest.raises(TrustError, match="E-MEMBER-REVOKED"):
        membership.verify(identity_of(enrolled.certificate_der))
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    with pytest.raises(TrustError, match="E-KEY-KNOWN"):
        spend(membership, token, keys)
    spend(membership, token, MemberKeys.generate())


def test_revoking_an_invitation_withdraws_it(world: World) -> None:
    """A token that went astray can be taken back."""
    membership = world.membership()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    membership.revoke("a", "lost")
    with pytest.raises(TrustError, match="E-TOKEN-WITHDRAWN"):
        spend(membership, token, MemberKeys.generate())


def test_a_name_is_taken_until_its_certificates_end(world: World) -> None:
    """A second member of the name is refused; after the end it may be invited again."""
    membership = world.membership()
    spend(membership, membership.invite("a", Role.CLIENT, ttl_s=60), MemberKeys.generate())
    with pytest.raises(UsageError, match="E-MEMBER-EXISTS"):
        membership.invite("a", Role.CLIENT, ttl_s=60)
    world.clock.now += 10 * DAY_S + 1
    membership.invite("a", Role.CLIENT, ttl_s=60)


def test_a_certificate_ends(world: World) -> None:
    """Expiry is checked on each call, by the server's clock."""
    membership = world.membership()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    identity = identity_of(spend(membership, token, MemberKeys.generate()).certificate_der)
    world.clock.now += 10 * DAY_S + 1
    with pytest.raises(TrustError, match="E-CERTIFICATE-EXPIRED"):
        membership.verify(identity)


def test_renewal_keeps_the_enrolment_key(world: World) -> None:
    """Fresh TLS key, same node; a request with another enrolment key is refused."""
    membership, keys = world.membership(), MemberKeys.generate()
    token = membership.invite("a", Role.CLIENT, ttl_s=60)
    identity = identity_of(spend(membership, token, keys).certificate_der)
    fresh = MemberKeys(tls=MemberKeys.generate().tls, enrolment=keys.enrolment)
    request = certificate_request(fresh)
    renewed = membership.renew(
        identity, request_der=request, signature=sign_request(fresh, request)
    )
    membership.verify(identity_of(renewed.certificate_der))
    assert renewed.node_id == identity.node_id
    other = MemberKeys.generate()
    request = certificate_request(other)
    with pytest.raises(TrustError, match="E-RENEW-KEY"):
        membership.renew(identity, request_der=request, signature=sign_request(other, request))


def test_clients_are_told_of_the_clients_that_are_enrolled_now(world: World) -> None:
    """Name, key and latest certificate; no operator, and nobody who is revoked or has ended."""
    membership = world.membership()
    keys = {name: MemberKeys.generate() for name in ("b", "a", "op")}
    enrolled = {
        name: spend(
            membership,
            membership.invite(name, Role.OPERATOR if name == "op" else Role.CLIENT, ttl_s=60),
            keys[name],
        )
        for name in keys
    }
    told = membership.directory()
    assert [(each.name, each.enrolment_key, each.certificate_der) for each in told] == [
        (name, keys[name].enrolment_public_key, enrolled[name].certificate_der)
        for name in ("a", "b")
    ]
    membership.revoke("b", "left")
    assert [each.name for each in membership.directory()] == ["a"]
    world.clock.now += TERMS.certificate_days * DAY_S
    assert membership.directory() == []


def test_renewal_tells_the_key_of_a_member_who_enrolled_before_keys_were_kept(
    world: World,
) -> None:
    """Until then the other clients are not told of it; afterwards, with the new certificate."""
    membership, keys = world.membership(), MemberKeys.generate()
    enrolled = spend(membership, membership.invite("a", Role.CLIENT, ttl_s=60), keys)
    with world.store.transaction() as connection:
        connection.execute(sa.update(members).values(enrolment_key=None))
    assert membership.directory() == []
    world.clock.now += DAY_S
    request = certificate_request(keys)
    renewed = membership.renew(
        identity_of(enrolled.certificate_der),
        request_der=request,
        signature=sign_request(keys, request),
    )
    (told,) = membership.directory()
    assert told.enrolment_key == keys.enrolment_public_key
    assert told.certificate_der == renewed.certificate_der


def test_there_are_not_more_clients_than_the_limit(world: World) -> None:
    """The third client is refused, an operator is not."""
    membership = world.membership()
    for name in ("a", "b"):
        spend(membership, membership.invite(name, Role.CLIENT, ttl_s=60), MemberKeys.generate())
    with pytest.raises(RefusedError, match="E-CLIENTS-LIMIT"):
        membership.invite("c", Role.CLIENT, ttl_s=60)
    membership.invite("o", Role.OPERATOR, ttl_s=60)


def test_the_list_shows_members_and_open_invitations(world: World) -> None:
    """And neither secrets nor spent tokens."""
    membership = world.membership()
    spend(membership, membership.invite("a", Role.CLIENT, ttl_s=60), MemberKeys.generate())
    spend(membership, membership.invite("b", Role.AUDITOR, ttl_s=60), MemberKeys.generate())
    membership.revoke("b", "x")
    membership.invite("c", Role.CLIENT, ttl_s=60)
    found = [(m.name, m.role, m.state) for m in list_members(world.store, now=world.clock())]
    assert found == [
        ("a", "client", "enrolled"),
        ("b", "auditor", "revoked"),
        ("c", "client", "invited"),
    ]


def test_secrets_are_not_in_the_database(world: World, tmp_path: Path) -> None:
    """Whoever copies the database cannot enrol with it."""
    token = world.membership().invite("a", Role.CLIENT, ttl_s=60)
    data = b"".join(path.read_bytes() for path in tmp_path.glob("store.sqlite3*"))
    assert token.invitation_id.encode() in data
    assert token.secret not in data
