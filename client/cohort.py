"""Whether a run's secure aggregation is one that this owner takes part in.

What a sum hides, it hides among its members: so the owner says who they may be, how many there must
be, and how many of them must agree before anything is opened. Pure; numbers come from the run as
approved and from client.toml, never from the server's word on who happens to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.errors import RefusedError
from tacit.core.secagg_spec import least_threshold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tacit.client.approvals import Offer
    from tacit.client.configuration import SecureAggregationPolicy
    from tacit.privacy.secagg.terms import Member

_TABLE = "policy.secure_aggregation"


def own_name_of(pinned: Mapping[str, Member], public_key: bytes) -> str:
    """Return the name under which this node itself is among the pinned members; empty if none."""
    return next((name for name, one in pinned.items() if one.enrolment_key == public_key), "")


def verify_included(names: Collection[str], own_name: str) -> None:
    """Refuse a run that sums among others: this node's update would be in no sum.

    Args:
        names: the members among whom the run sums.
        own_name: this node's.

    Raises:
        RefusedError: E-SECAGG-LEFT-OUT.
    """
    if own_name not in names:
        raise RefusedError(
            "E-SECAGG-LEFT-OUT",
            f"expected {own_name or 'this node'} among the members of the run, which sums among "
            f"{len(names)} others",
            hint="The run is not for this node, and nothing is asked of it. If it should be: the "
            "operator submits a run that names it.",
        )


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
            0 means floor(2n/3) + 1 of n members.

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
            f"`tacit client members pin {unpinned[0]} WORD1 ... WORD6`, and approve the run.",
        )


def verify_aggregation(offer: Offer, policy: SecureAggregationPolicy) -> None:
    """Hold an offered run's secure aggregation, or its lack of any, against the owner's policy.

    Raises:
        RefusedError: as :func:`verify_included` and :func:`verify_members`.
    """
    secure = offer.specification.secure_aggregation
    if secure is not None:
        verify_included(secure.members, offer.own_name)
        verify_members(secure.members, offer.pinned, policy, threshold=secure.threshold)
    elif offer.specification.audit is None:
        verify_members(None, (), policy)
