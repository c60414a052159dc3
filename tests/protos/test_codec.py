"""Records to the wire and back: equal, cheap, and independent of each other."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tacit.core.errors import AppError, ProtocolError
from tacit.protos.codec import BULK_BYTES, decode_records, encode_records, record_of
from tacit.protos.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    RecordDict,
    WireArray,
    array_record,
)
from tacit.protos.frames import decode_frame
from tacit.protos.manifest import RAW_DTYPES, check_manifest, items_of, verify_digest
from tacit.protos.payload import map_payload
from tacit.protos.records_pb2 import Manifest

VECTORS = Path(__file__).parents[1] / "vectors"
ARRAYS = hnp.arrays(
    st.sampled_from(sorted(RAW_DTYPES)).map(np.dtype)
    | st.sampled_from([">f4", ">i8", ">u2"]).map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def carry(content: RecordDict) -> RecordDict:
    """Encode, check as a receiver would, decode."""
    encoded = encode_records(content)
    check_manifest(encoded.manifest, max_bytes=1 << 30)
    payload = encoded.payload()
    verify_digest(encoded.manifest, payload)
    return decode_records(encoded.manifest, memoryview(payload))


@given(st.lists(st.tuples(ARRAYS, st.booleans()), max_size=5))
def test_arrays_come_back_equal(arrays: list) -> None:
    """Every dtype, shape, order and byte order keeps its numbers; byte order becomes native."""
    sent = [np.asfortranarray(array) if fortran else array for array, fortran in arrays]
    back = carry(RecordDict({"a": ArrayRecord(sent)}))["a"].to_numpy_ndarrays()
    assert len(sent) == len(back)
    for before, after in zip(sent, back, strict=True):
        assert before.dtype.newbyteorder("=") == after.dtype
        np.testing.assert_array_equal(before, after, strict=False)
        assert before.shape == after.shape


@given(st.lists(ARRAYS, max_size=5))
def test_encoding_is_stable(arrays: list) -> None:
    """What was decoded encodes to the same manifest and payload: digests survive a relay."""
    first = encode_records(RecordDict({"a": ArrayRecord(arrays)}))
    again = encode_records(decode_records(first.manifest, memoryview(first.payload())))
    assert first.manifest == again.manifest
    assert first.payload() == again.payload()


def test_values_and_order_survive() -> None:
    """Metrics and configuration keep values, types and the order of keys and records."""
    content = RecordDict(
        {
            "m": MetricRecord({"z": 1, "a": 0.5, "l": [1, 2], "e": []}),
            "c": ConfigRecord(
                {"s": "x", "b": True, "raw": b"\x00", "big": b"y" * 5000, "t": ["q"]}
            ),
        }
    )
    back = carry(content)
    assert content == back
    assert [list(r.items()) for r in content.values()] == [list(r.items()) for r in back.values()]


def test_large_bytes_travel_in_the_payload() -> None:
    """A bytes value above 4 KiB is bulk, so that the head stays small."""
    encoded = encode_records(RecordDict({"c": ConfigRecord({"b": b"x" * (BULK_BYTES + 1)})}))
    assert encoded.manifest.payload_bytes == BULK_BYTES + 1
    assert encoded.manifest.ByteSize() < 100


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="", shape=(), stype="numpy.ndarray", data=b"anything"),
        Array(dtype="float32", shape=(3,), stype="own.format", data=b"\x01\x02"),
        Array(dtype="bfloat16", shape=(2,), stype="numpy.ndarray", data=b"\x00" * 132),
    ],
    ids=["legacy", "foreign", "bfloat16"],
)
def test_opaque_arrays_are_carried_as_they_are(array: Array) -> None:
    """Legacy parameters and foreign formats keep every field."""
    assert array == carry(RecordDict({"a": ArrayRecord({"x": array})}))["a"]["x"]


def npy(array: np.ndarray) -> bytes:
    return Array(array).data


@pytest.mark.parametrize(
    "array",
    [
        Array(np.array(["text"])),
        Array(np.array([1 + 2j])),
        Array(np.zeros(2, dtype=[("a", "f4")])),
        Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=npy(np.zeros(2, "f4"))),
        Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=npy(np.zeros(2, "f4"))[:-1]),
        Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=npy(np.zeros(2, "f4"))[:-8]),
        Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b""),
        Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00garbage"),
    ],
    ids=["text", "complex", "structure", "shape", "cut", "short", "empty", "garbage"],
)
def test_arrays_without_wire_form_are_refused(array: Array) -> None:
    """Text, structures, objects, damaged bytes and false shapes are the app's error."""
    with pytest.raises(AppError) as caught:
        encode_records(RecordDict({"a": ArrayRecord({"x": array})}))
    assert caught.value.code == "E-RECORD-ARRAY"


@given(st.binary(max_size=300))
def test_damaged_npy_bytes_never_crash(data: bytes) -> None:
    """Any bytes under an honest header either encode or are refused by name."""
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"\x93NUMPY" + data)
    with pytest.raises(AppError):
        encode_records(RecordDict({"a": ArrayRecord({"x": array})}))


