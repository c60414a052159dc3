"""Flower records to a manifest and a payload, and back, without copying array data.

Encoding skips the npy header of every array and hands out views of what is there; only arrays in
Fortran order or foreign byte order are converted. Decoding gives arrays over the payload itself
(see :class:`tacit.protos.flower.WireArray`). No pickle: what is not a plain number travels as
opaque bytes, and numpy's object arrays have no wire form.

Use it in worker processes and the simulator only, because it loads flwr; daemons have
``protos/manifest.py``.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from tacit.core.errors import AppError, ProtocolError
from tacit.protos.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    RecordDict,
    WireArray,
)
from tacit.protos.manifest import (
    MAX_MANIFEST_BYTES,
    NUMPY_STYPE,
    OPAQUE_DTYPES,
    RAW_DTYPES,
    array_of,
    is_raw,
    item_of,
    items_of,
    payload_digest,
    placed,
    value_of,
    values_of,
    verify_digest,
)
from tacit.protos.payload import PayloadMap
from tacit.protos.records_pb2 import ArrayEntry, Item, Manifest, Record

if TYPE_CHECKING:
    from tacit.protos.manifest import Placed

__all__ = ["Encoded", "decode_records", "encode_records", "items_of", "record_of", "verify_digest"]

BULK_BYTES = 4096  # a longer bytes value of a ConfigRecord stands in the payload

_HEADER_BYTES = 1024  # more than the npy header of any array of numbers takes
_MAGIC_BYTES = 10


@dataclass(frozen=True)
class Encoded:
    """A message's content as it travels.

    Attributes:
        manifest: what the payload holds.
        segments: the payload in order; views of the records, which must not change meanwhile.
    """

    manifest: Manifest
    segments: tuple[bytes | memoryview, ...]

    def payload(self) -> bytes:
        """Return the payload in one piece: a copy, for small contents and tests."""
        return b"".join(self.segments)


def encode_records(content: RecordDict, *, digest: bool = True) -> Encoded:
    """Encode the content of a message; array data is not copied.

    Args:
        content: the records.
        digest: whether to name the payload's SHA-256; a receiver that trusts only its own copy, and
            takes the digest of that, needs none.

    Raises:
        AppError: the content has no wire form: an array of objects or text, a damaged array, a
            number beyond 64 bits, or more names and small values than a head may carry.
    """
    manifest = Manifest()
    segments: list[bytes | memoryview] = []
    for key, record in content.items():
        try:
            entry = manifest.records.add(key=key)
        except ValueError as error:
            raise AppError("E-RECORD-KEY", "expected a record key that is valid text") from error
        if isinstance(record, ArrayRecord):
            entry.kind = Record.ARRAYS
            for name, array in record.items():
                described, data = _encode_array(name, array)
                entry.arrays.append(described)
                segments.append(data)
        else:
            entry.kind = Record.METRICS if isinstance(record, MetricRecord) else Record.CONFIG
            for name, value in record.items():
                if isinstance(value, bytes) and len(value) > BULK_BYTES:
                    entry.items.append(Item(key=name, bulk_bytes=len(value)))
                    segments.append(value)
                else:
                    entry.items.append(item_of(name, value))
    manifest.payload_bytes = sum(map(_size, segments))
    if digest:
        manifest.payload_sha256 = payload_digest(segments)
    if manifest.ByteSize() > MAX_MANIFEST_BYTES:
        raise AppError(
            "E-RECORD-TOO-LONG",
            f"expected names and small values of at most {MAX_MANIFEST_BYTES} bytes together, "
            f"got {manifest.ByteSize()}",
            hint="Put long lists into an ArrayRecord, and large bytes into a value of their own.",
        )
    return Encoded(manifest, tuple(segments))


def decode_records(manifest: Manifest, payload: memoryview) -> RecordDict:
    """Rebuild the content from a manifest that passed ``check_manifest``, and its payload.

    With a payload of :func:`tacit.protos.payload.map_payload` no array byte is copied, and every
    array that ``numpy()`` returns may be written without touching the file. Other payloads must
    not change while the content lives; their arrays are copied when ``numpy()`` is called.

    Raises:
        ProtocolError: the payload is shorter than the manifest says, or the manifest is unchecked
            and wrong.
    """
    if len(payload) < manifest.payload_bytes:
        raise ProtocolError(
            "E-PAYLOAD-SIZE",
            f"expected {manifest.payload_bytes} payload bytes, got {len(payload)}",
        )
    places = placed(manifest)
    content = RecordDict()
    for record in manifest.records:
        if record.kind == Record.ARRAYS:
            arrays = ArrayRecord()
            for entry in record.arrays:
                arrays[entry.name] = _decode_array(next(places), payload)
            content[record.key] = arrays
        else:
            values: Any = MetricRecord() if record.kind == Record.METRICS else ConfigRecord()
            for item in record.items:
                if item.WhichOneof("value") == "bulk_bytes":
                    place = next(places)
                    values[item.key] = bytes(payload[place.start : place.end])
                else:
                    values[item.key] = value_of(item)
            content[record.key] = values
    return content


def record_of(items: list[Item]) -> ConfigRecord:
    """Return the ConfigRecord of items such as ``WorkerBegin.node_config``.

    Raises:
        ProtocolError: a key stands twice, or a value is missing or bulk.
    """
    return ConfigRecord(values_of(items))


def _encode_array(name: str, array: Array) -> tuple[ArrayEntry, bytes | memoryview]:
    """Return an array's entry and its bytes: raw where they are plain numbers, else opaque."""
    try:
        if isinstance(array, WireArray):
            raw = array.raw
        elif array.stype != NUMPY_STYPE or array.dtype in OPAQUE_DTYPES:
            return _entry(name, array.dtype, array.shape, array.stype, array.data), array.data
        else:
            raw = _parse_npy(array.data)
            if raw.dtype.name not in RAW_DTYPES or tuple(array.shape) != raw.shape:
                raise ValueError("header")  # noqa: TRY301 - one way out for every bad array
        data = raw.reshape(-1).view(np.uint8).data if raw.size else b""
        return _entry(name, raw.dtype.name, raw.shape, NUMPY_STYPE, data), data
    except (ValueError, TypeError) as error:
        raise AppError(
            "E-RECORD-ARRAY",
            f"expected {name!r} to be an array of numbers with its own shape and dtype",
            hint="Arrays of objects, text or structures cannot be sent.",
        ) from error


