"""Who may take part: invitations, enrolment, renewal and revocation, decided over the store.

It trusts the caller to say what the time is and that a renewal came over mutual TLS. The rules:

1. An invitation is one random secret for one name and role, kept as SHA-256, with an end. A new
   invitation for a name withdraws the older ones.
2. The first request signed by both of the member's keys spends it. The same keys may ask again
   while it holds and get the same certificate (the answer may have been lost); any other key is
   refused.
3. A name belongs to one member at a time: it is free again once that member is revoked or its
   certificates have all ended. A revoked enrolment key never comes back.
4. A certificate is accepted while it is in the store, not revoked and within its time.
5. Renewal keeps name, role and enrolment key; only the TLS key may change.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tacit.core.errors import RefusedError, TrustError, UsageError
from tacit.core.identity import (
    Authority,
    MemberIdentity,
    MemberRequest,
    Role,
    Token,
    check_member_name,
    identity_of,
    verify_request,
)
from tacit.core.keys import sha256_of_key
from tacit.server.tables import certificates, invitations, members

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.server.store import Store


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a new or renewed member receives."""

    certificate_der: bytes
    name: str
    role: Role
    node_id: int


@dataclass(frozen=True, kw_only=True)
class MemberRecord:
    """One member or open invitation, for listings; ``state`` is invited, enrolled or revoked."""

    name: str
    role: str
    node_id: int = 0
    state: str
    enrolled_at_s: float = 0.0
    last_seen_at_s: float = 0.0
    expires_at_s: float = 0.0
    enrolment_key_sha256: str = ""
    software_version: str = ""


