"""A reply of mode ``client-local``, noised by the node: the app's update never leaves as it is.

The app, which is nobody's to trust, hands over a whole model; what it was given is the node's own
copy. Only real arrays of the model may differ, and they leave clipped and noised
(``privacy/update.py``). Of metrics a weight alone may stand beside them, and it leaves as 1: a
number of records would be part of what is protected.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.client.approvals import WEIGHT
from tacit.client.payload import BufferPayload
from tacit.core.errors import RefusedError
from tacit.privacy.update import UpdatedArray, noise_update
from tacit.protos.manifest import array_of, is_raw, placed

if TYPE_CHECKING:
    from tacit.privacy.plan import PrivacyPlan
    from tacit.protos import records_pb2


def noise_reply(
    manifest: records_pb2.Manifest,
    payload: memoryview,
    *,
    instruction: records_pb2.Manifest,
    received: memoryview,
    plan: PrivacyPlan,
    key: bytes,
) -> BufferPayload:
    """Return the bytes that may leave in place of a reply's; the weight in ``manifest`` becomes 1.

    Args:
        manifest: of the reply, which has passed the envelope.
        payload: the daemon's copy of the reply.
        instruction: manifest of what was received.
        received: the daemon's own copy of it, which the app could not change.
        plan: of mode client-local.
        key: of this attempt, 32 bytes.

    Raises:
        RefusedError: something in the reply cannot be noised (``E-UPDATE-...``).
    """
    for record in manifest.records:
        for item in record.items:
            if item.key != WEIGHT:
                raise RefusedError(
                    "E-UPDATE-METRIC", f"expected no metric but {WEIGHT}, got {item.key!r}"
                )
            item.integer = 1
    models = _arrays(instruction, received)
    arrays = [
        UpdatedArray(name=name, received=models[name], reply=np.array(values, order="C"))
        for name, values in _arrays(manifest, payload).items()
    ]
    noise_update(
        arrays,
        clip=plan.clip,
        deviation=plan.noise_deviation,
        key=key,
        purpose=f"update {hashlib.sha256(received).hexdigest()}",
    )
    return BufferPayload(tuple(array.reply.reshape(-1).data for array in arrays))


def _arrays(
    manifest: records_pb2.Manifest, payload: memoryview
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    arrays = {}
    for place in placed(manifest):
        if place.entry is None or not is_raw(place.entry):
            raise RefusedError(
                "E-UPDATE-DTYPE", f"array {place.name}: expected plain numbers, got opaque bytes"
            )
        arrays[place.name] = array_of(place, payload)
    return arrays
