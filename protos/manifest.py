"""What a manifest promises about its payload, and how a promise is checked before bytes are taken.

Everything here works on the manifest alone, or on a manifest beside its payload; nothing loads
flwr, so both daemons use it. A manifest comes from a peer or from an app and is trusted for
nothing: :func:`check_manifest` comes before the first payload byte, :func:`verify_digest` before
the payload is used.

The rules of a manifest:

1. Record keys, and the names inside a record, are unique and at most 1024 characters.
2. A record of arrays holds arrays only; metrics hold real numbers and integers only.
3. A raw array ("numpy.ndarray" with a dtype of :data:`RAW_DTYPES`) takes exactly the product of
   its shape times the size of its dtype. Objects, text and structures have no dtype here.
4. Every other array is opaque: its bytes are carried, never interpreted.
5. The sizes add up to ``payload_bytes``, which stays under the receiver's limit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.errors import AppError, ProtocolError
from tacit.protos.records_pb2 import (
    ArrayEntry,
    Booleans,
    ByteStrings,
    Integers,
    Item,
    Manifest,
    Reals,
    Record,
    Texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Scalar = bool | int | float | str | bytes
Value = Scalar | list[bool] | list[int] | list[float] | list[str] | list[bytes]

NUMPY_STYPE = "numpy.ndarray"
RAW_DTYPES = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}
OPAQUE_DTYPES = ("", "bfloat16")  # legacy parameters; a dtype that numpy itself does not know
MAX_MANIFEST_BYTES = 3 << 20  # a head frame has to fit the 4 MiB cap on messages
MAX_NAME_CHARACTERS = 1024
MAX_DIMENSIONS = 32
DIGEST_BYTES = 32

_METRIC_VALUES = ("real", "integer", "reals", "integers")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An array or a bulk value, and where its bytes stand in the payload.

    Attributes:
        record: key of the record.
        name: name of the array, or key of the item.
        entry: the array's entry; None for a bulk value.
        start: offset of the first byte.
        end: offset after the last byte.
    """

    record: str
    name: str
    entry: ArrayEntry | None
    start: int
    end: int


def check_manifest(manifest: Manifest, *, max_bytes: int, max_arrays: int = 100_000) -> None:
    """Check every rule that needs no payload; see the module's docstring.

    Raises:
        ProtocolError: a rule is broken; the code starts with ``E-MANIFEST-``.
    """
    if manifest.ByteSize() > MAX_MANIFEST_BYTES:
        raise ProtocolError(
            "E-MANIFEST-TOO-LONG",
            f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, got {manifest.ByteSize()}",
        )
    if manifest.payload_bytes > max_bytes:
        raise ProtocolError(
            "E-MANIFEST-TOO-LARGE",
            f"expected a payload of at most {max_bytes} bytes, got {manifest.payload_bytes}",
            hint="The limit is max_update_bytes in the receiver's configuration.",
        )
    if len(manifest.payload_sha256) != DIGEST_BYTES:
        raise ProtocolError(
            "E-MANIFEST-DIGEST",
            f"expected a SHA-256 of 32 bytes, got {len(manifest.payload_sha256)} bytes",
        )
    _check_unique((record.key for record in manifest.records), "record")
    arrays = sum(len(record.arrays) for record in manifest.records)
    if arrays > max_arrays:
        raise ProtocolError(
            "E-MANIFEST-ARRAYS", f"expected at most {max_arrays} arrays, got {arrays}"
        )
    total = sum(_check_record(record, max_bytes=max_bytes) for record in manifest.records)
    if total != manifest.payload_bytes:
        raise ProtocolError(
            "E-MANIFEST-SUM",
            f"expected sizes that add up to {manifest.payload_bytes} bytes, got {total}",
        )


