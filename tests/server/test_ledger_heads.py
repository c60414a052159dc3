"""The server remembers how far each node's ledger has come: no history but one, and no way back."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.errors import ProtocolError, TrustError
from tacit.core.keys import MemberKeys
from tacit.privacy.ledger_entries import Side
from tacit.privacy.ledger_head import Head, sign_head
from tacit.protos import fleet_pb2
from tacit.server.claims import plain_claim, verify_claim
from tacit.server.ledger_heads import LedgerHeads
from tacit.server.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEDGER = bytes(range(32))


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[LedgerHeads]:
    with open_store(tmp_path / "store.sqlite3") as store:
        yield LedgerHeads(store, now=lambda: 1.0)


@pytest.fixture(scope="module")
def keys() -> MemberKeys:
    return MemberKeys.generate()


def head(
    keys: MemberKeys, entries: int, *, text: str = "", ledger: bytes = LEDGER
) -> fleet_pb2.LedgerHead:
    """A signed head; ``text`` makes another history."""
    sha256 = hashlib.sha256(f"{entries}{text}".encode())
    signed = sign_head(
        Head(ledger=ledger.hex(), count=entries, hash=sha256.hexdigest()), keys.enrolment.sign
    )
    return fleet_pb2.LedgerHead(
        ledger_id=ledger,
        entries=entries,
        sha256=sha256.digest(),
        public_key=keys.enrolment_public_key,
        signature=bytes.fromhex(signed.signature),
    )


def test_the_furthest_head_is_kept(heads: LedgerHeads, keys: MemberKeys) -> None:
    """Heads grow; one that is seen again changes nothing."""
    assert heads.furthest(keys.node_id) is None
    for entries in (1, 3, 3, 7):
        heads.keep(keys.node_id, head(keys, entries))
    assert heads.furthest(keys.node_id) == head(keys, 7)


def test_claims_may_overtake_one_another(heads: LedgerHeads, keys: MemberKeys) -> None:
    """Two runs at one node, or a stored reply after a crash: behind, but the same history."""
    for entries in (7, 5, 6, 8, 5):
        heads.keep(keys.node_id, head(keys, entries))
    assert heads.furthest(keys.node_id) == head(keys, 8)


@pytest.mark.parametrize(
    "changed",
    [
        {"entries": 7, "text": "fork"},
        {"entries": 5, "text": "fork"},
        {"entries": 9, "ledger": bytes(32)},
    ],
)
def test_a_claim_of_another_history_is_refused(
    heads: LedgerHeads, keys: MemberKeys, changed: dict[str, Any]
) -> None:
    """A number that was seen has one hash, also behind the furthest; a new ledger is another."""
    for entries in (5, 7):
        heads.keep(keys.node_id, head(keys, entries))
    with pytest.raises(TrustError, match="E-LEDGER-FORK"):
        heads.keep(keys.node_id, head(keys, **changed))
    assert heads.furthest(keys.node_id) == head(keys, 7)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"entries": 6}, "E-LEDGER-ROLLBACK"),
        ({"entries": 7, "text": "fork"}, "E-LEDGER-FORK"),
        ({"entries": 9, "ledger": bytes(32)}, "E-LEDGER-FORK"),
    ],
)
def test_a_node_whose_ledger_went_back_may_not_join(
    heads: LedgerHeads, keys: MemberKeys, changed: dict[str, Any], code: str
) -> None:
    """Shorter, of another history, or a new one: refused; and a look keeps nothing."""
    heads.keep(keys.node_id, head(keys, 7))
    with pytest.raises(TrustError, match=code):
        heads.verify(keys.node_id, head(keys, **changed))
    heads.verify(keys.node_id, head(keys, 9))
    assert heads.furthest(keys.node_id) == head(keys, 7)


def test_a_head_is_taken_from_its_own_node_only(heads: LedgerHeads, keys: MemberKeys) -> None:
    """Another node's head, a changed one and a malformed one are refused."""
    other = MemberKeys.generate()
    forged, short = head(keys, 2), head(keys, 2)
    forged.entries = 3
    short.sha256 = b"1"
    for node_id, bad, code in (
        (other.node_id, head(keys, 2), "E-LEDGER-SIGNATURE"),
        (keys.node_id, forged, "E-LEDGER-SIGNATURE"),
        (keys.node_id, short, "E-LEDGER-HEAD"),
    ):
        with pytest.raises((TrustError, ProtocolError), match=code):
            heads.keep(node_id, bad)
    assert heads.furthest(keys.node_id) is None


def test_a_claim_has_a_known_form(keys: MemberKeys) -> None:
    """Unknown words, a negative epsilon and NaN are refused; an unbounded epsilon is null."""
    good = fleet_pb2.Claim(
        unit="record",
        relation="add/remove",
        side="train",
        epsilon=float("inf"),
        delta=1e-5,
        ledger=head(keys, 1),
    )
    for side in Side:
        good.side = side.value
        verify_claim(good)
    shown = plain_claim(good)
    assert shown["epsilon"] is None
    assert shown["ledger"]["entries"] == 1
    for field, value in (
        ("unit", "row"),
        ("side", ""),
        ("epsilon", -1.0),
        ("epsilon", float("nan")),
    ):
        bad = fleet_pb2.Claim()
        bad.CopyFrom(good)
        setattr(bad, field, value)
        with pytest.raises(ProtocolError, match="E-CLAIM-MALFORMED"):
            verify_claim(bad)
