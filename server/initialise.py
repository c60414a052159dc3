"""``tacit server init``: a new federation's authority, server certificate, settings and operator.

Everything is made here and now, from this machine's randomness; nothing is fetched. The authority's
private key never leaves the state directory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.configuration import parse_toml
from tacit.core.errors import UsageError
from tacit.core.files import write_atomic
from tacit.core.identity import (
    Authority,
    MemberKeys,
    Role,
    certificate_request,
    sign_request,
)
from tacit.core.profiles import (
    DEFAULT_PROFILE,
    Profile,
    profile_folder,
    profile_names,
    save_profile,
)
from tacit.core.state import open_state
from tacit.server.authority import Membership
from tacit.server.certificate import make_server_certificate
from tacit.server.configuration import ServerConfig
from tacit.server.daemon import AUTHORITY_FOLDER, CONFIG_FILE, terms_of
from tacit.server.store import STORE_FILE, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SAMPLE = """\
# Settings of the Tacit server daemon. Every key, with its default: tacit config show server.toml

# How members reach this server; the certificate and every token carry these names.
names = [{names}]
listen = "{listen}"                     # the service: mutual TLS
enrolment_listen = "{enrolment_listen}"           # enrolment: TLS and a token

# What a receipt survives: "kill" (the death of the process) or "power" (loss of power, slower).
journal = "kill"

[limits]
# max_update_bytes = 2147483648         # one payload
# max_spool_bytes = 68719476736         # payloads of all runs together
# max_concurrent_runs = 2
# uploads_at_once = 3

[times]
# heartbeat_s = 10.0
# grace_s = 30.0                        # a node gone for longer does not hold up a round
# certificate_days = 90                 # members' certificates
"""


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """What was made.

    Attributes:
        home: the state directory.
        profile: the first operator's profile.
        addresses: where the service will be.
    """

    home: Path
    profile: Profile
    addresses: tuple[str, ...]


def initialise(
    home: Path,
    *,
    names: Sequence[str],
    listen: str = "0.0.0.0:7443",
    enrolment_listen: str = "0.0.0.0:7444",
    profile: str = "",
    operator: str = "operator",
    operator_home: Path | None = None,
) -> Initialised:
    """Make a new federation.

    Args:
        home: the state directory; it must not hold a federation yet.
        names: host names and IP addresses by which members reach this server.
        listen: where the service listens.
        enrolment_listen: where enrolment listens.
        profile: name of the operator's profile; ``default`` unless that is taken.
        operator: member name of the first operator.
        operator_home: where profiles are stored; the usual place unless given.

    Raises:
        UsageError: there is a federation already, or the profile's name is taken.
        ConfigError: a name or address is malformed.
        TrustError: the state directory is open to others.
    """
    text = _settings(names, listen, enrolment_listen)
    config = parse_toml(text, ServerConfig, source=CONFIG_FILE, environ={}).value
    state = open_state(home, create=True)
    if (state.path / CONFIG_FILE).exists() or (state.path / AUTHORITY_FOLDER).exists():
        raise UsageError(
            "E-SERVER-INITIALISED",
            f"expected an empty state directory, got a federation in {state.path}",
            hint="Choose another one with --home; this one is left as it is.",
        )
    chosen = _free_profile(profile, operator_home)
    with state.lock():
        authority = Authority.create(f"tacit authority of {names[0]}")
        make_server_certificate(state.path, authority, config.names)
        authority.save(state.path / AUTHORITY_FOLDER)
        with open_store(state.path / STORE_FILE) as store:
            membership = Membership(store, authority, terms_of(config), now=time.time)
            saved = _enrol_operator(membership, operator, chosen, operator_home)
        write_atomic(state.path / CONFIG_FILE, text.encode("utf-8"))
    return Initialised(home=state.path, profile=saved, addresses=saved.addresses)


def _settings(names: Sequence[str], listen: str, enrolment_listen: str) -> str:
    quoted = ", ".join(_quoted(name) for name in names)
    return _SAMPLE.format(
        names=quoted, listen=_escaped(listen), enrolment_listen=_escaped(enrolment_listen)
    )


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)


def _free_profile(wanted: str, home: Path | None) -> str:
    taken = profile_names(home=home)
    if (wanted or DEFAULT_PROFILE) not in taken:
        return wanted or DEFAULT_PROFILE
    raise UsageError(
        "E-PROFILE-EXISTS",
        f"expected a free profile name, got {wanted or DEFAULT_PROFILE!r}, which is the operator "
        f"profile of a federation already ({profile_folder(wanted or DEFAULT_PROFILE, home=home)})",
        hint="Give this federation's profile another name: `tacit server init ... --profile NAME`, "
        "then `tacit run ... --profile NAME`.",
    )


def _enrol_operator(
    membership: Membership, operator: str, profile: str, home: Path | None
) -> Profile:
    """Enrol the first operator through the same rules as everybody else."""
    token = membership.invite(operator, Role.OPERATOR, ttl_s=3600)
    keys = MemberKeys.generate()
    request = certificate_request(keys)
    enrolled = membership.enrol(
        token.invitation_id,
        token.secret,
        request_der=request,
        signature=sign_request(keys, request),
        software_version="",
    )
    return save_profile(
        profile,
        keys=keys,
        certificate_der=enrolled.certificate_der,
        authority_der=token.authority_der,
        addresses=token.addresses,
        enrolment_addresses=token.enrolment_addresses,
        home=home,
    )
