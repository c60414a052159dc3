"""docs/canaries.md shows what the software does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.attacks.desk import COLUMNS, MEMBERS, csv_of
from tests.doc_blocks import run_python_blocks

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RUN_TOML = f"""\
name = "twin"

[data]
label = "y"
classes = ["no", "yes"]

{COLUMNS}

[model]
kind = "mlp"
hidden = [64]

[training]
local_steps = 60
learning_rate = 0.3

[privacy]
mode = "record-local"
epsilon = 4.0
delta = 1e-5
clip = 0.1

[participation]
rounds = 1
min_clients = 1
"""


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python example, word for word: correct code does not fail its claim of 4.

    Bits and noise come from the operating system. The bound, about 1, would have to exceed 4; that
    a sound audit's self-test fails, and its verdict is inconclusive, is by no means as rare.
    """
    (tmp_path / "run.toml").write_text(RUN_TOML)
    (tmp_path / "train.csv").write_text(csv_of(MEMBERS))
    monkeypatch.chdir(tmp_path)
    assert run_python_blocks("canaries.md") == 1
    said = capsys.readouterr().out
    assert said.splitlines()[0] in {"no violation found at this power", "inconclusive"}
    figures = re.findall(r"^([a-z]+): (\d\.\d\d) of at most (\d\.\d\d)$", said, re.MULTILINE)
    assert [kind for kind, _, _ in figures] == ["directions", "mislabelled"]
    for _, bound, ceiling in figures:
        assert float(bound) <= 4.0 < float(ceiling)
