"""The other members: what the server tells of them, and whom this owner has pinned.

The server is also the authority, so nothing that it says of a member is proof: a certificate of its
own authority shows that the server contradicts itself, and no more. What counts is members.toml in
the node's state directory, which only the owner writes: after six words were compared with the
other owner, or from a file that the other owner handed over.

The rules:

1. This node is always a member, under the name of its certificate and with the key that it holds;
   whoever says otherwise, file or server, is refused.
2. A pinned name keeps its key. Another key under it is refused until the owner unpins the name.
3. A key stands under one name.
4. Each client that the server tells of has a certificate of the authority, for that name, as a
   client, and for that very key; otherwise the whole answer is refused.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from cryptography.exceptions import InvalidSignature

from tacit.client.delivery import CALL_TIMEOUT_S
from tacit.core.certificates import identity_of, load_certificate
from tacit.core.errors import ProtocolError, TrustError, UnavailableError, UsageError
from tacit.core.fingerprint import fingerprint_of, verify_fingerprint
from tacit.core.keys import Role, sha256_of_key
from tacit.core.members import MEMBERS_FILE, load_members, save_members
from tacit.protos import fleet_pb2
from tacit.protos.channel import client_channel
from tacit.protos.failures import error_from_rpc
from tacit.protos.frames import open_fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cryptography import x509

    from tacit.core.errors import TacitError
    from tacit.core.membership import Membership

_MAX_MEMBERS = 10_000  # clients in one answer; a server's own limit is 1000 unless it says more


@dataclass(frozen=True, kw_only=True)
class PinnedMembers:
    """Whom an owner trusts to be a member; every change is a new value.

    Attributes:
        own_name: this node's own name.
        keys: raw Ed25519 enrolment keys (32 bytes) by name, this node's own among them.
    """

    own_name: str
    keys: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def others(self) -> dict[str, bytes]:
        """The pinned keys without this node's own."""
        return {name: key for name, key in self.keys.items() if name != self.own_name}

    def pin(self, keys: Mapping[str, bytes]) -> PinnedMembers:
        """Add members, all or none.

        Raises:
            TrustError: a name has another key here (E-MEMBER-CHANGED), or a key another name
                (E-MEMBER-TWICE).
        """
        joined = dict(self.keys)
        for name, key in keys.items():
            _verify_new(joined, name, key, own=name == self.own_name)
            joined[name] = key
        return PinnedMembers(own_name=self.own_name, keys=joined)

    def unpin(self, name: str) -> PinnedMembers:
        """Take one member out.

        Raises:
            UsageError: E-MEMBER-UNKNOWN, the name is not pinned, or is this node's own.
        """
        if name not in self.others:
            raise UsageError(
                "E-MEMBER-UNKNOWN",
                f"expected the name of a pinned member, got {name!r}",
                hint=f"Pinned are: {', '.join(sorted(self.others)) or 'none'}.",
            )
        left = {each: key for each, key in self.keys.items() if each != name}
        return PinnedMembers(own_name=self.own_name, keys=left)


def load_pinned(folder: Path, membership: Membership) -> PinnedMembers:
    """Read members.toml of a state directory; where there is none, nobody but this node is pinned.

    Raises:
        ConfigError: the file is wrong; all problems are listed.
        TrustError: it gives this node another key, or its key another name.
        UnavailableError: this node is not enrolled, or the file cannot be read.
    """
    own = membership.identity.name
    pinned = PinnedMembers(own_name=own, keys={own: membership.keys.enrolment_public_key})
    path = folder / MEMBERS_FILE
    return pinned.pin(load_members(path)) if path.exists() else pinned


def save_pinned(folder: Path, pinned: PinnedMembers) -> None:
    """Replace members.toml of a state directory; this node's own key is not in it.

    Raises:
        UnavailableError: it cannot be written.
    """
    save_members(folder / MEMBERS_FILE, pinned.others)


def pin_by_words(
    pinned: PinnedMembers, told: Mapping[str, bytes], *, name: str, words: str
) -> PinnedMembers:
    """Pin the key that the server tells for a name, if its owner's six words are those of the key.

    Args:
        pinned: as it is now.
        told: the server's directory, as :func:`ask_members` returns it.
        name: whom to pin.
        words: what the member's owner read out.

    Raises:
        UsageError: nobody of that name is told of (E-MEMBER-UNKNOWN), it is this node's own
            (E-MEMBER-OWN), or these are no six words (E-FINGERPRINT-WORDS).
        TrustError: another key is pinned (E-MEMBER-CHANGED, E-MEMBER-TWICE), or the words are those
            of another key (E-MEMBER-FINGERPRINT).
    """
    if name == pinned.own_name:
        raise UsageError("E-MEMBER-OWN", f"{name} is this node itself: there is nothing to pin")
    if name not in told:
        raise UsageError(
            "E-MEMBER-UNKNOWN",
            f"expected the name of a client that the server tells of, got {name!r}",
            hint="`tacit client members show` lists them; a file of the other owner needs no "
            "server: `tacit client members pin --file`.",
        )
    after = pinned.pin({name: told[name]})
    verify_fingerprint(name, told[name], words)
    return after


class Standing(enum.Enum):
    """How what the server tells of a member stands to what is pinned."""

    OWN = "this node"
    PINNED = "pinned"
    UNTOLD = "pinned; the server does not tell of it"
    UNPINNED = "not pinned"
    CHANGED = "CHANGED: the server tells another key than the pinned one"


