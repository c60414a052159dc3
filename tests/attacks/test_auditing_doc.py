"""docs/auditing.md shows what the software does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tacit.attacks.plans import PLANS
from tacit.attacks.registry import MEMBERSHIP
from tests.attacks.desk import write_files
from tests.doc_blocks import DOCS, run_python_blocks

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TEXT = (DOCS / "auditing.md").read_text(encoding="utf-8")


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python examples, word for word, in a folder with the files that they name."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_python_blocks("auditing.md") == 3
    lines = capsys.readouterr().out.splitlines()
    probes = len(PLANS["quick"].probes)
    assert ": evidence: " in lines[0]
    assert [line.split()[0] for line in lines[1 : 1 + probes]] == list(PLANS["quick"].probes)
    answered, exposed, estimated = lines[1 + probes :]
    assert ": evidence: " in answered
    assert exposed == "13.3 of 13.3 bits"
    assert 8.0 < float(estimated.split()[1]) <= 13.3


def test_every_probe_is_explained() -> None:
    """The table of probes covers the registry, and names nothing beyond it."""
    patterns = re.findall(r"^\| `([a-z*-]+)` \|", TEXT, re.MULTILINE)
    named = [pattern for pattern in patterns if pattern not in PLANS]
    for name in MEMBERSHIP:
        assert any(re.fullmatch(p.replace("*", ".+"), name) for p in named), name
    for pattern in named:
        assert any(re.fullmatch(pattern.replace("*", ".+"), name) for name in MEMBERSHIP), pattern


def test_the_plans_are_those_of_the_table() -> None:
    """Numbers of reference models in the page are those of the code."""
    for plan in PLANS.values():
        (row,) = re.findall(rf"^\| `{plan.name}` \|.*$", TEXT, re.MULTILINE)
        assert re.search(rf"\| {plan.references}, or {plan.references_if_large}\b", row)
