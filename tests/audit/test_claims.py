"""Claims: read from a manifest or from whoever names one, and drawn as the line they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure

from tacit.attacks.runner import run_audit
from tacit.audit.claims import claims_in, parse_claim, said, weakest
from tacit.audit.plot import draw
from tacit.audit.report import Provenance, report_bytes, report_of
from tacit.core.errors import UsageError
from tests.attacks.desk import TINY, subject, untrained

if TYPE_CHECKING:
    from collections.abc import Mapping


def side(epsilon: float | None) -> dict[str, Any]:
    claim = {"unit": "subject", "relation": "add/remove", "epsilon": epsilon, "delta": 1e-4}
    return {"train": {**claim, "ledger": {"entries": 3}}}


MANIFEST: Mapping[str, Any] = {
    "members": {"4": "bob", "7": "ada"},
    "claims": {"4": side(1.5), "7": side(2.5), "9": side(None)},
}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    result = run_audit(subject(untrained(), recipe=None), TINY, seed=1)
    return report_of(result, Provenance(files={}), claims=claims_in(MANIFEST))


def lines_of(report: Mapping[str, Any]) -> dict[str, Any]:
    axes = Figure().add_subplot()
    draw(axes, report)
    return {str(line.get_label()): line for line in axes.get_lines()}


def test_a_manifest_says_who_claims_what() -> None:
    """By name, without what the ledger adds; an owner without an epsilon claims nothing."""
    bound = {"unit": "subject", "relation": "add/remove", "delta": 1e-4}
    assert claims_in(MANIFEST) == [
        {"member": "ada", "epsilon": 2.5, **bound},
        {"member": "bob", "epsilon": 1.5, **bound},
    ]
    assert claims_in({"rounds": []}) == []


def test_of_several_the_weakest_is_told() -> None:
    """The largest epsilon, of how many it is, and what it is about."""
    claims = claims_in(MANIFEST)
    assert (weakest(claims) or {})["member"] == "ada"
    assert said(claims) == "epsilon = 2.5, delta = 0.0001 per subject, the weakest of 2 owners'"
    assert (weakest([]), said([])) == (None, "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.2,1e-5", (3.2, 1e-5, "record", "add/remove")),
        ("1, 0, client", (1.0, 0.0, "client", "replace-one")),
    ],
)
def test_a_claim_can_be_named(text: str, expected: tuple[object, ...]) -> None:
    """Epsilon and delta, and a unit other than a record."""
    claim = parse_claim(text)
    assert tuple(claim[key] for key in ("epsilon", "delta", "unit", "relation")) == expected


@pytest.mark.parametrize(
    "text", ["", "3", "3,1", "-1,1e-5", "inf,0.1", "nan,0.1", "3,1e-5,dog", "3,1e-5,record,x"]
)
def test_what_is_no_claim_is_refused(text: str) -> None:
    """A number too few or too many, out of range, or of a unit that there is not."""
    with pytest.raises(UsageError, match="E-AUDIT-CLAIM"):
        parse_claim(text)


def test_the_line_of_the_claim_is_drawn(report: dict[str, Any]) -> None:
    """It is TPR = e^epsilon FPR + delta up to 1, and its legend names epsilon, delta and unit."""
    assert report_bytes(report)
    label = next(label for label in lines_of(report) if label.startswith("claim"))
    assert "epsilon = 2.5, delta = 0.0001 per subject" in label
    pairs = list(zip(*lines_of(report)[label].get_data(), strict=True))
    assert len(pairs) > 50
    assert (pairs[0][0], pairs[-1]) == (pytest.approx(0.5 / 200), (1.0, 1.0))
    for fpr, tpr in pairs:
        assert tpr == pytest.approx(min(1.0, math.exp(2.5) * fpr + 1e-4))


def test_a_claim_of_nothing_is_drawn_at_the_top(report: dict[str, Any]) -> None:
    """An epsilon whose power no float holds bounds nothing, and breaks nothing."""
    lines = lines_of({**report, "claims": [parse_claim("1e6,0")]})
    (drawn,) = (line for label, line in lines.items() if label.startswith("claim"))
    assert min(drawn.get_ydata()) > 0.999


def test_without_a_claim_there_is_no_line(report: dict[str, Any]) -> None:
    """A run without noise has none to be held to."""
    plain = {key: value for key, value in report.items() if key != "claims"}
    assert not any(label.startswith("claim") for label in lines_of(plain))
