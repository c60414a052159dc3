"""What the server accepts as a reply, checked on its manifest before any of its bytes are taken.

The owner's envelope has checked the same rules at its side; the server trusts no node to have done
so. The values of arrays are checked once they are here: a NaN would spoil the aggregate for all.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.errors import ProtocolError
from tacit.protos.manifest import array_of, check_manifest, is_raw, placed, value_of
from tacit.protos.records_pb2 import Manifest, Record
from tacit.protos.secure import MASKED, check_secure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.specification import MetricSpec, ReplySpec
    from tacit.protos.fleet_pb2 import InstructionHead
    from tacit.server.configuration import LimitsConfig

_CODE = re.compile(r"E-[A-Z0-9-]{1,60}")
_BLOCK = 1 << 18  # elements looked at together: they stay in the processor's cache

APP_FAILED = "E-APP-FAILED"


def verify_reply(
    reply: Manifest,
    *,
    instruction: Manifest,
    message_type: str,
    schema: Mapping[str, ReplySpec],
    limits: LimitsConfig,
) -> None:
    """Check a reply's manifest against limits and the run's result schema.

    Raises:
        ProtocolError: a rule is broken; the code says which.
    """
    check_manifest(reply, max_bytes=limits.max_update_bytes, max_arrays=limits.max_arrays)
    declared = schema.get(message_type) or schema.get(message_type.partition(".")[0])
    if declared is None:
        raise ProtocolError(
            "E-REPLY-UNDECLARED", f"the run declares no reply to messages {message_type!r}"
        )
    arrays = [record for record in reply.records if record.kind == Record.ARRAYS]
    if declared.arrays == "model":
        _verify_model(arrays, instruction)
    elif arrays:
        raise ProtocolError("E-REPLY-SCHEMA", "expected no arrays")
    for record in reply.records:
        if record.kind == Record.METRICS:
            _verify_metrics(record, declared.metrics)
        elif record.kind == Record.CONFIG:
            raise ProtocolError("E-REPLY-SCHEMA", "expected arrays and metrics, got a config")


def verify_secure_reply(
    reply: Manifest, *, instruction: InstructionHead, limits: LimitsConfig
) -> None:
    """Check the manifest of a reply in a session of secure aggregation.

    A vector comes in answer to training, or to the shares that were dealt, and nowhere else; how
    long it must be, the session knows, and here is only what the model bounds.

    Raises:
        ProtocolError: a rule is broken; the code says which.
    """
    check_manifest(reply, max_bytes=limits.max_update_bytes, max_arrays=2)
    vector = instruction.message_type in ("train", MASKED)
    check_secure(reply, most_vector_bytes=limits.max_update_bytes if vector else 0)


def verify_finite(reply: Manifest, payload: memoryview) -> None:
    """Check that every raw floating-point array holds finite numbers.

    Raises:
        ProtocolError: E-REPLY-NOT-FINITE.
    """
    for place in placed(reply):
        if place.entry is None or not is_raw(place.entry):
            continue
        if not place.entry.dtype.startswith("float"):
            continue
        flat = array_of(place, payload).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            if not np.isfinite(flat[start : start + _BLOCK]).all():
                raise ProtocolError(
                    "E-REPLY-NOT-FINITE", f"expected finite numbers in {place.name!r}"
                )


def stable_code(reason: str) -> str:
    """Return a node's reason if it is a stable code; a peer's free text goes no further."""
    return reason if _CODE.fullmatch(reason) else APP_FAILED


def _verify_model(arrays: list[Record], instruction: Manifest) -> None:
    if len(arrays) != 1:
        raise ProtocolError("E-REPLY-SCHEMA", f"expected one array record, got {len(arrays)}")
    models = [_shape_of(record) for record in instruction.records if record.kind == Record.ARRAYS]
    if _shape_of(arrays[0]) not in models:
        raise ProtocolError(
            "E-REPLY-SCHEMA", "expected the names, shapes and dtypes of the model that was sent"
        )


def _shape_of(record: Record) -> dict[str, tuple[str, str, tuple[int, ...], int]]:
    return {e.name: (e.dtype, e.stype, tuple(e.shape), e.bytes) for e in record.arrays}


def _verify_metrics(record: Record, declared: Mapping[str, MetricSpec]) -> None:
    for item in record.items:
        metric = declared.get(item.key)
        if metric is None:
            raise ProtocolError("E-REPLY-METRIC", f"the run declares no metric {item.key[:80]!r}")
        value = value_of(item)
        values = value if isinstance(value, list) else [value]
        length = len(value) if isinstance(value, list) else 0
        if length != metric.length:
            raise ProtocolError(
                "E-REPLY-METRIC", f"{item.key}: expected length {metric.length}, got {length}"
            )
        low, high = metric.range
        for number in values:
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ProtocolError("E-REPLY-METRIC", f"{item.key}: expected a finite number")
            if not low <= number <= high:
                raise ProtocolError("E-REPLY-METRIC", f"{item.key}: expected {low} to {high}")
