from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import TrustError
from tacit.core.identity import Role, Token, encode_token, parse_token, verify_token_fresh

TOKEN = Token(
    addresses=("fl.example.org:7443", "10.0.0.7:7443"),
    enrolment_addresses=("fl.example.org:7444",),
    authority_der=bytes(range(250)),
    invitation_id="3f2a",
    secret=bytes(range(32)),
    name="st-marys",
    role=Role.CLIENT,
    expires_at=dt.datetime(2027, 1, 1, tzinfo=dt.UTC),
)

texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=30)


@given(
    st.lists(texts, min_size=1, max_size=3),
    st.binary(min_size=1, max_size=400),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(Role),
    st.integers(0, 2**33),
)
def test_a_token_is_read_as_it_was_written(
    addresses: list[str], authority: bytes, secret: bytes, role: Role, expires_s: int
) -> None:
    """Whatever the token holds, one line of text carries it."""
    token = dataclasses.replace(
        TOKEN,
        addresses=tuple(addresses),
        authority_der=authority,
        secret=secret,
        role=role,
        expires_at=dt.datetime.fromtimestamp(expires_s, dt.UTC),
    )
    text = encode_token(token)
    assert text.startswith("tacit1_")
    assert text.isascii()
    assert len(text.split()) == 1
    assert parse_token(text) == token


def test_copying_may_add_white_space() -> None:
    """Line breaks and blanks from a terminal or a mail do no harm."""
    text = encode_token(TOKEN)
    assert parse_token(f"  {text[:50]}\n  {text[50:]}\r\n") == TOKEN


def test_the_secret_is_not_shown() -> None:
    """Printing a token does not print what makes it worth stealing."""
    assert str(TOKEN.secret) not in repr(TOKEN)
    assert TOKEN.secret.hex() not in repr(TOKEN)


@given(st.integers(0, len(encode_token(TOKEN)) - 1))
def test_a_cut_token_is_refused(length: int) -> None:
    """A token of which a part is missing is named as such."""
    with pytest.raises(TrustError, match="E-TOKEN-MALFORMED"):
        parse_token(encode_token(TOKEN)[:length])


@given(st.integers(7, len(encode_token(TOKEN)) - 1), st.sampled_from("AbZ9-_.é"))
def test_a_changed_token_is_refused_or_unchanged(place: int, letter: str) -> None:
    """One wrong character never yields another token."""
    text = encode_token(TOKEN)
    try:
        assert parse_token(text[:place] + letter + text[place + 1 :]) == TOKEN
    except TrustError as error:
        code = error.code
    else:
        code = "E-TOKEN-MALFORMED"
    assert code == "E-TOKEN-MALFORMED"


@given(st.binary(max_size=200))
def test_no_content_breaks_the_reader(body: bytes) -> None:
    """Content with a right checksum but a wrong form is refused with our own error."""
    checked = body + hashlib.sha256(body).digest()[:4]
    text = "tacit1_" + base64.urlsafe_b64encode(checked).decode().rstrip("=")
    with pytest.raises(TrustError, match="E-TOKEN-MALFORMED"):
        parse_token(text)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a":[]}',
        b'{"a":[],"e":["x:1"],"i":"1","n":"a","r":"client","x":1}',
        b'{"a":["x:1"],"e":["x:1"],"i":"1","n":"A","r":"client","x":1}',
        b'{"a":["x:1"],"e":["x:1"],"i":"1","n":"a","r":"root","x":1}',
        b'{"a":["x:1"],"e":["x:1"],"i":1,"n":"a","r":"client","x":1}',
        b'{"a":["x\\u001b:1"],"e":["x:1"],"i":"1","n":"a","r":"client","x":1}',
        b'{"a":["x:1"],"e":["x:1"],"i":"1","n":"a","r":"client","x":1e400}',
        b'{"a":["x:1"],"e":["x:1"],"i":"1","n":"a","r":"client","x":99999999999999999}',
    ],
)
def test_headers_are_read_strictly(header: bytes) -> None:
    """Names, roles, addresses and times outside their form are refused."""
    body = len(header).to_bytes(2, "big") + header + bytes(32) + b"authority"
    text = base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:4]).decode()
    with pytest.raises(TrustError, match="E-TOKEN-MALFORMED"):
        parse_token("tacit1_" + text)


def test_an_expired_token_is_refused() -> None:
    """The moment of expiry is the first at which it no longer holds."""
    verify_token_fresh(TOKEN, now=TOKEN.expires_at - dt.timedelta(seconds=1))
    with pytest.raises(TrustError, match="E-TOKEN-EXPIRED"):
        verify_token_fresh(TOKEN, now=TOKEN.expires_at)


def test_a_secret_has_one_length() -> None:
    """A short secret is a mistake of the caller, not a weaker token."""
    with pytest.raises(ValueError, match="32 bytes"):
        encode_token(dataclasses.replace(TOKEN, secret=b"short"))