@dataclass(frozen=True, kw_only=True)
class MemberView:
    """One member as the owner sees it.

    Attributes:
        name: of the member.
        standing: see there.
        fingerprint: six words of the pinned key, or of the told one where none is pinned.
        told_fingerprint: six words of the key that the server tells; empty if it tells none.
    """

    name: str
    standing: Standing
    fingerprint: str
    told_fingerprint: str


def compare_members(
    pinned: PinnedMembers, told: Mapping[str, bytes] | None
) -> tuple[MemberView, ...]:
    """Return every member that is pinned or told of, by name; ``told`` is None if nobody told."""
    heard = {} if told is None else told
    return tuple(
        MemberView(
            name=name,
            standing=_standing(name, pinned, told),
            fingerprint=fingerprint_of(pinned.keys.get(name) or heard[name]),
            told_fingerprint=fingerprint_of(heard[name]) if name in heard else "",
        )
        for name in sorted({*pinned.keys, *heard})
    )


async def ask_members(membership: Membership) -> dict[str, bytes]:
    """Ask the server for its clients; return enrolment keys by name, checked by rule 4.

    Raises:
        TacitError: no address answers, or the server refuses, or its answer does not hold.
    """
    failure: TacitError = UnavailableError("E-SERVER-UNREACHABLE", "no address is known")
    for address in membership.addresses:
        channel = client_channel(
            address,
            authority_pem=membership.authority_pem,
            certificate_pem=membership.certificate_pem,
            key_pem=membership.key_pem,
        )
        entries: list[fleet_pb2.MemberEntry] = []
        async with channel:
            request = fleet_pb2.MembersRequest()
            try:
                async for entry in open_fleet(channel).Members(request, timeout=CALL_TIMEOUT_S):
                    entries.append(entry)
                    _verify_count(len(entries))
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
                continue
        return directory_of(entries, authority_pem=membership.authority_pem)
    raise failure


def directory_of(
    entries: Iterable[fleet_pb2.MemberEntry], *, authority_pem: bytes
) -> dict[str, bytes]:
    """Check a server's directory by rule 4; return enrolment keys by name.

    Raises:
        TrustError: E-MEMBER-CERTIFICATE, or E-MEMBER-TWICE.
    """
    authority = load_certificate(authority_pem)
    told: dict[str, bytes] = {}
    for entry in entries:
        _verify_entry(entry, authority)
        if entry.name in told or entry.enrolment_key in told.values():
            raise TrustError(
                "E-MEMBER-TWICE",
                f"expected each name and each key once, got {entry.name} or its key again",
                hint="The server contradicts itself: ask the operator, and pin nothing meanwhile.",
            )
        told[entry.name] = entry.enrolment_key
    return told


def _verify_entry(entry: fleet_pb2.MemberEntry, authority: x509.Certificate) -> None:
    try:
        certificate = load_certificate(entry.certificate)
        certificate.verify_directly_issued_by(authority)
        identity = identity_of(entry.certificate)
        key_hash = sha256_of_key(entry.enrolment_key).hex()
    except (InvalidSignature, ValueError, TypeError, TrustError) as error:
        raise _contradiction("a certificate of the federation's authority, and a key") from error
    told = (entry.name, Role.CLIENT, key_hash)
    if (identity.name, identity.role, identity.enrolment_key_sha256) != told:
        raise _contradiction("a certificate for the name, the role and the key beside it")


def _contradiction(what: str) -> TrustError:
    return TrustError(
        "E-MEMBER-CERTIFICATE",
        f"expected {what} with each member that the server tells of, got one without",
        hint="The server contradicts itself: ask the operator, and pin nothing meanwhile.",
    )


def _verify_count(count: int) -> None:
    if count > _MAX_MEMBERS:
        raise ProtocolError(
            "E-MEMBERS-LIMIT", f"expected at most {_MAX_MEMBERS} members, got more from the server"
        )


def _verify_new(keys: Mapping[str, bytes], name: str, key: bytes, *, own: bool) -> None:
    known = keys.get(name)
    if known is not None and known != key:
        whose = "of this node itself" if own else f"that is pinned for {name}"
        raise TrustError(
            "E-MEMBER-CHANGED",
            f"expected the key {whose} ({fingerprint_of(known)}), got another "
            f"({fingerprint_of(key)})",
            hint="Whoever gave you the other key does not know this node, or stands in its place: "
            "tell the other owners."
            if own
            else f"Ask {name}'s owner, on a channel that you trust, whether their node has "
            f"enrolled anew. If it has: `tacit client members unpin {name}`, then pin it with its "
            "new six words. If not, somebody stands in its place: leave the pin as it is, and tell "
            "the other owners.",
        )
    other = next((each for each, held in keys.items() if held == key and each != name), None)
    if other is not None:
        raise TrustError(
            "E-MEMBER-TWICE",
            f"expected a key of its own for {name}, got that of {other}",
            hint=f"One member under two names would count as two. If {other} is called {name} now: "
            f"`tacit client members unpin {other}` first.",
        )


def _standing(name: str, pinned: PinnedMembers, told: Mapping[str, bytes] | None) -> Standing:
    if name not in pinned.keys:
        return Standing.UNPINNED
    if told is not None and name in told and told[name] != pinned.keys[name]:
        return Standing.CHANGED
    if name == pinned.own_name:
        return Standing.OWN
    return Standing.PINNED if told is None or name in told else Standing.UNTOLD
