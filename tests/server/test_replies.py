"""What the server accepts as a reply, on its manifest alone and on its bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.core.errors import ProtocolError
from tacit.core.specification import MetricSpec, ReplySpec
from tacit.protos.records_pb2 import ArrayEntry, Item, Manifest, Reals, Record
from tacit.server.configuration import LimitsConfig
from tacit.server.replies import stable_code, verify_finite, verify_reply

LIMITS = LimitsConfig(max_update_bytes=1000, max_arrays=3)
SCHEMA = {
    "train": ReplySpec(
        metrics={
            "loss": MetricSpec(range=(0.0, 10.0)),
            "histogram": MetricSpec(range=(0.0, 1.0), length=2),
        }
    ),
    "evaluate": ReplySpec(arrays="none", metrics={"loss": MetricSpec(range=(0.0, 10.0))}),
}


def arrays(*entries: tuple[str, str, list[int]], key: str = "arrays") -> Record:
    record = Record(key=key, kind=Record.ARRAYS)
    for name, dtype, shape in entries:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        entry = ArrayEntry(name=name, dtype=dtype, shape=shape, bytes=size, stype="numpy.ndarray")
        record.arrays.append(entry)
    return record


def metrics(*items: Item) -> Record:
    return Record(key="metrics", kind=Record.METRICS, items=items)


def manifest(*records: Record) -> Manifest:
    total = sum(entry.bytes for record in records for entry in record.arrays)
    return Manifest(records=records, payload_bytes=total, payload_sha256=bytes(32))


MODEL = manifest(arrays(("w", "float32", [2, 3]), ("b", "float32", [3])))


def code_of(reply: Manifest, message_type: str = "train") -> str:
    try:
        verify_reply(
            reply, instruction=MODEL, message_type=message_type, schema=SCHEMA, limits=LIMITS
        )
    except ProtocolError as error:
        return error.code
    return ""


GOOD = arrays(("w", "float32", [2, 3]), ("b", "float32", [3]))


@pytest.mark.parametrize(
    ("records", "code"),
    [
        pytest.param([GOOD], "", id="the model"),
        pytest.param([GOOD, metrics(Item(key="loss", real=1.0))], "", id="with a metric"),
        pytest.param([arrays(("w", "float32", [2, 3]))], "E-REPLY-SCHEMA", id="an array less"),
        pytest.param([GOOD, arrays(key="more")], "E-REPLY-SCHEMA", id="a second record"),
        pytest.param([], "E-REPLY-SCHEMA", id="no model"),
        pytest.param(
            [arrays(("w", "float32", [3, 2]), ("b", "float32", [3]))],
            "E-REPLY-SCHEMA",
            id="transposed",
        ),
        pytest.param(
            [arrays(("w", "float64", [2, 3]), ("b", "float32", [3]))],
            "E-REPLY-SCHEMA",
            id="another dtype",
        ),
        pytest.param(
            [GOOD, Record(key="config", kind=Record.CONFIG)], "E-REPLY-SCHEMA", id="a config"
        ),
        pytest.param(
            [GOOD, metrics(Item(key="secret", real=1.0))], "E-REPLY-METRIC", id="undeclared"
        ),
        pytest.param([GOOD, metrics(Item(key="loss", real=11.0))], "E-REPLY-METRIC", id="range"),
        pytest.param(
            [GOOD, metrics(Item(key="loss", real=float("nan")))], "E-REPLY-METRIC", id="nan"
        ),
        pytest.param(
            [GOOD, metrics(Item(key="loss", reals=Reals(values=[1.0])))],
            "E-REPLY-METRIC",
            id="a list",
        ),
        pytest.param(
            [GOOD, metrics(Item(key="histogram", reals=Reals(values=[0.5, 0.5])))], "", id="length"
        ),
        pytest.param(
            [GOOD, metrics(Item(key="histogram", reals=Reals(values=[0.5])))],
            "E-REPLY-METRIC",
            id="too short",
        ),
        pytest.param(
            [arrays(("w", "float32", [500]))], "E-MANIFEST-TOO-LARGE", id="above the limit"
        ),
    ],
)
def test_a_train_reply_is_the_model_and_declared_metrics(records: list[Record], code: str) -> None:
    """Names, shapes, dtypes, metric names, lengths and ranges; nothing else."""
    assert code_of(manifest(*records)) == code


def test_an_evaluation_carries_no_arrays() -> None:
    """Where the run declares none, none are taken."""
    assert code_of(manifest(metrics(Item(key="loss", real=1.0))), "evaluate") == ""
    assert code_of(manifest(GOOD), "evaluate") == "E-REPLY-SCHEMA"


def test_message_types_are_declared_with_or_without_their_action() -> None:
    """`train.first` is a train; a query that nobody declared has no reply."""
    assert code_of(manifest(GOOD), "train.first") == ""
    assert code_of(manifest(GOOD), "query") == "E-REPLY-UNDECLARED"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus-inf"])
def test_a_number_that_is_not_finite_is_found_anywhere(dtype: str, value: float) -> None:
    """In the last element of the last array, too."""
    reply = manifest(arrays(("a", "int64", [2]), ("w", dtype, [7])))
    values = np.ones(7, dtype=dtype)
    verify_finite(reply, memoryview(bytes(16) + values.tobytes()))
    values[-1] = value
    with pytest.raises(ProtocolError, match="E-REPLY-NOT-FINITE"):
        verify_finite(reply, memoryview(bytes(16) + values.tobytes()))


@pytest.mark.parametrize("reason", ["E-APP-HUNG", "E-X1"])
def test_a_stable_code_passes(reason: str) -> None:
    """Codes are what peers may say."""
    assert stable_code(reason) == reason


@pytest.mark.parametrize(
    "reason", ["", "boom", "E-", "E-X patient 17", "E-X\nE-Y", "E-" + "X" * 99]
)
def test_a_peers_free_text_goes_no_further(reason: str) -> None:
    """It could quote a record."""
    assert stable_code(reason) == "E-APP-FAILED"
