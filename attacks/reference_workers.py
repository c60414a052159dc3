"""Chunks of reference models, trained by several processes of one thread each.

Trusts: the processes, which run this program's own code on what it hands them.
Promises: chunks come as soon as they are made; an error of a worker is raised here as what it was;
a worker that ends early is an error, never a missing chunk; whatever happens, no worker is left.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tacit.core.errors import TacitError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    import numpy as np

    Arrays = dict[str, np.ndarray]


class Work(Protocol):
    """What is done for a chunk of models, here or in another process."""

    def train(self, chunk: range) -> Arrays:
        """Return the chunk's arrays."""


@dataclass(frozen=True)
class _Failure:
    """An error that can travel: exceptions with arguments by name cannot."""

    kind: type[TacitError]
    code: str
    message: str
    hint: str


def trained_by_workers(
    work: Work, chunks: Sequence[range], *, workers: int
) -> Iterator[tuple[range, Arrays]]:
    """Yield each chunk with its arrays, in the order in which they are ready.

    Raises:
        TacitError: what training raised.
        UnavailableError: a worker ended before its chunks were trained (``E-AUDIT-WORKERS``).
    """
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        expected: dict[Connection, list[range]] = {}
        for index in range(min(workers, len(chunks))):
            own = list(chunks[index::workers])
            receiving, sending = spawn.Pipe(duplex=False)
            stack.enter_context(receiving)
            process = spawn.Process(target=_train, args=(work, own, sending), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)  # runs first; it may have ended already
            sending.close()  # or the end of the worker would not end the pipe
            expected[receiving] = own
        yield from _received(expected)


def _received(expected: dict[Connection, list[range]]) -> Iterator[tuple[range, Arrays]]:
    while expected:
        for ready in multiprocessing.connection.wait(list(expected)):
            assert isinstance(ready, multiprocessing.connection.Connection)  # noqa: S101 - types
            try:
                answer = ready.recv()
            except (EOFError, OSError) as error:  # between messages, or within one
                raise UnavailableError(
                    "E-AUDIT-WORKERS",
                    "expected reference models from a worker process, it ended before",
                    hint="ask for fewer workers: each needs memory of its own; "
                    "what is finished is kept",
                ) from error
            if isinstance(answer, _Failure):
                raise answer.kind(answer.code, answer.message, hint=answer.hint)
            yield expected[ready].pop(0), answer
            if not expected[ready]:
                del expected[ready]


def _train(work: Work, chunks: list[range], sending: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    try:
        for chunk in chunks:
            sending.send(work.train(chunk))
    except TacitError as error:
        sending.send(_Failure(type(error), error.code, error.message, error.hint))
