"""What an operator is told of a round that failed: whose replies, with which code, what to do next.

The server knows codes alone: why an app failed, or what a policy refused, stays with its owner. So
the remedy names the owner to be asked, and where that owner looks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tacit.core.errors import AppError
from tacit.core.wording import some_of
from tacit.server.grid_messages import DENIED, LEFT, REVOKED
from tacit.server.rounds import EXPIRED, GONE, UNKNOWN_NODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flwr.app import Message

APP_CHANGED = "E-APPROVAL-APP"  # of client/envelope.py
_AWAY = (GONE, UNKNOWN_NODE, REVOKED, LEFT)


def failures_of(replies: Iterable[Message]) -> dict[str, str]:
    """Return the reason of every reply that failed, by node id."""
    return {
        str(reply.metadata.src_node_id): str(reply.error.reason or reply.error.code)
        for reply in replies
        if reply.has_error()
    }


def failures_text(failed: Mapping[str, str]) -> str:
    """Return codes with the members that they came from, such as ``E-APP-RAISED from ada, va``.

    Args:
        failed: codes by member.
    """
    return "; ".join(
        f"{code} from {some_of(names)}" for code, names in sorted(_by(failed.items()).items())
    )


def round_failed(number: int, *, attempts: int, reason: str, failed: Mapping[str, str]) -> AppError:
    """Return the error of a round that failed as often as it may.

    Args:
        number: of the round.
        attempts: how often it was tried.
        reason: of the last attempt.
        failed: codes by member, of the last attempt.
    """
    members = _by((member, _remedy(code)) for member, code in failed.items())
    remedies = [text.format(who=some_of(names)) for text, names in sorted(members.items())]
    return AppError(
        "E-ROUND-FAILED",
        f"round {number} failed {attempts} times: {reason}",
        hint=" ".join(remedies) or "Lower min_clients, or change the strategy's parameters.",
    )


def _remedy(code: str) -> str:
    if code == EXPIRED:
        return "Raise participation.round_deadline_s, or ask what keeps {who} so long."
    if code in _AWAY:
        return "See `tacit server members` for {who}: not connected, gone or revoked."
    if code == DENIED:
        return "Ask {who}, who denied the run after it had begun."
    if code == APP_CHANGED:
        return (
            "The app's files at {who} are not those that were approved there: agree on a version, "
            "submit the run anew, and have it approved anew."
        )
    return (
        "Ask {who} for the reason, which stays there: `tacit client status` shows it, and the "
        'folder "logs" of their --home holds what the app printed.'
    )


def _by(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, key in pairs:
        grouped[key].append(name)
    return grouped
