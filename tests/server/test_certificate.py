"""The server's own certificate is kept while it is good, and made again when it is not."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from tacit.core.identity import Authority
from tacit.server.certificate import (
    ensure_server_certificate,
    make_server_certificate,
    read_server_certificate,
)

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("localhost", "10.0.0.7")


def test_a_good_certificate_stays(tmp_path: Path) -> None:
    """The order of the names does not matter."""
    authority, now = Authority.create("a"), dt.datetime.now(dt.UTC)
    make_server_certificate(tmp_path, authority, NAMES)
    before = read_server_certificate(tmp_path)
    assert not ensure_server_certificate(tmp_path, authority, NAMES[::-1], now=now)
    assert read_server_certificate(tmp_path) == before


def test_it_is_made_again_in_its_last_days_and_for_other_names(tmp_path: Path) -> None:
    """So members never meet a server whose certificate ended or does not name it."""
    authority, now = Authority.create("a"), dt.datetime.now(dt.UTC)
    make_server_certificate(tmp_path, authority, NAMES)
    assert ensure_server_certificate(tmp_path, authority, (*NAMES, "new.example"), now=now)
    late = now + dt.timedelta(days=825 - 89)
    assert ensure_server_certificate(tmp_path, authority, (*NAMES, "new.example"), now=late)


def test_a_missing_half_is_made_again(tmp_path: Path) -> None:
    """A crash between key and certificate leaves no pair that does not fit."""
    authority, now = Authority.create("a"), dt.datetime.now(dt.UTC)
    make_server_certificate(tmp_path, authority, NAMES)
    (tmp_path / "tls" / "certificate.pem").unlink()
    assert ensure_server_certificate(tmp_path, authority, NAMES, now=now)
