from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator, Mapping  # noqa: TC003 - read by the reader under test
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.configuration import from_plain, load_config, parse_toml
from tacit.core.errors import ConfigError, UnavailableError


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class Limits:
    most: int = 10
    share: float = 0.5

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.most < 1:
            yield "most", f"expected at least 1, got {self.most}"
        if not 0 < self.share <= 1:
            yield "share", f"expected 0 < share <= 1, got {self.share}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    title: str
    colour: Colour = Colour.RED
    listen: str = "localhost:1"
    folder: Path = Path("here")
    limits: Limits = Limits()
    pair: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    by_name: Mapping[str, Rule] = field(default_factory=dict)
    anything: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    password: str = field(default="", metadata={"secret": True})


def problems_of(text: str, **more: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, Sample, source="sample.toml", **more)  # type: ignore[arg-type]
    assert caught.value.code == "E-CONFIG"
    return list(caught.value.problems)


def typed_or_problems(tree: dict[str, object]) -> Sample | tuple[str, ...]:
    try:
        return from_plain(tree, Sample)
    except ConfigError as error:
        return error.problems


def test_every_kind_of_value_is_read() -> None:
    """Tables, lists, enums, paths, optional and free-form values arrive typed."""
    text = """
    title = "t"
    colour = "green"
    folder = "/data"
    pair = [1, 2.5]
    names = ["a", "b"]
    anything = {flag = true, count = 1, share = 0.5, word = "x"}
    [limits]
    most = 3
    [[rules]]
    name = "first"
    [by_name.x]
    name = "second"
    weight = 2
    """
    value = parse_toml(text, Sample, source="sample.toml").value
    assert value == Sample(
        title="t",
        colour=Colour.GREEN,
        folder=Path("/data"),
        pair=(1.0, 2.5),
        names=("a", "b"),
        anything={"flag": True, "count": 1, "share": 0.5, "word": "x"},
        limits=Limits(most=3),
        rules=(Rule(name="first"),),
        by_name={"x": Rule(name="second", weight=2.0)},
    )
    assert type(value.by_name["x"].weight) is float
    assert type(value.anything["count"]) is int


def test_all_problems_are_reported_at_once_with_their_lines() -> None:
    """One reading finds every problem, each with file, line and key."""
    text = 'colour = "gren"\nlimit = 1\n[limits]\nmost = true\nshare = 2\n[by_name.x]\nweigh = 1\n'
    assert problems_of(text) == [
        "sample.toml:2: limit: unknown key (did you mean limits?)",
        "sample.toml: title: missing: expected text",
        (
            'sample.toml:1: colour: expected one of "red", "green", got the text "gren"'
            ' (did you mean "green"?)'
        ),
        "sample.toml:4: limits.most: expected a whole number, got true",
        "sample.toml:5: limits.share: expected 0 < share <= 1, got 2.0",
        "sample.toml:7: by_name.x.weigh: unknown key (did you mean weight?)",
        "sample.toml:6: by_name.x.name: missing: expected text",
    ]