def placed(manifest: Manifest) -> Iterator[Placed]:
    """Yield every array and bulk value of a checked manifest, in the order of the payload."""
    start = 0
    for record in manifest.records:
        for entry in record.arrays:
            end = start + entry.bytes
            yield Placed(record=record.key, name=entry.name, entry=entry, start=start, end=end)
            start = end
        for item in record.items:
            if item.WhichOneof("value") == "bulk_bytes":
                end = start + item.bulk_bytes
                yield Placed(record=record.key, name=item.key, entry=None, start=start, end=end)
                start = end


def is_raw(entry: ArrayEntry) -> bool:
    """Return whether the payload holds this array as plain little-endian numbers in C order."""
    return entry.stype == NUMPY_STYPE and entry.dtype in RAW_DTYPES


def array_of(place: Placed, payload: memoryview) -> np.ndarray:
    """Return a raw array as a view of the payload: nothing is copied, nothing may be written.

    Raises:
        ProtocolError: the array is opaque.
    """
    entry = place.entry
    if entry is None or not is_raw(entry):
        raise ProtocolError(
            "E-MANIFEST-OPAQUE", f"expected {place.name!r} of {place.record!r} to be a raw array"
        )
    data = payload[place.start : place.end].toreadonly()
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    return np.frombuffer(data, dtype=dtype).reshape(tuple(entry.shape))


def payload_digest(segments: Iterable[bytes | memoryview]) -> bytes:
    """Return the SHA-256 of a payload that is given in parts."""
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(segment)
    return digest.digest()


def verify_digest(manifest: Manifest, payload: bytes | memoryview) -> None:
    """Check a whole payload against its manifest's size and digest.

    Raises:
        ProtocolError: they differ.
    """
    size = len(payload)
    if size != manifest.payload_bytes:
        raise ProtocolError(
            "E-PAYLOAD-SIZE", f"expected {manifest.payload_bytes} payload bytes, got {size}"
        )
    if payload_digest([payload]) != manifest.payload_sha256:
        raise ProtocolError(
            "E-PAYLOAD-DIGEST", "expected the payload that the manifest's SHA-256 names"
        )


def items_of(values: Mapping[str, Value]) -> list[Item]:
    """Return the wire form of a small mapping: a node's or run's configuration, metrics.

    Raises:
        AppError: a value has no wire form (E-RECORD-VALUE).
    """
    return [item_of(key, value) for key, value in values.items()]


def values_of(items: Iterable[Item]) -> dict[str, Value]:
    """Return the mapping that :func:`items_of` was given.

    Raises:
        ProtocolError: a key stands twice, or a value is missing or bulk.
    """
    values: dict[str, Value] = {}
    for item in items:
        if item.key in values:
            raise _duplicate("item", item.key)
        values[item.key] = value_of(item)
    return values


def item_of(key: str, value: Value) -> Item:
    """Return one item; bool before int, because a bool is an int in Python.

    Raises:
        AppError: the value has no wire form (E-RECORD-VALUE).
    """
    try:
        for kind, build in _SCALARS:
            if isinstance(value, kind):
                return build(key, value)
        if isinstance(value, list):
            first = value[0] if value else 0.0
            for kind, build in _LISTS:
                if isinstance(first, kind):
                    return build(key, value)
    except (ValueError, TypeError, UnicodeError) as error:
        raise AppError(
            "E-RECORD-VALUE",
            f"expected a value of 64 bits or valid text under {key!r}, got one that does not fit",
        ) from error
    raise AppError(
        "E-RECORD-VALUE",
        f"expected a number, text, bytes or a list of one kind under {key!r}, "
        f"got {type(value).__name__}",
    )


def value_of(item: Item) -> Value:
    """Return the value of an item that stands inline.

    Raises:
        ProtocolError: the value is missing, or stands in the payload.
    """
    kind = item.WhichOneof("value")
    if kind is None or kind == "bulk_bytes":
        raise ProtocolError("E-MANIFEST-VALUE", f"expected an inline value under {item.key!r}")
    value = getattr(item, kind)
    return list(value.values) if kind in _LIST_FIELDS else value


