from __future__ import annotations

import json
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from tacit.core.toml_lines import locate_keys

DOCUMENT = '''\
# comment with = and [brackets]
title = "a # b" # comment
'quoted key' = """
looks = "like a key"
[not.a.table]
\\""" still inside"""
list = [ # comment
  "x ] y",
  [1, 2],
]
raw = \'\'\'
[nor.this]\'\'\'
a.b."c.d" = {inline = 1, deep = {x = 2}}

[table]
key = 1
  indented = 2
[table.inner]
key = "\\""
[[entries]]
name = 1
[entries.part]
x = 1
[[entries]]
name = 2
'''


def test_every_key_is_found_on_its_line() -> None:
    """Strings, lists and comments that look like keys or tables do not mislead the scanner."""
    tomllib.loads(DOCUMENT)
    expected = {
        ("title",): 2,
        ("quoted key",): 3,
        ("list",): 7,
        ("raw",): 11,
        ("a",): 13,
        ("a", "b"): 13,
        ("a", "b", "c.d"): 13,
        ("table",): 15,
        ("table", "key"): 16,
        ("table", "indented"): 17,
        ("table", "inner"): 18,
        ("table", "inner", "key"): 19,
        ("entries", "0"): 20,
        ("entries", "0", "name"): 21,
        ("entries", "0", "part"): 22,
        ("entries", "0", "part", "x"): 23,
        ("entries", "1"): 24,
        ("entries", "1", "name"): 25,
    }
    assert locate_keys(DOCUMENT) == expected


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


keys = st.text(min_size=1, max_size=5).filter(_encodable)
scalars = st.integers() | st.booleans() | st.text(max_size=10).filter(_encodable)


def _quoted(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007F")


def _written(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


@given(st.dictionaries(keys, st.dictionaries(keys, scalars, min_size=1), min_size=1))
def test_any_document_is_found_again(tables: dict[str, dict[str, object]]) -> None:
    """For any tables, keys and values, each key is located on the line where it was written."""
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for table, content in tables.items():
        lines.append(f"[{_quoted(table)}]")
        expected[table,] = len(lines)
        for key, value in content.items():
            lines.append(f"{_quoted(key)} = {_written(value)}")
            expected[table, key] = len(lines)
    text = "\n".join(lines)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # surrogate pairs in JSON's escapes are not TOML
        return
    assert locate_keys(text) == expected


@given(st.text())
def test_no_text_breaks_the_scanner(text: str) -> None:
    """Text that is not TOML is scanned without an error: the parser has complained already."""
    assert isinstance(locate_keys(text), dict)
