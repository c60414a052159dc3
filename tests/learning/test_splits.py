"""A record's side of the split follows from the record and the seed, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tacit.core.errors import DataError
from tacit.learning.contract import Prepared
from tacit.learning.prepared import divide, load_prepared, save_prepared
from tacit.learning.splits import record_hashes, save_split, split_records

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))


def subset(prepared: Prepared, rows: np.ndarray) -> Prepared:
    return Prepared(
        features=prepared.features[rows],
        labels=prepared.labels[rows],
        feature_names=prepared.feature_names,
        row_numbers=prepared.row_numbers[rows],
    )


def test_every_record_has_one_side_and_the_share_is_as_asked(prepared: Prepared) -> None:
    """Two hundred records at 0.2: within four deviations of forty."""
    split = split_records(prepared, fraction=0.2, seed=1)
    assert sorted([*split.train, *split.validation]) == list(range(200))
    assert abs(len(split.validation) - 40) < 4 * np.sqrt(200 * 0.2 * 0.8)


def test_removing_a_record_moves_no_other(prepared: Prepared) -> None:
    """The add/remove relation: neighbours' training sets differ in that record alone."""
    whole = split_records(prepared, fraction=0.3, seed=1)
    for removed in (0, 17, 199):
        rest = np.delete(np.arange(200), removed)
        split = split_records(subset(prepared, rest), fraction=0.3, seed=1)
        expected = [row for row in whole.train if row != removed]
        assert rest[split.train].tolist() == expected


def test_the_order_of_records_changes_no_side(prepared: Prepared) -> None:
    """A shuffled file gives the same two sets."""
    order = np.random.default_rng(3).permutation(200)
    split = split_records(subset(prepared, order), fraction=0.3, seed=1)
    expected = split_records(prepared, fraction=0.3, seed=1)
    assert sorted(order[split.train]) == expected.train.tolist()


def test_seeds_give_splits_of_their_own(prepared: Prepared) -> None:
    """The same seed repeats, another differs."""
    one, again, other = (split_records(prepared, fraction=0.5, seed=s) for s in (1, 1, 2))
    assert one.train.tolist() == again.train.tolist() != other.train.tolist()


