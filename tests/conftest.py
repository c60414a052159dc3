"""What every test may rely on."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start.

    A shell that starts pytest in the background has it ignore SIGINT, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _levels_of_logging() -> Iterator[None]:
    """Put the levels back that a command under test has set: another test reads its log."""
    loggers = [logging.getLogger(), logging.getLogger("tacit")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
