"""What a waiting run says of its owners."""

from __future__ import annotations

from tacit.server.catalogue import NodeVerdict, Verdict, waiting_reason

NAMES = {1: "cleveland", 2: "va", 3: "hungarian", 4: "switzerland"}


def said(node_id: int, verdict: Verdict, code: str = "") -> NodeVerdict:
    return NodeVerdict(node_id=node_id, verdict=verdict, code=code)


def test_a_waiting_run_says_who_said_what() -> None:
    """Approved, away, denied (with the code) and undecided owners are told apart, by name."""
    decisions = [
        said(1, Verdict.APPROVED),
        said(2, Verdict.DENIED, "E-POLICY-EPSILON"),
        said(3, Verdict.PENDING, "E-APPROVAL-PENDING"),
        said(4, Verdict.APPROVED),
    ]
    reason = waiting_reason(decisions, ready=(1,), needed=3, member=NAMES.__getitem__)
    assert reason == (
        "1 of 3 needed clients are ready: 1 approved (cleveland), 1 approved but not connected "
        "(switzerland), 1 denied (va: E-POLICY-EPSILON), 1 undecided (hungarian)"
    )


def test_a_run_that_nobody_has_answered_says_so() -> None:
    """Before the first decision there is nobody to name."""
    reason = waiting_reason((), ready=(), needed=2, member=NAMES.__getitem__)
    assert reason == "0 of 2 needed clients are ready: nobody has answered yet"


def test_a_reason_names_few_of_many() -> None:
    """A reason stands in a table: of hundreds of owners it names five and counts the rest."""
    decisions = [said(node_id, Verdict.APPROVED) for node_id in range(10, 310)]
    reason = waiting_reason(decisions, ready=range(10, 310), needed=400, member=str)
    assert reason.endswith("300 approved (10, 100, 101, 102, 103, and 295 more)")