@dataclass(frozen=True, kw_only=True)
class ClientEntry:
    """One client, as the other clients are told of it."""

    name: str
    enrolment_key: bytes
    certificate_der: bytes


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The fixed conditions of membership.

    Attributes:
        addresses: what tokens name as the service.
        enrolment_addresses: what tokens name as the place to enrol.
        certificate_days: how long a member's certificate holds.
        max_clients: how many clients may be enrolled at a time.
    """

    addresses: tuple[str, ...]
    enrolment_addresses: tuple[str, ...]
    certificate_days: int
    max_clients: int


def verify_invitation_ttl(ttl_s: float) -> None:
    """Check how long a token is to hold.

    Raises:
        UsageError: E-INVITATION-TTL, it is less than a minute or more than 90 days.
    """
    if not 60 <= ttl_s <= 90 * 86400:
        raise UsageError(
            "E-INVITATION-TTL",
            f"expected a token that holds for 60 s to 90 days, got {ttl_s:g} s",
            hint="`tacit server invite --ttl-hours` takes 0.0167 (a minute) to 2160 (90 days).",
        )


class Membership:
    """The federation's members; see the module for the rules."""

    def __init__(
        self, store: Store, authority: Authority, terms: Terms, *, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._authority = authority
        self._terms = terms
        self._now = now
        self._accepted = self._load_accepted()

    @property
    def authority(self) -> Authority:
        """The certificate authority."""
        return self._authority

    def invite(self, name: str, role: Role, *, ttl_s: float) -> Token:
        """Make a token for a new member (rule 1).

        Raises:
            ConfigError: the name is not a member name.
            UsageError: the name is taken (E-MEMBER-EXISTS), or the time is out of range.
            RefusedError: there are as many clients as the limits allow.
        """
        check_member_name(name)
        now = self._now()
        verify_invitation_ttl(ttl_s)
        secret = secrets.token_bytes(32)
        token = Token(
            addresses=self._terms.addresses,
            enrolment_addresses=self._terms.enrolment_addresses,
            authority_der=self._authority.der,
            invitation_id=secrets.token_hex(8),
            secret=secret,
            name=name,
            role=role,
            expires_at=dt.datetime.fromtimestamp(int(now + ttl_s), dt.UTC),
        )
        with self._store.transaction() as connection:
            self._verify_name_free(connection, name, now)
            if role is Role.CLIENT:
                self._verify_room(connection, now)
            connection.execute(
                sa.update(invitations)
                .where(invitations.c.name == name, invitations.c.member_id.is_(None))
                .values(withdrawn=True)
            )
            connection.execute(
                sa.insert(invitations).values(
                    invitation_id=token.invitation_id,
                    name=name,
                    role=role.value,
                    secret_sha256=hashlib.sha256(secret).digest(),
                    created_at_s=now,
                    expires_at_s=token.expires_at.timestamp(),
                    withdrawn=False,
                )
            )
        return token

    def enrol(
        self,
        invitation_id: str,
        secret: bytes,
        *,
        request_der: bytes,
        signature: bytes,
        software_version: str,
    ) -> Enrolled:
        """Turn a token and a certificate request into a certificate (rule 2).

        Raises:
            TrustError: the token is wrong, withdrawn, used or ended, or the request is not signed
                by both keys.
            RefusedError: there are as many clients as the limits allow.
        """
        now = self._now()
        request = verify_request(request_der, signature)
        with self._store.transaction() as connection:
            query = sa.select(invitations).where(invitations.c.invitation_id == invitation_id)
            row = connection.execute(query).mappings().first()
            found = b"" if row is None else row["secret_sha256"]
            if not hmac.compare_digest(found, hashlib.sha256(secret).digest()) or row is None:
                raise TrustError("E-TOKEN-WRONG", "expected a token of this server, got another")
            _verify_usable(row, now)
            if row["member_id"] is not None:
                return self._answer_again(connection, row["member_id"], request)
            return self._admit(connection, row, request, request_der, software_version[:40])

    def renew(self, identity: MemberIdentity, *, request_der: bytes, signature: bytes) -> Enrolled:
        """Give a member a fresh certificate (rule 5).

        Raises:
            TrustError: the request is not signed by both keys, or has another enrolment key.
        """
        request = verify_request(request_der, signature)
        if sha256_of_key(request.enrolment_public_key).hex() != identity.enrolment_key_sha256:
            raise TrustError(
                "E-RENEW-KEY", "expected the enrolment key of the certificate, got another"
            )
        with self._store.transaction() as connection:
            query = sa.select(certificates.c.member_id).where(
                certificates.c.serial == identity.serial
            )
            member_id = connection.execute(query).scalar_one()
            connection.execute(
                sa.update(members)
                .where(members.c.member_id == member_id)
                .values(enrolment_key=request.enrolment_public_key)
            )
            return self._issue(
                connection, member_id, request_der, name=identity.name, role=identity.role
            )

    def revoke(self, name: str, reason: str) -> tuple[int, list[int]]:
        """End a membership or an invitation; return how many certificates, and which nodes.

        Raises:
            UsageError: nobody of that name is enrolled or invited (E-MEMBER-UNKNOWN).
        """
        now = self._now()
        with self._store.transaction() as connection:
            query = sa.select(members.c.member_id, members.c.node_id).where(
                members.c.name == name, members.c.revoked_at_s.is_(None)
            )
            rows = connection.execute(query).all()
            withdrawn = connection.execute(
                sa.update(invitations)
                .where(
                    invitations.c.name == name,
                    invitations.c.member_id.is_(None),
                    invitations.c.withdrawn.is_(False),
                )
                .values(withdrawn=True)
            ).rowcount
            if not rows and not withdrawn:
                raise UsageError(
                    "E-MEMBER-UNKNOWN",
                    f"expected the name of a member or an invitation, got {name!r}",
                    hint="`tacit server members` lists them.",
                )
            ids = [row.member_id for row in rows]
            connection.execute(
                sa.update(members)
                .where(members.c.member_id.in_(ids))
                .values(revoked_at_s=now, revoked_reason=reason)
            )
            ended = connection.execute(
                sa.update(certificates)
                .where(certificates.c.member_id.in_(ids), certificates.c.revoked.is_(False))
                .values(revoked=True)
            ).rowcount
        self._accepted = self._load_accepted()
        return ended, [row.node_id for row in rows if row.node_id]

    def verify(self, identity: MemberIdentity) -> None:
        """Check that a certificate is accepted now (rule 4); called on each call.

        Raises:
            TrustError: it is revoked or unknown (E-MEMBER-REVOKED) or has ended
                (E-CERTIFICATE-EXPIRED).
        """
        if self._now() >= identity.not_after.timestamp():
            raise TrustError("E-CERTIFICATE-EXPIRED", f"the certificate of {identity.name} ended")
        if identity.serial not in self._accepted:
            raise TrustError("E-MEMBER-REVOKED", f"the certificate of {identity.name} is revoked")

    def touch(self, node_id: int, software_version: str = "") -> None:
        """Note that a client was here."""
        values: dict[str, object] = {"last_seen_at_s": self._now()}
        if software_version:
            values["software_version"] = software_version[:40]
        with self._store.transaction() as connection:
            connection.execute(
                sa.update(members).where(members.c.node_id == node_id).values(**values)
            )

    def names(self) -> dict[int, str]:
        """Return clients' names by node id, the revoked ones included."""
        with self._store.reading() as connection:
            query = sa.select(members.c.node_id, members.c.name).order_by(members.c.member_id)
            return {row.node_id: row.name for row in connection.execute(query) if row.node_id}

    def directory(self) -> list[ClientEntry]:
        """Return the clients that hold a certificate now, by name."""
        query = (
            sa.select(members.c.name, members.c.enrolment_key, certificates.c.der)
            .join(certificates)
            .where(
                members.c.role == Role.CLIENT.value,
                members.c.enrolment_key.is_not(None),
                members.c.revoked_at_s.is_(None),
                certificates.c.revoked.is_(False),
                certificates.c.not_after_s > self._now(),
            )
            .order_by(members.c.name, certificates.c.issued_at_s)
        )
        with self._store.reading() as connection:
            latest = {row.name: row for row in connection.execute(query)}
        return [
            ClientEntry(name=name, enrolment_key=row.enrolment_key, certificate_der=row.der)
            for name, row in latest.items()
        ]

    def _load_accepted(self) -> frozenset[str]:
        with self._store.reading() as connection:
            query = sa.select(certificates.c.serial).where(certificates.c.revoked.is_(False))
            return frozenset(connection.execute(query).scalars())

    def _verify_name_free(self, connection: sa.Connection, name: str, now: float) -> None:
        query = _holding(now).where(members.c.name == name)
        if connection.execute(query).first() is not None:
            raise UsageError(
                "E-MEMBER-EXISTS",
                f"expected a name that is free, got {name!r}, which is enrolled",
                hint=f"Revoke it first (`tacit server revoke {name}`), or choose another name.",
            )

    def _verify_room(self, connection: sa.Connection, now: float) -> None:
        query = _holding(now).where(members.c.role == Role.CLIENT.value)
        if len(connection.execute(query).all()) >= self._terms.max_clients:
            raise RefusedError(
                "E-CLIENTS-LIMIT",
                f"expected fewer than {self._terms.max_clients} enrolled clients",
                hint="Raise [limits] max_clients in server.toml, or revoke members who left.",
            )

    def _admit(
        self,
        connection: sa.Connection,
        row: sa.RowMapping,
        request: MemberRequest,
        request_der: bytes,
        software_version: str,
    ) -> Enrolled:
        now, role = self._now(), Role(row["role"])
        key_hash = sha256_of_key(request.enrolment_public_key).hex()
        query = sa.select(members.c.member_id).where(members.c.enrolment_key_sha256 == key_hash)
        if connection.execute(query).first() is not None:
            raise TrustError(
                "E-KEY-KNOWN",
                "expected a fresh enrolment key, got one that was enrolled before",
                hint="Enrol with new keys: use an empty state directory.",
            )
        self._verify_name_free(connection, row["name"], now)
        if role is Role.CLIENT:
            self._verify_room(connection, now)
        inserted = connection.execute(
            sa.insert(members).values(
                name=row["name"],
                role=role.value,
                node_id=request.node_id if role is Role.CLIENT else 0,
                enrolment_key_sha256=key_hash,
                enrolment_key=request.enrolment_public_key,
                enrolled_at_s=now,
                software_version=software_version,
            )
        )
        member_id = int((inserted.inserted_primary_key or (0,))[0])
        connection.execute(
            sa.update(invitations)
            .where(invitations.c.invitation_id == row["invitation_id"])
            .values(member_id=member_id)
        )
        return self._issue(connection, member_id, request_der, name=row["name"], role=role)

    def _issue(
        self,
        connection: sa.Connection,
        member_id: int,
        request_der: bytes,
        *,
        name: str,
        role: Role,
    ) -> Enrolled:
        now = self._now()
        der = self._authority.issue_member(
            request_der,
            name=name,
            role=role,
            days=self._terms.certificate_days,
            now=dt.datetime.fromtimestamp(now, dt.UTC),
        )
        identity = identity_of(der)
        connection.execute(
            sa.insert(certificates).values(
                serial=identity.serial,
                member_id=member_id,
                der=der,
                issued_at_s=now,
                not_after_s=identity.not_after.timestamp(),
                revoked=False,
            )
        )
        self._accepted |= {identity.serial}  # of no use to anybody before the commit
        return _enrolled(der)

    def _answer_again(
        self, connection: sa.Connection, member_id: int, request: MemberRequest
    ) -> Enrolled:
        query = (
            sa.select(certificates.c.der, members.c.enrolment_key_sha256)
            .join(members)
            .where(members.c.member_id == member_id, members.c.revoked_at_s.is_(None))
            .order_by(certificates.c.issued_at_s.desc())
        )
        row = connection.execute(query).first()
        key_hash = sha256_of_key(request.enrolment_public_key).hex()
        if row is None or row.enrolment_key_sha256 != key_hash:
            raise TrustError("E-TOKEN-USED", "expected an unused token, got one spent by others")
        return _enrolled(row.der)


def list_members(store: Store, *, now: float) -> list[MemberRecord]:
    """Return members and open invitations, by name; works on a read-only store."""
    ends = sa.func.max(certificates.c.not_after_s).label("expires_at_s")
    query = sa.select(members, ends).outerjoin(certificates).group_by(members.c.member_id)
    with store.reading() as connection:
        records = [
            MemberRecord(
                name=row.name,
                role=row.role,
                node_id=row.node_id,
                state="enrolled" if row.revoked_at_s is None else "revoked",
                enrolled_at_s=row.enrolled_at_s,
                last_seen_at_s=row.last_seen_at_s,
                expires_at_s=row.expires_at_s or 0.0,
                enrolment_key_sha256=row.enrolment_key_sha256,
                software_version=row.software_version,
            )
            for row in connection.execute(query)
        ]
        open_query = sa.select(invitations).where(
            invitations.c.member_id.is_(None),
            invitations.c.withdrawn.is_(False),
            invitations.c.expires_at_s > now,
        )
        records += [
            MemberRecord(
                name=row.name, role=row.role, state="invited", expires_at_s=row.expires_at_s
            )
            for row in connection.execute(open_query)
        ]
    return sorted(records, key=lambda record: (record.name, record.enrolled_at_s))


def _holding(now: float) -> sa.Select[tuple[int]]:
    """Select the members who hold a certificate that is accepted now."""
    return (
        sa.select(members.c.member_id)
        .join(certificates)
        .where(
            members.c.revoked_at_s.is_(None),
            certificates.c.revoked.is_(False),
            certificates.c.not_after_s > now,
        )
        .distinct()
    )


def _verify_usable(row: sa.RowMapping, now: float) -> None:
    if row["withdrawn"]:
        raise TrustError("E-TOKEN-WITHDRAWN", "expected a token that holds, got a withdrawn one")
    if now >= row["expires_at_s"]:
        raise TrustError("E-TOKEN-EXPIRED", "expected a token that holds, got one that ended")


def _enrolled(der: bytes) -> Enrolled:
    identity = identity_of(der)
    node_id = identity.node_id if identity.role is Role.CLIENT else 0
    return Enrolled(certificate_der=der, name=identity.name, role=identity.role, node_id=node_id)