def _check_record(record: Record, *, max_bytes: int) -> int:
    """Check one record; return how many payload bytes it takes."""
    if record.kind not in (Record.ARRAYS, Record.METRICS, Record.CONFIG):
        raise ProtocolError("E-MANIFEST-KIND", f"expected a known kind of record {record.key!r}")
    if record.arrays and record.kind != Record.ARRAYS:
        raise ProtocolError("E-MANIFEST-KIND", f"expected no arrays in record {record.key!r}")
    if record.items and record.kind == Record.ARRAYS:
        raise ProtocolError("E-MANIFEST-KIND", f"expected only arrays in record {record.key!r}")
    _check_unique((entry.name for entry in record.arrays), "array")
    _check_unique((item.key for item in record.items), "item")
    total = 0
    for entry in record.arrays:
        _check_entry(entry, max_bytes=max_bytes)
        total += entry.bytes
    for item in record.items:
        kind = item.WhichOneof("value")
        if kind is None or (record.kind == Record.METRICS and kind not in _METRIC_VALUES):
            raise ProtocolError(
                "E-MANIFEST-VALUE", f"expected another value under {item.key!r}, got {kind}"
            )
        total += item.bulk_bytes
    return total


def _check_entry(entry: ArrayEntry, *, max_bytes: int) -> None:
    if len(entry.shape) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in entry.shape) > max(
        max_bytes, 1
    ):
        raise ProtocolError(
            "E-MANIFEST-SHAPE",
            f"expected a shape of at most {MAX_DIMENSIONS} dimensions within {max_bytes} bytes "
            f"for {entry.name!r}",
        )
    if is_raw(entry):
        expected = math.prod(entry.shape) * RAW_DTYPES[entry.dtype]
        if entry.bytes != expected:
            raise ProtocolError(
                "E-MANIFEST-SHAPE",
                f"expected {expected} bytes for the shape of {entry.name!r}, got {entry.bytes}",
            )
    elif entry.stype == NUMPY_STYPE and entry.dtype not in OPAQUE_DTYPES:
        raise ProtocolError(
            "E-MANIFEST-DTYPE",
            f"expected one of {', '.join(RAW_DTYPES)} for {entry.name!r}, got {entry.dtype[:40]!r}",
        )
    if max(len(entry.dtype), len(entry.stype)) > MAX_NAME_CHARACTERS:
        raise ProtocolError("E-MANIFEST-DTYPE", f"expected short type names for {entry.name!r}")


def _check_unique(keys: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for key in keys:
        if len(key) > MAX_NAME_CHARACTERS:
            raise ProtocolError(
                "E-MANIFEST-NAME",
                f"expected a {what} name of at most {MAX_NAME_CHARACTERS} characters, "
                f"got {len(key)}",
            )
        if key in seen:
            raise _duplicate(what, key)
        seen.add(key)


def _duplicate(what: str, key: str) -> ProtocolError:
    return ProtocolError("E-MANIFEST-DUPLICATE", f"expected each {what} once, got {key!r} twice")


_SCALARS: tuple[tuple[type, Callable[[str, Any], Item]], ...] = (
    (bool, lambda key, value: Item(key=key, boolean=value)),
    (int, lambda key, value: Item(key=key, integer=value)),
    (float, lambda key, value: Item(key=key, real=value)),
    (str, lambda key, value: Item(key=key, text=value)),
    (bytes, lambda key, value: Item(key=key, inline_bytes=value)),
)
_LISTS: tuple[tuple[type, Callable[[str, Any], Item]], ...] = (
    (bool, lambda key, value: Item(key=key, booleans=Booleans(values=value))),
    (int, lambda key, value: Item(key=key, integers=Integers(values=value))),
    (float, lambda key, value: Item(key=key, reals=Reals(values=value))),
    (str, lambda key, value: Item(key=key, texts=Texts(values=value))),
    (bytes, lambda key, value: Item(key=key, byte_strings=ByteStrings(values=value))),
)
_LIST_FIELDS = ("reals", "integers", "booleans", "texts", "byte_strings")
