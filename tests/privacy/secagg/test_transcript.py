"""The protocol byte by byte: a committed session, and what a session's bytes depend on."""

from __future__ import annotations

import json
from typing import Any

from tacit.privacy.secagg.terms import parse_terms
from tests.privacy.secagg.parties import Cohort, make_terms
from tests.vectors.make_secagg import VECTOR, make_vector


def test_the_golden_session_is_reproduced() -> None:
    """The same randomness gives the committed bytes, message by message, and the same sums."""
    golden = json.loads(VECTOR.read_text())
    made: dict[str, Any] = make_vector()
    for (expected_what, expected), (what, message) in zip(
        golden.pop("messages"),
        made.pop("messages"),
        strict=True,
    ):
        assert (expected_what, expected) == (what, message)
    assert golden == made


def test_the_golden_terms_are_read() -> None:
    """What another version wrote is the same terms here."""
    golden = json.loads(VECTOR.read_text())
    assert make_terms(4, dimension=3, steps=2) == parse_terms(bytes.fromhex(golden["terms"]))


def test_a_session_is_determined_by_its_randomness() -> None:
    """Two runs from one transcript of random bytes are equal; another attempt shares nothing."""
    one, same, other = (Cohort(make_terms(4, attempt=attempt)) for attempt in (1, 1, 2))
    for cohort in (one, same, other):
        cohort.first()
    assert one.log == same.log
    for (what, message), (_, later) in zip(one.log, other.log, strict=True):
        if what.startswith("vector"):
            assert message != later
