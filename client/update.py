"""A reply of mode ``client-local``, noised by the node: the app's update never leaves as it is.

The app, which is nobody's to trust, hands over a whole model; what it was given is the node's own
copy. Only real arrays of the model may differ, and they leave clipped and noised
(``privacy/update.py``). Of metrics a weight alone may stand beside them, and it leaves as 1: a
number of records would be part of what is protected.

Nothing else is left to an app's choice: the node writes the manifest itself, in the order and under
the names of the instruction, and always with the weight. So is what may leave of a failure: one
code, whatever happened, and at the price of an update, since whether an app fails may depend on the
records as well (:func:`conceals_failures`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.client.approvals import WEIGHT
from tacit.client.payload import BufferPayload
from tacit.core.errors import RefusedError
from tacit.core.specification import PrivacyMode, RunSpec
from tacit.privacy.update import UpdatedArray, is_noisable, noise_update
from tacit.protos import records_pb2
from tacit.protos.manifest import array_of, is_raw, placed

if TYPE_CHECKING:
    from tacit.privacy.plan import PrivacyPlan

CONCEALED = "E-APP-FAILED"


@dataclass(frozen=True, kw_only=True)
class Noising:
    """What the node needs to noise an update itself.

    Attributes:
        instruction: manifest of what was received.
        received: the daemon's own copy of it, which the app could not change.
        plan: of mode client-local.
        weighted: whether a weight stands beside the model.
        key: of this attempt, 32 bytes.
    """

    instruction: records_pb2.Manifest
    received: memoryview = field(repr=False)
    plan: PrivacyPlan
    weighted: bool
    key: bytes = field(repr=False)


def conceals_failures(specification: RunSpec) -> bool:
    """Whether a failure of code that is not ours would tell of records that the mode protects."""
    model = specification.model
    foreign = specification.app is not None or (model is not None and model.factory is not None)
    modes = (PrivacyMode.CLIENT_LOCAL, PrivacyMode.CLIENT_DISTRIBUTED)
    return foreign and specification.privacy.mode in modes


def verify_noisable(instruction: records_pb2.Manifest) -> None:
    """Check, before an app is called, that an update of what was received could be noised.

    Raises:
        RefusedError: E-UPDATE-DTYPE.
    """
    for place in placed(instruction):
        if place.entry is None or not is_raw(place.entry):
            raise RefusedError(
                "E-UPDATE-DTYPE", f"array {place.name}: expected plain numbers, got opaque bytes"
            )
        if not is_noisable(np.dtype(place.entry.dtype)):
            raise RefusedError(
                "E-UPDATE-DTYPE",
                f"array {place.name}: expected float32, float64 or integers, "
                f"got {place.entry.dtype}",
                hint="Noise is added in float32 and float64 only: ask the operator for such a "
                "model.",
            )


def noise_reply(
    manifest: records_pb2.Manifest, payload: memoryview, noising: Noising
) -> BufferPayload:
    """Return the bytes that may leave in place of a reply's; ``manifest`` becomes the node's own.

    Args:
        manifest: of the reply, which has passed the envelope.
        payload: the daemon's copy of the reply.
        noising: what was received, and what to do.

    Raises:
        RefusedError: something in the reply cannot be noised (``E-UPDATE-...``).
    """
    for record in manifest.records:
        for item in record.items:
            if item.key != WEIGHT:
                raise RefusedError(
                    "E-UPDATE-METRIC", f"expected no metric but {WEIGHT}, got {item.key!r}"
                )
    replies = _arrays(manifest, payload)
    arrays = [
        UpdatedArray(name=name, received=values, reply=np.array(replies[name], order="C"))
        for name, values in _arrays(noising.instruction, noising.received).items()
    ]
    noise_update(
        arrays,
        clip=noising.plan.clip,
        deviation=noising.plan.noise_deviation,
        key=noising.key,
        purpose=f"update {noising.instruction.payload_sha256.hex()}",
    )
    _rewrite(manifest, noising)
    return BufferPayload(tuple(array.reply.reshape(-1).data for array in arrays))


def _rewrite(manifest: records_pb2.Manifest, noising: Noising) -> None:
    """Put into a manifest the model as it was received, and the weight 1."""
    del manifest.records[:]
    for record in noising.instruction.records:
        if record.kind == records_pb2.Record.ARRAYS:
            manifest.records.add().CopyFrom(record)
    if noising.weighted:
        metrics = manifest.records.add(key="metrics", kind=records_pb2.Record.METRICS)
        metrics.items.add(key=WEIGHT, integer=1)


def _arrays(
    manifest: records_pb2.Manifest, payload: memoryview
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    return {place.name: array_of(place, payload) for place in placed(manifest)}
