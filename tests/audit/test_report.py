"""`report.json` keeps its schema, its bytes, and its tongue."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from tacit.attacks.runner import run_audit
from tacit.audit.compare import Standing, compare_reports
from tacit.audit.plot import save_roc
from tacit.audit.report import (
    Provenance,
    parse_report,
    read_report,
    report_bytes,
    report_of,
    report_schema,
    write_report,
)
from tacit.audit.schema import schema_problems
from tacit.core.errors import DataError, UnavailableError
from tacit.core.plain import plain
from tests.attacks.desk import TINY, subject, trained, untrained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROVENANCE = Provenance(
    files=dict.fromkeys(("model", "members", "non-members"), "0" * 64), versions={"tacit": "0"}
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return report_of(run_audit(subject(trained()), TINY, seed=1), PROVENANCE)


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    return report_of(run_audit(subject(untrained(), recipe=None), TINY, seed=1), PROVENANCE)


def test_what_is_written_is_read(report: dict[str, Any], tmp_path: Path) -> None:
    """A report comes back from its folder and from its file as it was, private to its owner."""
    path = write_report(tmp_path, report)
    assert read_report(tmp_path) == read_report(path) == report
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_bytes() == report_bytes(report)


def test_every_part_is_in_the_schema(report: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Nothing is written that the schema does not describe, with references and without."""
    for each in (report, fresh):
        assert list(schema_problems(each, report_schema())) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("limits"), "limits is missing"),
        (lambda r: r.update(verdict="fine"), "verdict: not part of the schema"),
        (lambda r: r.update(outcome="passed"), "outcome: expected one of evidence"),
        (
            lambda r: r["probes"][0]["auc"].update(chance=1.5),
            "probes[0].auc.chance: expected at mo",
        ),
        (lambda r: r["audited"].update(members=-1), "audited.members: expected at least 0"),
        (
            lambda r: r["audited"].update(members=True),
            "audited.members: expected integer, got bool",
        ),
        (lambda r: r["provenance"]["files"].update(model="x"), "provenance.files.model: expected"),
        (lambda r: r["probes"][1].update(slices_fpr="low"), "probes[1].slices_fpr: fits none"),
    ],
)
def test_a_report_that_was_changed_is_refused(
    report: dict[str, Any], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Whoever edits a report by hand, or cuts it, is told where it no longer fits."""
    changed = copy.deepcopy(report)
    change(changed)
    with pytest.raises(DataError, match="E-AUDIT-REPORT") as caught:
        parse_report(json.dumps(changed).encode())
    assert any(said in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "got something else"),
        (b"[]", "got something else"),
        (b'{"schema": "other"}', "got something else"),
        (b'{"schema": "tacit-audit-report", "version": 2}', "version 1"),
        (b"[" * 100_000, "got something else"),
    ],
)
def test_what_is_no_report_is_refused(content: bytes, said: str) -> None:
    """Other JSON, other schemas, later versions."""
    with pytest.raises(DataError, match="E-AUDIT-REPORT") as caught:
        parse_report(content)
    assert said in caught.value.message


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    """The path that was looked at stands in the error."""
    with pytest.raises(UnavailableError, match=r"report\.json"):
        read_report(tmp_path)


def test_a_schema_may_say_only_what_is_checked() -> None:
    """A keyword that nobody checks is a fault of the schema, not a promise."""
    with pytest.raises(ValueError, match="minLength"):
        list(schema_problems("", {"type": "string", "minLength": 3}))


def test_nothing_is_ever_called_safe(report: dict[str, Any], fresh: dict[str, Any]) -> None:
    """No report says safe, secure, private or passed of a model; finding nothing has its power."""
    for each in (report, fresh):
        lines = " ".join([each["line"], *each["limits"], *(p["line"] for p in each["probes"])])
        assert not any(word in lines.lower() for word in ("safe", "secure", "passed", "no leak"))
    for probe in fresh["probes"]:
        assert probe["outcome"] == "no evidence at this power"
        assert "n = 200 members and 200 non-members" in probe["line"]


def test_reports_side_by_side(report: dict[str, Any], fresh: dict[str, Any]) -> None:
    """The leaking model differs clearly from the fresh one; what only one has is listed."""
    comparison = compare_reports(fresh, report)
    areas = {each.probe: each for each in comparison.differences if each.metric == "AUC"}
    assert set(areas) == {"loss", "modified-entropy"}
    assert areas["loss"].standing is Standing.CLEAR
    assert areas["loss"].is_clear
    assert areas["loss"].change[1] > 0
    assert any(
        line.startswith("lira-online: not in the first: it lacked reference models")
        for line in comparison.not_comparable
    )
    assert "other numbers of reference models: 0 and 8" in comparison.caveats
    same = compare_reports(report, report)
    assert not any(each.is_clear or each.change[0] for each in same.differences)
    assert (same.caveats, same.not_comparable) == ((), ())


def changed_files(report: dict[str, Any], **files: str) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    changed["provenance"]["files"] |= files
    return changed


def sent_by(report: dict[str, Any], members: str, *, error: float = 0.0) -> dict[str, Any]:
    """Say that a report was merged from such owners, and how far noise blurs its counts."""
    merged = copy.deepcopy(report)
    merged["audited"]["standard_error"] = error
    return {**merged, "federation": {"sent": [{"member": member} for member in members]}}


def counted(report: dict[str, Any], more: int) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    for probe in changed["probes"]:
        probe["members"] += more
    return changed


def elsewhere(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "scope": {**report["scope"], "records": "one owner's, at their node"}}


OTHER, PERHAPS = Standing.OTHER_RECORDS, Standing.PERHAPS_OTHER_RECORDS


@pytest.mark.parametrize(
    ("change", "standing"),
    [
        (lambda r: changed_files(r, members="1" * 64), OTHER),
        (lambda r: changed_files(r, **{"non-members": "1" * 64}), OTHER),
        (lambda r: changed_files(r, split="1" * 64), OTHER),
        (lambda r: changed_files(r, predictions="1" * 64), PERHAPS),
        (lambda r: changed_files(r, population="1" * 64), Standing.CLEAR),
        (lambda r: sent_by(r, "ab"), OTHER),
        (elsewhere, OTHER),
        (lambda r: counted(r, 1), OTHER),
    ],
    ids=[
        *("members", "non-members", "split", "predictions", "population"),
        *("owners", "elsewhere", "counts"),
    ],
)
def test_only_a_difference_on_the_same_records_is_clear(
    report: dict[str, Any],
    fresh: dict[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    standing: Standing,
) -> None:
    """Apart though they are, figures of other owners, counts or files are told by that name."""
    comparison = compare_reports(fresh, change(report))
    area = next(each for each in comparison.differences if each.metric == "AUC")
    assert area.change[1] > 0
    assert (area.standing, area.is_clear) == (standing, standing is Standing.CLEAR)
    assert {each.standing for each in comparison.differences} <= {standing, Standing.NOT_APART}
    assert plain(area)["standing"] == standing.value


@pytest.mark.parametrize(("more", "standing"), [(40, Standing.CLEAR), (60, OTHER)])
def test_noise_on_counts_makes_no_other_records(
    report: dict[str, Any], fresh: dict[str, Any], more: int, standing: Standing
) -> None:
    """A standard error of 12 in both reports: their counts may differ by 51, and no more."""
    merged = sent_by(fresh, "ab", error=12.0), sent_by(counted(report, more), "ba", error=12.0)
    area = next(each for each in compare_reports(*merged).differences if each.metric == "AUC")
    assert area.standing is standing


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_inconclusive_makes_no_clear_difference(
    report: dict[str, Any], fresh: dict[str, Any], which: int
) -> None:
    """A probe that one report calls inconclusive is apart as such; the others stay clear."""
    pair = copy.deepcopy([fresh, report])
    doubted, other = "loss", "modified-entropy"
    next(each for each in pair[which]["probes"] if each["probe"] == doubted)["outcome"] = (
        "inconclusive"
    )
    areas = {
        each.probe: each for each in compare_reports(*pair).differences if each.metric == "AUC"
    }
    assert areas[doubted].standing is Standing.INCONCLUSIVE
    assert not areas[doubted].is_clear
    assert areas[other].standing is Standing.CLEAR


def test_a_comparison_says_first_that_other_records_were_scored(report: dict[str, Any]) -> None:
    """Other owners, and as few records more or less of one probe, are among the caveats."""
    merged = [sent_by(report, members) for members in ("ab", "bac")]
    merged[1]["probes"][0]["members"] -= 1
    first, second = compare_reports(*merged).caveats
    assert first == "other owners: a, b and a, b, c"
    name, members = report["probes"][0]["probe"], report["probes"][0]["members"]
    assert second.startswith(f"{name}: {members} members and")
    assert f"in the first, {members - 1} members and" in second


def test_other_counts_are_told_once_and_never_as_exact_as_noise_left_them(
    report: dict[str, Any],
) -> None:
    """All probes of a merged report scored the same records: one line has them all."""
    merged = sent_by(report, "ab"), sent_by(counted(report, 60), "ab", error=12.0)
    (said,) = compare_reports(*merged).caveats
    names, numbers = ", ".join(each["probe"] for each in report["probes"]), report["probes"][0]
    assert said.startswith(f"{names}: {numbers['members']} members and ")
    assert f"in the first, about {numbers['members'] + 60} members and " in said
    assert "(standard error 12 each, from noise) in the second" in said


def test_plans_of_one_name_are_told_apart_by_what_differs(report: dict[str, Any]) -> None:
    """Two names that are the same would say nothing."""
    other = copy.deepcopy(report)
    other["plan"]["probes"] = ["loss"]
    other["provenance"]["plan_sha256"] = "1" * 64
    (said,) = compare_reports(other, report).caveats
    name, probes = report["plan"]["name"], ", ".join(report["plan"]["probes"])
    assert said == f"other terms of the plan {name}: probes loss and {probes}"
    renamed = {**other, "plan": {**other["plan"], "name": "mine"}}
    (said,) = compare_reports(renamed, report).caveats
    assert said == f"other plans: mine and {name}"


def test_other_noise_is_told(report: dict[str, Any]) -> None:
    """Of two merged audits of the same records, at what either answered."""
    pair = [sent_by(report, "ab") for _ in range(2)]
    for each, epsilon in zip(pair, (1.0, None), strict=True):
        each["federation"]["epsilon"] = epsilon
    assert compare_reports(*pair).caveats == (
        "other noise on the answers: epsilon 1 and exact counts",
    )


def test_the_same_report_gives_the_same_picture(report: dict[str, Any], tmp_path: Path) -> None:
    """The plot tells no time either; it has a line per probe and the line of chance."""
    for name in ("a.svg", "b.svg"):
        save_roc(tmp_path / name, report)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert picture.startswith(b"<?xml")