def test_copies_of_a_record_stay_together(prepared: Prepared) -> None:
    """A copy in validation of a record in training would be scored as unseen."""
    doubled = subset(prepared, np.repeat(np.arange(200), 2))
    split = split_records(doubled, fraction=0.3, seed=1)
    assert not set(split.train // 2) & set(split.validation // 2)


def test_subjects_stay_together(prepared: Prepared) -> None:
    """No subject has records on both sides."""
    subjects = [f"patient {row % 40}" for row in range(200)]
    split = split_records(prepared, fraction=0.3, seed=1, subjects=subjects)
    assert split.by_subject
    assert not set(split.train % 40) & set(split.validation % 40)


def test_one_subject_per_record_is_asked_for(prepared: Prepared) -> None:
    """A list of another length is misuse."""
    with pytest.raises(ValueError, match="one subject per record"):
        split_records(prepared, fraction=0.3, seed=1, subjects=["a"])


def test_without_a_fraction_all_records_train(prepared: Prepared) -> None:
    """A fraction of zero holds nothing out."""
    assert len(split_records(prepared, fraction=0.0, seed=1).train) == 200


def test_a_split_that_leaves_nothing_to_train_on_is_refused(prepared: Prepared) -> None:
    """One record that falls to validation is not silently trained on."""
    with pytest.raises(DataError, match="E-SPLIT-EMPTY"):
        split_records(subset(prepared, np.arange(1)), fraction=1 - 1e-12, seed=1)


def test_the_note_holds_keyed_hashes_only(prepared: Prepared, tmp_path: Path) -> None:
    """split.json names records by hashes that mean nothing without the owner's key."""
    split = split_records(prepared, fraction=0.2, seed=1)
    save_split(tmp_path / "split.json", split, prepared, key=KEY)
    document = json.loads((tmp_path / "split.json").read_text())
    hashes = record_hashes(prepared, key=KEY)
    assert document["train"] == [hashes[row] for row in split.train]
    assert document["validation_rows"] == (split.validation + 1).tolist()
    assert (document["seed"], document["fraction"]) == (1, 0.2)
    assert not set(hashes) & set(record_hashes(prepared, key=bytes(32)))


def test_a_prepared_file_gives_back_what_was_saved(prepared: Prepared, tmp_path: Path) -> None:
    """Both sides, the declared bound and the names survive the file."""
    sets = divide(prepared, split_records(prepared, fraction=0.2, seed=1), records=300)
    path = tmp_path / "prepared.safetensors"
    save_prepared(path, sets)
    loaded = load_prepared(path)
    assert loaded.records == 300
    for name in ("train", "validation"):
        ours, theirs = getattr(sets, name), getattr(loaded, name)
        assert ours.features.tobytes() == theirs.features.tobytes()
        assert ours.labels.tolist() == theirs.labels.tolist()


def test_more_records_than_declared_are_refused(prepared: Prepared) -> None:
    """The bound scales delta and every step: the file may not outgrow it."""
    split = split_records(prepared, fraction=0.2, seed=1)
    with pytest.raises(DataError, match="E-DATA-MORE-THAN-DECLARED"):
        divide(prepared, split, records=199)


def test_a_file_of_something_else_is_refused(tmp_path: Path, prepared: Prepared) -> None:
    """Weights in place of data are told apart."""
    sets = divide(prepared, split_records(prepared, fraction=0.2, seed=1), records=300)
    path = tmp_path / "other.safetensors"
    save_prepared(path, sets)
    content = path.read_bytes().replace(b"train_labels", b"other_labels")
    path.write_bytes(content)
    with pytest.raises(DataError, match="E-PREPARED-MALFORMED"):
        load_prepared(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from("abcdefgh"), min_size=200, max_size=200), seed=st.integers())
def test_no_subject_is_cut_and_numbers_group_as_names(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, names: list[str], seed: int
) -> None:
    """From the prepared file: numbers are dense on each side, and group records as names do."""
    try:
        split = split_records(prepared, fraction=0.3, seed=seed, subjects=names)
    except DataError:
        return  # all eight fell to validation
    path = tmp_path_factory.mktemp("sets") / "prepared.safetensors"
    save_prepared(path, divide(prepared, split, records=300, subjects=names))
    loaded = load_prepared(path)
    sides = [[names[row] for row in side] for side in (split.train, split.validation)]
    assert not set(sides[0]) & set(sides[1])
    for side, examples in zip(sides, (loaded.train, loaded.validation), strict=True):
        assert examples.subjects is not None
        assert examples.subjects.dtype == np.int64
        order = list(dict.fromkeys(side))
        assert examples.subjects.tolist() == [order.index(name) for name in side]


def test_subjects_need_a_split_that_follows_them(prepared: Prepared) -> None:
    """A split by record may cut a subject in two, so it carries no subjects."""
    split = split_records(prepared, fraction=0.3, seed=1)
    with pytest.raises(ValueError, match="split by subject"):
        divide(prepared, split, records=300, subjects=["a"] * 200)
    plain = divide(prepared, split, records=300)
    assert (plain.train.subjects, plain.validation.subjects) == (None, None)


def test_subjects_of_another_length_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    """A damaged file does not reach the engine with somebody else's numbers."""
    names = [f"patient {row % 40}" for row in range(200)]
    split = split_records(prepared, fraction=0.3, seed=1, subjects=names)
    sets = divide(prepared, split, records=300, subjects=names)
    short = replace(sets.train, subjects=np.zeros(3, dtype=np.int64))
    path = tmp_path / "prepared.safetensors"
    save_prepared(path, replace(sets, train=short))
    with pytest.raises(DataError, match="E-PREPARED-MALFORMED"):
        load_prepared(path)
    save_prepared(path, replace(sets, train=replace(sets.train, subjects=None)))
    with pytest.raises(DataError, match="E-PREPARED-MALFORMED"):
        load_prepared(path)
