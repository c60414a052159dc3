"""Cells become features by declared constants alone; violations name rows, never values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.configuration import from_plain
from tacit.core.data_contract import canonical_text
from tacit.core.errors import DataError
from tacit.core.specification import DataSpec
from tacit.learning.contract import encode
from tacit.learning.features import feature_names, input_shape
from tacit.learning.loaders import RawImages


def problems(spec: DataSpec, raw: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        encode(spec, raw)
    return caught.value.problems


def test_cells_become_features_as_declared(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """Numbers are scaled by their range, categories one-hot, stand-ins flagged, columns sorted."""
    prepared = encode(table_spec, frame)
    names = ("age", "age missing", "blood=A", "blood=B", "blood=0", "male")
    assert prepared.feature_names == names == feature_names(table_spec)
    assert prepared.features.dtype == np.float32
    assert prepared.features.tolist() == [
        [0.25, 0.0, 1.0, 0.0, 0.0, 1.0],
        [0.75, 0.0, 0.0, 1.0, 0.0, 0.0],
        [0.50, 1.0, 0.0, 0.0, 1.0, 1.0],
        [1.00, 0.0, 1.0, 0.0, 0.0, 0.0],
    ]
    assert prepared.labels.tolist() == [0, 1, 1, 0]
    assert prepared.row_numbers.tolist() == [1, 2, 3, 4]
    assert input_shape(table_spec) == (6,)


def test_typed_columns_give_the_same_features(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """Floats, booleans and missing values of a Parquet file mean what the texts of a CSV mean."""
    typed = pd.DataFrame(
        {
            "age": [25.0, 75.0, float("nan"), 100.0],
            "blood": ["A", "B", "0", "A"],
            "male": [True, False, True, False],
            "sick": ["no", "yes", "2", "no"],
        }
    )
    expected, actual = encode(table_spec, frame), encode(table_spec, typed)
    assert actual.features.tobytes() == expected.features.tobytes()
    assert actual.labels.tolist() == expected.labels.tolist()


@given(position=st.integers(min_value=0, max_value=3), other=st.integers(0, 3))
def test_a_record_is_encoded_by_itself(position: int, other: int) -> None:
    """What a record becomes does not change with the other records of the data set."""
    data = {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [-5.0, 5.0]}}}
    spec = from_plain({**data, "label": "y"}, DataSpec)
    frame = pd.DataFrame({"x": ["1", "-3.5", "5", "0"], "y": ["a", "b", "a", "b"]})
    alone = frame.iloc[[position, other, 0, 1]]
    whole = encode(spec, frame).features[position]
    assert encode(spec, alone).features[0].tobytes() == whole.tobytes()


def test_all_violations_are_reported_at_once_by_row(table_spec: DataSpec) -> None:
    """Kind, count and row numbers of everything that is wrong; no value of a record."""
    hidden = "HIDDEN77"
    frame = pd.DataFrame(
        {
            "age": ["25", hidden, "inf", "77777"],
            "blood": ["A", hidden, "", "A"],
            "male": ["1", "0", hidden, "1"],
            "sick": ["no", "", hidden, "no"],
        }
    )
    found = problems(table_spec, frame)
    assert found == (
        "age: not a number: 1 record (row 2; the first is row 1)",
        "age: not finite: 1 record (row 3; the first is row 1)",
        "age: outside the declared range: 1 record (row 4; the first is row 1)",
        "blood: empty cell: 1 record (row 3; the first is row 1)",
        "blood: not one of the declared values: 1 record (row 2; the first is row 1)",
        "male: not a boolean: 1 record (row 3; the first is row 1)",
        "sick: label missing: 1 record (row 2; the first is row 1)",
        "sick: unknown label: 1 record (row 3; the first is row 1)",
    )
    assert "77" not in "".join(found)


def test_many_rows_are_counted_and_the_first_named(table_spec: DataSpec) -> None:
    """Ten row numbers are enough to find the fault."""
    frame = pd.DataFrame(
        {"age": ["999"] * 50, "blood": ["A"] * 50, "male": ["1"] * 50, "sick": ["no", "yes"] * 25}
    )
    (found,) = problems(table_spec, frame)
    assert found == (
        "age: outside the declared range: 50 records "
        "(rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...; the first is row 1)"
    )


def test_nan_in_typed_data_is_a_violation() -> None:
    """Without a stand-in, NaN is an empty cell."""
    column = {"x": {"type": "number", "range": [0.0, 1.0]}}
    spec = from_plain({"classes": ["0", "1"], "label": "y", "columns": column}, DataSpec)
    frame = pd.DataFrame({"x": [0.5, float("nan")], "y": [0, 1]})
    assert problems(spec, frame) == ("x: empty cell: 1 record (row 2; the first is row 1)",)


def test_missing_columns_are_all_named(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """Every declared column that the file lacks is listed."""
    with pytest.raises(DataError, match="E-DATA-COLUMNS") as caught:
        encode(table_spec, frame.drop(columns=["age", "sick"]))
    assert caught.value.problems == ("age: missing", "sick: missing")


def test_a_missing_column_names_the_nearest_one(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """A misspelt column is told by the one that is there, and both files that may be wrong."""
    with pytest.raises(DataError) as caught:
        encode(table_spec, frame.rename(columns={"age": "agee"}))
    assert caught.value.problems == ("age: missing (did you mean agee?)",)
    assert "run.toml" in caught.value.hint
    assert "client.toml" in caught.value.hint


def test_undeclared_columns_can_be_refused(frame: pd.DataFrame) -> None:
    """With ignore_undeclared = false a further column is a fault."""
    strict = from_plain(
        {
            "label": "sick",
            "classes": ["no", "yes"],
            "columns": {"age": {"type": "number", "range": [0.0, 100.0]}},
            "ignore_undeclared": False,
        },
        DataSpec,
    )
    assert problems(strict, frame) == tuple(
        f"{name}: not declared" for name in ("blood", "male", "note")
    )


def test_an_empty_data_set_is_refused(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """No records, no training."""
    with pytest.raises(DataError, match="E-DATA-EMPTY"):
        encode(table_spec, frame.iloc[:0])


def test_a_single_class_is_refused(table_spec: DataSpec, frame: pd.DataFrame) -> None:
    """A data set whose labels are all equal teaches nothing, and shows them."""
    with pytest.raises(DataError, match="E-DATA-ONE-CLASS"):
        encode(table_spec, frame.iloc[[0, 3]])


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("3.0", "3"), (" 3 ", "3"), (4.0, "4"), ("-2.", "-2"), ("3.10", "3.10"), ("007", "007")],
)
def test_whole_numbers_have_one_spelling(cell: object, expected: str) -> None:
    """A category written 3 matches a cell written 3.0; nothing else is rewritten."""
    assert canonical_text(cell) == expected


def test_numbers_with_underscores_are_not_numbers(
    table_spec: DataSpec, frame: pd.DataFrame
) -> None:
    """Python's own spelling of 1000 is a fault in a file."""
    frame.loc[0, "age"] = "1_0"
    assert problems(table_spec, frame) == (
        "age: not a number: 1 record (row 1; the first is row 1)",
    )


