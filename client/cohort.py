"""Whether a run's secure aggregation is one that this owner takes part in.

What a sum hides, it hides among its members: so the owner says who they may be, how many there must
be, and how many of them must agree before anything is opened. Pure; numbers come from the run as
approved and from client.toml, never from the server's word on who happens to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from tacit.client.configuration import SecureAggregationPolicy

_TABLE = "policy.secure_aggregation"


def least_threshold(members: int) -> int:
    """Return floor(2n/3) + 1, the threshold of a full graph of n members.

    Two sets of so many members have more than n/3 in common, so that no server can have two
    stories signed unless more than a third of the members help it (Bonawitz et al. 2017,
    doi:10.1145/3133956.3133982, section 6, active adversaries).
    """
    return 2 * members // 3 + 1


def verify_members(
    names: Collection[str] | None,
    pinned: Collection[str],
    policy: SecureAggregationPolicy,
    *,
    threshold: int = 0,
    safe_threshold: int = 0,
) -> None:
    """Hold the members and the threshold of a run against the owner's policy.

    Args:
        names: the members among whom the run sums; None for a run without secure aggregation.
        pinned: names of the members that this node has pinned, its own included.
        policy: the owner's.
        threshold: of the run: so many members must answer before a sum is opened.
        safe_threshold: the least that is safe for the run's graph, where that is not a full one;
            0 means :func:`least_threshold` of the members.

    Raises:
        RefusedError: E-SECAGG-REQUIRED, E-COHORT-TOO-SMALL, E-THRESHOLD-TOO-LOW or
            E-MEMBER-UNPINNED, whichever comes first.
    """
    if names is None:
        if policy.required:
            raise RefusedError(
                "E-SECAGG-REQUIRED",
                f"{_TABLE}.required of client.toml is true, the run has no secure aggregation: "
                "the server would see this node's update",
                hint="Ask the operator for a run with secure aggregation.",
            )
        return
    members = frozenset(names)
    if len(members) < policy.min_members:
        raise RefusedError(
            "E-COHORT-TOO-SMALL",
            f"{_TABLE}.min_members of client.toml asks for at least {policy.min_members} members, "
            f"the run has {len(members)}",
            hint="Ask the operator for a run among more members.",
        )
    floor = max(policy.min_threshold, safe_threshold or least_threshold(len(members)))
    if threshold < floor:
        raise RefusedError(
            "E-THRESHOLD-TOO-LOW",
            f"expected a threshold of at least {floor} for {len(members)} members "
            f"({_TABLE}.min_threshold of client.toml is {policy.min_threshold}), the run has "
            f"{threshold}",
            hint="Ask the operator for a run with a higher threshold.",
        )
    unpinned = sorted(members - frozenset(pinned))
    if policy.require_pinned_members and unpinned:
        raise RefusedError(
            "E-MEMBER-UNPINNED",
            f"{_TABLE}.require_pinned_members of client.toml is true, and not pinned here are: "
            f"{', '.join(unpinned)}",
            hint="Compare six words with their owners, on a channel that you trust, then: "
            f"`tacit client members pin {unpinned[0]} WORD1 ... WORD6`.",
        )
