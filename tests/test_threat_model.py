"""The threat model names files and tests that are there, and claims no more than they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
COLUMNS = ["asset", "adversary", "promise", "file", "test"]
# Words that promise what nobody can show.
WORDS = re.compile(r"\b(anonym\w*|safe|safely|secure(?! aggregation)|guarantee\w*)\b")


def tables(page: str) -> list[list[list[str]]]:
    """Return the tables of a page: rows of cells, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if rows]


def promises(page: str) -> list[list[str]]:
    """Return the rows of the tables of promises."""
    return [row for head, *rows in tables(page) if head == COLUMNS for row in rows]


def problems(page: str) -> list[str]:
    """Say what a page names that is not there."""
    adversaries = {row[0] for head, *rows in tables(page) if head[0] == "adversary" for row in rows}
    found = []
    for row in promises(page):
        if len(row) != len(COLUMNS) or not all(row):
            found.append(f"not five cells: {row}")
            continue
        _, who, _, files, tests = row
        found += [f"no such adversary: {one}" for one in who.split(", ") if one not in adversaries]
        found += problems_of_names(files, tests)
    return found


def problems_of_names(files: str, tests: str) -> list[str]:
    """Say which files and tests of one row are not there."""
    named, checked = re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", tests)
    found = [] if named and checked else [f"nothing named: {files}, {tests}"]
    found += [f"no such file: {name}" for name in named if not (ROOT / name).is_file()]
    for test in checked:
        path, _, function = test.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        if not function or not re.search(rf"^ *(async )?def {function}\(", source, re.MULTILINE):
            found.append(f"no such test: {test}")
    return found


def test_every_file_and_test_that_the_page_names_exists() -> None:
    """A row points at the file that keeps the promise and at tests that would fail without it."""
    assert problems(PAGE) == []
    assert len(promises(PAGE)) >= 40


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("`client/envelope.py`", "`client/envelop.py`"),
        ("::test_swapped_keys`", "::test_swapped_key`"),
        ("| messages between members | network |", "| messages between members | nobody |"),
        ("`tests/client/test_cohort.py::", "`tests/client/test_cohorts.py::"),
        ("| `privacy/noise.py` |", "| |"),
    ],
)
def test_a_name_that_is_wrong_is_found(old: str, new: str) -> None:
    """A missing file, test, adversary or cell."""
    assert old in PAGE
    assert problems(PAGE.replace(old, new))


def test_every_adversary_is_met() -> None:
    """Who is described has at least one row."""
    met = {one for row in promises(PAGE) for one in row[1].split(", ")}
    assert met == {row[0] for head, *rows in tables(PAGE) if head[0] == "adversary" for row in rows}


def test_the_page_claims_in_exact_words() -> None:
    """Neither words that mean anything, nor a promise without its unit."""
    prose = re.sub(r"`[^`]*`", "", PAGE.lower())
    assert WORDS.findall(prose) == []
    assert WORDS.findall("data stay safe and anonymous") == ["safe", "anonymous"]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "SECURITY.md"])
def test_the_page_is_found_from(page: str) -> None:
    """The pages that a stranger opens first lead here."""
    assert "threat-model.md" in (ROOT / page).read_text(encoding="utf-8")