def images(count: int = 4, **changes: Any) -> RawImages:
    pixels = np.full((count, 1, 8, 8), 51, dtype=np.uint8)
    values: dict[str, Any] = {"pixels": pixels, "labels": np.array(["cat", "dog"] * (count // 2))}
    return RawImages(**{**values, **changes})


def test_pixels_are_scaled_by_the_declared_range(image_spec: DataSpec) -> None:
    """0 to 255 becomes 0 to 1, whatever the images hold."""
    prepared = encode(image_spec, images())
    assert prepared.features.shape == (4, 1, 8, 8)
    assert np.allclose(prepared.features, 0.2)
    assert prepared.labels.tolist() == [0, 1, 0, 1]
    assert prepared.feature_names == ()


def test_faulty_images_are_reported_by_row(image_spec: DataSpec) -> None:
    """Broken files, NaN, pixels out of range and unknown labels are named with their rows."""
    pixels = np.full((4, 1, 8, 8), 51.0)
    pixels[1, 0, 0, 0] = float("nan")
    pixels[2, 0, 0, 0] = 256.0
    raw = images(
        pixels=pixels,
        labels=np.array(["cat", "dog", "cat", "cow"]),
        broken={"unreadable image": (4,)},
    )
    order = "the first is image 1, in the order of names"
    assert problems(image_spec, raw) == (
        f"image: unreadable image: 1 record (image 4; {order})",
        f"image: not finite: 1 record (image 2; {order})",
        f"image: outside the declared range: 1 record (image 3; {order})",
        f"label: unknown label: 1 record (image 4; {order})",
    )


def test_no_images_are_refused(image_spec: DataSpec) -> None:
    """An empty folder is an empty data set."""
    with pytest.raises(DataError, match="E-DATA-EMPTY"):
        encode(image_spec, images(0, labels=np.zeros(0, dtype=str)))
