"""Operators' and auditors' credentials, by name: ``<operator home>/profiles/<name>/``.

A profile is a membership (``core/membership.py``) that the command line finds by name, so that one
person can work with several federations from one account.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.errors import UnavailableError, UsageError
from tacit.core.membership import Membership, save_membership
from tacit.core.state import default_home, open_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tacit.core.keys import MemberKeys

DEFAULT_PROFILE = "default"

_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One person's access to one federation.

    Attributes:
        name: the profile's name on this machine.
        addresses: ``host:port`` of the server, in the order in which to try them.
        folder: where keys and certificates stand.
    """

    name: str
    addresses: tuple[str, ...]
    folder: Path

    @property
    def membership(self) -> Membership:
        """Keys, certificate and authority."""
        return Membership(self.folder)


def profile_folder(name: str, *, home: Path | None = None) -> Path:
    """Return where a profile stands.

    Raises:
        UsageError: the name would not make a folder of its own.
    """
    if not _PROFILE_NAME.fullmatch(name):
        raise UsageError(
            "E-PROFILE-NAME",
            f"expected a profile name of letters, digits, '-', '_' and '.', got {name!r}",
        )
    return (home or default_home("operator")) / "profiles" / name


def profile_names(*, home: Path | None = None) -> list[str]:
    """Return the names of the profiles on this machine, in order."""
    folder = (home or default_home("operator")) / "profiles"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if Membership(entry).exists)


def load_profile(
    name: str | None = None,
    *,
    home: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """Read a profile: the named one, else ``TACIT_PROFILE``, else ``default``, else the only one.

    Raises:
        UnavailableError: E-PROFILE-MISSING, naming the profiles that there are.
        TrustError: others can read the folder.
    """
    environment = os.environ if environ is None else environ
    names = profile_names(home=home)
    chosen = name or environment.get("TACIT_PROFILE") or DEFAULT_PROFILE
    if name is None and chosen not in names and len(names) == 1:
        chosen = names[0]
    if chosen not in names:
        known = f"there are: {', '.join(names)}" if names else "there are none"
        raise UnavailableError(
            "E-PROFILE-MISSING",
            f"expected a profile called {chosen!r}; {known}",
            hint="Name one with --profile, or enrol: tacit login TOKEN.",
        )
    folder = open_state(profile_folder(chosen, home=home), create=False).path
    return Profile(name=chosen, addresses=Membership(folder).addresses, folder=folder)


def save_profile(
    name: str,
    *,
    keys: MemberKeys,
    certificate_der: bytes,
    authority_der: bytes,
    addresses: Sequence[str],
    enrolment_addresses: Sequence[str] = (),
    home: Path | None = None,
) -> Profile:
    """Store a profile under its name, replacing the one that was there."""
    folder = profile_folder(name, home=home)
    save_membership(
        folder,
        keys=keys,
        certificate_der=certificate_der,
        authority_der=authority_der,
        addresses=addresses,
        enrolment_addresses=enrolment_addresses,
    )
    return Profile(name=name, addresses=tuple(addresses), folder=folder)
