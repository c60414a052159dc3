"""What the trusted preparation leaves: cleaned, without forbidden columns, with subjects."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.configuration import DataSet
from tacit.client.preparation import PREPARED_NAME, REPORT_NAME, SPLIT_NAME, PrepareJob, Report
from tacit.client.prepare import prepare_data
from tacit.core.artifacts import load_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import DataError
from tacit.core.specification import (
    ColumnKind,
    ColumnSpec,
    DataSpec,
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    canonical_json,
)
from tacit.learning.prepared import load_prepared
from tacit.privacy.cleaning import Cleaning, derive_column_key, keyed_hash
from tests.client.fakes import RUN, make_config, make_node, make_spec, offer

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
RULES = from_plain(
    {
        "exclude": {"consent": ["no"]},
        "require": ["age"],
        "clip": {"age": [0.0, 100.0]},
        "hash": ["patient"],
        "drop": ["consent"],
    },
    Cleaning,
)
NUMBER = ColumnSpec(type=ColumnKind.NUMBER, range=(0.0, 1e9))


def rows(count: int = 120) -> list[dict[str, str]]:
    """Forty patients of three rows each; every twelfth row says no, every tenth has no age."""
    return [
        {
            "age": "" if n % 10 == 0 else str(20 + n % 100),
            "ssn": str(770000 + n),
            "patient": f"Name{n % 40}",
            "consent": "no" if n % 12 == 1 else "yes",
            "label": str(n % 2),
        }
        for n in range(count)
    ]


def job_of(folder: Path, *, unit: PrivacyUnit = PrivacyUnit.RECORD, **data: Any) -> PrepareJob:
    table = rows()
    lines = [",".join(table[0]), *(",".join(row.values()) for row in table)]
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    privacy = PrivacySpec(
        mode=PrivacyMode.RECORD_LOCAL,
        clip=1.0,
        epsilon=1.0,
        delta=1e-3,
        unit=unit,
        most_records=8 if unit is PrivacyUnit.SUBJECT else 1,
    )
    declared: dict[str, Any] = {"forbidden": ("ssn",), "subject": "patient", "clean": RULES}
    return PrepareJob(
        specification=canonical_json(make_spec(privacy=privacy)),
        data_set=DataSet(path=folder / "data.csv", records=300, **(declared | data)),
        folder=folder,
        split_key=KEY,
    )


def test_a_job_survives_the_way_to_its_process(tmp_path: Path) -> None:
    """Every rule of the owner reaches the process that applies it."""
    job = job_of(tmp_path)
    assert PrepareJob.parse(job.encode()) == job


def test_records_take_part_as_the_rules_say(tmp_path: Path) -> None:
    """Excluded and incomplete records are neither trained on nor held out; the note says so."""
    prepare_data(job := job_of(tmp_path))
    sets = load_prepared(tmp_path / PREPARED_NAME)
    taken = [n for n, row in enumerate(rows(), start=1) if row["age"] and row["consent"] == "yes"]
    split = json.loads((tmp_path / SPLIT_NAME).read_text())
    assert sorted(split["train_rows"] + split["validation_rows"]) == taken
    assert len(sets.train) + len(sets.validation) == len(taken) == 98
    assert split["cleaning_sha256"] == job.data_set.clean.digest()
    ages = [min(float(rows()[row - 1]["age"]), 100.0) for row in split["train_rows"]]
    assert sets.train.features[:, 0].tolist() == np.float32(np.array(ages) / 100.0).tolist()
    assert Report.load(tmp_path).cleaning == (
        "22 of 120 records take no part (no value in age: 12; consent is excluded: 10)",
        "age: clipped: 16 cells",
    )


@pytest.mark.parametrize("column", ["ssn", "patient", "consent"])
def test_a_column_that_is_gone_cannot_become_a_tensor(tmp_path: Path, column: str) -> None:
    """The second lock: without any judgement, a contract that names it finds no such column."""
    job = job_of(tmp_path)
    data = DataSpec(classes=("0", "1"), columns={column: NUMBER})
    greedy = replace(job, specification=canonical_json(make_spec(data=data)))
    with pytest.raises(DataError) as caught:
        prepare_data(greedy)
    assert caught.value.code == "E-DATA-COLUMNS"
    assert caught.value.problems == (f"{column}: missing",)
    assert not (tmp_path / PREPARED_NAME).exists()
    allowed = replace(greedy, data_set=DataSet(path=job.data_set.path, records=300))
    if column == "ssn":  # the positive control: unforbidden, its values are there
        prepare_data(allowed)
        features = load_prepared(tmp_path / PREPARED_NAME).train.features
        assert np.isclose(features[0, 0] * 1e9, 770000, rtol=1e-3)


def test_no_file_of_a_run_holds_a_forbidden_value_or_a_name(tmp_path: Path) -> None:
    """The prepared set is the age alone; no file holds a name, or a hash of one."""
    prepare_data(job_of(tmp_path, unit=PrivacyUnit.SUBJECT))
    column_key = derive_column_key("patient", key=KEY)
    hashes = [keyed_hash(f"Name{n}", column_key=column_key).encode() for n in range(40)]
    for name in (PREPARED_NAME, SPLIT_NAME, REPORT_NAME):
        content = (tmp_path / name).read_bytes()
        assert b"ssn" not in content
        assert b"Name" not in content
        assert not any(each in content for each in hashes)
    assert load_prepared(tmp_path / PREPARED_NAME).feature_names == ("age",)


def test_subjects_are_numbered_where_the_unit_is_the_subject(tmp_path: Path) -> None:
    """The engine finds whose record each one is; no subject is on both sides."""
    prepare_data(job_of(tmp_path, unit=PrivacyUnit.SUBJECT))
    arrays = load_arrays(tmp_path / PREPARED_NAME)
    split = json.loads((tmp_path / SPLIT_NAME).read_text())
    patients: dict[str, set[str]] = {}
    for side in ("train", "validation"):
        names = [rows()[row - 1]["patient"] for row in split[f"{side}_rows"]]
        order = list(dict.fromkeys(names))
        assert arrays[f"{side}_subjects"].dtype == np.int64
        assert arrays[f"{side}_subjects"].tolist() == [order.index(name) for name in names]
        patients[side] = set(names)
    assert not patients["train"] & patients["validation"]


def test_subjects_stay_out_where_the_unit_is_the_record(tmp_path: Path) -> None:
    """The split still follows them, and the owner is told what the unit leaves out."""
    prepare_data(job_of(tmp_path))
    assert not {"train_subjects", "validation_subjects"} & set(
        load_arrays(tmp_path / PREPARED_NAME)
    )
    assert any(
        "subjects (column patient) have several" in w for w in Report.load(tmp_path).warnings
    )


def test_the_unit_subject_without_a_column_is_refused(tmp_path: Path) -> None:
    """Each record as its own subject would be a claim that nobody made."""
    with pytest.raises(DataError, match="E-DATA-SUBJECT"):
        prepare_data(job_of(tmp_path, unit=PrivacyUnit.SUBJECT, subject=""))


def test_an_identifier_is_warned_of_in_the_log_and_never_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run at record level on a table with a patient column: the node says so, and goes on."""
    caplog.set_level(logging.WARNING, logger="tacit.client.runs")
    rules = Cleaning(require=("age",), clip={"age": (0.0, 100.0)})
    job = job_of(tmp_path, subject="", forbidden=(), clean=rules)
    config = replace(make_config(tmp_path), data_sets={"default": job.data_set})
    node, _ = make_node(tmp_path, config, prepare=prepare_data)
    assert offer(node, make_spec()).verdict.value == "approved"
    told = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in told] == ["ssn", "patient"]
    assert 'set subject = "patient"' in told[1]
    report = Report.load(tmp_path / "runs" / RUN)
    assert list(report.warnings) == told
    assert "7700" not in " ".join(told)
    assert "Name" not in " ".join(told)


def test_a_missing_or_damaged_report_says_nothing(tmp_path: Path) -> None:
    """The report is for reading only: without it nothing else changes."""
    assert Report.load(tmp_path) == Report()
    (tmp_path / REPORT_NAME).write_text("{")
    assert Report.load(tmp_path) == Report()
    Report(warnings=("a",)).save(tmp_path)
    assert Report.load(tmp_path) == Report(warnings=("a",))
