"""What the owners' noised sums say together: added up first, divided last.

A strategy's weighted mean would average each owner's ratio of noised sums, which is biased, and
worse the fewer records an owner has. So these sums are not handed to the strategy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.results import SUMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.app import Message

    from tacit.core.specification import RunSpec
    from tacit.privacy.evaluation_plan import Estimate


def merge_noised_metrics(run: RunSpec, replies: Sequence[Message]) -> dict[str, Estimate] | None:
    """Return accuracy and loss over all who answered, with intervals; None if nobody did.

    Args:
        run: one that declares ``evaluation.epsilon``.
        replies: in node-id order, refusals included.
    """
    from tacit.privacy.evaluation_plan import (  # noqa: PLC0415 - half a second, for these runs
        estimate_metrics,
        evaluation_plan,
    )

    answered = [sums for reply in replies if (sums := _sums_of(reply)) is not None]
    if not answered:
        return None
    totals = {name: sum(sums[name] for sums in answered) for name in SUMS}
    return estimate_metrics(evaluation_plan(run), totals, owners=len(answered))


def _sums_of(reply: Message) -> dict[str, float] | None:
    """Return an owner's noised sums; None for a refusal, or where one of them is not there."""
    if reply.has_error():
        return None
    found = {
        name: float(value)
        for record in reply.content.metric_records.values()
        for name, value in record.items()
        if name in SUMS and not isinstance(value, list)
    }
    return found if len(found) == len(SUMS) else None