def _entry(
    name: str, dtype: str, shape: tuple[int, ...], stype: str, data: bytes | memoryview
) -> ArrayEntry:
    return ArrayEntry(name=name, dtype=dtype, shape=shape, stype=stype, bytes=_size(data))


def _parse_npy(data: bytes) -> np.ndarray:
    """Return the array inside npy bytes, as a view wherever order and byte order allow it."""
    shape, fortran, dtype, start = _parse_npy_header(_header_of(data))
    if dtype.hasobject or start > len(data):
        raise ValueError("expected an array of numbers")
    raw = (
        np.frombuffer(data, dtype=dtype, offset=start) if len(data) > start else np.empty(0, dtype)
    )
    raw = raw.reshape(shape, order="F" if fortran else "C")
    return np.asarray(raw, dtype=dtype.newbyteorder("<"), order="C")


def _header_of(data: bytes) -> bytes:
    """Return magic, version and header of npy bytes."""
    major = data[6] if len(data) > _MAGIC_BYTES else 0
    width = 2 if major == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    if length > _HEADER_BYTES:
        raise ValueError("expected a short npy header")
    return data[: 8 + width + length]


@functools.lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    buffer = io.BytesIO(header)
    version = npy.read_magic(buffer)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(buffer)
    return shape, fortran, dtype, buffer.tell()


def _decode_array(place: Placed, payload: memoryview) -> Array:
    entry = place.entry
    if entry is None:
        raise ProtocolError("E-MANIFEST-KIND", f"expected an array under {place.name!r}")
    if is_raw(entry):
        mapping = payload.obj if isinstance(payload.obj, PayloadMap) else None
        return WireArray(array_of(place, payload), mapping=mapping, start=place.start)
    data = bytes(payload[place.start : place.end])
    return Array(dtype=entry.dtype, shape=tuple(entry.shape), stype=entry.stype, data=data)


def _size(segment: bytes | memoryview) -> int:
    return segment.nbytes if isinstance(segment, memoryview) else len(segment)