def test_a_key_of_another_table_is_named_with_its_table() -> None:
    """A key that stands one table too high is shown where it belongs."""
    assert problems_of('title = "t"\nmost = 3\n') == [
        "sample.toml:2: most: unknown key (did you mean limits.most?)"
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("pair = [1]", "pair: expected a list of 2 values, got 1"),
        ("pair = [1, inf]", "pair.1: expected a finite number"),
        ("pair = [1, nan]", "pair.1: expected a finite number"),
        ("pair = [1, true]", "pair.1: expected a number, got true"),
        ("names = 'a'", 'names: expected a list, got the text "a"'),
        ("limits = 3", "limits: expected a table, got 3"),
        ("folder = 3", "folder: expected a path, got 3"),
        ("anything = {x = [1]}", "anything.x: expected true or false or a whole number"),
        ("anything = {x = 99999999999999999999}", "anything.x"),
        ("limits.most = 99999999999999999999", "limits.most: expected a whole number of at most"),
        ("limits.most = 1.0", "limits.most: expected a whole number, got 1.0"),
        ("listen = 2026-01-01", "listen: expected text, got datetime.date"),
        ('listen = "a\\u0000b"', "listen: expected text in valid Unicode"),
        ("limits.most = 0", "limits.most: expected at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(line: str, complaint: str) -> None:
    """No value is stretched to fit: wrong types, sizes and non-numbers are problems."""
    (problem,) = problems_of(f'title = "t"\n{line}\n')
    assert problem.startswith(f"sample.toml:2: {complaint}")


def test_a_secret_is_not_shown() -> None:
    """A key that holds a secret is named in a problem, its value is not."""
    (problem,) = problems_of('title = "t"\npassword = 123456\n')
    assert "password" in problem
    assert "123456" not in problem


@pytest.mark.parametrize("text", ["a = [", "a = 1\na = 2", "= 3", "[x", 'a = "'])
def test_what_is_not_toml_is_refused_with_its_line(text: str) -> None:
    """A syntax error is a problem like any other."""
    (problem,) = problems_of(f"# first\n{text}")
    assert problem.startswith("sample.toml:")
    assert "expected TOML" in problem


def test_order_of_sources() -> None:
    """Defaults give way to the file, the file to the environment, and all to flags."""
    text = 'title = "file"\nlisten = "file"\nnames = ["file"]\n[limits]\nmost = 1\n'
    resolved = parse_toml(
        text,
        Sample,
        source="sample.toml",
        environ={
            "TACIT_X_LISTEN": "environment",
            "TACIT_X_LIMITS_MOST": "2",
            "TACIT_X_NAMES": "a, b",
            "TACIT_X_HOME": "/state",
            "OTHER": "1",
        },
        prefix="TACIT_X",
        overrides={"listen": "flag", "colour": None, "limits.share": 1},
    )
    assert resolved.value.title == "file"
    assert resolved.value.listen == "flag"
    assert resolved.value.names == ("a", "b")
    assert resolved.value.limits == Limits(most=2, share=1.0)
    assert resolved.sources["title"] == "sample.toml:1"
    assert resolved.sources["listen"] == "flag"
    assert resolved.sources["limits.most"] == "environment TACIT_X_LIMITS_MOST"
    assert resolved.sources["limits.share"] == "flag"
    assert resolved.sources["colour"] == "default"


def test_a_mistyped_variable_is_a_problem() -> None:
    """A variable with our prefix that fits no key is refused, with the nearest one."""
    environ = {"TACIT_X_LISTN": "a", "TACIT_X_LIMITS_MOST": "two", "TACIT_X_COLOUR": "blue"}
    assert problems_of('title = "t"', environ=environ, prefix="TACIT_X_") == [
        "environment TACIT_X_LIMITS_MOST: expected a value as it stands in TOML",
        "environment TACIT_X_LISTN: unknown variable (did you mean TACIT_X_LISTEN?)",
        ('environment TACIT_X_COLOUR: colour: expected one of "red", "green", got the text "blue"'),
    ]


def test_the_environment_is_not_read_without_a_prefix() -> None:
    """A run specification means the same on every machine."""
    value = parse_toml('title = "t"', Sample, source="s", environ={"LISTEN": "x"}).value
    assert value.listen == "localhost:1"


def test_a_flag_over_a_broken_table_is_the_files_problem() -> None:
    """A flag below a key that the file made a scalar does not crash the reader."""
    (problem,) = problems_of('title = "t"\nlimits = 3', overrides={"limits.most": 1})
    assert problem == "sample.toml:2: limits: expected a table, got 3"


def test_files_are_read_strictly(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are configuration errors; CRLF is fine."""
    with pytest.raises(ConfigError, match="E-CONFIG-MISSING"):
        load_config(tmp_path / "none.toml", Sample)
    path = tmp_path / "sample.toml"
    path.write_bytes(b'title = "\xff"')
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path, Sample)
    path.write_bytes(b'title = "t"\r\ncolour = "green"\r\n')
    resolved = load_config(path, Sample, environ={})
    assert resolved.sources["colour"] == "sample.toml:2"


def test_from_plain_is_as_strict() -> None:
    """What came over the wire is read by the same rules; null stands for an absent value."""
    assert from_plain({"title": "t", "pair": None}, Sample) == Sample(title="t")
    with pytest.raises(ConfigError) as caught:
        from_plain({"title": "\ud800", "limits": None, "more": 1}, Sample)
    assert caught.value.problems == (
        (
            "specification: more: unknown key; expected one of title, colour, listen, folder, "
            "limits, pair, names, rules, by_name, anything, password"
        ),
        "specification: title: expected text in valid Unicode without zero characters",
        "specification: limits: expected a table, got None",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(
    st.dictionaries(
        st.sampled_from(["title", "limits", "pair", "rules", "by_name", "anything", "x"]),
        json_values,
    )
)
def test_no_input_breaks_the_reader(tree: dict[str, object]) -> None:
    """Whatever JSON a peer sends, the reader returns a typed value or lists problems."""
    value = typed_or_problems(tree)
    if isinstance(value, Sample):
        assert isinstance(value.title, str)
        assert all(math.isfinite(number) for number in value.pair or ())
    else:
        assert value


@given(st.dictionaries(st.text(), st.booleans() | st.integers(-9, 9) | st.text(), max_size=4))
def test_free_form_tables_survive(table: dict[str, bool | int | str]) -> None:
    """A table of the user's own keys comes out as it went in."""
    value = typed_or_problems(json.loads(json.dumps({"title": "t", "anything": table})))
    if isinstance(value, Sample):
        assert value.anything == table
    else:
        assert all("valid Unicode" in problem for problem in value)


@dataclass(frozen=True, kw_only=True)
class Exotic:
    level: Literal["low", "high"] = "low"
    node: NewType("Node", int) | None = None  # type: ignore[valid-type]
    free: Any = None
    either: float | str = 0.0


def test_rarer_types_are_read_as_strictly() -> None:
    """Literals, new types, unions and free values follow the same rules."""
    plain = {"level": "high", "node": 3, "free": [1], "either": 2}
    assert from_plain(plain, Exotic) == Exotic(level="high", node=3, free=[1], either=2.0)
    with pytest.raises(ConfigError) as caught:
        from_plain({"level": "lo", "node": "x", "either": [1]}, Exotic)
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        'level: expected one of "low", "high", got the text "lo" (did you mean "low"?)',
        'node: expected a whole number, got the text "x"',
        "either: expected a number or text, got a list",
    ]
    environ = {"TACIT_X_LEVEL": "high", "TACIT_X_NODE": "7"}
    value = parse_toml("", Exotic, source="s", environ=environ, prefix="TACIT_X").value
    assert (value.level, value.node) == ("high", 7)


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    number: complex = 0j


def test_a_type_without_a_rule_is_a_programming_error() -> None:
    """A field that no rule reads fails loudly, not for one user at a time."""
    with pytest.raises(TypeError, match="complex"):
        from_plain({"number": 1}, Unreadable)


@pytest.mark.parametrize("required", ["colour", "limits", "pair", "by_name"])
def test_what_is_missing_is_described(required: str) -> None:
    """A missing key says what kind of value it wants."""
    described = {
        "colour": 'one of "red", "green"',
        "limits": "a table",
        "pair": "a list",
        "by_name": "a table",
    }
    with pytest.raises(ConfigError) as caught:
        from_plain({}, Demanding)
    expected = f"specification: {required}: missing: expected {described[required]}"
    assert expected in caught.value.problems


@dataclass(frozen=True, kw_only=True)
class Demanding:
    colour: Colour
    limits: Limits
    pair: tuple[float, float]
    by_name: Mapping[str, Rule]
    count: int
    either: float | str


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """A file that no person wrote is not parsed."""
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ConfigError, match="expected at most"):
        load_config(path, Sample)
    with pytest.raises(UnavailableError, match="E-FILE-UNREADABLE"):
        load_config(tmp_path, Sample)
