"""The verbs that reach a running daemon: one JSON line each way over a Unix socket.

Whoever can open the socket, inside the state directory of mode 0700, is the node's owner. A verb
gets its fields and answers with fields, or with an error's code and text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import TYPE_CHECKING, Any

from tacit.core.errors import RefusedError, TacitError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tacit.core.state import StateDirectory

logger = logging.getLogger("tacit.client.local")

Answer = dict[str, Any]
Verb = "Callable[[Mapping[str, Any]], Awaitable[Answer]]"

_MAX_LINE_BYTES = 1 << 20
_TIMEOUT_S = 3600.0  # an approval prepares the data before it answers
_FAMILIES = {
    family.__name__: family for family in (RefusedError, UnavailableError, UsageError, TacitError)
}


async def serve_local(
    path: Path, verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Answer]]]
) -> asyncio.Server:
    """Listen on the daemon's socket, in place of one that an earlier daemon left behind."""
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, at the start

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readuntil(b"\n")
            reply = await _answered(line, verbs)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the other end has gone, or never spoke our language
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, path=str(path), limit=_MAX_LINE_BYTES)
    path.chmod(0o600)  # noqa: ASYNC240 - once, at the start
    return server


async def _answered(
    line: bytes, verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Answer]]]
) -> Answer:
    try:
        request = json.loads(line)
        verb = verbs[request["verb"]]
        return {"answer": await verb(request)}
    except TacitError as error:
        family = type(error).__name__
        return {
            "error": family,
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
        }
    except (ValueError, KeyError, TypeError):
        return {
            "error": "UsageError",
            "code": "E-LOCAL-VERB",
            "message": "the daemon does not know this verb",
            "hint": "The daemon may be of another version: restart it.",
        }


def ask_daemon(state: StateDirectory, verb: str, **fields: object) -> Answer:
    """Ask the running daemon, and wait for its answer.

    Raises:
        UnavailableError: no daemon runs (E-DAEMON-STOPPED).
        TacitError: what the daemon said, in its own family.
    """
    request = json.dumps({"verb": verb, **fields}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(state.socket))
            connection.sendall(request)
            with connection.makefile("rb") as file:
                reply = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise UnavailableError(
            "E-DAEMON-STOPPED",
            f"expected a running daemon in {state.path}",
            hint="Start it: tacit client start",
        ) from error
    if "error" in reply:
        family = _FAMILIES.get(reply["error"], TacitError)
        raise family(reply["code"], reply["message"], hint=reply["hint"])
    answer: Answer = reply["answer"]
    return answer
