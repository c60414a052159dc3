"""Canaries at the node: whether the owner allows them, and the bits that are drawn and kept.

1. Owners keep room for canaries in client.toml, or there are none: ``max_canaries`` of the data
   set, of the records that it declares. In a model that is released, at most 1 % of these. Both are
   public numbers: how many records there are has no part in the verdict on a run, which an auditor
   would otherwise learn by asking for more and more. Real records have what is left, in every run.
2. The node draws bits and salt from the operating system when a run is made ready, before its data
   are, and writes them into the run's folder, mode 0600. Drawn once, they stay: a restart finds
   them. Their salted hash travels with the owner's yes, before the run starts, and stays in the
   decision log.
3. Bits are opened to a query, after an update has left; once opened, the node trains no more in
   that run: whoever knows the bits must not choose what comes after.
4. With the run they end, and the file is removed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tacit.attacks.inclusion import (
    SALT_BYTES,
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
    from tacit.client.store import RunRecord, Store
    from tacit.core.specification import RunSpec

CANARIES_NAME = "canaries.json"
COMMITTED = "committed"  # in the decision log: to which bits, as a salted hash
_LINES = 100_000  # of the log that are looked through


def verify_canaries(specification: RunSpec, config: ClientConfig) -> None:
    """Refuse canaries that the owner does not allow, or that the data set has no room for.

    Raises:
        RefusedError: E-POLICY-CANARIES, E-CANARIES-NO-ROOM or E-CANARIES-RELEASED.
    """
    canaries, name = specification.canaries, specification.data_set
    data_set = config.data_sets.get(name)
    if canaries is None or data_set is None:
        return
    key = f"data_sets.{name}.max_canaries of client.toml"
    if data_set.max_canaries == 0:
        raise RefusedError(
            "E-POLICY-CANARIES",
            f"{key} is 0: no canaries go into a run here",
            hint=f"The owner may keep room for them: max_canaries under [data_sets.{name}].",
        )
    design = owner_design(canaries, 0)
    if design.canaries > data_set.max_canaries:
        raise RefusedError(
            "E-CANARIES-NO-ROOM",
            f"{key} keeps room for {data_set.max_canaries} canaries within the {data_set.records} "
            f"declared records, the run asks for {design.canaries}",
            hint="Ask for fewer canaries, or the owner for more room: max_canaries, and records "
            "with it.",
        )
    design.verify_room(
        records=data_set.records - data_set.max_canaries,
        declared=data_set.records,
        released=not canaries.twin,
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


def canary_notes(store: Store, run: RunRecord) -> dict[str, object]:
    """Return what the decision log has of a run's canaries: to what the node committed, what left.

    Returns:
        ``commitment`` (hex) and, once they were opened, ``opened``: how many bits, bytes of salt
        and sums over released gradients left, in how many bytes; nothing without canaries.
    """
    canaries = json.loads(run.specification).get("canaries")
    if not canaries:
        return {}
    lines = store.list_decisions(limit=_LINES, run_id=run.run_id)
    notes: dict[str, object] = {}
    for line in lines:
        if line.outcome == COMMITTED:
            notes["commitment"] = line.reason
        if line.outcome == "released" and line.message_type == "query":
            notes["opened"] = {
                "bits": canaries["directions"] + canaries["mislabelled"],
                "salt_bytes": SALT_BYTES,
                "sums": canaries["directions"],
                "bytes": line.payload_bytes,
            }
    return {"canaries": notes} if notes else {}


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
