"""Terms that a hostile server writes: the node holds each field against the approved run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.specification import PrivacyMode
from tacit.privacy.secagg.terms import Terms
from tacit.protos.secure import KEYS, MASKED
from tests.client.secure_cohort import NODE, PINNED, STRANGER, Cohort, Sitting, doctored

if TYPE_CHECKING:
    from pathlib import Path

OTHER_RUN = "r-00000002"


def stopped_at(sitting: Sitting, terms: Terms) -> tuple[str, str]:
    """Play a session under doctored terms; return the step that was refused, and the code."""
    cohort, secure = sitting.cohort, sitting.secure(session=terms.digest, terms=terms.encode())
    sitting.secure = lambda **_: secure  # type: ignore[method-assign]
    sitting.train()
    entry = cohort.node.answer(*cohort.head(KEYS, content=b"", secure=secure))
    reply = cohort.reply(entry)
    if reply.WhichOneof("outcome") == "failure":
        return KEYS, reply.failure.reason
    honest = Sitting(cohort, terms)
    honest.server.take_keys(NODE, cohort.read(entry)[0])
    for one, peer in honest.peers.items():
        honest.server.take_keys(one, peer.keys())
    deliveries = honest.shares(honest.server.end_keys(model=honest.model))
    return MASKED, cohort.code(MASKED, content=deliveries[NODE], secure=secure)


MEMBERS = tuple(sorted(PINNED.values(), key=lambda one: one.node_id))
MINTED = dataclasses.replace(MEMBERS[0], enrolment_key=STRANGER.enrolment_key)
CHANGES: dict[str, list[tuple[Any, str, str]]] = {
    "purpose": [(bytes(32), MASKED, "E-SECAGG-TERMS")],
    "run": [(OTHER_RUN, KEYS, "E-SECAGG-SESSION")],
    "round": [(2, KEYS, "E-SECAGG-SESSION"), (0, KEYS, "E-SECAGG-SESSION")],
    "members": [
        (MEMBERS[1:], KEYS, "E-SECAGG-UNPINNED"),
        ((*MEMBERS[1:], STRANGER), KEYS, "E-SECAGG-UNPINNED"),
        ((MINTED, *MEMBERS[1:]), KEYS, "E-SECAGG-UNPINNED"),
        ((*MEMBERS, STRANGER), KEYS, "E-SECAGG-TERMS"),
    ],
    "dimension": [(10**6, MASKED, "E-SECAGG-TERMS")],
    "threshold": [(4, MASKED, "E-SECAGG-TERMS"), (2, KEYS, "E-SECAGG-TERMS")],
    "neighbours": [(2, KEYS, "E-SECAGG-TERMS")],
    "colluders": [(0, KEYS, "E-SECAGG-FLOOR"), (2, KEYS, "E-SECAGG-TERMS")],
    "scale": [(1.0, MASKED, "E-SECAGG-TERMS"), (float("nan"), KEYS, "E-SECAGG-TERMS")],
    "clip": [(9.0, MASKED, "E-SECAGG-TERMS")],
    "local_sigma": [(0.25, MASKED, "E-SECAGG-TERMS"), (-1.0, KEYS, "E-SECAGG-TERMS")],
    "coordinate_bound": [(1e6, MASKED, "E-SECAGG-TERMS")],
    "floor": [(4, MASKED, "E-SECAGG-TERMS"), (9, KEYS, "E-SECAGG-TERMS")],
    "steps": [(2, MASKED, "E-SECAGG-TERMS"), (2**31, KEYS, "E-SECAGG-TERMS")],
}


def test_every_field_of_the_terms_is_attacked() -> None:
    """But the attempt, which is the server's to count, once each."""
    fields = {one.name for one in dataclasses.fields(Terms)}
    assert set(CHANGES) == fields - {"attempt"}


@pytest.mark.parametrize("mode", [PrivacyMode.NONE, PrivacyMode.RECORD_DISTRIBUTED])
@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, changes in CHANGES.items() for change in changes],
)
def test_terms_that_differ_from_the_approved_run_are_refused(
    mode: PrivacyMode, name: str, change: tuple[Any, str, str], tmp_path: Path
) -> None:
    """In any one field: at the latest when the vector is asked for, and nothing was charged."""
    cohort = Cohort(tmp_path, mode=mode)
    sitting = cohort.session()
    value, step, code = change
    assert stopped_at(sitting, doctored(sitting.terms, **{name: value})) == (step, code)
    assert cohort.charges() == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"terms": b""}, "E-SECAGG-MESSAGE"),
        ({"terms": bytes(1 << 20)}, "E-SECAGG-MESSAGE"),
        ({"session": bytes(32)}, "E-SECAGG-SESSION"),
        ({"session": b""}, "E-SECAGG-SESSION"),
    ],
)
def test_keys_are_refused_where_the_head_contradicts_itself(
    changes: dict[str, Any], code: str, tmp_path: Path
) -> None:
    """Terms that are none, or under another name than their hash."""
    cohort = Cohort(tmp_path)
    secure = cohort.session().secure(**changes)
    assert cohort.code(KEYS, content=b"", secure=secure) == code
