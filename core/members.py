"""members.toml: the members that an owner trusts, each by name and enrolment key.

The file is what secure aggregation verifies its members against, whatever the server says; it is
also what owners exchange::

    [members.st-marys]
    key = "<raw Ed25519 public key, 32 bytes in base64>"
    fingerprint = "<its six words>"

A fingerprint that is given is checked against its key. A name stands once (TOML itself refuses a
table that is declared twice), and so does a key: one member under two names would count as two.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping  # noqa: TC003 - read when the file is
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tacit.core.configuration import parse_toml, read_config_text
from tacit.core.errors import ConfigError, UsageError
from tacit.core.files import write_atomic
from tacit.core.fingerprint import fingerprint_of, parse_fingerprint
from tacit.core.keys import check_member_name, node_id_of

if TYPE_CHECKING:
    from pathlib import Path

MEMBERS_FILE = "members.toml"

_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class MemberEntry:
    """One table of members.toml.

    Attributes:
        key: the raw Ed25519 enrolment public key in base64.
        fingerprint: its six words; empty if none were written.
    """

    key: str
    fingerprint: str = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        try:
            words = fingerprint_of(self.public_key)
        except ValueError:
            yield "key", f"expected {_KEY_BYTES} bytes in base64, the member's enrolment key"
            return
        try:
            given = parse_fingerprint(self.fingerprint) if self.fingerprint else words
        except UsageError as error:
            yield "fingerprint", error.message
            return
        if given != words:
            yield "fingerprint", "these words are not those of the key beside them"

    @property
    def public_key(self) -> bytes:
        """The enrolment key, 32 bytes.

        Raises:
            ValueError: ``key`` is not one.
        """
        try:
            key = base64.b64decode(self.key, validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
        if len(key) != _KEY_BYTES:
            raise ValueError("not 32 bytes")
        return key


@dataclass(frozen=True, kw_only=True)
class MembersFile:
    """The whole of members.toml.

    Attributes:
        members: by name.
    """

    members: Mapping[str, MemberEntry] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        seen: dict[int, str] = {}
        for name, entry in self.members.items():
            try:
                check_member_name(name)
            except ConfigError as error:
                yield "members", error.message
            try:
                node_id = node_id_of(entry.public_key)
            except ValueError:
                continue  # told by the entry itself
            if node_id in seen:
                yield f"members.{name}", f"it has the key of {seen[node_id]}"
            seen.setdefault(node_id, name)


def load_members(path: Path) -> dict[str, bytes]:
    """Read members.toml: enrolment keys (32 bytes) by name.

    Raises:
        ConfigError: E-CONFIG-MISSING, or E-CONFIG with every problem of the file.
        UnavailableError: the file is there but cannot be read.
    """
    return parse_members(read_config_text(path), source=path.name)


def parse_members(text: str, *, source: str = MEMBERS_FILE) -> dict[str, bytes]:
    """Read the text of a members.toml; ``source`` is what messages call it.

    Raises:
        ConfigError: E-CONFIG with every problem of the text.
    """
    value = parse_toml(text, MembersFile, source=source).value
    return {name: entry.public_key for name, entry in value.members.items()}


def format_members(members: Mapping[str, bytes]) -> str:
    """Return members.toml for these enrolment keys, by name; the fingerprints stand beside them."""
    tables = (
        f'[members.{check_member_name(name)}]\nkey = "{base64.b64encode(key).decode("ascii")}"\n'
        f'fingerprint = "{fingerprint_of(key)}"\n'
        for name, key in sorted(members.items())
    )
    return "\n".join(tables)


def save_members(path: Path, members: Mapping[str, bytes]) -> None:
    """Replace members.toml in one step, with mode 0600.

    Raises:
        UnavailableError: it cannot be written.
    """
    write_atomic(path, format_members(members).encode("ascii"))
