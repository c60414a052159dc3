"""Canaries at the node: whether the owner allows them, and the bits that are drawn and kept.

1. Owners allow canaries in client.toml, or there are none: ``allow_canaries`` under
   ``[policy.audit]``. In a model that is released, at most 1 % of the declared records.
2. The node draws bits and salt from the operating system when a run is made ready, before its data
   are, and writes them into the run's folder, mode 0600. Drawn once, they stay: a restart finds
   them. Their salted hash travels with the claim of every update.
3. Bits are opened to a query, after an update has left; once opened, the node trains no more in
   that run: whoever knows the bits must not choose what comes after.
4. With the run they end, and the file is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.attacks.inclusion import (
    Opening,
    draw_opening,
    encode_opening,
    owner_design,
    parse_opening,
)
from tacit.core.errors import RefusedError, UnavailableError
from tacit.core.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.configuration import ClientConfig
    from tacit.client.store import Store
    from tacit.core.specification import RunSpec

CANARIES_NAME = "canaries.json"


def verify_canaries(specification: RunSpec, config: ClientConfig) -> None:
    """Refuse canaries that the owner does not allow, or that the data set has no room for.

    Raises:
        RefusedError: E-POLICY-CANARIES, E-CANARIES-NO-ROOM or E-CANARIES-RELEASED.
    """
    canaries = specification.canaries
    if canaries is None:
        return
    if not config.policy.audit.allow_canaries:
        raise RefusedError(
            "E-POLICY-CANARIES",
            "policy.audit.allow_canaries of client.toml is false: no canaries go into a run here",
            hint="The owner may allow them: allow_canaries = true under [policy.audit].",
        )
    data_set = config.data_sets.get(specification.data_set)
    if data_set is not None:
        owner_design(canaries, 0).verify_room(
            records=0, declared=data_set.records, released=not canaries.twin
        )


def verify_may_ask(specification: RunSpec, store: Store, run_id: str, message_type: str) -> None:
    """Refuse an opening before anything has left, and training after the opening.

    Raises:
        RefusedError: E-CANARIES-UNTRAINED or E-CANARIES-OPENED.
    """
    if specification.canaries is None:
        return
    if message_type == "query" and store.count_releases(run_id, "train") == 0:
        raise RefusedError(
            "E-CANARIES-UNTRAINED", "expected an update in this run before its canaries are opened"
        )
    if message_type == "train" and store.count_releases(run_id, "query") > 0:
        raise RefusedError(
            "E-CANARIES-OPENED",
            "expected no update after the canaries of this run were opened",
            hint="Whoever knows the bits could choose what is trained: submit another twin.",
        )


def drawn_opening(folder: Path, specification: RunSpec, node_id: int) -> Opening | None:
    """Return the run's bits and salt; drawn, and on the disk, if they were not there.

    Args:
        folder: of the run; it must exist.
        specification: of the run.
        node_id: this node's.

    Raises:
        UnavailableError: the file is damaged, or the disk is full.
    """
    if specification.canaries is None:
        return None
    known = held_opening(folder)
    if known is not None:
        return known
    opening = draw_opening(owner_design(specification.canaries, node_id))
    write_atomic(folder / CANARIES_NAME, encode_opening(opening))
    return opening


def held_opening(folder: Path) -> Opening | None:
    """Return the bits and salt that were drawn for a run; None if there are none.

    Raises:
        UnavailableError: the file cannot be read, or is damaged.
    """
    try:
        text = (folder / CANARIES_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(
            "E-CANARY-OPENING", f"expected the canaries' bits at {folder / CANARIES_NAME}"
        ) from error
    return parse_opening(text)
