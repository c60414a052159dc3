"""Names that a server gives, checked before they become keys, file names or log lines."""

from __future__ import annotations

import re

from tacit.core.errors import ProtocolError

_RUN = re.compile(r"r-[0-9a-f]{8}")
_MESSAGE = re.compile(r"(r-[0-9a-f]{8})\.[0-9]{6,12}(\.[0-9]{1,6})?")  # a later attempt: .2
_TYPE = re.compile(r"(train|evaluate|query)(\.[A-Za-z_][A-Za-z0-9_]{0,63})?")


def verify_run_id(run_id: str) -> None:
    """Refuse what is no run id, such as a path.

    Raises:
        ProtocolError: E-RUN-ID.
    """
    if not _RUN.fullmatch(run_id):
        raise ProtocolError("E-RUN-ID", "expected a run id such as r-7f3a9c20")


def verify_message_id(run_id: str, message_id: str) -> None:
    """Refuse what is no message id of that run.

    Raises:
        ProtocolError: E-RUN-ID or E-MESSAGE-ID.
    """
    verify_run_id(run_id)
    match = _MESSAGE.fullmatch(message_id)
    if match is None or match[1] != run_id:
        raise ProtocolError("E-MESSAGE-ID", f"expected a message id of {run_id}")


def verify_message_type(message_type: str) -> None:
    """Refuse a message type that no app can register a handler for.

    Raises:
        ProtocolError: E-MESSAGE-TYPE.
    """
    if not _TYPE.fullmatch(message_type):
        raise ProtocolError("E-MESSAGE-TYPE", "expected train, evaluate or query")


def flower_run_id(run_id: str) -> int:
    """Flower's integer for a run: the hexadecimal digits of its id."""
    verify_run_id(run_id)
    return int(run_id.removeprefix("r-"), 16)
