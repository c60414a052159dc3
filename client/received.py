"""``received.safetensors``: the model that a node received last in a run, for its owner's eyes.

Only of a run's last round, and only of a built-in run that keeps its model: an evaluation carries
the model that the round made, a training the one before it. The round's number is the server's
word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.artifacts import load_metadata, save_arrays
from tacit.core.errors import UnavailableError
from tacit.protos.manifest import array_of, placed, verify_digest

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.specification import RunSpec
    from tacit.protos.fleet_pb2 import InstructionHead

RECEIVED_NAME = "received.safetensors"
_ROUND, _TYPE = "tacit-round", "tacit-message-type"


@dataclass(frozen=True, kw_only=True)
class Received:
    """Which model is kept.

    Attributes:
        round_number: of the message that brought it.
        message_type: of that message, ``train`` or ``evaluate``.
    """

    round_number: int
    message_type: str

    @property
    def trained_rounds(self) -> int:
        """How many rounds the model had been trained for."""
        return self.round_number if self.message_type == "evaluate" else self.round_number - 1


def is_last_model(specification: RunSpec, head: InstructionHead) -> bool:
    """Return whether an instruction brings a built-in run's model of its last round."""
    return (
        specification.app is None
        and not specification.discards_model
        and head.message_type in ("train", "evaluate")
        and head.group_id == str(specification.participation.rounds)
    )


def keep_received(folder: Path, head: InstructionHead, payload: memoryview) -> None:
    """Write what an instruction brought, in place of what was kept before.

    Args:
        folder: of the run.
        head: the instruction, of a checked manifest.
        payload: its bytes.

    Raises:
        ProtocolError: the payload is not what the manifest says, or no plain arrays.
        UnavailableError: the disk is full.
    """
    verify_digest(head.manifest, payload)
    arrays = {
        place.name: array_of(place, payload)
        for place in placed(head.manifest)
        if place.entry is not None
    }
    notes = {_ROUND: head.group_id, _TYPE: head.message_type}
    save_arrays(folder / RECEIVED_NAME, arrays, metadata=notes, durable=False)


def find_received(folder: Path) -> Received | None:
    """Return which model a run's folder keeps; None without one.

    Raises:
        UnavailableError: the file is damaged.
    """
    path = folder / RECEIVED_NAME
    if not path.exists():
        return None
    notes = load_metadata(path)
    try:
        return Received(round_number=int(notes[_ROUND]), message_type=notes[_TYPE])
    except (KeyError, ValueError) as error:
        raise UnavailableError(
            "E-RECEIVED-MALFORMED", f"expected the last model of a run at {path}"
        ) from error
