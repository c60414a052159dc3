"""Where each key of a TOML text stands: the reader of the standard library does not say.

The text has already been accepted by ``tomllib``, so this scanner only has to find its way: table
headers, keys at the beginning of a statement, and how to skip over values (strings of four kinds,
lists over several lines, inline tables). Keys inside an inline table stand where the table stands.
"""

from __future__ import annotations

import contextlib
import re

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_NEXT_MARK = re.compile(r"[\"'\[\]{}#\n]")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def locate_keys(text: str) -> dict[tuple[str, ...], int]:
    """Return the line (from 1) of every key and table of a valid TOML text.

    An entry of an array of tables has its place, from 0, as one part of the path.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(IndexError, ValueError):  # reported without a line then
        scanner.run()
    return scanner.lines


class _Scanner:
    """One walk over one text."""

    def __init__(self, text: str) -> None:
        self.lines: dict[tuple[str, ...], int] = {}
        self._text = text
        self._at = 0
        self._counted = (0, 1)  # up to this position stand so many lines
        self._table: tuple[str, ...] = ()
        self._entries: dict[tuple[str, ...], int] = {}  # arrays of tables: entries so far

    def run(self) -> None:
        while self._at < len(self._text):
            self._at = self._end(_BLANK)
            mark = self._text[self._at : self._at + 1]
            if mark in ("", "\n"):
                self._at += 1
            elif mark == "#":
                self._skip_comment()
            elif mark == "[":
                self._header()
            else:
                self._statement()

    def _header(self) -> None:
        line = self._line()
        is_entry = self._text.startswith("[[", self._at)
        self._at += 2 if is_entry else 1
        path = self._dotted_key()
        place: tuple[str, ...] = ()
        for part in path[:-1]:
            place = self._last_entry((*place, part))
        place = (*place, path[-1])
        if is_entry:
            self._entries[place] = self._entries.get(place, -1) + 1
            place = self._last_entry(place)
        self._table = place
        self.lines.setdefault(place, line)
        self._skip_to_end_of_line()

    def _last_entry(self, place: tuple[str, ...]) -> tuple[str, ...]:
        return (*place, str(self._entries[place])) if place in self._entries else place

    def _statement(self) -> None:
        line = self._line()
        path = (*self._table, *self._dotted_key())
        for length in range(len(self._table) + 1, len(path) + 1):
            self.lines.setdefault(path[:length], line)
        self._skip_to_end_of_line()

    def _dotted_key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._at = self._end(_BLANK)
            parts.append(self._key())
            self._at = self._end(_BLANK)
            if self._text[self._at] != ".":
                return tuple(parts)
            self._at += 1

    def _key(self) -> str:
        mark = self._text[self._at]
        start = self._at
        if mark in "\"'":
            self._skip_string()
            inner = self._text[start + 1 : self._at - 1]
            return _unescaped(inner) if mark == '"' else inner
        match = _BARE_KEY.match(self._text, self._at)
        if match is None:
            raise ValueError(start)
        self._at = match.end()
        return match.group()

    def _skip_to_end_of_line(self) -> None:
        """Move past a value, which may span lines inside brackets or long strings."""
        depth = 0
        while match := _NEXT_MARK.search(self._text, self._at):
            self._at = match.start()
            mark = match.group()
            if mark in "\"'":
                self._skip_string()
            elif mark == "#":
                self._skip_comment()
            else:
                self._at += 1
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark, 0)
                if mark == "\n" and depth <= 0:
                    return
        self._at = len(self._text)

    def _skip_string(self) -> None:
        mark = self._text[self._at]
        if self._text.startswith(mark * 3, self._at):
            self._skip_until(mark * 3, 3, has_escapes=mark == '"')
            while self._text.startswith(mark, self._at):  # up to two quotes may end the content
                self._at += 1
        else:
            self._skip_until(mark, 1, has_escapes=mark == '"')

    def _skip_until(self, closing: str, opening: int, *, has_escapes: bool) -> None:
        self._at += opening
        while not self._text.startswith(closing, self._at):
            self._at += 2 if has_escapes and self._text[self._at] == "\\" else 1
            if self._at > len(self._text):
                raise ValueError(self._at)
        self._at += len(closing)

    def _skip_comment(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _end(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        return match.end() if match else self._at

    def _line(self) -> int:
        start, line = self._counted
        self._counted = (self._at, line + self._text.count("\n", start, self._at))
        return self._counted[1]


def _unescaped(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        mark = match.group(1)
        return chr(int(mark[1:], 16)) if mark[0] in "uU" else _ESCAPES[mark]

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", replace, text)
