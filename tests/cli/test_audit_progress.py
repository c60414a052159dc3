"""How an audit goes on: a line per stage, the time left, and nothing where a script reads."""

from __future__ import annotations

import io

import pytest

from tacit.attacks.runner import Progress
from tacit.cli.audit_progress import AuditProgress


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(progresses: list[tuple[float, str, float]], *, quiet: bool = False) -> list[str]:
    """Return what is shown of (second, stage, share)."""
    stream, clock = io.StringIO(), Clock()
    with AuditProgress(stream=stream, clock=clock, quiet=quiet) as progress:
        for second, stage, share in progresses:
            clock.now = 100.0 + second
            progress.show(Progress(stage=stage, share=share))
    return stream.getvalue().splitlines()


def test_a_stage_is_told_once_and_then_every_ten_seconds() -> None:
    """A log that nobody watches gets a line per stage, and a sign of life in long ones."""
    told = [(0, "loss", 0.0), (1, "references", 0.1), (5, "references", 0.2)]
    lines = shown([*told, (11, "references", 0.5), (12, "references", 0.55)])
    assert [line.split(",")[0].strip() for line in lines] == [
        "0 % loss",
        "10 % references",
        "50 % references",
    ]


@pytest.mark.parametrize(
    ("second", "share", "said"),
    [(1, 0.01, None), (10, 0.25, "about 30 s left"), (60, 0.2, "about 4 min left")],
)
def test_the_time_left_follows_from_the_share(
    second: float, share: float, said: str | None
) -> None:
    """What is left takes as long per share as what is done; nothing is guessed from nothing."""
    (line,) = shown([(second, "references", share)])
    assert line.endswith(said or "references")


def test_scripts_see_nothing() -> None:
    """With --json there is no progress to filter out."""
    assert shown([(1, "loss", 0.5)], quiet=True) == []


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share, stage and time left stand beside a bar; a script's terminal stays as it was."""
    monkeypatch.setenv("TERM", "xterm")
    terminal, still, clock = Terminal(), Terminal(), Clock()
    with AuditProgress(stream=terminal, clock=clock) as progress:
        clock.now += 10.0
        progress.show(Progress(stage="references", share=0.25))
    assert "25%" in terminal.getvalue()
    assert "references, about 30 s left" in terminal.getvalue()
    with AuditProgress(stream=still, clock=clock, quiet=True) as progress:
        progress.show(Progress(stage="references", share=0.25))
    assert still.getvalue() == ""
