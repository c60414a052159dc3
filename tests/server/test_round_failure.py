"""What an operator is told of a failed round."""

from __future__ import annotations

import pytest

from tacit.server.grid_messages import DENIED, REVOKED
from tacit.server.round_failure import failures_text, round_failed
from tacit.server.rounds import EXPIRED, GONE


def test_codes_are_told_with_the_owners_that_they_came_from() -> None:
    """One code from several owners is told once; of many owners, the first few."""
    failed = {"va": "E-B", "ada": "E-B", "bob": "E-A"}
    assert failures_text(failed) == "E-A from bob; E-B from ada, va"
    many = failures_text({f"n{number}": "E-A" for number in range(9)})
    assert many == "E-A from n0, n1, n2, n3, n4, and 4 more"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("E-APP-RAISED", ["Ask va", "`tacit client status`", "logs"]),
        ("E-REPLY-NOT-FINITE", ["Ask va", "`tacit client status`"]),
        (EXPIRED, ["round_deadline_s", "va"]),
        (GONE, ["`tacit server members`", "va"]),
        (REVOKED, ["`tacit server members`", "va"]),
        (DENIED, ["va", "denied"]),
        ("E-APPROVAL-APP", ["va", "not those that were approved", "submit the run anew"]),
    ],
)
def test_a_failed_round_says_whom_to_ask_and_where_to_look(code: str, words: list[str]) -> None:
    """The hint fits the code and names the owner."""
    error = round_failed(3, attempts=2, reason="why", failed={"va": code})
    assert (error.code, error.message) == ("E-ROUND-FAILED", "round 3 failed 2 times: why")
    for word in words:
        assert word in error.hint


def test_owners_with_one_remedy_share_a_sentence() -> None:
    """Two apps that failed differently are asked about together, an absent owner apart."""
    failed = {"ada": "E-APP-RAISED", "va": "E-APP-HUNG", "bob": GONE}
    hint = round_failed(1, attempts=1, reason="", failed=failed).hint
    assert hint.startswith("Ask ada, va for the reason")
    assert hint.count("Ask ") == 1
    assert "for bob: not connected" in hint
