"""Two canary reports side by side: bounds that were made of the same design, and verdicts.

A bound on epsilon is one-sided and has no interval of which a difference could be taken: figures
are put next to each other with their ceilings, and no difference is called clear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tacit.attacks.report_form import CANARY_SCHEMA
from tacit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tacit.audit.report import Report

_Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class BoundPair:
    """One bound in two canary reports.

    Attributes:
        owner, canaries, method: whose, of which kind, and how it was made.
        first, second: epsilon at least, and the most that it could have been; None where nothing
            bounds a figure.
    """

    owner: str
    canaries: str
    method: str
    first: tuple[float | None, float | None]
    second: tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class CanaryComparison:
    """Two canary reports side by side.

    Attributes:
        lines: what each comes to.
        caveats: what differs beside the figures.
        bounds: that both have.
        not_comparable: what stands in one only.
    """

    lines: tuple[str, str]
    caveats: tuple[str, ...]
    bounds: tuple[BoundPair, ...]
    not_comparable: tuple[str, ...]


def are_canaries(first: Report, second: Report) -> bool:
    """Whether both reports are of canaries.

    Raises:
        UsageError: one is, and the other of an audit of members (``E-AUDIT-COMPARE``).
    """
    kinds: list[bool] = [report["schema"] == CANARY_SCHEMA for report in (first, second)]
    if kinds[0] != kinds[1]:
        number = "first" if kinds[0] else "second"
        raise UsageError(
            "E-AUDIT-COMPARE",
            f"expected two reports of one kind: the {number} is of canaries, the other is of "
            "members",
            hint="Canaries test a claim, membership probes attack a model: read each by itself, "
            "tacit audit show.",
        )
    return kinds[0]


def compare_canaries(first: Report, second: Report) -> CanaryComparison:
    """Compare two canary reports, each as :func:`tacit.audit.report.read_report` returns it."""
    figures = [dict(_bounds(report)) for report in (first, second)]
    pairs = [
        BoundPair(
            owner=key[0],
            canaries=key[1],
            method=key[2],
            first=figures[0][key],
            second=figures[1][key],
        )
        for key in figures[0]
        if key in figures[1]
    ]
    alone = [
        f"{key[0]}, {key[1]}, {key[2]}: in the {number} only"
        for here, there, number in ((0, 1, "first"), (1, 0, "second"))
        for key in figures[here]
        if key not in figures[there]
    ]
    return CanaryComparison(
        lines=(first["line"], second["line"]),
        caveats=tuple(_caveats(first, second)),
        bounds=tuple(pairs),
        not_comparable=tuple(alone),
    )


def _bounds(report: Report) -> Iterator[tuple[_Key, tuple[float | None, float | None]]]:
    for owner in report["owners"]:
        for kind in owner["kinds"]:
            for bound in kind["bounds"]:
                key = owner["member"], kind["kind"], bound["method"]
                yield key, (bound["epsilon"], bound["ceiling"])


def _caveats(first: Report, second: Report) -> Iterator[str]:
    if first["run"] != second["run"]:
        yield f"other runs: {first['run']} and {second['run']}"
    yield "each is one run with bits of its own: figures differ by chance, untold by how much"
    owners = [{each["member"]: each for each in report["owners"]} for report in (first, second)]
    for name in sorted(owners[0].keys() & owners[1].keys()):
        yield from _other_terms(name, owners[0][name], owners[1][name])


def _other_terms(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    claims = [each["claim"] for each in (first, second)]
    if claims[0] != claims[1]:
        said = [f"epsilon {each['epsilon']:.4g} at delta {each['delta']:g}" for each in claims]
        yield f"{name}: other claims: {said[0]} and {said[1]}"
    counts = [
        {kind["kind"]: (kind["canaries"], kind["bounds"][0]["guesses"]) for kind in each["kinds"]}
        for each in (first, second)
    ]
    for kind in counts[0].keys() & counts[1].keys():
        if counts[0][kind] != counts[1][kind]:
            said = [
                f"{made} with {guesses} guesses"
                for made, guesses in (counts[0][kind], counts[1][kind])
            ]
            yield f"{name}: other numbers of {kind}: {said[0]} and {said[1]}"
