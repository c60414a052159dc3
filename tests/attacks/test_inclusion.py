"""Bits are fair and hidden until they are opened, and then nothing about them can have changed."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from tacit.attacks.inclusion import CanaryDesign, Opening, draw_opening, verify_opening
from tacit.core.errors import RefusedError, TrustError

DESIGN = CanaryDesign(
    directions=12,
    mislabelled=7,
    seed_hex="ab" * 32,
    direction_guesses=4,
    mislabelled_guesses=2,
)


def test_an_opening_is_what_was_committed_to() -> None:
    """The owner's own opening verifies."""
    opening = draw_opening(DESIGN)
    verify_opening(opening, commitment=opening.commitment())
    assert (len(opening.directions), len(opening.mislabelled)) == (12, 7)


def test_a_commitment_is_this_hash() -> None:
    """SHA-256 over prefix, salt, count, bits and the design's JSON: others can recompute it."""
    opening = Opening(design=DESIGN, salt=bytes(32), included=np.arange(19) % 2 == 0)
    packed = bytes([0b10101010, 0b10101010, 0b10100000])
    design = (
        '{"direction_guesses":4,"directions":12,"mislabelled":7,"mislabelled_guesses":2,'
        '"seed_hex":"' + "ab" * 32 + '"}'
    )
    text = b"tacit canaries 1|" + bytes(32) + (19).to_bytes(8, "big") + packed + design.encode()
    assert opening.commitment() == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("change", ["bit", "salt", "design", "guesses"])
def test_nothing_can_change_after_the_commitment(change: str) -> None:
    """One bit, one byte of salt, another seed or number of guesses: refused."""
    opening = draw_opening(DESIGN)
    match change:
        case "bit":
            flipped = opening.included.copy()
            flipped[18] ^= True
            other = dataclasses.replace(opening, included=flipped)
        case "salt":
            salt = bytes([opening.salt[0] ^ 1]) + opening.salt[1:]
            other = dataclasses.replace(opening, salt=salt)
        case "design":
            design = dataclasses.replace(DESIGN, seed_hex="ac" * 32)
            other = dataclasses.replace(opening, design=design)
        case _:
            design = dataclasses.replace(DESIGN, direction_guesses=5)
            other = dataclasses.replace(opening, design=design)
    with pytest.raises(TrustError, match="E-CANARY-COMMITMENT"):
        verify_opening(other, commitment=opening.commitment())


def test_bits_are_fair_fresh_and_not_shown() -> None:
    """Half of many are in, within 5 deviations; two draws differ; a repr holds neither."""
    many = dataclasses.replace(DESIGN, directions=20_000)
    one, two = draw_opening(many), draw_opening(many)
    assert abs(one.included.mean() - 0.5) < 5 * 0.5 / math.sqrt(many.canaries)
    assert 0.4 < float(np.mean(one.included == two.included)) < 0.6
    assert one.salt != two.salt
    assert one.commitment() != two.commitment()
    assert "salt" not in repr(one)
    assert "included" not in repr(one)


def test_canaries_need_room_among_the_declared_records() -> None:
    """All drawn ones count; a released model holds at most 1 % of the declared records."""
    DESIGN.verify_room(records=981, declared=1000, released=False)
    with pytest.raises(RefusedError, match="E-CANARIES-NO-ROOM"):
        DESIGN.verify_room(records=982, declared=1000, released=False)
    DESIGN.verify_room(records=0, declared=1900, released=True)
    with pytest.raises(RefusedError, match="E-CANARIES-RELEASED"):
        DESIGN.verify_room(records=0, declared=1899, released=True)


@pytest.mark.parametrize(
    "change",
    [
        {"seed_hex": "ab"},
        {"direction_guesses": 13},
        {"direction_guesses": 0},
        {"directions": 0},
        {"directions": -1, "direction_guesses": 0},
        {"directions": 0, "direction_guesses": 0, "mislabelled": 0, "mislabelled_guesses": 0},
        {"directions": 100_000},
    ],
)
def test_a_design_that_is_none_is_an_error(change: dict[str, object]) -> None:
    """Seeds and numbers that do not belong together never become a commitment."""
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(DESIGN, **change)  # type: ignore[arg-type]


def test_an_opening_of_another_form_is_an_error() -> None:
    """A short salt, too few bits, bits that are numbers."""
    opening = draw_opening(DESIGN)
    for change in (
        {"salt": bytes(31)},
        {"included": opening.included[1:]},
        {"included": opening.included.astype(np.int64)},
    ):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(opening, **change)  # type: ignore[arg-type]
