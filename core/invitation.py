"""The token of an invitation: everything that a new member needs, in one line of text.

It carries the addresses, the authority's certificate (so that nothing is fetched and then
trusted), the invitation's id and its secret. Whoever holds the token may enrol once, so it is
handed over on a channel that both sides trust, and it expires. A checksum catches a line that was
cut off when it was copied; it protects against accidents, not against people.

Form: ``tacit1_`` and base64url of: two bytes header length, header (JSON), secret (32 bytes),
authority certificate (DER), four bytes of SHA-256 over all of that.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tacit.core.errors import TacitError, TrustError
from tacit.core.keys import Role, check_member_name

TOKEN_PREFIX = "tacit1_"  # noqa: S105 - the public beginning of every token
_SECRET_BYTES = 32
_CHECKSUM_BYTES = 4
_MAX_TOKEN_CHARACTERS = 16_384


@dataclass(frozen=True, kw_only=True)
class Token:
    """One invitation.

    Attributes:
        addresses: ``host:port`` of the service, in the order in which to try them.
        enrolment_addresses: ``host:port`` of the enrolment service.
        authority_der: the authority's certificate, the root of all trust.
        invitation_id: public name of the invitation.
        secret: 32 bytes that are spent by the first enrolment; never shown by ``repr``.
        name: what the new member will be called.
        role: what the new member may do.
        expires_at: when the invitation ends (UTC, whole seconds).
    """

    addresses: tuple[str, ...]
    enrolment_addresses: tuple[str, ...]
    authority_der: bytes = field(repr=False)
    invitation_id: str
    secret: bytes = field(repr=False)
    name: str
    role: Role
    expires_at: dt.datetime


def encode_token(token: Token) -> str:
    """Return the one line of text that :func:`parse_token` reads."""
    if len(token.secret) != _SECRET_BYTES:
        raise ValueError(f"expected a secret of {_SECRET_BYTES} bytes")
    header = json.dumps(
        {
            "a": list(token.addresses),
            "e": list(token.enrolment_addresses),
            "i": token.invitation_id,
            "n": token.name,
            "r": token.role.value,
            "x": int(token.expires_at.timestamp()),
        },
        separators=(",", ":"),
    ).encode("utf-8")
    body = len(header).to_bytes(2, "big") + header + token.secret + token.authority_der
    checksum = hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
    return TOKEN_PREFIX + base64.urlsafe_b64encode(body + checksum).decode("ascii").rstrip("=")


def parse_token(text: str) -> Token:
    """Read a token; white space from copying is ignored.

    Raises:
        TrustError: E-TOKEN-MALFORMED, when it is not a whole token.
    """
    body = _checked_body(text)
    length = int.from_bytes(body[:2], "big")
    header, rest = body[2 : 2 + length], body[2 + length :]
    if len(header) != length or len(rest) <= _SECRET_BYTES:
        raise _malformed("it is cut off")
    try:
        return _from_header(json.loads(header), rest[:_SECRET_BYTES], rest[_SECRET_BYTES:])
    except (ValueError, KeyError, TypeError, OverflowError, OSError, TacitError) as error:
        raise _malformed("its content cannot be read") from error


def verify_token_fresh(token: Token, *, now: dt.datetime) -> None:
    """Check that the invitation has not run out by this machine's clock.

    Raises:
        TrustError: E-TOKEN-EXPIRED.
    """
    if now >= token.expires_at:
        raise TrustError(
            "E-TOKEN-EXPIRED",
            f"expected a token that still holds, got one that ended {token.expires_at:%F %T} UTC",
            hint="Ask the operator for a new one; check the clock of this machine too.",
        )


def _checked_body(text: str) -> bytes:
    compact = "".join(text.split())
    if not compact.startswith(TOKEN_PREFIX):
        raise _malformed(f"it does not begin with {TOKEN_PREFIX}")
    if len(compact) > _MAX_TOKEN_CHARACTERS:
        raise _malformed("it is too long")
    encoded = compact.removeprefix(TOKEN_PREFIX)
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except ValueError as error:
        raise _malformed("it holds characters that no token has") from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest()[:_CHECKSUM_BYTES] != checksum:
        raise _malformed("its checksum does not match; it may be cut off")
    return body


def _from_header(header: Any, secret: bytes, authority_der: bytes) -> Token:  # noqa: ANN401 - JSON
    return Token(
        addresses=_texts(header["a"]),
        enrolment_addresses=_texts(header["e"]),
        authority_der=authority_der,
        invitation_id=_text(header["i"]),
        secret=secret,
        name=check_member_name(_text(header["n"])),
        role=Role(header["r"]),
        expires_at=dt.datetime.fromtimestamp(int(header["x"]), dt.UTC),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("expected text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list")
    return tuple(_text(item) for item in value)


def _malformed(why: str) -> TrustError:
    return TrustError(
        "E-TOKEN-MALFORMED",
        f"expected a whole token, as the operator handed it over: {why}",
        hint="Copy the token again, all of it, on one line.",
    )
