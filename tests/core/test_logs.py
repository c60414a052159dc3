from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from tacit.core.identity import MemberKeys
from tacit.core.logs import configure_logging, redact

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tacit")
    handlers, level, our_level = list(root.handlers), root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


LOG = logging.getLogger("tacit.core.test")


def test_a_line_of_json_per_event() -> None:
    """A machine reads time, level, component, event and fields."""
    stream = io.StringIO()
    configure_logging("server", level="info", form="json", stream=stream)
    LOG.info("round finished", extra={"fields": {"round": 3, "cohort": ["a", "b"]}})
    LOG.debug("not shown")
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "component": "server",
        "logger": "tacit.core.test",
        "event": "round finished",
        "fields": {"round": 3, "cohort": ["a", "b"]},
    }


def test_a_line_of_text_per_event() -> None:
    """A person reads one line; what came from a peer cannot forge another."""
    stream = io.StringIO()
    configure_logging("client", form="text", stream=stream)
    LOG.warning("joined", extra={"fields": {"name": "a\n2026 info forged", "n": 1}})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("warning client joined name=a\\n2026 info forged n=1")


def test_configuring_again_replaces_the_handler() -> None:
    """Two calls do not write every line twice."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging("a", stream=first)
    configure_logging("b", stream=second)
    LOG.info("x")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_struck_out_wherever_they_stand(form: str) -> None:
    """Tokens and private keys in messages, arguments, fields and tracebacks are redacted."""
    stream = io.StringIO()
    configure_logging("server", form="json" if form == "json" else "text", stream=stream)
    token = "tacit1_" + "Ab0_-" * 20
    key = MemberKeys.generate().tls_key_pem.decode()
    LOG.info("got %s", token, extra={"fields": {"nested": [{"key": key}], token: b"raw" * 99}})
    try:
        raise ValueError(f"bad {token} and {key}")  # noqa: TRY301
    except ValueError:
        LOG.exception("failed")
    text = stream.getvalue()
    assert "Ab0_-" not in text
    assert "PRIVATE KEY" not in text
    assert key.splitlines()[1] not in text
    assert text.count("[redacted]") >= 5
    assert "rawraw" not in text


def test_a_cut_key_is_struck_out_too() -> None:
    """A key without its last line is still a key."""
    key = MemberKeys.generate().tls_key_pem.decode()
    assert redact(f"x {key[:-20]}") == "x [redacted]"


def test_other_values_are_left_alone() -> None:
    """Numbers, names and truth values pass as they are; other objects as their text."""
    assert redact({"a": 1, "b": (True, None, 0.5)}) == {"a": 1, "b": [True, None, 0.5]}
    assert redact(ValueError("x")) == "x"
