from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError
from tacit.core.events import Event, EventKind, event_line, fields_json, parse_event

values = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"))


@given(
    st.integers(1, 2**40),
    st.floats(0, 1e10),
    st.sampled_from(EventKind),
    st.dictionaries(st.text(st.characters(codec="utf-8")), values | st.lists(values)),
)
def test_an_event_is_read_as_it_was_written(
    sequence: int, at_s: float, kind: EventKind, fields: dict[str, object]
) -> None:
    """One event is one line of JSON."""
    event = Event(sequence=sequence, at_s=at_s, kind=kind, fields=fields)
    line = event_line(event)
    assert line.count(b"\n") == 1
    assert parse_event(line) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b'{"sequence":1,"at_s":1,"kind":"unheard_of","fields":{}}',
        b'{"sequence":"x","at_s":1,"kind":"checkpoint","fields":{}}',
        b'{"sequence":1,"at_s":1,"kind":"checkpoint","fields":3}',
        b'{"sequence":1,"at_s":1,"kind":"checkpoint"}',
        b"\xff",
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_other_lines_are_refused(line: bytes) -> None:
    """A cut or foreign line is an error of ours."""
    with pytest.raises(ProtocolError, match="E-EVENT-MALFORMED"):
        parse_event(line)


def test_numbers_that_json_lacks_are_refused() -> None:
    """A metric that is not a number never reaches a file that others read."""
    with pytest.raises(ValueError, match="JSON"):
        fields_json({"loss": float("nan")})


def test_every_kind_is_documented() -> None:
    """The docstring lists each kind, since people read it to parse events.jsonl."""
    assert all(f"``{kind.value}``" in (EventKind.__doc__ or "") for kind in EventKind)


def test_three_kinds_end_a_run() -> None:
    """A watcher stops at these."""
    ends = {kind.value for kind in EventKind if kind.ends_run}
    assert ends == {"run_finished", "run_failed", "run_stopped"}
