"""Files are read as they say they are, and every fault is told without quoting the file."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tacit.core.configuration import from_plain
from tacit.core.errors import DataError, TacitError, UnavailableError
from tacit.core.specification import DataSpec
from tacit.learning.contract import encode
from tacit.learning.loaders import RawImages, Source, load_raw

if TYPE_CHECKING:
    from pathlib import Path


TEXT = "age,blood,male,sick,note\n25,A,1,no,w\n75.0,B,0,yes,x\n?,0.0,true,2,y\n100,A,False,no,z\n"


def code_of(source: Source, data: DataSpec) -> str:
    with pytest.raises(TacitError) as caught:
        load_raw(source, data)
    return caught.value.code


def test_a_csv_file_keeps_its_cells_as_text(
    tmp_path: Path, table_spec: DataSpec, frame: pd.DataFrame
) -> None:
    """Nothing is guessed: no type, no missing value."""
    path = tmp_path / "data.csv"
    path.write_text(TEXT)
    loaded = load_raw(Source(path=path), table_spec)
    assert isinstance(loaded, pd.DataFrame)
    expected = [[str(cell).strip() for cell in row] for row in frame.to_numpy()]
    assert loaded.to_numpy().tolist() == expected


@pytest.mark.parametrize("change", ["gzip", "headerless", "semicolons", "blanks", "mark"])
def test_csv_dialects_give_the_same_table(
    change: str, tmp_path: Path, table_spec: DataSpec
) -> None:
    """Compression, no header, another separator, blanks and a byte order mark."""
    plain, path = tmp_path / "plain.csv", tmp_path / "data.csv"
    plain.write_text(TEXT)
    source = Source(path=path)
    header, _, body = TEXT.partition("\n")
    if change == "gzip":
        source = Source(path=tmp_path / "data.csv.gz")
        source.path.write_bytes(gzip.compress(TEXT.encode()))
    elif change == "headerless":
        path.write_text(body)
        source = Source(path=path, header=False, columns=tuple(header.split(",")))
    elif change == "semicolons":
        path.write_text(TEXT.replace(",", ";"))
        source = Source(path=path, separator=";")
    elif change == "blanks":
        path.write_text(TEXT.replace(",", ", "))
    else:
        path.write_text("\ufeff" + TEXT)
    expected = encode(table_spec, load_raw(Source(path=plain), table_spec))
    actual = encode(table_spec, load_raw(source, table_spec))
    assert actual.features.tobytes() == expected.features.tobytes()


def test_parquet_and_npz_give_the_same_features(tmp_path: Path, table_spec: DataSpec) -> None:
    """The format of the file is not the contract's business."""
    csv, parquet, npz = (tmp_path / f"data.{suffix}" for suffix in ("csv", "parquet", "npz"))
    csv.write_text(TEXT)
    table = load_raw(Source(path=csv), table_spec)
    assert isinstance(table, pd.DataFrame)
    table.to_parquet(parquet)
    np.savez(npz, **{name: table[name].to_numpy().astype(str) for name in table.columns})
    expected = encode(table_spec, table).features
    for path, form in ((parquet, "parquet"), (npz, "npz")):
        raw = load_raw(Source(path=path, format=form), table_spec)
        assert encode(table_spec, raw).features.tobytes() == expected.tobytes()


