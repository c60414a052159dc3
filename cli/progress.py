"""How a run goes on, for people: a bar on a terminal, one plain line per round elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self, TextIO

from tacit.cli.bar import TerminalBar
from tacit.cli.output import visible
from tacit.core.events import Event, EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import ProgressColumn

_NAMED_OWNERS = 12  # of more, the first round's answers are not named one by one
INTERVAL = "-interval"  # what follows a metric's name where its noise is known


class RoundProgress:
    """Shows events of one run as they come; use it as a context manager.

    Args:
        rounds: how many rounds the run has.
        stream: where it is shown: standard output where progress is what the verb is for,
            otherwise (the default) standard error, beside the result.
        quiet: show nothing: scripts read the result.
    """

    def __init__(self, rounds: int, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._rounds = rounds
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._bar = TerminalBar(self._stream, _columns, task="rounds", total=rounds, quiet=quiet)
        self._shown = 0
        self._asked = 0
        self._answered: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show a line of the caller's own."""
        if self._quiet:
            return
        if self._bar:
            self._bar.say(text)
        else:
            print(text, file=self._stream, flush=True)

    def show(self, event: Event) -> None:
        """Show one event."""
        if self._quiet:
            return
        line = line_of(event, self._rounds)
        self._count_answers(event)
        if self._bar and event.kind in _STATES:
            self._bar.update(task=_STATES[event.kind](event.fields), at_once=True)
            if event.kind is EventKind.RUN_WAITING:
                return  # the owners' words stand above the bar already
        if event.kind is EventKind.ROUND_FINISHED:
            number = int(event.fields["round"])
            if number <= self._shown:
                return  # told again after a restart
            self._shown = number
            if self._bar:
                self._bar.update(done=number)
                return
        if line:
            self.say(line)

    def _count_answers(self, event: Event) -> None:
        """Say who has answered: by name in the first round, in which the workers start."""
        if event.kind is EventKind.ROUND_STARTED:
            self._asked, self._answered = len(event.fields.get("cohort") or ()), set()
        member = str(event.fields.get("member"))
        if event.kind is not EventKind.REPLY_RECEIVED or member in self._answered:
            return  # in secure sums each answers several times
        self._answered.add(member)
        number = int(event.fields.get("round") or 0)
        count = f"{len(self._answered)} of {self._asked}"
        if self._bar:
            self._bar.update(task=f"round {number}: {count} answered")
        elif number == 1 and self._asked <= _NAMED_OWNERS:
            self.say(visible(f"round 1: {member} has answered ({count})"))


def line_of(event: Event, rounds: int) -> str:
    """Return the line for an event, or nothing for one that is of no interest here."""
    code = event.fields.get("code")
    form = _DENIED.get(event.kind) if code == "E-RUN-DENIED" else _LINES.get(event.kind)
    if form is None:
        return ""
    fields = {**event.fields, "rounds": rounds, "owners": len(event.fields.get("cohort") or ())}
    fields["metrics"] = _metrics(event.fields.get("metrics"))
    fields["whose"] = _whose(event.fields)
    return visible(form.format_map(_Lenient(fields)).rstrip())


class _Lenient(dict[str, Any]):
    """Fields of an event; one that is missing, or from a later version, is a dash."""

    def __missing__(self, key: str) -> str:
        return "-"


_LINES = {
    EventKind.RUN_QUEUED: "queued: {name}",
    EventKind.RUN_WAITING: "waiting: {reason}",
    EventKind.RUN_STARTED: "started with {owners} owners",
    EventKind.NODE_DECIDED: "{member}: {verdict} {code}",
    EventKind.ROUND_FINISHED: "round {round}/{rounds}: {whose}, {seconds} s{metrics}",
    EventKind.EVALUATION_FINISHED: "evaluation after round {round}{metrics}",
    EventKind.CANARIES_COMMITTED: "{member}: committed to canaries, {commitment}",
    EventKind.CANARIES_ASKED: "{members} are to open their canaries; it waits up to {wait_s} s",
    EventKind.CANARIES_OPENED: "{line}",
    EventKind.NODE_LEFT: "{member}: its connection is lost {code}",
    EventKind.NODE_JOINED: "{member}: connected again",
    EventKind.NODE_REFUSED: "{member}: its node is refused with {code}",
    EventKind.REPLY_FAILED: "round {round}: {member} failed with {code}",
    EventKind.RUN_FINISHED: "finished after {rounds} rounds in {seconds} s",
    EventKind.RUN_FAILED: "failed: {reason} [{code}]",
    EventKind.RUN_STOPPED: "stopped: {reason}",
}


# What an owner's no to a run that goes on comes to; the decision itself is told apart.
_DENIED = {
    EventKind.NODE_LEFT: "{member}: takes no part any more, since its owner denied the run",
    EventKind.REPLY_FAILED: "round {round}: {member} denied the run",
}


def _waits(fields: Mapping[str, Any]) -> str:
    """Return how many of the owners are ready, or what else a run waits for, without the names."""
    return visible(str(fields.get("reason", "")).partition(": ")[0])


_STATES: Mapping[EventKind, Callable[[Mapping[str, Any]], str]] = {
    EventKind.RUN_WAITING: _waits,
    EventKind.RUN_STARTED: lambda _: "rounds",
    EventKind.ROUND_STARTED: lambda _: "rounds",
}


def _whose(fields: Mapping[str, Any]) -> str:
    """Return whose updates a round has; of a sum, who is in it and who was lost on the way."""
    asked = len(fields.get("cohort") or ())
    survivors = fields.get("survivors")
    if not isinstance(survivors, list):
        return f"{asked} owners"
    lost = fields.get("lost")
    if not isinstance(lost, dict) or not lost:
        return f"a sum of {len(survivors)} of {asked} owners"
    counted = {name: " after its vector had come" * (name in survivors) for name in lost}
    named = (f"{name} ({code}{counted[name]})" for name, code in lost.items())
    return f"a sum of {len(survivors)} of {asked} owners, lost: {', '.join(named)}"


def _metrics(metrics: object) -> str:
    if not isinstance(metrics, dict) or not metrics:
        return ""
    return ", " + ", ".join(f"{key} {text}" for key, text in metric_texts(metrics).items())


def metric_texts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics as texts; a value goes with its interval, if it has one.

    What stands after the sign is half the width of the 95 % interval, noise included.
    """
    texts = {}
    for key, value in metrics.items():
        if key.endswith(INTERVAL) and key.removesuffix(INTERVAL) in metrics:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        ends = metrics.get(key + INTERVAL)
        if ends is not None:
            low, high = ends
            text = (
                f"between {low:.4g} and {high:.4g} (95 %), too noisy to say"
                if value is None
                else f"{text} \N{PLUS-MINUS SIGN} {(high - low) / 2:.2g}"
            )
        texts[key] = text
    return texts


def _columns() -> list[ProgressColumn]:
    from rich.progress import (  # noqa: PLC0415 - 50 ms, only where somebody looks
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
