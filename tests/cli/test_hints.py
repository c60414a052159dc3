"""What messages, help and documents tell a person to type is there to be typed."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tacit.cli.main import root_command

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CODE = ("core", "protos", "privacy", "learning", "server", "client", "simulation", "cli")
OWNERS = ("client", "privacy", "learning")  # whose errors a data owner reads on their own machine
# `tacit NOUN VERB` in quotation marks of code, or after "then: " and the like
SHOWN = re.compile(
    r"(?:`|(?:: |then )(?=tacit (?:run|server|client|login|ledger) ))"
    r"tacit ([a-z]+)(?: ([a-z]+))?((?: --[a-z-]+)*)"
)


@functools.cache
def command_at(path: tuple[str, ...]) -> click.Command | None:
    command: click.Command | None = root_command()
    for word in path:
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(click.Context(command), word)
    return command


def texts_in(path: Path) -> Iterator[str]:
    """Yield a module's texts, docstrings included; what is filled in becomes an X."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def wrong_commands(text: str) -> Iterator[str]:
    for found in SHOWN.finditer(" ".join(text.split())):
        noun, verb, options = found.groups()
        command = command_at((noun,))
        if isinstance(command, click.Group) and verb is not None:
            command = command_at((noun, verb))
        known = {name for each in command.params for name in each.opts} if command else set()
        if command is None or not set(options.split()) <= known | {"--help"}:
            yield found.group().strip("`")


def test_the_search_sees_what_is_wrong() -> None:
    """A verb that is not there and an option that is not there are found; right ones are not."""
    text = "Do `tacit run fetch`, `tacit run list --all`; then: tacit client approve X, `tacit run`"
    assert list(wrong_commands(text)) == ["tacit run fetch", "tacit run list --all"]


def test_every_command_that_the_code_names_exists() -> None:
    """A verb or option in a message, a hint or a help text is one that this version has."""
    wrong = [
        f"{path.relative_to(ROOT)}: {each}"
        for folder in CODE
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in texts_in(path)
        for each in wrong_commands(text)
    ]
    assert wrong == []


def test_every_command_that_the_documents_name_exists() -> None:
    """So is one in README, docs and deploy."""
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*")]
    wrong = [
        f"{path.relative_to(ROOT)}: {each}"
        for path in documents
        if path.suffix in (".md", ".toml", ".service", ".yaml")
        for each in wrong_commands(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def hints_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def test_an_owner_is_not_sent_to_an_operators_verb() -> None:
    """Errors raised at a data owner's machine name no verb that needs the operator's profile."""
    hints = {
        f"{path.relative_to(ROOT)}: {hint}"
        for folder in OWNERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for hint in hints_in(path)
    }
    assert len(hints) > 60
    assert sorted(hint for hint in hints if re.search(r"tacit (run|server|login)\b", hint)) == []


def test_shared_code_says_whose_verb_it_names() -> None:
    """Where either side may read a hint, one that names a side's verb says who types it."""
    named = {
        text
        for folder in ("core", "protos")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in hints_in(path)
        if re.search(r"`tacit (run|server|client|login) ", text) and path.stem != "control_client"
    }
    assert [text for text in named if not re.search(r"operator|owner|machine|server", text)] == []