def test_a_matrix_with_named_columns_is_a_table(tmp_path: Path, table_spec: DataSpec) -> None:
    """x and y in an NPZ file, with the columns named in client.toml."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([[25.0, 1.0], [75.0, 0.0]]), y=np.array([0, 1]))
    source = Source(path=path, format="npz", columns=("age", "male"))
    table = load_raw(source, table_spec)
    assert isinstance(table, pd.DataFrame)
    assert table["age"].tolist() == [25.0, 75.0]
    assert table["sick"].tolist() == [0, 1]


def test_objects_in_an_npz_file_are_never_unpickled(tmp_path: Path, table_spec: DataSpec) -> None:
    """A pickle is refused before it is read."""
    path = tmp_path / "data.npz"
    np.savez(path, age=np.array([{"a": 1}], dtype=object))
    assert code_of(Source(path=path, format="npz"), table_spec) == "E-DATA-UNREADABLE"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "E-DATA-EMPTY"),
        (b"a,b\n1,2,3\n", "E-DATA-UNREADABLE"),
        (b"a,a\n1,2\n", "E-DATA-UNREADABLE"),
        (b"a,b\n1,2\n3\n", "E-DATA-UNREADABLE"),
        (b"a,b\n1,\xff\xfe\n", "E-DATA-UNREADABLE"),
        (b'a,b\n1,"2\n', "E-DATA-UNREADABLE"),
    ],
)
def test_broken_csv_files_are_refused_without_quoting_them(
    content: bytes, code: str, tmp_path: Path, table_spec: DataSpec
) -> None:
    """Empty, ragged both ways, doubled columns, not UTF-8, an open quote."""
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    assert code_of(Source(path=path), table_spec) == code


def test_a_damaged_archive_is_unreadable(tmp_path: Path, table_spec: DataSpec) -> None:
    """A compressed file that ends early is an error of ours."""
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-12])
    assert code_of(Source(path=path), table_spec) == "E-DATA-UNREADABLE"


def test_ragged_rows_are_named_by_number(tmp_path: Path, table_spec: DataSpec) -> None:
    """The owner is told which lines have another number of cells."""
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n3\n4,5\n6,7,8\n")
    with pytest.raises(DataError, match=r"more or fewer in 2 records \(lines 3, 5 of data.csv\)"):
        load_raw(Source(path=path), table_spec)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("age,sick\n5,no\n999,yes\n", (), "1 record (line 3 of data.csv)"),
        ("5,no\n999,yes\n", ("age", "sick"), "1 record (line 2 of data.csv)"),
        ("\nage,sick\n\n5,no\n\n\n999,yes\n", (), "1 record (line 7 of data.csv)"),
        ('age,sick\n5,"no\n"\n999,yes\n888,no\n', (), "2 records (lines 4, 5 of data.csv)"),
        ('age,sick,"a\nb"\n5,no,x\n999,"yes\n",y\n', (), "1 record (line 4 of data.csv)"),
    ],
)
def test_a_message_names_the_line_of_the_file(
    text: str, columns: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    """The number is an editor's: header, empty lines and cells of several lines are counted."""
    path = tmp_path / "data.csv"
    path.write_text(text)
    age = {"age": {"type": "number", "range": [0.0, 100.0]}}
    plain = {"label": "sick", "classes": ["no", "yes"], "columns": age}
    spec = from_plain(plain, DataSpec)
    raw = load_raw(Source(path=path, header=not columns, columns=columns), spec)
    with pytest.raises(DataError) as caught:
        encode(spec, raw, file=path.name)
    assert caught.value.problems == (f"age: outside the declared range: {expected}",)


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_a_file_without_lines_counts_rows_from_one(form: str, tmp_path: Path) -> None:
    """The message says what it counts, whatever index a Parquet file brings along."""
    frame = pd.DataFrame({"x": [0.5, 7.0], "y": ["0", "1"]}, index=["patient-a", "patient-b"])
    path = tmp_path / f"data.{form}"
    if form == "parquet":
        frame.to_parquet(path)
    else:
        np.savez(path, x=frame["x"].to_numpy(), y=frame["y"].to_numpy(dtype=str))
    columns = {"x": {"type": "number", "range": [0.0, 1.0]}}
    spec = from_plain({"label": "y", "classes": ["0", "1"], "columns": columns}, DataSpec)
    with pytest.raises(DataError) as caught:
        encode(spec, load_raw(Source(path=path, format=form), spec), file=path.name)
    place = f"1 record (row 2 of {path.name}; the first is row 1)"
    assert caught.value.problems == (f"x: outside the declared range: {place}",)


@pytest.mark.parametrize(("form", "code"), [("csv", "E-DATA-MISSING"), ("xml", "E-DATA-FORMAT")])
def test_missing_files_and_unknown_formats_are_told(
    form: str, code: str, tmp_path: Path, table_spec: DataSpec
) -> None:
    """What is wrong and what to do, before anything is read."""
    assert code_of(Source(path=tmp_path / "none", format=form), table_spec) == code


@pytest.mark.parametrize("form", ["csv", "parquet", "npz"])
def test_a_file_of_another_format_is_refused(
    form: str, tmp_path: Path, table_spec: DataSpec
) -> None:
    """Noise in place of a file is an error of ours, whatever the reader raises."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 8)
    assert code_of(Source(path=path, format=form), table_spec).startswith("E-DATA")


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path, table_spec: DataSpec) -> None:
    """It exists, but it cannot be opened."""
    with pytest.raises(UnavailableError, match="E-DATA-MISSING"):
        load_raw(Source(path=tmp_path), table_spec)


def save_image(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("L", size, value).save(path)


def test_a_folder_per_class_becomes_images(tmp_path: Path, image_spec: DataSpec) -> None:
    """Folder names are labels; files are read in sorted order; other files are passed over."""
    save_image(tmp_path / "cat" / "b.png", 51)
    save_image(tmp_path / "cat" / "a.png", 102)
    save_image(tmp_path / "dog" / "a.png", 255)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    prepared = encode(image_spec, load_raw(Source(path=tmp_path, format="images"), image_spec))
    assert prepared.features[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2, 1.0])
    assert prepared.labels.tolist() == [0, 0, 1]


def test_broken_and_misshapen_images_are_reported_by_row(
    tmp_path: Path, image_spec: DataSpec
) -> None:
    """Each is named by its place in sorted order."""
    save_image(tmp_path / "cat" / "a.png", 51)
    save_image(tmp_path / "dog" / "a.png", 51, size=(9, 8))
    (tmp_path / "dog" / "b.png").write_bytes(b"not an image")
    raw = load_raw(Source(path=tmp_path, format="images"), image_spec)
    assert isinstance(raw, RawImages)
    assert raw.broken == {"image of another size than declared": (2,), "unreadable image": (3,)}


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 8, 8), (4, 8, 8, 1)])
def test_npz_images_come_in_three_layouts(
    shape: tuple[int, ...], tmp_path: Path, image_spec: DataSpec
) -> None:
    """Without channels, channels first, channels last."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros(shape, dtype=np.uint8), y=np.array(["cat", "dog"] * 2))
    raw = load_raw(Source(path=path, format="npz"), image_spec)
    assert isinstance(raw, RawImages)
    assert raw.pixels.shape == (4, 1, 8, 8)


def test_npz_images_of_another_shape_are_refused(tmp_path: Path, image_spec: DataSpec) -> None:
    """The shapes of what came and what was declared are both told."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((4, 9, 8)), y=np.zeros(4))
    with pytest.raises(DataError, match=r"expected images of shape \(1, 8, 8\)"):
        load_raw(Source(path=path, format="npz"), image_spec)
