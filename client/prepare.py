"""``python -m tacit.client.prepare``: an owner's file becomes a cleaned, split data set.

Reads a job from standard input, applies the run's data contract, splits, writes two files into the
run's folder, and answers with one line of JSON. This is trusted code and no app: it sees the raw
file, so that the worker need not. Errors name columns and row numbers, never a value.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tacit.client.isolation import Confinement, isolate
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME, PrepareJob
from tacit.core.configuration import from_plain
from tacit.core.errors import DataError, TacitError
from tacit.core.specification import DataSpec, RunSpec, TrainingSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.client.configuration import DataSet
    from tacit.learning.loaders import Raw, Source

_MEMORY_BYTES = 64 << 30
_FILE_BYTES = 64 << 30


def prepare_data(job: PrepareJob) -> None:
    """Load, check, encode and split one data set, and write the result into the job's folder.

    Raises:
        DataError: the file does not keep the contract.
        UnavailableError: the file is missing, or the disk is full.
    """
    # pandas loads after confinement, and never in a daemon that imports this module
    from tacit.learning.contract import encode  # noqa: PLC0415
    from tacit.learning.loaders import load_raw  # noqa: PLC0415
    from tacit.learning.prepared import divide, save_prepared  # noqa: PLC0415
    from tacit.learning.splits import save_split, split_records  # noqa: PLC0415

    specification = from_plain(json.loads(job.specification), RunSpec)
    if specification.data is None:
        raise DataError("E-DATA-CONTRACT", "the run declares no data contract")
    data_set = job.data_set
    raw = load_raw(_source(data_set), specification.data)
    prepared = encode(specification.data, raw)
    training = specification.training or TrainingSpec(learning_rate=1.0)
    split = split_records(
        prepared,
        fraction=training.validation_fraction,
        seed=training.seed,
        subjects=_subjects(raw, data_set.subject),
    )
    save_split(job.folder / SPLIT_NAME, split, prepared, key=job.split_key)
    save_prepared(job.folder / PREPARED_NAME, divide(prepared, split, records=data_set.records))


def survey_data(job: PrepareJob) -> dict[str, object]:
    """Load a table and name its columns and the number of its records.

    Raises:
        DataError: the file is not what client.toml says it is.
        UnavailableError: the file cannot be opened.
    """
    from tacit.learning.loaders import RawImages, load_raw  # noqa: PLC0415 - see prepare_data

    raw = load_raw(_source(job.data_set), DataSpec(classes=()))  # a table; no word of it is used
    if isinstance(raw, RawImages):
        raise DataError("E-DATA-FORMAT", "expected a table, got images")
    _subjects(raw, job.data_set.subject)
    return {"columns": [str(name) for name in raw.columns], "records": len(raw)}


def _source(data_set: DataSet) -> Source:
    from tacit.learning.loaders import Source  # noqa: PLC0415 - see prepare_data

    return Source(
        path=data_set.path,
        format=data_set.format.value,
        separator=data_set.separator,
        header=data_set.header,
        columns=data_set.columns,
    )


def _subjects(raw: Raw, column: str) -> Sequence[str] | None:
    if not column:
        return None
    from tacit.learning.loaders import RawImages  # noqa: PLC0415 - see prepare_data

    if isinstance(raw, RawImages) or column not in raw.columns:
        raise DataError(
            "E-DATA-SUBJECT",
            f"expected the subject column {column!r} of client.toml in the data set",
            hint="Correct `subject`, or remove it if each record is another person.",
        )
    return [str(value) for value in raw[column]]


def main() -> int:
    """Do the job on standard input, and answer on standard output."""
    job = PrepareJob.parse(sys.stdin.buffer.read())
    isolate(
        Confinement(
            readable=(job.data_set.path,),
            writable=(job.folder,),
            memory_bytes=_MEMORY_BYTES,
            file_bytes=_FILE_BYTES,
        )
    )
    answer: dict[str, object] = {"code": "", "message": "", "problems": [], "hint": ""}
    try:
        if job.specification:
            prepare_data(job)
        else:
            answer |= survey_data(job)
    except TacitError as error:
        problems = list(getattr(error, "problems", ()))
        answer = {"code": error.code, "message": error.message, "problems": problems}
        answer["hint"] = error.hint
    print(json.dumps(answer))  # noqa: T201 - the daemon reads it
    return 0


if __name__ == "__main__":
    sys.exit(main())
