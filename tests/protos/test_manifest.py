"""What a manifest may say, and that nothing else passes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import AppError, ProtocolError
from tacit.protos.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_NAME_CHARACTERS,
    RAW_DTYPES,
    array_of,
    check_manifest,
    items_of,
    payload_digest,
    placed,
    values_of,
    verify_digest,
)
from tacit.protos.records_pb2 import ArrayEntry, Item, Manifest, Reals, Record

DIGEST = bytes(32)
MAX_BYTES = 1 << 30


def entry(**changes: object) -> ArrayEntry:
    fields: dict = {
        "name": "w",
        "dtype": "float32",
        "shape": [2, 3],
        "bytes": 24,
        "stype": "numpy.ndarray",
    }
    return ArrayEntry(**{**fields, **changes})


def manifest_of(*entries: ArrayEntry, payload_bytes: int | None = None) -> Manifest:
    total = sum(e.bytes for e in entries) if payload_bytes is None else payload_bytes
    record = Record(key="arrays", kind=Record.ARRAYS, arrays=entries)
    return Manifest(records=[record], payload_bytes=total, payload_sha256=DIGEST)


def refusal(manifest: Manifest, **limits: int) -> str:
    with pytest.raises(ProtocolError) as caught:
        check_manifest(manifest, **{"max_bytes": MAX_BYTES, **limits})
    return caught.value.code


def test_a_true_manifest_passes() -> None:
    """Sizes that agree with shapes and dtypes, and add up, are accepted."""
    opaque = entry(name="old", dtype="", shape=[], bytes=5)
    foreign = entry(name="own", dtype="torch.bfloat16", stype="mine", shape=[2], bytes=3)
    check_manifest(manifest_of(entry(), opaque, foreign), max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bytes": 23}, "E-MANIFEST-SHAPE"),
        ({"shape": [2**63]}, "E-MANIFEST-SHAPE"),
        ({"shape": [2**63, 2**63, 2]}, "E-MANIFEST-SHAPE"),
        ({"shape": [0, 2**63], "bytes": 0}, "E-MANIFEST-SHAPE"),
        ({"shape": [1] * 33, "bytes": 4}, "E-MANIFEST-SHAPE"),
        ({"dtype": "object"}, "E-MANIFEST-DTYPE"),
        ({"dtype": "<U1"}, "E-MANIFEST-DTYPE"),
        ({"dtype": "complex64"}, "E-MANIFEST-DTYPE"),
        ({"dtype": ">f4"}, "E-MANIFEST-DTYPE"),
        ({"dtype": "x" * (MAX_NAME_CHARACTERS + 1), "stype": "own"}, "E-MANIFEST-DTYPE"),
        ({"name": "x" * (MAX_NAME_CHARACTERS + 1)}, "E-MANIFEST-NAME"),
    ],
    ids=range(11),
)
def test_a_lying_array_is_refused(changes: dict, code: str) -> None:
    """Shapes that overflow or disagree, and dtypes outside the list, are named and refused."""
    assert code == refusal(manifest_of(entry(**changes)))


def test_sizes_must_add_up() -> None:
    """A payload size other than the sum of the parts is refused."""
    assert refusal(manifest_of(entry(), payload_bytes=25)) == "E-MANIFEST-SUM"


def test_opaque_bytes_cannot_overflow_the_sum() -> None:
    """Sizes of 2^64 - 1 are added as they are, not modulo 2^64."""
    huge = [entry(name=str(i), dtype="", shape=[], bytes=2**64 - 1) for i in range(2)]
    assert refusal(manifest_of(*huge, payload_bytes=2**64 - 2), max_bytes=2**64) == "E-MANIFEST-SUM"


def test_the_receivers_limits_hold() -> None:
    """Payload, number of arrays and length of the manifest are bounded by the receiver."""
    two = manifest_of(entry(), entry(name="v"))
    long = manifest_of(*(entry(name=f"{i}{'x' * 1000}") for i in range(MAX_MANIFEST_BYTES // 1000)))
    assert refusal(two, max_bytes=47) == "E-MANIFEST-TOO-LARGE"
    assert refusal(two, max_arrays=1) == "E-MANIFEST-ARRAYS"
    assert refusal(long) == "E-MANIFEST-TOO-LONG"


def test_nothing_stands_twice() -> None:
    """Record keys, array names and item keys are unique."""
    array = manifest_of(entry(), entry())
    record = manifest_of(entry())
    record.records.append(Record(key="arrays", kind=Record.CONFIG))
    items = [Item(key="a", integer=1), Item(key="a", integer=2)]
    item = Manifest(
        records=[Record(key="c", kind=Record.CONFIG, items=items)], payload_sha256=DIGEST
    )
    assert {refusal(m) for m in (array, record, item)} == {"E-MANIFEST-DUPLICATE"}


@pytest.mark.parametrize(
    "record",
    [
        Record(key="r"),
        Record(key="r", kind=9),  # type: ignore[arg-type]
        Record(key="r", kind=Record.CONFIG, arrays=[entry()]),
        Record(key="r", kind=Record.ARRAYS, items=[Item(key="a", integer=1)]),
    ],
    ids=["none", "unknown", "arrays in config", "items in arrays"],
)
def test_kinds_do_not_mix(record: Record) -> None:
    """A record holds what its kind says, and the kind is known."""
    manifest = Manifest(records=[record], payload_bytes=24, payload_sha256=DIGEST)
    assert refusal(manifest) == "E-MANIFEST-KIND"


@pytest.mark.parametrize(
    "item",
    [Item(key="m"), Item(key="m", text="x"), Item(key="m", bulk_bytes=9)],
    ids=["missing", "text", "bulk"],
)
def test_metrics_are_numbers(item: Item) -> None:
    """Text, bytes and missing values are no metrics."""
    record = Record(key="m", kind=Record.METRICS, items=[item])
    manifest = Manifest(records=[record], payload_bytes=9, payload_sha256=DIGEST)
    assert refusal(manifest) == "E-MANIFEST-VALUE"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    """Whatever parses as protobuf is checked without any other exception."""
    manifest = Manifest(payload_sha256=DIGEST)
    try:
        manifest.MergeFromString(data)
    except Exception:  # noqa: BLE001 - not protobuf at all
        return
    code = "E-MANIFEST-"
    try:
        check_manifest(manifest, max_bytes=MAX_BYTES)
        list(placed(manifest))
    except ProtocolError as error:
        code = error.code
    assert code.startswith("E-MANIFEST-")


@given(
    st.sampled_from(sorted(RAW_DTYPES)),
    st.lists(st.integers(0, 2**64 - 1), max_size=6),
    st.integers(0, 2**64 - 1),
)
def test_accepted_arrays_can_be_read(dtype: str, shape: list[int], size: int) -> None:
    """An accepted raw array fits its bytes: reading it never fails."""
    manifest = manifest_of(entry(dtype=dtype, shape=shape, bytes=size), payload_bytes=size)
    try:
        check_manifest(manifest, max_bytes=1 << 20)
    except ProtocolError:
        return
    (place,) = placed(manifest)
    assert array_of(place, memoryview(bytes(size))).shape == tuple(shape)


def test_places_follow_the_payload() -> None:
    """Arrays and bulk values are found where the payload has them, in manifest order."""
    manifest = manifest_of(entry(shape=[2], bytes=8))
    bulk = Record(key="c", kind=Record.CONFIG, items=[Item(key="b", bulk_bytes=3)])
    manifest.records.append(bulk)
    found = [(p.record, p.name, p.start, p.end) for p in placed(manifest)]
    assert found == [("arrays", "w", 0, 8), ("c", "b", 8, 11)]


def test_array_views_cannot_be_written() -> None:
    """The view that checks are made on is read-only even over writable memory."""
    (place,) = placed(manifest_of(entry(shape=[2], bytes=8)))
    view = array_of(place, memoryview(bytearray(np.float32([1, 2]).tobytes())))
    assert view.tolist() == [1.0, 2.0]
    assert not view.flags.writeable


def test_digest_binds_the_payload() -> None:
    """Another payload of the same size, or of another size, is refused."""
    manifest = Manifest(payload_bytes=3, payload_sha256=hashlib.sha256(b"abc").digest())
    verify_digest(manifest, b"abc")
    for other in (b"xyz", b"ab"):
        with pytest.raises(ProtocolError):
            verify_digest(manifest, other)
    assert payload_digest([b"a", memoryview(b"bc")]) == manifest.payload_sha256


INT64 = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False)
VALUES = st.one_of(
    *[
        values
        for kind in (st.booleans(), INT64, REAL, st.text(), st.binary())
        for values in (kind, st.lists(kind, min_size=1))
    ]
)


@given(st.dictionaries(st.text(), VALUES))
def test_items_keep_values_types_and_order(values: dict) -> None:
    """A small mapping comes back equal, with the same types in the same order."""
    back = values_of(items_of(values))
    assert list(values.items()) == list(back.items())
    assert [type(v) for v in values.values()] == [type(v) for v in back.values()]


@pytest.mark.parametrize("value", [2**63, None, [object()], {}, "\ud800", [1, "a"]], ids=repr)
def test_values_without_wire_form_are_the_apps_fault(value: object) -> None:
    """Numbers beyond 64 bits, broken text and other types are refused by name."""
    with pytest.raises(AppError) as caught:
        items_of({"k": value})  # type: ignore[dict-item]
    assert caught.value.code == "E-RECORD-VALUE"


def test_items_are_inline_and_unique() -> None:
    """A configuration has no bulk values, and no key twice."""
    for items in (
        [Item(key="a", bulk_bytes=1)],
        [Item(key="a")],
        [Item(key="a", reals=Reals()), Item(key="a", integer=1)],
    ):
        with pytest.raises(ProtocolError):
            values_of(items)