def test_object_arrays_are_never_unpickled() -> None:
    """A hand-made npy of dtype object is refused at its header."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"cos\nsystem\n."
    array = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=data)
    with pytest.raises(AppError):
        encode_records(RecordDict({"a": ArrayRecord({"x": array})}))


def test_encoding_copies_no_array() -> None:
    """The segments are views of the records' own bytes."""
    own = np.arange(1000, dtype=np.float32)
    content = RecordDict({"a": ArrayRecord([own]), "b": array_record({"w": own})})
    flower, wire = encode_records(content).segments
    data = np.frombuffer(content["a"]["0"].data, dtype=np.uint8)
    assert np.shares_memory(data, np.frombuffer(flower, dtype=np.uint8))
    assert np.shares_memory(own, np.frombuffer(wire, dtype=np.uint8))


def mapped(tmp_path: Path, content: RecordDict) -> tuple[Path, RecordDict]:
    encoded = encode_records(content)
    path = tmp_path / "payload"
    path.write_bytes(encoded.payload())
    return path, decode_records(encoded.manifest, map_payload(path))


def test_decoded_arrays_are_written_without_touching_the_file(tmp_path: Path) -> None:
    """The first array comes from the mapping itself; writing it changes neither file nor record."""
    path, content = mapped(tmp_path, RecordDict({"a": ArrayRecord([np.zeros(5000)])}))
    before = path.read_bytes()
    first = content["a"]["0"].numpy()
    assert not first.flags.owndata
    first += 1.0
    assert np.unique(content["a"]["0"].numpy()).tolist() == [0.0]
    assert np.unique(first).tolist() == [1.0]
    assert before == path.read_bytes() == encode_records(content).payload()


def test_arrays_do_not_share_writes(tmp_path: Path) -> None:
    """As with flwr, each call of numpy() gives an array of its own."""
    _, content = mapped(tmp_path, RecordDict({"a": ArrayRecord([np.zeros(3), np.zeros(3)])}))
    arrays = [content["a"][key].numpy() for key in ("0", "0", "1", "1")]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array[0] for array in arrays] == [0, 1, 2, 3]


def test_unaligned_arrays_are_copied(tmp_path: Path) -> None:
    """An array that starts at an odd byte comes out aligned."""
    odd = [np.array([True]), np.arange(4.0)]
    _, content = mapped(tmp_path, RecordDict({"a": ArrayRecord(odd)}))
    array = content["a"]["1"].numpy()
    assert array.flags.aligned
    assert array.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_short_payload_is_refused() -> None:
    """Decoding never reads beyond what came."""
    encoded = encode_records(RecordDict({"a": ArrayRecord([np.zeros(3)])}))
    with pytest.raises(ProtocolError):
        decode_records(encoded.manifest, memoryview(encoded.payload())[:-1])


def test_heads_stay_below_the_cap() -> None:
    """A list that would not fit a head is refused, with what to do instead."""
    with pytest.raises(AppError) as caught:
        encode_records(RecordDict({"c": ConfigRecord({"l": [0.5] * 500_000})}))
    assert caught.value.code == "E-RECORD-TOO-LONG"


def test_record_keys_are_text() -> None:
    """A key that UTF-8 cannot hold is refused by name."""
    with pytest.raises(AppError):
        encode_records(RecordDict({"\ud800": ConfigRecord()}))


def test_small_records_from_items() -> None:
    """Items become a ConfigRecord."""
    assert ConfigRecord({"a": 1, "b": "x"}) == record_of(items_of({"a": 1, "b": "x"}))


def test_wire_arrays_behave_like_arrays() -> None:
    """Equality, npy bytes, copies and assignment are those of flwr's Array."""
    plain = Array(np.arange(3.0))
    (wire,) = carry(RecordDict({"a": ArrayRecord({"x": plain})}))["a"].values()
    assert isinstance(wire, WireArray)
    assert wire == plain
    assert plain == wire
    assert plain.data == wire.data
    assert copy.deepcopy(wire) == plain
    assert "0." not in repr(wire)
    wire.data = npy(np.ones(2))
    wire.shape = (2,)
    assert wire.numpy().tolist() == [1.0, 1.0]


def test_array_record_refuses_objects() -> None:
    """Arrays of Python objects have no wire form."""
    with pytest.raises(TypeError):
        array_record({"x": np.array([object()])})


def load_vector_script() -> object:
    spec = importlib.util.spec_from_file_location("make_message", VECTORS / "make_message.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_golden_message() -> None:
    """The wire format is that of the committed vector, in both directions."""
    script = load_vector_script()
    vector = json.loads((VECTORS / "message.json").read_text())
    assert vector == script.make_vector()  # type: ignore[attr-defined]
    manifest = Manifest.FromString(bytes.fromhex(vector["manifest"]))
    payload = bytes.fromhex(vector["payload"])
    back = decode_records(manifest, memoryview(payload))
    expected = script.example_content()  # type: ignore[attr-defined]
    assert expected["config"] == back["config"]
    assert expected["metrics"] == back["metrics"]
    for before, after in zip(expected["arrays"].values(), back["arrays"].values(), strict=True):
        np.testing.assert_array_equal(before.numpy(), after.numpy(), strict=True)
    chunk = decode_frame(bytes.fromhex(vector["chunk_frame"]))
    assert (8, payload[8:]) == (chunk.offset, bytes(chunk.data))
