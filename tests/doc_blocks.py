"""Python that a page of docs/ shows, run word for word."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def run_python_blocks(page: str) -> int:
    """Run a page's Python blocks in their order, as one session; return how many there are.

    Files that they name are looked for in the current folder.
    """
    path = DOCS / page
    text = path.read_text(encoding="utf-8")
    session: dict[str, object] = {}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    for block in blocks:
        above = "\n" * text[: block.start(1)].count("\n")  # an error names the page's line
        exec(compile(above + block[1], str(path), "exec"), session)  # noqa: S102 - our own page
    return len(blocks)
