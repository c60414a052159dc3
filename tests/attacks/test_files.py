"""Files become records, predictions and models, or an error that says which array or column."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.attacks.files import load_model, load_predictions, load_records
from tacit.core.errors import ConfigError, DataError, UnavailableError
from tests.attacks.desk import MEMBERS, SIDE, SPEC, csv_of, write_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    write_files(path)
    return path


def test_npz_and_csv_give_the_same_records(folder: Path) -> None:
    """Features as the model takes them, or a file that keeps the contract: the same records."""
    direct = load_records(folder / "members.npz", SPEC)
    contract = load_records(folder / "members.csv", SPEC)
    assert np.allclose(direct.examples.features, contract.examples.features, atol=1e-6)
    assert np.array_equal(direct.examples.labels, contract.examples.labels)
    assert contract.rows is not None
    assert contract.rows[0] == 1


def test_numbers_are_sliced_by_their_declared_range(folder: Path) -> None:
    """A slice's ends are public constants of the recipe, never a quantile of the records."""
    records = load_records(folder / "members.csv", SPEC, slices=["x03", "y"])
    texts = records.columns["x03"]
    values = MEMBERS.features[:, 3] * 2 - 1
    assert set(texts) == {"-1 to -0.5", "-0.5 to 0", "0 to 0.5", "0.5 to 1"}
    assert ((texts == "0 to 0.5") == ((values >= 0) & (values < 0.5))).all()
    assert set(records.columns["y"]) == {"no", "yes"}


def test_a_column_that_is_no_category_does_not_slice(tmp_path: Path) -> None:
    """A slice per record would be a list of records."""
    file = tmp_path / "many.npz"
    np.savez(
        file, features=MEMBERS.features, labels=MEMBERS.labels, number=np.arange(SIDE).astype(str)
    )
    with pytest.raises(DataError, match="E-AUDIT-SLICES"):
        load_records(file, SPEC, slices=["number"])
    with pytest.raises(DataError, match="it has features, labels, number"):
        load_records(file, SPEC, slices=["sex"])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"features": MEMBERS.features, "labels": MEMBERS.labels[:9]},
            "labels (n,), got (200, 20)",
        ),
        ({"features": MEMBERS.features, "labels": MEMBERS.labels + 0.5}, "labels as integers"),
        ({"features": np.full((200, 20), "a"), "labels": MEMBERS.labels}, "arrays of numbers"),
        ({"features": np.array([None]), "labels": MEMBERS.labels}, "no NPZ archive of plain arr"),
    ],
)
def test_arrays_that_are_no_records_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    """Wrong lengths, labels that are no classes, text, and objects that would need pickle."""
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match="E-DATA-UNREADABLE") as caught:
        load_records(tmp_path / "bad.npz", SPEC)
    assert said in caught.value.message


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A missing file, another format, a damaged archive, and text that breaks the contract."""
    with pytest.raises(UnavailableError, match="E-DATA-MISSING"):
        load_records(tmp_path / "none.csv", SPEC)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="E-DATA-FORMAT"):
        load_records(tmp_path / "a.xlsx", SPEC)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="E-DATA-UNREADABLE"):
        load_records(tmp_path / "a.npz", SPEC)
    (tmp_path / "a.csv").write_text(csv_of(MEMBERS).replace(",yes", ",maybe"))
    with pytest.raises(DataError, match="E-DATA-CONTRACT"):
        load_records(tmp_path / "a.csv", SPEC)
    (tmp_path / "b.csv").write_text("x00,y\n1,2,3\n")
    with pytest.raises(DataError, match="E-DATA-UNREADABLE") as caught:
        load_records(tmp_path / "b.csv", SPEC)
    assert "client.toml" not in caught.value.hint


def test_predictions_are_read_by_name(tmp_path: Path) -> None:
    """Probabilities or logits, for either side and, if there is one, the population."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=40)
    labels = rng.integers(3, size=40)
    logits = np.log(probabilities) + 1.0  # what is added to all changes nothing
    arrays = {"member_probabilities": probabilities, "nonmember_logits": logits}
    arrays |= {"member_labels": labels, "nonmember_labels": labels}
    np.savez(tmp_path / "p.npz", **arrays)
    subject = load_predictions(tmp_path / "p.npz")
    assert np.allclose(subject.members.outputs.logits + 1.0, subject.non_members.outputs.logits)
    assert (subject.population, subject.target) == (None, None)
    del arrays["nonmember_labels"]
    np.savez(tmp_path / "q.npz", **arrays)
    with pytest.raises(DataError, match="expected nonmember_labels and one of"):
        load_predictions(tmp_path / "q.npz")
    np.savez(tmp_path / "r.npz", labels=labels)
    with pytest.raises(DataError, match="expected the arrays member_probabilities"):
        load_predictions(tmp_path / "r.npz")


def test_a_model_comes_in_evaluation_mode(folder: Path) -> None:
    """Weights of the recipe's own model are loaded; those of another are named, one by one."""
    assert not load_model(folder / "model.safetensors", SPEC).training
    narrow = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, hidden=(8,)))
    with pytest.raises(ConfigError, match="E-MODEL-WEIGHTS"):
        load_model(folder / "model.safetensors", narrow)
    with pytest.raises(ConfigError, match="E-AUDIT-APP"):
        load_model(folder / "model.safetensors", dataclasses.replace(SPEC, model=None))
