"""An owner's rules on real tables: forbidden columns, subjects, row numbers, warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from tacit.core.configuration import from_plain
from tacit.core.errors import DataError
from tacit.core.specification import DataSpec
from tacit.learning.cleaning import clean_raw
from tacit.learning.contract import encode
from tacit.learning.identifiers import identifier_warnings
from tacit.learning.loaders import RawImages, Source, load_raw
from tacit.privacy.cleaning import Cleaning

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(32)
IMAGES = RawImages(pixels=np.zeros((2, 1, 8, 8)), labels=np.array(["cat", "dog"]))


def table(rows: int = 200) -> pd.DataFrame:
    numbers = np.arange(rows)
    return pd.DataFrame(
        {
            "age": (20 + numbers % 50).astype(str),
            "height": 1.5 + numbers / 1000,
            "visit": (7 * numbers + 1000).astype(str),
            "patientId": numbers % 40,
            "note": [f"words {number}" for number in numbers],
            "label": numbers % 2,
        }
    )


def test_the_loader_drops_forbidden_columns_first(tmp_path: Path) -> None:
    """What comes back from the loader has no such column, whatever the contract says."""
    table().to_csv(tmp_path / "data.csv", index=False)
    source = Source(path=tmp_path / "data.csv", forbidden=("note", "patientId"))
    raw = load_raw(source, DataSpec(classes=("0", "1")))
    assert isinstance(raw, pd.DataFrame)
    assert list(raw.columns) == ["age", "height", "visit", "label"]


def test_all_columns_that_client_toml_misspells_are_named_at_once(tmp_path: Path) -> None:
    """A misspelt forbidden column would protect nothing: it is refused, with the nearest."""
    table().to_csv(tmp_path / "data.csv", index=False)
    source = Source(
        path=tmp_path / "data.csv",
        forbidden=("notes",),
        named={"patientid": "subject", "heihgt": "clean.clip", "age": "clean.bin"},
    )
    with pytest.raises(DataError) as caught:
        load_raw(source, DataSpec(classes=("0", "1")))
    assert caught.value.code == "E-CLEAN-COLUMNS"
    assert caught.value.problems == (
        "clean.clip: unknown column heihgt (did you mean height?)",
        "forbidden: unknown column notes (did you mean note?)",
        "subject: unknown column patientid (did you mean patientId?)",
    )


def test_images_have_no_columns_to_forbid(tmp_path: Path, image_spec: DataSpec) -> None:
    """What cannot be applied refuses."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((2, 1, 8, 8), np.uint8), y=np.array(["cat", "dog"]))
    source = Source(path=path, format="npz", forbidden=("y",))
    with pytest.raises(DataError, match="E-CLEAN-IMAGES"):
        load_raw(source, image_spec)
    assert clean_raw(IMAGES, Cleaning(), subject="", key=KEY).row_numbers.tolist() == [1, 2]
    with pytest.raises(ValueError, match="images"):
        clean_raw(IMAGES, Cleaning(require=("age",)), subject="", key=KEY)


def test_violations_after_cleaning_name_rows_of_the_file() -> None:
    """Records that were left out do not shift the numbers that the owner looks up."""
    frame = table(10)
    frame.loc[[0, 1, 4], "age"] = ["", "", "?"]
    frame.loc[[6, 8], "age"] = "999"
    clean = clean_raw(frame, Cleaning(require=("age",)), subject="", key=KEY)
    assert clean.row_numbers.tolist() == [3, 4, 6, 7, 8, 9, 10]
    assert clean.notes == ("3 of 10 records take no part (no value in age: 3)",)
    spec = from_plain(
        {"classes": ["0", "1"], "columns": {"age": {"type": "number", "range": [0.0, 100.0]}}},
        DataSpec,
    )
    with pytest.raises(DataError) as caught:
        encode(spec, clean.raw, row_numbers=clean.row_numbers)
    assert caught.value.problems == (
        "age: outside the declared range: 2 records (rows 7, 9; the first is row 1)",
    )
    rules = Cleaning(require=("age",), clip={"age": (0.0, 100.0)})
    prepared = encode(
        spec,
        (kept := clean_raw(frame, rules, subject="", key=KEY)).raw,
        row_numbers=kept.row_numbers,
    )
    assert prepared.row_numbers.tolist() == [3, 4, 6, 7, 8, 9, 10]
    assert prepared.features[:, 0].max() == 1.0


def test_cells_of_every_dtype_are_cleaned_as_the_contract_reads_them() -> None:
    """Integers, floats with gaps and booleans of a Parquet file mean what texts mean."""
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [1.0, np.nan, 250.0], "c": [True, False, True]})
    rules = from_plain(
        {"bin": {"a": [2.0]}, "clip": {"b": [0.0, 100.0]}, "exclude": {"c": ["False"]}}, Cleaning
    )
    clean = clean_raw(frame, rules, subject="", key=KEY)
    assert isinstance(clean.raw, pd.DataFrame)
    assert clean.raw["a"].tolist() == ["0", "1"]
    assert clean.raw["b"].tolist() == ["1", "100"]


def test_the_subject_column_is_set_apart_after_cleaning() -> None:
    """It names records and is no column any more; hashed, it groups as before."""
    frame = table(10).assign(patientId=[1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    plain = clean_raw(frame, Cleaning(), subject="patientId", key=KEY)
    hashed = clean_raw(frame, Cleaning(hash=("patientId",)), subject="patientId", key=KEY)
    assert plain.subjects == tuple("1122334455")
    assert "patientId" not in plain.raw
    assert hashed.subjects is not None
    assert len(set(hashed.subjects)) == 5
    assert not set(hashed.subjects) & set(plain.subjects)


def test_a_record_without_a_subject_is_refused_or_left_out() -> None:
    """All such records as one subject would be a lie; the owner may leave them out."""
    frame = table(6).assign(patientId=["a", "", "b", None, "c", "?"])
    with pytest.raises(DataError) as caught:
        clean_raw(frame, Cleaning(), subject="patientId", key=KEY)
    assert caught.value.problems == (
        "patientId: empty cell: 3 records (rows 2, 4, 6; the first is row 1)",
    )
    clean = clean_raw(frame, Cleaning(require=("patientId",)), subject="patientId", key=KEY)
    assert clean.subjects == ("a", "b", "c")


def test_columns_that_look_like_identifiers_are_warned_of() -> None:
    """By name, or nearly unique whole numbers and texts; a measurement is none."""
    found = identifier_warnings(table())
    assert [warning.split()[1] for warning in found] == ["visit", "patientId", "note"]
    assert 'set subject = "patientId"' in found[1]
    assert "forbidden" in found[1]
    assert not any(str(1000 + 7 * number) in " ".join(found) for number in range(200))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("id", True),
        ("patient_id", True),
        ("PatientID", True),
        ("SSN", True),
        ("e-mail", True),
        ("last_name", True),
        ("patientid", True),
        ("humidity", False),
        ("patient_age", False),
        ("thal", False),
        ("paid", False),
    ],
)
def test_names_are_read_word_by_word(name: str, *, expected: bool) -> None:
    """The last word counts, in every way of writing."""
    frame = pd.DataFrame({name: ["1", "1", "2"]})
    assert bool(identifier_warnings(frame)) is expected


def test_few_or_repeated_values_and_images_are_no_identifiers() -> None:
    """Forty different ages prove nothing; neither do images."""
    assert identifier_warnings(table(40)[["age", "height", "visit"]]) == ()
    assert identifier_warnings(table()[["age", "label"]]) == ()
    assert identifier_warnings(IMAGES) == ()
