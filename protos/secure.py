"""How the steps of secure aggregation travel: message types, bodies and vectors as arrays.

A body is the bytes of one step (privacy/secagg/messages.py), as an array of uint8; a masked vector
stands beside it as uint32. What is inside is for the state machines to check; here is only how much
of it is taken, and in which form.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tacit.core.errors import ProtocolError
from tacit.protos.manifest import NUMPY_STYPE, RAW_DTYPES, array_of, placed
from tacit.protos.records_pb2 import ArrayEntry, Manifest, Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tacit.protos.fleet_pb2 import InstructionHead

RECORD = "secagg"
BODY = "body"
VECTOR = "vector"

KEYS = "query.secagg-keys"
SHARES = "query.secagg-shares"
MASKED = "query.secagg-masked"
CONSISTENCY = "query.secagg-consistency"
UNMASK = "query.secagg-unmask"
STEPS = (KEYS, SHARES, MASKED, CONSISTENCY, UNMASK)

MAX_BODY_BYTES = 4 << 20  # the shares of 10,000 members take a fifth of it


def is_step(message_type: str) -> bool:
    """Return whether a message is a step that the node's daemon answers itself."""
    return message_type in STEPS


def model_digest(instruction: InstructionHead) -> bytes:
    """Return the hash of everything that an instruction to train says: model and settings."""
    manifest = instruction.manifest.SerializeToString(deterministic=True)
    return hashlib.sha256(instruction.message_type.encode() + b"\0" + manifest).digest()


def secure_manifest(body: bytes, vector: npt.NDArray[np.uint32] | None = None) -> Manifest:
    """Return the manifest of a body, and of a vector behind it; the payload's digest is not set."""
    record = Record(key=RECORD, kind=Record.ARRAYS)
    record.arrays.append(secure_entry(BODY, "uint8", len(body)))
    total = len(body)
    if vector is not None:
        record.arrays.append(secure_entry(VECTOR, "uint32", vector.size))
        total += vector.nbytes
    return Manifest(records=[record], payload_bytes=total)


def secure_entry(name: str, dtype: str, size: int) -> ArrayEntry:
    """Return the entry of a flat array of numbers."""
    nbytes = size * RAW_DTYPES[dtype]
    return ArrayEntry(name=name, dtype=dtype, stype=NUMPY_STYPE, shape=[size], bytes=nbytes)


def check_secure(manifest: Manifest, *, most_vector_bytes: int) -> None:
    """Check the form of a step's message; call :func:`check_manifest` first.

    Raises:
        ProtocolError: it is no body with or without a vector (``E-SECAGG-FORM``).
    """
    records = manifest.records
    arrays = list(records[0].arrays) if len(records) == 1 else []
    forms = [(entry.name, entry.dtype, entry.stype) for entry in arrays]
    body, vector = (BODY, "uint8", NUMPY_STYPE), (VECTOR, "uint32", NUMPY_STYPE)
    if forms not in ([body], [body, vector]) or records[0].key != RECORD or records[0].items:
        raise ProtocolError("E-SECAGG-FORM", "expected a step of secure aggregation")
    if any(len(entry.shape) != 1 for entry in arrays):
        raise ProtocolError("E-SECAGG-FORM", "expected flat arrays in a step")
    if arrays[0].bytes > MAX_BODY_BYTES or sum(a.bytes for a in arrays[1:]) > most_vector_bytes:
        raise ProtocolError("E-SECAGG-FORM", "expected a step of secure aggregation, not so large")


def has_vector(manifest: Manifest) -> bool:
    """Return whether a checked message brings a masked vector."""
    return any(entry.name == VECTOR for record in manifest.records for entry in record.arrays)


def read_secure(
    manifest: Manifest, payload: memoryview
) -> tuple[bytes, npt.NDArray[np.uint32] | None]:
    """Return body and vector of a checked message; the vector is a view of the payload."""
    arrays = {place.name: array_of(place, payload) for place in placed(manifest)}
    return arrays[BODY].tobytes(), arrays.get(VECTOR)
